"""Zeros: as many as asked for and where, better the more is known of the inputs, and said what they are good for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxpress import sparsify
from onnxpress.data.dataset import Dataset
from onnxpress.data.shipped import calibration_folder
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import evidence_for
from onnxpress.measure.score import Scorer
from onnxpress.model import read
from onnxpress.model.files import load, to_bytes
from onnxpress.model.parameter_count import parameters
from onnxpress.model.signature import signature
from onnxpress.passes.core.weight_matrix import find_weights
from onnxpress.passes.weights.sparsify import METHODS, SPARSIFY, SparsifyOptions, groups, refit
from onnxpress.plan.plan import apply_plan
from tests import nets


def samples(part: str = "train") -> tuple[ir.Model, Dataset]:
    folder = calibration_folder() / "digits"
    model = load(folder / "digits.onnx")
    with np.load(folder / f"{part}.npz") as arrays:
        return model, Dataset.from_arrays({n: arrays[n] for n in signature(model).input_names}, signature(model))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ratio", [0.3, 0.75])
def test_so_many_are_zero(method: str, ratio: float) -> None:
    model = nets.residual(width=32)
    done = sparsify(model, nets.samples(model, 16), options=SparsifyOptions(ratio, method=method))
    weights = find_weights(done.model)[0]
    assert len(weights) > 4
    for weight in weights:
        assert (weight.array == 0).mean() == pytest.approx(ratio, abs=0.02)
    assert any("gzip" in n and "speed stays the same" in n for n in done.notes)
    assert done.bytes_after == pytest.approx(done.bytes_before, rel=0.05), "zeros take their place in the file"


@pytest.mark.parametrize("method", METHODS)
def test_two_of_four_neighbours_stay(method: str) -> None:
    model = nets.residual(width=32)
    done = sparsify(model, nets.samples(model, 16), options=SparsifyOptions(pattern="2:4", method=method))
    weights = find_weights(done.model)[0]
    assert len(weights) > 4
    for weight in weights:
        rows = weight.matrix[:, : weight.matrix.shape[1] // 4 * 4]
        assert ((rows.reshape(len(rows), -1, 4) != 0).sum(2) <= 2).all()


@pytest.mark.parametrize("method", [METHODS[0], *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS[1:])])
def test_depthwise_layers_stay_whole(method: str) -> None:
    """Half of nine weights a channel is felt at once: kws and vww of the zoo answered at random."""
    model, learn = samples()
    _, judge = samples("validate")
    done = sparsify(model, learn.take(64), options=SparsifyOptions(0.5, method=method))
    (deep,) = [n for n in done.model.graph if read.is_depthwise(n)]
    assert np.all(read.constant(deep.inputs[1]))
    assert any("depthwise" in r.reason for r in done.refused)
    if method == METHODS[0]:
        assert Scorer(model, judge).score(to_bytes(done.model)).nmse < 0.05


def test_an_embedding_takes_zeros_by_magnitude_alone() -> None:
    net = nets.Net()
    rng = np.random.default_rng(0)
    table, matrix = (net.constant(rng.standard_normal(shape).astype(np.float32)) for shape in ((50, 16), (16, 32)))
    ids = net.op("Cast", ["x"], 6, to=7)
    mean = net.op("ReduceMean", [net.op("Gather", [table, ids], 16)], 16, axes=[1], keepdims=0)
    model = net.model(net.op("MatMul", [mean, matrix], 32), {"x": ["N", 6]}, ["N", 32])
    data = Dataset.from_arrays({"x": rng.integers(0, 50, (16, 6)).astype(np.float32)}, signature(model))
    for method, zeros in (("update", False), ("magnitude", True)):
        done = sparsify(model, data, options=SparsifyOptions(0.5, method=method))
        whole = {w.name: bool(w.array.all()) for w in find_weights(done.model)[0] if w.array.shape == (50, 16)}
        assert list(whole.values()) == [not zeros]


@pytest.mark.slow
def test_what_is_left_makes_up_for_the_zeros() -> None:
    """On a trained model and other samples the update loses least."""
    model, learn = samples()
    _, judge = samples("validate")
    evidence = evidence_for(model, learn.take(64))
    lost = {}
    for method in METHODS:
        actions = [{"weight": w.name, "ratio": 0.7, "method": method} for w in find_weights(evidence.model)[0]]
        made = SPARSIFY.apply(evidence, actions).model
        lost[method] = Scorer(model, judge).score(to_bytes(made)).nmse
    assert lost["update"] < 0.7 * lost["activation"]
    assert lost["update"] < 0.7 * lost["magnitude"]


def test_what_is_left_is_refitted_by_least_squares() -> None:
    rng = np.random.default_rng(0)
    inputs, rows = rng.standard_normal((200, 12)) @ rng.standard_normal((12, 12)), rng.standard_normal((5, 12))
    mask, h = rng.random((5, 12)) < 0.6, inputs.T @ inputs
    found = refit(rows, np.zeros_like(rows), h, mask)
    for row, keep, wished in zip(found, mask, (inputs @ rows.T).T, strict=True):
        best = np.linalg.lstsq(inputs[:, keep], wished, rcond=None)[0]
        np.testing.assert_allclose(row[keep], best, rtol=1e-4, atol=1e-4)
        assert not row[~keep].any()


def test_a_plan_replays_and_a_wrong_one_is_refused() -> None:
    model = nets.residual(width=16)
    data = nets.samples(model, 8)
    done = sparsify(model, data, options=SparsifyOptions(0.5))
    assert to_bytes(apply_plan(done.plan, model, data).model) == to_bytes(done.model)
    evidence = evidence_for(model, data)
    with pytest.raises(InputProblem, match="a weight the model does not have"):
        SPARSIFY.apply(evidence, [{"weight": "nobody", "ratio": 0.5, "method": "update"}])


@pytest.mark.parametrize(
    "options",
    [
        SparsifyOptions(0.0),
        SparsifyOptions(1.0),
        SparsifyOptions(method="luck"),
        SparsifyOptions(pattern="4:2"),
        SparsifyOptions(pattern="half"),
    ],
)
def test_invalid_options(options: SparsifyOptions) -> None:
    with pytest.raises(InputProblem):
        options.checked()


def test_patterns_are_read() -> None:
    assert groups("2:4") == (2, 4)
    assert groups("1:16") == (1, 16)


def test_a_wide_layer_goes_by_its_diagonal(tmp_path: Path) -> None:
    """Where a Gram matrix would be too wide only its diagonal is known: zeros are chosen by activation."""
    net = nets.image_net()
    model = net.model(net.head(net.relu(net.conv(net.relu(net.conv("image", 288)), 8))), nets.IMAGE, ["N", 10])
    done = sparsify(model, nets.samples(model, 4), options=SparsifyOptions(0.5), output=tmp_path / "o.onnx")
    wide = max((w for w in find_weights(done.model)[0]), key=lambda w: w.matrix.shape[1])
    assert wide.matrix.shape[1] >= 2304
    assert (wide.matrix == 0).mean() == pytest.approx(0.5, abs=0.01)
    assert parameters(load(tmp_path / "o.onnx")) == parameters(done.model)
