"""Attention of linear cost: where it can stand, what it computes, and that its readers make up for it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import scipy.special

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.model.counts import macs
from onnxpress.passes.core.contract import proposals
from onnxpress.passes.structure.attention import ATTENTION, sites
from tests import nets

pytestmark = pytest.mark.unit

LONG = 48


def evidence_of(model: ir.Model, count: int = 48) -> Evidence:
    return evidence_for(model, nets.samples(model, count, sequence=LONG))


def alone(scale: float = 1.0, mask: bool = False, order: str = "scaled first", temperature: float = 1.0) -> ir.Model:
    """Heads of one attention as the model's output; queries, keys and values are its inputs."""
    net = nets.Net(0)
    shapes: dict[str, list[int | str]] = {"q": ["N", 2, "L", 4], "k": ["N", 2, "L", 4], "v": ["N", 2, "L", 6]}
    for name, shape in shapes.items():
        net.widths[name] = int(shape[-1])
    if mask:
        shapes["m"] = ["N", 1, 1, "L"]
    scores = net.op("MatMul", ["q", net.op("Transpose", ["k"], 0, perm=[0, 1, 3, 2])], 0)
    number = net.constant(np.float32(1 / scale).reshape(()))
    if order == "scaled first":
        scores = net.op("Div", [scores, number], 0)
    if mask:
        scores = net.op("Add", ["m", scores], 0)
    if order == "scaled last":
        scores = net.op("Div", [scores, number], 0)
    y = net.op("MatMul", [net.op("Softmax", [scores], 0, axis=-1), "v"], 6)
    return net.model(y, shapes, ["N", 2, "L", 6])


def test_what_it_computes() -> None:
    """The formula, with the temperatures that come nearest."""
    model = alone(0.25, mask=True, order="scaled last")
    evidence = evidence_of(model, 8)
    done = ATTENTION.apply(evidence, [{"attention": sites(evidence)[0][0].name}])
    inputs = next(iter(evidence.samples().batches(8))).inputs
    q, k, v, m = (inputs[n].astype(np.float64) for n in "qkvm")

    def linear(a: float, b: float) -> np.ndarray:
        shares = scipy.special.softmax(b * k.swapaxes(2, 3) + 0.25 * m, axis=-1)
        return np.asarray(scipy.special.softmax(a * q, axis=-1) @ (shares @ v))

    wanted = scipy.special.softmax(0.25 * (q @ k.swapaxes(2, 3) + m), axis=-1) @ v
    grid = [(0.5 * a, 0.5 * b) for a in (0, 0.5, 1, 2, 4, 8) for b in (0, 0.5, 1, 2, 4, 8)]
    nearest = min(grid, key=lambda pair: float(((linear(*pair) - wanted) ** 2).sum()))
    np.testing.assert_allclose(nets.outputs(done.model, evidence.samples()), linear(*nearest), rtol=1e-4, atol=1e-5)
    lost = ((linear(*nearest) - wanted) ** 2).sum() / (wanted**2).sum()
    (option,) = proposals(ATTENTION, evidence)
    assert option.loss == pytest.approx(float(lost), rel=1e-3)


@pytest.mark.parametrize("order", ["scaled first", "scaled last"])
def test_where_all_keys_count_alike_nothing_changes(order: str) -> None:
    """Scores that hardly differ: both are the mean of what the mask leaves."""
    model = alone(1e-6, mask=True, order=order)
    evidence = evidence_of(model, 8)
    done = ATTENTION.apply(evidence, [{"attention": sites(evidence)[0][0].name}])
    found = nets.outputs(model, evidence.samples()), nets.outputs(done.model, evidence.samples())
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-4)


def test_hidden_keys_stay_hidden() -> None:
    """Whatever values stand behind a mask of minus infinity."""
    model = alone(0.5, mask=True)
    evidence = evidence_of(model, 4)
    done = ATTENTION.apply(evidence, [{"attention": sites(evidence)[0][0].name}])
    inputs = dict(next(iter(evidence.samples().batches(4))).inputs)
    inputs["m"] = np.where(np.arange(LONG) < 20, 0, -np.inf).astype(np.float32) * np.ones((4, 1, 1, 1), np.float32)
    from onnxpress.runtime.session import open_session

    session = open_session(done.model)
    first = session.run(None, inputs)[0]
    for name in "kv":
        inputs[name] = np.where(np.arange(LONG)[:, None] < 20, inputs[name], 77).astype(np.float32)
    np.testing.assert_array_equal(session.run(None, inputs)[0], first)
    assert np.isfinite(first).all()


