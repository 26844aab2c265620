"""Models that differ in batch, float type or answers, side by side in `compare` and `bench`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxpress import Effort, bench
from onnxpress.cli.main import run as cli
from onnxpress.errors import InputProblem
from onnxpress.evaluate.compare import compare


def network(
    batch: int | str = "N", half: bool = False, nan: bool = False, classes: int = 5, wide: int = 6
) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    kind, number = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    weights = {"w": rng.standard_normal((wide, 32)), "v": rng.standard_normal((32, classes)), "zero": np.zeros(())}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "v"], ["c" if nan else "y"]),
    ]
    if nan:
        nodes += [helper.make_node("Mul", ["c", "zero"], ["d"]), helper.make_node("Div", ["d", "zero"], ["y"])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, [batch, wide])],
        [helper.make_tensor_value_info("y", kind, [batch, classes])],
        [numpy_helper.from_array(v.astype(number), k) for k, v in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


DATA = {"x": np.random.default_rng(1).standard_normal((20, 6)).astype(np.float32)}


@pytest.mark.parametrize("batches", [("N", 1), (1, "N"), ("N", 4), (4, "N")])
def test_a_free_batch_and_a_fixed_one(batches: tuple[int | str, int | str]) -> None:
    found = compare(network(batches[0]), network(batches[1]), DATA)
    assert found.outputs[0].max_abs < 1e-6 and found.score.drop == 0


@pytest.mark.parametrize("halves", [(False, True), (True, False)])
def test_float16_beside_float32(halves: tuple[bool, bool]) -> None:
    first, second = (network(half=half) for half in halves)
    data = {"x": DATA["x"].astype(np.float16)} if halves[0] else DATA
    found = compare(first, second, data)
    assert 0 < found.outputs[0].max_abs < 0.1
    assert found.outputs[0].sqnr_db > 50
    timed = bench({"a": first, "b": second}, data=data, effort=Effort(seconds=0.2, rebuilds=1))
    assert [t.name for t in timed.timings] == ["a", "b"]


def test_answers_that_are_not_finite_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compare(network(), network(nan=True), DATA)
    assert found.outputs[0].not_finite == (0, 100)
    assert "in 100 of 100 numbers" in found.notes[0]
    assert found.failing(0.5)
    for name, model in (("a", network()), ("b", network(nan=True))):
        onnx.save(model, tmp_path / f"{name}.onnx")
    np.savez(tmp_path / "d.npz", x=DATA["x"])
    assert cli(["compare", str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx"), "-d", str(tmp_path / "d.npz")]) == 0
    said = capsys.readouterr()
    assert "not finite" in said.out and "warning: the other model's y" in said.err


@pytest.mark.parametrize(
    ("other", "says"),
    [(network(classes=6), "float32[N,6] and float32[N,5]"), (network(wide=7), "")],
)
def test_what_cannot_be_compared_is_refused(other: onnx.ModelProto, says: str) -> None:
    with pytest.raises(InputProblem) as caught:
        compare(network(), other, DATA)
    assert says in caught.value.line()


def test_a_drop_that_the_samples_cannot_tell_is_no_failure() -> None:
    """A quarter of the answers differ in one of four samples."""
    proto = network()
    weight = next(t for t in proto.graph.initializer if t.name == "v")
    noisy = numpy_helper.to_array(weight) + 0.6 * np.random.default_rng(3).standard_normal((32, 5)).astype(np.float32)
    weight.CopyFrom(numpy_helper.from_array(noisy, "v"))
    found = compare(network(), proto, DATA, metric="agreement")
    (result,) = found.metrics
    inside = (result.low + result.high) / 2
    assert result.low < inside < result.high
    assert not found.failing(inside) and found.undecided(inside) == [result]
    assert found.failing(result.low - 0.01) == [result]
