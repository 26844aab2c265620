"""Codebooks: input statistics reduce the loss, byte budgets are kept, refusals have reasons."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from onnxpress import run_pass, share
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.measure.gram import Moments
from onnxpress.model.files import to_bytes
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.passes.core.rounding import add_cross_validated_damping, add_damping
from onnxpress.passes.core.weight_matrix import find_weights
from onnxpress.passes.weights.codebook import fit_centroids, fit_grid, kmeans, output_error
from onnxpress.passes.weights.low_bit import LEVELS
from onnxpress.passes.weights.share import SHARE, ShareOptions, plan_sharing
from tests import nets


def prepared(model: ir.Model, count: int = 16) -> Evidence:
    return evidence_for(model, nets.samples(model, count))


def gram(columns: int, seed: int = 0) -> np.ndarray:
    """Gram matrix of correlated inputs, as of activations."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((400, 6)) @ rng.standard_normal((6, columns)) + 0.3 * rng.standard_normal((400, columns))
    return np.asarray(x.T @ x / 400)


def test_centroids_follow_the_weighted_density() -> None:
    values = np.concatenate([np.full(50, -1.0), np.full(50, 0.5), np.full(50, 0.52), np.full(50, 3.0)])
    np.testing.assert_allclose(kmeans(values, np.ones(200), 3), [-1, 0.51, 3])
    heavy = np.where(values == 0.52, 99.0, 1.0)
    assert 0.519 < kmeans(values, heavy, 3)[1] < 0.52
    np.testing.assert_allclose(kmeans(np.array([2.0, 2.0, -2.0]), np.ones(3), 16), [-2, 2])


@pytest.mark.parametrize("kind", ["free", "grid"])
def test_input_statistics_halve_the_loss(kind: str) -> None:
    weights = np.random.default_rng(1).standard_normal((24, 40)) * np.linspace(0.1, 3, 24)[:, None]
    h = gram(40)

    def lost(seen: np.ndarray | None) -> float:
        book = fit_centroids(weights, seen, 16, True) if kind == "free" else fit_grid(weights, seen, LEVELS[4])
        return output_error(book.dequantized - weights, add_damping(h))

    assert lost(h) < 0.5 * lost(np.diag(h))


@pytest.mark.slow
def test_the_byte_budget_goes_to_the_weights_with_the_largest_loss() -> None:
    evidence = prepared(nets.mobile(width=16))
    compact, spent = (plan_sharing(evidence, ShareOptions(spare=s))[0] for s in (0.0, 0.3))
    small, upgraded = ({d["weight"] for d in plan if d.get("bits") == 8} for plan in (compact, spent))
    assert small < upgraded and len(upgraded) < len(spent)
    sizes = [len(to_bytes(SHARE.apply(evidence, d).model)) for d in (compact, spent)]
    assert sizes[0] < sizes[1] < 1.3 * sizes[0]


def test_eight_times_smaller_weights_keep_the_outputs() -> None:
    model = nets.residual(width=48, blocks=1)
    data = nets.samples(model, 24)
    done = share(model, data, options=ShareOptions(spare=0.0))
    weights = sum(w.array.nbytes for w in find_weights(canonical(model))[0])
    rest = done.bytes_before - weights
    assert weights / (done.bytes_after - rest) > 6.5
    other = nets.samples(model, 24, seed=7)
    wanted, found = nets.outputs(model, other), nets.outputs(done.model, other)
    assert ((found - wanted) ** 2).mean() < 0.02 * (wanted**2).mean()


def test_bias_correction_reduces_the_error() -> None:
    evidence = prepared(nets.residual(width=16), 24)
    actions = plan_sharing(evidence, ShareOptions(spare=0.0))[0]
    wanted = nets.outputs(evidence.model, evidence.samples())
    output_error = {}
    for mode in ("none", "bias"):
        done = SHARE.apply(evidence, [*actions, {"refit": mode}]).model
        output_error[mode] = float(((nets.outputs(done, evidence.samples()) - wanted) ** 2).mean())
    assert output_error["bias"] < output_error["none"]


def test_weights_with_other_readers_and_small_ones_are_refused() -> None:
    net = nets.Net()
    table = net.constant(np.random.default_rng(0).standard_normal((40, 24)).astype(np.float32))
    small = net.constant(np.ones((24, 4), np.float32))
    x = net.op("Add", [net.op("MatMul", ["rows", table], 24), net.op("ReduceMean", [table], 24, axes=[0])], 24)
    model = net.model(net.op("MatMul", [x, small], 4), {"rows": ["N", 40]}, ["N", 4])
    weights, refused = find_weights(prepared(model).model)
    assert not weights
    assert "ReduceMean" in refused[0].reason and "small" in refused[1].reason


def test_rounding_by_few_samples_generalizes() -> None:
    """With 20 samples of 60 inputs, cross-validated damping reduces the error on new samples."""
    rng = np.random.default_rng(3)
    mix = rng.standard_normal((8, 60))
    weights = rng.standard_normal((40, 60))

    def seen(count: int) -> Moments:
        found = Moments.empty(60, 0)
        found.add(rng.standard_normal((count, 8)) @ mix + rng.standard_normal((count, 60)))
        return found

    few = (seen(10), seen(10))
    known, fresh = replace(few[0] + few[1], parts=few), seen(5000).centred(False)[0]
    plain, raised = (
        output_error(fit_grid(weights, g, LEVELS[4]).dequantized - weights, fresh)
        for g in (known.centred(False)[0], add_cross_validated_damping(known, weights, False))
    )
    assert raised < 0.8 * plain
    many = (seen(4000), seen(4000))
    sure = replace(many[0] + many[1], parts=many)
    np.testing.assert_allclose(add_cross_validated_damping(sure, weights, False), add_damping(sure.centred(False)[0]))


def test_weights_of_a_single_number_are_stored() -> None:
    """As in the topologies of the onnx wheel: one centroid, though a byte could name four."""
    model = nets.residual(width=32)
    for value in model.graph.initializers.values():
        array = value.const_value.numpy() if value.const_value is not None else np.zeros(0)
        if array.ndim == 4:
            value.const_value = ir.tensor(np.full_like(array, 0.01), name=value.name)
    data = nets.samples(model, 12)
    done = run_pass("share", model, data)
    wanted, found = nets.outputs(model, data), nets.outputs(done.model, data)
    assert np.linalg.norm(found - wanted) < 0.1 * np.linalg.norm(wanted)  # the last layer has codes of 4 bits
