"""Removal of channels: equal to its mask, on hand-built and on random networks."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxpress import simplify
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import evidence_for
from onnxpress.model.channels import removal as rm
from onnxpress.model.parameter_count import parameters
from tests import grammar, nets
from tests.model.channels.helpers import assert_masked_parity, heads, random_removal

DRAWN = (grammar.networks(), st.sampled_from([0.25, 0.5, 0.75]), st.integers(0, 99))


@settings(max_examples=120, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(*DRAWN)
def test_removal_equals_its_mask_on_random_nets(model: ir.Model, share: float, seed: int) -> None:
    assert_masked_parity(model, share, seed)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(*DRAWN)
def test_removal_equals_its_mask_on_other_random_nets(model: ir.Model, share: float, seed: int) -> None:
    """The same networks are drawn in every run of the test above, others in every run of this one."""
    assert_masked_parity(model, share, seed)


def overlapping() -> ir.Model:
    """Four channels, padded to eight in front of a ConvTranspose with two groups.

    Halves of the four channels are one group of channels, and each of them is a channel of another group.
    """
    net = nets.image_net()
    x = net.relu(net.conv("image", 4))
    wide = net.op("Pad", [x, grammar.ints(net, 0, 2, 0, 0, 0, 2, 0, 0)], 8)
    x = net.relu(net.add(net.conv(x, 8), wide))
    weight, bias = grammar.floats(net, 8, 4, 2, 2, gain=0.35), grammar.floats(net, 8)
    x = net.op("ConvTranspose", [x, weight, bias], 8, kernel_shape=[2, 2], strides=[2, 2], group=2)
    return net.model(net.head(x), nets.IMAGE, ["N", 10])


def test_a_removal_of_overlapping_groups_must_leave_a_channel() -> None:
    model = overlapping()
    evidence = evidence_for(model, None)
    halves, ones = (g for g in evidence.channels.groups if g.name.startswith(evidence.channels.groups[0].name))
    assert (halves.size, ones.size) == (2, 4)
    rest = [j for j in range(4) if ones.slices[0].positions[j][0] in halves.slices[0].positions[1]]
    assert len(rest) == 2
    with pytest.raises(ValueError, match="must leave a channel"):
        rm.remove(evidence.model, evidence.channels, {halves.name: [0], ones.name: rest})
    for seed in range(12):
        removal = random_removal(evidence.channels, 0.75, seed)
        assert removal
        assert_masked_parity(model, 0.75, seed)


def padded_by_zeros(fill: float, add: bool) -> ir.Model:
    """cat([x, zeros_like(x)]): ConstantOfShape of Shape, added to other channels or read by a convolution."""
    net = nets.image_net()
    x = net.relu(net.conv("image", 6))
    zeros = net.op("ConstantOfShape", [net.op("Shape", [x], 0)], 6, value=onnx.helper.make_tensor("v", 1, [1], [fill]))
    wide = net.op("Concat", [x, zeros], 12, axis=1)
    if add:
        wide = net.relu(net.add(wide, net.conv(net.relu(net.conv(x, 8)), 12)))
    return net.model(net.head(net.relu(net.conv(wide, 10))), nets.IMAGE, ["N", 10])


@pytest.mark.parametrize(("fill", "add"), [(0.0, True), (0.0, False), (1.0, False)])
def test_a_constant_of_the_shape_of_a_value_has_its_channels(fill: float, add: bool) -> None:
    model = padded_by_zeros(fill, add)
    assert len(evidence_for(model, None).channels.groups) >= 2
    for seed in range(6):
        assert_masked_parity(model, 0.5, seed)


@pytest.mark.parametrize("build", [nets.residual, nets.mobile, nets.mlp, lambda: nets.residual(norm=True)])
def test_removal_equals_its_mask(build: object) -> None:
    assert_masked_parity(build(), 0.5)  # type: ignore[operator]


def test_a_missing_tie_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the tie at a residual Add the parity test fails."""
    from onnxpress.model.channels import labels

    monkeypatch.setattr(labels.Flow, "tie", lambda self, a, b: None)
    with pytest.raises((AssertionError, InputProblem)):  # wrong values, or a wrong shape
        assert_masked_parity(nets.residual(), 0.5)