def guarded(rows: bool) -> ir.Model:
    """As torch's newer exporter writes it: a mask for every query, of minus infinity, and Where(IsNaN) behind the
    Softmax."""
    net = nets.Net(0)
    shapes: dict[str, list[int | str]] = {
        "q": ["N", 2, "L", 4],
        "k": ["N", 2, "L", 4],
        "v": ["N", 2, "L", 6],
        "m": ["N", 1, 1, "L"],
    }
    for name, shape in shapes.items():
        net.widths[name] = int(shape[-1]) if name != "m" else 0
    scores = net.op("MatMul", ["q", net.op("Transpose", ["k"], 0, perm=[0, 1, 3, 2])], 0)
    number, none = (net.constant(np.float32(x).reshape(())) for x in (0, -np.inf))
    mask = net.op("Where", [net.op("Less", ["m", net.constant(np.float32(1).reshape(()))], 0), number, none], 0)
    if rows:
        mask = net.op("Expand", [mask, net.constant(np.array([1, 1, LONG, 1], np.int64))], 0)
    shares = net.op("Softmax", [net.op("Add", [scores, mask], 0)], 0, axis=-1)
    shares = net.op("Where", [net.op("IsNaN", [shares], 0), number, shares], 0)
    return net.model(net.op("MatMul", [shares, "v"], 6), shapes, ["N", 2, "L", 6])


@pytest.mark.parametrize("rows", [False, True], ids=["one row", "a row a query"])
def test_the_newer_exporter_s_form(rows: bool) -> None:
    """Queries that see no key give 0, as before; hidden keys stay hidden."""
    model = guarded(rows)
    evidence = evidence_of(model, 8)
    (site,) = sites(evidence)[0]
    done = ATTENTION.apply(evidence, [{"attention": site.name}])
    assert proposals(ATTENTION, evidence)
    inputs = dict(next(iter(evidence.samples().batches(4))).inputs)
    inputs["m"] = np.where(np.arange(LONG) < np.array([[0], [1], [20], [LONG]]), 0, 2).astype(np.float32)[:, None, None]
    from onnxpress.runtime.session import open_session

    wanted, found = (open_session(m).run(None, inputs)[0] for m in (model, done.model))
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[0], 0 * wanted[0])
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-4, atol=1e-5)  # one key: nothing to choose


def test_it_costs_less_and_its_readers_make_up_for_it() -> None:
    model = nets.transformer(width=8)
    evidence = evidence_of(model)
    options = proposals(ATTENTION, evidence)
    assert len(options) == 2
    actions = [o.action for o in options]
    plain = ATTENTION.apply(evidence, [*actions, {"refit": "none"}])
    fitted = ATTENTION.apply(evidence, actions)
    after = evidence_for(fitted.model, evidence.data)
    saved = sum(macs(evidence.model, evidence.trace).values()) - sum(macs(after.model, after.trace).values())
    assert saved == pytest.approx(sum(o.saving.macs for o in options))
    fresh = nets.samples(model, 48, seed=1, sequence=LONG)
    wanted = nets.outputs(model, fresh)
    errors = [float(((nets.outputs(m, fresh) - wanted) ** 2).mean()) for m in (plain.model, fitted.model)]
    assert errors[1] < 0.8 * errors[0]
    other = nets.samples(model, 4, sequence=7)
    assert nets.outputs(fitted.model, other).shape == nets.outputs(model, other).shape


def test_no_option_where_sequences_are_shorter_than_heads_are_wide() -> None:
    model = nets.transformer(width=16)
    evidence = evidence_for(model, nets.samples(model, 8, sequence=5))
    assert len(sites(evidence)[0]) == 2
    assert not proposals(ATTENTION, evidence)


def refused(model: ir.Model) -> str:
    evidence = evidence_of(model, 4)
    able, found = sites(evidence)
    assert not able and not proposals(ATTENTION, evidence)
    return " ".join(r.reason for r in found)


def test_what_stays_and_why() -> None:
    net = nets.Net(0)
    for name in "qkv":
        net.widths[name] = 4
    shapes: dict[str, list[int | str]] = {n: ["N", LONG, 4] for n in "qkv"}

    def model(scores: str, **axis: int) -> ir.Model:
        return net.model(net.op("MatMul", [net.op("Softmax", [scores], 0, **axis), "v"], 4), shapes, ["N", LONG, 4])

    product = net.op("MatMul", ["q", net.op("Transpose", ["k"], 0, perm=[0, 2, 1])], 0)
    causal = net.constant(np.triu(np.full((LONG, LONG), -1e9, np.float32), 1))
    assert "hides other keys from each query" in refused(model(net.op("Add", [product, causal], 0), axis=-1))
    assert "not positive" in refused(
        model(net.op("Mul", [product, net.constant(np.float32(-1).reshape(()))], 0), axis=-1)
    )
    assert "not over the keys" in refused(model(product, axis=1))
    assert "not one product" in refused(model(net.op("Tanh", [product], 0), axis=-1))


def test_a_plan_for_another_model_is_one_line() -> None:
    evidence = evidence_of(nets.transformer(width=8), 8)
    with pytest.raises(InputProblem, match="an attention the model does not have"):
        ATTENTION.apply(evidence, [{"attention": "no such"}])
    name = sites(evidence)[0][0].name
    with pytest.raises(InputProblem, match="unknown refit"):
        ATTENTION.apply(evidence, [{"attention": name}, {"refit": "unknown"}])
