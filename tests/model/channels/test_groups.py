"""Channel coupling and removal: a removal must equal its mask, on hand-built and on random networks."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxpress import simplify
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import evidence_for
from onnxpress.model import read
from onnxpress.model.channels import groups as ch
from onnxpress.model.channels import removal as rm
from tests import grammar, nets


def removal_of(facts: ch.Channels, share: float, seed: int = 0) -> dict[str, list[int]]:
    rng = np.random.default_rng(seed)
    return {
        g.name: sorted(rng.choice(g.size, max(1, min(g.size - 1, round(g.size * share))), replace=False).tolist())
        for g in facts.groups
        if g.size > 1
    }


def assert_masked_parity(model: ir.Model, share: float, seed: int = 0) -> None:
    data = nets.samples(model, 4)
    evidence = evidence_for(model, data)
    facts = evidence.channels
    removal = removal_of(facts, share, seed)
    cut, masked = rm.remove(evidence.model, facts, removal), rm.mask(evidence.model, facts, removal)
    np.testing.assert_allclose(nets.outputs(cut, data), nets.outputs(masked, data), rtol=1e-4, atol=1e-5)
    if removal:
        assert read.parameters(cut) < read.parameters(evidence.model)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(grammar.networks(), st.sampled_from([0.25, 0.5, 0.75]), st.integers(0, 99))
def test_removal_equals_its_mask_on_random_nets(model: ir.Model, share: float, seed: int) -> None:
    assert_masked_parity(model, share, seed)


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


def heads(heads: int = 3, inner: int = 4, scale: str = "constant") -> ir.Model:
    """Multi-head self-attention between two layers; scale: a constant, or computed from a size."""
    net = nets.Net(0)
    net.widths["tokens"], width = 6, heads * inner
    q, k, v = (
        net.op(
            "Transpose",
            [net.op("Reshape", [grammar.dense(net, "tokens", width), grammar.ints(net, 0, 0, heads, inner)], 0)],
            0,
            perm=p,
        )
        for p in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    )
    by = net.constant(np.array(inner, np.float32))
    if scale != "constant":
        size = net.op("Gather", [net.op("Shape", [q], 0), net.constant(np.array(3))], 0)
        by = net.op("Sqrt", [net.op("Cast", [size], 0, to=1)], 0)
    scores = net.op("Softmax", [net.op("Div", [net.op("MatMul", [q, k], 0), by], 0)], 0, axis=-1)
    mixed = net.op("Transpose", [net.op("MatMul", [scores, v], 0)], 0, perm=[0, 2, 1, 3])
    flat = net.op("Reshape", [mixed, grammar.ints(net, 0, 0, width)], width)
    return net.model(grammar.dense(net, flat, 5), {"tokens": ["N", "L", 6]}, ["N", "L", 5])


def test_heads_and_their_dimensions_are_groups() -> None:
    facts = evidence_for(heads(), None).channels
    assert [(g.size, g.block, g.internal) for g in facts.groups] == [(3, 4, True), (4, 3, True), (4, 3, True)]
    assert all(r.reason.startswith("graph output") for r in facts.refused) and len(facts.refused) == 1


def test_a_size_used_in_a_computation_stays() -> None:
    """1/sqrt(d) computed from the shape: fewer dimensions of query and key would change the scale."""
    model = heads(scale="computed")
    facts = evidence_for(model, None).channels
    assert [(g.size, g.block) for g in facts.groups] == [(3, 4), (4, 3)], "heads, and the dimensions of the values"
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


def test_residual_stream_and_stem_are_one_group() -> None:
    facts = evidence_for(nets.residual(width=16, blocks=2), None).channels
    stream = [g for g in facts.groups if not g.internal]
    assert [g.size for g in stream] == [16]
    assert len(stream[0].producers) == 3
    assert [g.size for g in facts.groups if g.internal] == [16, 16]


def test_output_channels_stay_with_a_reason() -> None:
    facts = evidence_for(nets.residual(), None).channels
    assert any("graph output" in r.reason for r in facts.refused)


def test_grouped_convolution_loses_whole_groups_or_one_position_of_each() -> None:
    net = nets.image_net()
    x = net.relu(net.conv("image", 16))
    x = net.relu(net.conv(x, 32, group=4))
    model = net.model(net.head(x), nets.IMAGE, ["N", 10])
    evidence = evidence_for(model, None)
    facts = evidence.channels
    assert [(g.size, g.block) for g in facts.groups] == [(4, 8), (4, 4), (8, 4)]
    cut = rm.remove(evidence.model, facts, {facts.groups[0].name: [1], facts.groups[2].name: [0, 5]})
    conv = [n for n in cut.graph if n.op_type == "Conv"][1]
    assert read.int_attribute(conv, "group", 1) == 3
    assert conv.inputs[1].const_value.shape.numpy() == (18, 4, 3, 3)  # type: ignore[union-attr]
    assert_masked_parity(model, 0.5)


def test_unknown_operator_freezes() -> None:
    net = nets.image_net()
    x = net.op("LpNormalization", [net.conv("image", 16)], 16, axis=1)
    model = net.model(net.head(x), nets.IMAGE, ["N", 10])
    facts = evidence_for(model, None).channels
    assert not facts.groups
    assert any("LpNormalization" in r.reason for r in facts.refused)


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
    assert read.parameters(pruned) < 0.6 * read.parameters(evidence.model)


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