def test_a_missing_link_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of the scores and heads of the values must be removed together."""
    from onnxpress.model.channels import labels

    model = heads()
    assert_masked_parity(model, 0.5)
    monkeypatch.setattr(labels.Flow, "link", lambda self, p, members: None)
    with pytest.raises((AssertionError, InputProblem)):  # wrong values, or a wrong shape
        assert_masked_parity(model, 0.5)


def test_a_shared_weight_remains_shared() -> None:
    net = nets.image_net()
    stem = [net.constant(net.rng.standard_normal((16, 3, 3, 3)).astype(np.float32)) for _ in range(1)]
    sides = [net.relu(net.op("Conv", ["image", *stem], 16, pads=[p] * 4)) for p in (0, 1)]
    pooled = [net.op("GlobalAveragePool", [s], 16) for s in sides]
    model = net.model(net.head(net.add(*pooled), pooled=False, size=1), nets.IMAGE, ["N", 10])
    evidence = evidence_for(model, None)
    (group,) = evidence.channels.groups
    cut = rm.remove(evidence.model, evidence.channels, {group.name: [0, 3]})
    assert [
        v.shape.numpy()[0] for v in cut.graph.initializers.values() if v.shape is not None and len(v.shape) == 4
    ] == [14]
    assert_masked_parity(model, 0.5)


def test_shared_weight_is_cloned() -> None:
    """Two readers of one initializer: narrowing one must not narrow the other."""
    net = nets.image_net()
    x = net.relu(net.conv("image", 16))
    weight = net.constant((net.rng.standard_normal((16, 16, 1, 1)) / 4).astype(np.float32))
    a = net.relu(net.op("Conv", [x, weight], 16))
    b = net.op("Conv", [a, weight], 16)
    model = net.model(net.head(b), nets.IMAGE, ["N", 10])
    assert_masked_parity(model, 0.5)


def test_heads_of_cosine_attention_are_removed_whole() -> None:
    """Queries and keys divided by their norms, which are expanded to a target concatenated from sizes (Swin v2 as torch
    exports it).
    """
    net = nets.Net()
    heads, wide, width = 4, 8, 32
    net.widths["tokens"] = width

    def product(x: str, size: int) -> str:
        weight = net.constant(
            (net.rng.standard_normal((net.widths[x], size)) / np.sqrt(net.widths[x])).astype(np.float32)
        )
        return net.op("MatMul", [x, weight], size)

    def split(x: str) -> str:
        x = net.op("Reshape", [x, net.constant(np.array([0, 0, heads, wide]), net.name("target"))], wide)
        return net.op("Transpose", [x], wide, perm=[0, 2, 1, 3])

    q, k, v = (split(product("tokens", heads * wide)) for _ in range(3))
    batch = net.op("Gather", [net.op("Shape", [q], 1), net.constant(np.array([0]), "zero")], 1)
    length = net.op("Gather", [net.op("Shape", [q], 1), net.constant(np.array([2]), "two")], 1)
    sizes = [batch, net.constant(np.array([heads]), "heads"), length, net.constant(np.array([wide]), "wide")]

    def unit(x: str) -> str:
        norm = net.op("ReduceL2", [x], 1, axes=[3], keepdims=1)
        return net.op("Div", [x, net.op("Expand", [norm, net.op("Concat", sizes, 1, axis=0)], wide)], wide)

    scores = net.op(
        "Softmax", [net.op("MatMul", [unit(q), net.op("Transpose", [unit(k)], wide, perm=[0, 1, 3, 2])], 1)], 1, axis=-1
    )
    y = net.op("Transpose", [net.op("MatMul", [scores, v], wide)], wide, perm=[0, 2, 1, 3])
    y = net.op("Reshape", [y, net.constant(np.array([0, 0, heads * wide]), "back")], heads * wide)
    model = net.model(product(y, 5), {"tokens": ["N", "T", width]}, ["N", "T", 5])
    data = nets.samples(model, 3, sequence=6)
    refused = evidence_for(model, data).channels.refused
    assert [r for r in refused if "Expand" in r.reason], "a constant within a concatenated target would not follow"
    evidence = evidence_for(simplify(model).model, data)
    assert not [r for r in evidence.channels.refused if "Expand" in r.reason]
    one = next(g for g in evidence.channels.groups if g.size == heads)
    pruned = rm.remove(evidence.model, evidence.channels, {one.name: [1, 2]})
    masked = rm.mask(evidence.model, evidence.channels, {one.name: [1, 2]})
    np.testing.assert_allclose(nets.outputs(pruned, data), nets.outputs(masked, data), rtol=1e-4, atol=1e-5)
    assert parameters(pruned) < 0.6 * parameters(evidence.model)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.75])
@pytest.mark.parametrize(("width", "groups"), [(16, 2), (24, 3)])
def test_groups_after_a_shuffle_lose_equally_many_channels(width: int, groups: int, share: float) -> None:
    """ShuffleNet: the shuffle and the groups after it arrange the same channels in boxes of different shapes."""
    net = nets.image_net()
    x = net.relu(net.conv("image", width, 1, group=1))
    shape, back = (
        net.constant(np.array(s, np.int64), "to") for s in ([0, groups, width // groups, 8, 8], [0, width, 8, 8])
    )
    x = net.op("Transpose", [net.op("Reshape", [x, shape], width)], width, perm=[0, 2, 1, 3, 4])
    x = net.depthwise(net.op("Reshape", [x, back], width))
    x = net.relu(net.conv(x, width, 1, group=groups))
    model = net.model(net.head(x), nets.IMAGE, ["N", 10])
    for seed in range(4):
        assert_masked_parity(model, share, seed)
