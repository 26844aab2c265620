"""A file of a given size with minimal loss: the size is met, bits go to sensitive weights, limits are reported."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxpress import share, simplify, weights
from onnxpress.errors import InputProblem
from onnxpress.measure.score import Scorer
from onnxpress.model.files import to_bytes
from onnxpress.passes.weights.share import ShareOptions
from onnxpress.passes.weights.weights import WeightsOptions
from tests import nets


@pytest.mark.parametrize("command", ["share", "weights"])
def test_the_file_size_is_met_closely(command: str) -> None:
    model = nets.residual(width=32, blocks=3)
    data = nets.samples(model, 24)
    done = (
        share(model, data, options=ShareOptions(smaller=4.5))
        if command == "share"
        else weights(model, data, options=WeightsOptions(smaller=4.5))
    )
    assert 4.5 <= done.bytes_before / done.bytes_after < 1.12 * 4.5
    wanted, found = nets.outputs(model, data), nets.outputs(done.model, data)
    assert ((found - wanted) ** 2).mean() < 0.02 * (wanted**2).mean()


def test_sensitive_weights_get_more_bits() -> None:
    """Of three equal layers, two hardly affect the output.

    They get fewer bits, and the loss is below that of 4 bits for all.
    """
    net = nets.image_net()
    x = net.relu(net.conv("image", 32))
    loud, *faint = (net.conv(x, 32) for _ in range(3))
    small = net.constant(np.full((1, 32, 1, 1), 0.01, np.float32))
    for branch in faint:
        loud = net.add(loud, net.op("Mul", [branch, small], 32))
    model = net.model(net.op("GlobalAveragePool", [loud], 32), {"image": ["N", 3, 16, 16]}, ["N", 32, 1, 1])
    data = nets.samples(model, 24)
    even = weights(model, data, options=WeightsOptions(4, spare=0.0))
    chosen = weights(model, data, options=WeightsOptions(smaller=even.bytes_before / even.bytes_after))
    assert chosen.bytes_after <= even.bytes_after
    judge = Scorer(model, nets.samples(model, 24, seed=5))
    assert judge.score(to_bytes(chosen.model)).nmse < 0.5 * judge.score(to_bytes(even.model)).nmse


def test_an_unreachable_size_reports_the_smallest_one() -> None:
    model = nets.residual(width=16, blocks=1)
    with pytest.raises(InputProblem, match="cannot become so small") as caught:
        share(model, nets.samples(model, 8), options=ShareOptions(smaller=50))
    line = caught.value.line()
    least = float(line.split("the smallest is ")[1].split(" kB")[0].replace(",", ""))
    assert "`smaller`" in line and least < 0.5 * len(to_bytes(model)) / 1e3


def test_added_constants_are_float16_and_not_quantized() -> None:
    """A grid of positions that is added, as in detectors, is not a weight; neither is a bias."""
    net = nets.Net(seed=3)
    net.widths["rows"] = 64
    grid = net.constant((np.arange(12 * 64, dtype=np.float32) + np.float32(0.5)).reshape(1, 12, 64))
    weight = net.constant((net.rng.standard_normal((64, 64)) / 8).astype(np.float32))
    bias = net.constant(net.rng.standard_normal(64).astype(np.float32))
    x = net.op("Add", [net.op("MatMul", ["rows", weight], 64), bias], 64)
    model = net.model(net.op("Add", [x, grid], 64), {"rows": ["N", 12, 64]}, ["N", 12, 64])
    data = nets.samples(model, 16)
    for done in (share(model, data), weights(model, data)):
        assert {d["weight"] for s in done.plan.steps for d in s.actions if "weight" in d} == {weight}
        kinds = [(tuple(t.dims), t.data_type) for t in onnx.load_from_string(to_bytes(done.model)).graph.initializer]
        assert ((1, 12, 64), onnx.TensorProto.FLOAT16) in kinds and ((64,), onnx.TensorProto.FLOAT16) in kinds
        assert np.abs(nets.outputs(done.model, data) - nets.outputs(model, data)).max() < 1.0, (
            "places are where they were"
        )


def test_files_contain_no_duplicates_and_no_metadata_of_tools() -> None:
    model = nets.residual(width=16, blocks=1)
    proto = onnx.load_from_string(to_bytes(simplify(model).model))
    assert not {v.name for v in proto.graph.value_info} & {t.name for t in proto.graph.initializer}
    assert not [p.key for p in proto.metadata_props if p.key.startswith("onnxsim")]
