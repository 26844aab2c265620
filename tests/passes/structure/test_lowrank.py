"""Low-rank factors: exact at full rank, optimal for the inputs, valid for every operator attribute."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.model import read
from onnxpress.model.counts import macs
from onnxpress.model.parameter_count import parameters
from onnxpress.passes.core.contract import Action, proposals
from onnxpress.passes.structure import lowrank as lr
from onnxpress.passes.structure.factors import MATRIX, POINTWISE, SPATIAL, find_layers
from onnxpress.passes.structure.lowrank import LOWRANK, LowRankOptions, known_curves, plan_lowrank
from tests import nets

NONE = {"refit": "none"}


def prepared(model: ir.Model, count: int = 24) -> Evidence:
    return evidence_for(model, nets.samples(model, count))


def full(evidence: Evidence, form: str | None = None) -> list[Action]:
    """Every layer at its full rank, in one form where it has several."""
    found = {n: (f, c.full_rank) for (n, f), c in known_curves(evidence).items() if form in (None, f)}
    return [{"node": n, "rank": r, "form": f} for n, (f, r) in found.items()]


def assert_same(evidence: Evidence, actions: list[Action]) -> None:
    assert actions
    done = LOWRANK.apply(evidence, [*actions, NONE]).model
    fresh = nets.samples(evidence.model, 5, seed=9)
    wanted = nets.outputs(evidence.model, fresh)
    np.testing.assert_allclose(nets.outputs(done, fresh), wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def dense_net(**flags: object) -> ir.Model:
    """Gemm with the given flags, Relu, MatMul on rows."""
    net = nets.Net()
    rng = net.rng
    shape = (32, 48) if flags.get("transB") else (48, 32)
    inputs = ["rows", net.constant((rng.standard_normal(shape) / 6).astype(np.float32))]
    inputs.append(net.constant(rng.standard_normal(32).astype(np.float32), "b"))
    x = net.relu(net.op("Gemm", inputs, 32, **flags))
    out = net.op("MatMul", [x, net.constant((rng.standard_normal((32, 40)) / 6).astype(np.float32))], 40)
    return net.model(out, {"rows": ["N", 48]}, ["N", 40])


def conv_net(**attributes: object) -> ir.Model:
    net = nets.image_net(channels=3)
    x = net.relu(net.conv("image", 12))
    weight = net.constant((net.rng.standard_normal((16, 12, 3, 3)) / 8).astype(np.float32))
    bias = net.constant(net.rng.standard_normal(16).astype(np.float32), "b")
    x = net.relu(net.op("Conv", [x, weight, bias], 16, kernel_shape=[3, 3], **attributes))
    return net.model(net.head(x), nets.IMAGE, ["N", 10])


@pytest.mark.parametrize("flags", [{}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0, "transB": 1}, {"alpha": -3.0}])
def test_gemm_flags_are_kept(flags: dict[str, object]) -> None:
    evidence = prepared(dense_net(**flags))
    assert_same(evidence, full(evidence))


@pytest.mark.parametrize("form", [POINTWISE, SPATIAL])
@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 1, 1, 1]},
        {"pads": [0, 1, 2, 0], "strides": [2, 1]},
        {"pads": [2, 1, 2, 1], "dilations": [2, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [1, 2]},
        {"auto_pad": "VALID"},
    ],
)
def test_conv_attributes_are_divided_between_the_factors(form: str, attributes: dict[str, object]) -> None:
    evidence = prepared(conv_net(**attributes))
    actions = [d for d in full(evidence, form) if d["form"] == form]
    assert_same(evidence, actions)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(nets.random_nets(), st.sampled_from([POINTWISE, SPATIAL, MATRIX, None]))
def test_full_rank_keeps_the_outputs(model: ir.Model, form: str | None) -> None:
    evidence = prepared(model, 6)
    actions = full(evidence, form) or full(evidence)
    assert_same(evidence, actions)


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_the_error_curve_predicts_the_lost_power(rank: int) -> None:
    """Squared error of the layer's product with its inputs, without bias, relative to the power of the product."""
    net = nets.Net(3)
    mixed = (net.rng.standard_normal((24, 24)) @ np.diag(1.0 / np.arange(1, 25))).astype(np.float32)
    x = net.op("MatMul", ["rows", net.constant(mixed)], 24)
    out = net.op("MatMul", [x, net.constant((net.rng.standard_normal((24, 16)) / 5).astype(np.float32))], 16)
    evidence = prepared(net.model(out, {"rows": ["N", 24]}, ["N", 16]), 200)
    name = f"n_{out}"
    curve = known_curves(evidence)[name, MATRIX]
    done = LOWRANK.apply(evidence, [{"node": name, "rank": rank, "form": MATRIX}, NONE]).model
    now, then = (nets.outputs(m, evidence.samples()).astype(np.float64) for m in (done, evidence.model))
    found = ((now - then) ** 2).sum() / (then**2).sum()
    assert found == pytest.approx(curve.error[rank], rel=1e-2, abs=1e-5)
    weight = read.constant(next(n for n in evidence.model.graph if n.name == name).inputs[1])
    assert weight is not None
    u, s, v = np.linalg.svd(weight, full_matrices=False)
    plain = (u[:, :rank] * s[:rank]) @ v[:rank]
    rows = np.concatenate([b[x] for b in evidence.stream([x])]).astype(np.float64)
    blind = ((rows @ plain - rows @ weight) ** 2).sum() / (then**2).sum()
    assert found < blind * (1 + 1e-6), "whitening must not lose to the plain singular values"


def test_refit_does_not_increase_the_error_on_new_samples() -> None:
    evidence = prepared(nets.residual(width=32), 48)
    actions = [
        {"node": n, "rank": max(1, c.full_rank // 4), "form": f}
        for (n, f), c in known_curves(evidence).items()
        if f == POINTWISE
    ]
    fresh = nets.samples(evidence.model, 24, seed=5)
    wanted = nets.outputs(evidence.model, fresh)
    error = {}
    for mode in ("none", "least-squares"):
        done = LOWRANK.apply(evidence, [*actions, {"refit": mode}]).model
        error[mode] = float(((nets.outputs(done, fresh) - wanted) ** 2).mean())
    assert error["least-squares"] < error["none"]


def test_shared_weights_are_factored_for_all_layers_and_stay_shared() -> None:
    net = nets.image_net()
    x = net.relu(net.conv("image", 32))
    weight = net.constant((net.rng.standard_normal((32, 32, 3, 3)) / 17).astype(np.float32))
    for stride in (1, 2):
        x = net.relu(net.op("Conv", [x, weight], 32, kernel_shape=[3, 3], pads=[1] * 4, strides=[stride] * 2))
    evidence = prepared(net.model(net.head(x), nets.IMAGE, ["N", 10]))
    site = next(s for s in find_layers(evidence.model)[0] if len(s.nodes) == 2)
    assert_same(evidence, [{"node": site.name, "rank": 32, "form": POINTWISE}])
    done = LOWRANK.apply(evidence, [{"node": site.name, "rank": 8, "form": POINTWISE}]).model
    users = [n for n in done.graph if n.name in site.nodes]
    assert users[0].inputs[1] is users[1].inputs[1]
    assert weight not in done.graph.initializers


def test_a_weight_with_other_readers_is_refused() -> None:
    """Such as an embedding that is also the last layer's weight."""
    net = nets.Net()
    table = net.constant(np.random.default_rng(0).standard_normal((40, 24)).astype(np.float32))
    x = net.op("Add", [net.op("MatMul", ["rows", table], 24), net.op("ReduceMean", [table], 24, axes=[0])], 24)
    sites, refused = find_layers(prepared(net.model(x, {"rows": ["N", 40]}, ["N", 24])).model)
    assert not sites
    assert "shared" in refused[0].reason


def test_grouped_layers_and_computed_weights_are_refused() -> None:
    net = nets.image_net()
    x = net.conv(net.relu(net.conv("image", 8)), 8, group=2)
    y = net.op("MatMul", [x, x], 8)
    reasons = {r.reason for r in find_layers(prepared(net.model(net.head(y), nets.IMAGE, ["N", 10])).model)[1]}
    assert reasons == {"grouped convolution", "its weight is not a constant"}


def test_size_saves_the_requested_share_of_the_weights() -> None:
    evidence = prepared(nets.residual(width=32, blocks=2))
    actions, _ = plan_lowrank(evidence, LowRankOptions(ratio=0.4, goal="size"))
    sizes = {s.name: s.weight.size for s in find_layers(evidence.model)[0]}
    done = LOWRANK.apply(evidence, [*actions, NONE]).model
    saved = parameters(evidence.model) - parameters(done)
    assert 0.4 * sum(sizes.values()) <= saved <= 0.6 * sum(sizes.values())


def test_energy_and_rank_hold_for_every_layer() -> None:
    evidence = prepared(nets.residual(width=32, blocks=2))
    curves = known_curves(evidence)
    actions, _ = plan_lowrank(evidence, LowRankOptions(energy=0.9, goal="size"))
    assert actions
    for d in actions:
        assert curves[d["node"], d["form"]].error[d["rank"]] <= 0.1
    actions, refused = plan_lowrank(evidence, LowRankOptions(rank=8, goal="size"))
    assert actions and all(d["rank"] == 8 for d in actions)
    assert {r.unit for r in refused} | {d["node"] for d in actions} == {n for n, _ in curves}


def test_latency_is_decided_by_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = prepared(nets.residual(width=32, blocks=1))
    monkeypatch.setattr(lr.Clock, "faster", lambda self, curve, rank: curve.form == SPATIAL and rank <= 16)
    actions, _ = plan_lowrank(evidence, LowRankOptions(ratio=0.2))
    assert actions
    assert all(d["form"] == SPATIAL and d["rank"] <= 16 for d in actions)
    monkeypatch.setattr(lr.Clock, "faster", lambda self, curve, rank: False)
    assert not plan_lowrank(evidence, LowRankOptions(ratio=0.2))[0]


@pytest.mark.alone
def test_a_layer_is_timed_alone() -> None:
    """A 512 x 512 product is faster at rank 8, and not at rank 500."""
    net = nets.Net()
    weight = (net.rng.standard_normal((512, 512)) / 22).astype(np.float32)
    out = net.op("MatMul", ["tokens", net.constant(weight)], 512)
    evidence = evidence_for(
        model := net.model(out, {"tokens": ["N", "L", 512]}, ["N", "L", 512]), nets.samples(model, 4, sequence=64)
    )
    curve = known_curves(evidence)[f"n_{out}", MATRIX]
    clock = lr.Clock(evidence)
    assert clock.faster(curve, 8)
    assert not clock.faster(curve, 500)
    assert clock.up_to(curve, [8, 16, 500])[-1] < 500


def test_predicted_savings_are_those_of_the_result() -> None:
    evidence = prepared(conv_net(pads=[1, 1, 1, 1], strides=[2, 1]))
    before = sum(macs(evidence.model, evidence.trace).values())
    options = proposals(LOWRANK, evidence)
    assert {o.action["form"] for o in options} >= {POINTWISE, SPATIAL}
    for option in options:
        done = evidence_for(LOWRANK.apply(evidence, [option.action]).model, evidence.data)
        assert before - sum(macs(done.model, done.trace).values()) == option.saving.macs
        assert 4 * (parameters(evidence.model) - parameters(done.model)) == option.saving.weight_bytes


def test_an_invalid_plan_is_refused() -> None:
    evidence = prepared(nets.residual(width=8, blocks=1))
    name = find_layers(evidence.model)[0][0].name
    for action in (
        {"node": "ghost", "rank": 1, "form": POINTWISE},
        {"node": name, "rank": 1, "form": MATRIX},
        {"node": name, "rank": 10_000, "form": POINTWISE},
        {"node": name, "rank": "many", "form": POINTWISE},
    ):
        with pytest.raises(InputProblem):
            LOWRANK.apply(evidence, [action])
