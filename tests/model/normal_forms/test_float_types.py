"""Models in float16 and float64, and files with weights in 16 bits: worked on in float32, given back as they came."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxpress import HalfOptions, LowRankOptions, PruneOptions, optimize, run_pass
from onnxpress.data.dataset import Dataset
from onnxpress.model.files import to_bytes
from onnxpress.model.normal_forms.float_types import (
    compute_in_float32,
    fold_casts,
    other_float_type,
    sixteen_bit_type,
)
from onnxpress.model.signature import signature
from onnxpress.plan.plan import apply_plan
from tests import nets

TYPES = {np.dtype(np.float16): TensorProto.FLOAT16, np.dtype(np.float64): TensorProto.DOUBLE}


def written_in(number: type[np.floating], classes: int = 6) -> ir.Model:
    """A small net all in one float type, with a number made by ConstantOfShape, a Cast to the type, and a branch."""
    rng, kind = np.random.default_rng(0), TYPES[np.dtype(number)]
    weights = {"w": rng.standard_normal((6, 64)), "v": rng.standard_normal((64, classes)) / 8, "s": np.array(0.5)}
    one = helper.make_tensor("value", kind, [1], [1.0])
    inner = helper.make_graph(
        [helper.make_node("Mul", ["b", "half"], ["scaled"])], "yes", [],
        [helper.make_tensor_value_info("scaled", kind, None)],
        [numpy_helper.from_array(np.array(0.5, number), "half")],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Identity", ["b"], ["same"])], "no", [], [helper.make_tensor_value_info("same", kind, None)]
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("If", ["flag"], ["c"], "if", then_branch=inner, else_branch=other),
        helper.make_node("Shape", ["x"], ["shape"], "shape"),
        helper.make_node("Slice", ["shape", "start", "end"], ["rows"], "rows"),
        helper.make_node("Concat", ["rows", "single"], ["wide"], "wide", axis=0),
        helper.make_node("ConstantOfShape", ["wide"], ["ones"], "ones", value=one),
        helper.make_node("Mul", ["c", "ones"], ["d"], "times"),
        helper.make_node("MatMul", ["d", "v"], ["y"], "second"),
        helper.make_node("Cast", ["n"], ["m"], "cast", to=kind),
        helper.make_node("Mul", ["m", "s"], ["z"], "scaled"),
    ]
    tensors = [numpy_helper.from_array(v.astype(number), k) for k, v in weights.items()]
    numbers = {"start": [0], "end": [1], "single": [1]}
    tensors += [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in numbers.items()]
    tensors.append(numpy_helper.from_array(np.array(True), "flag"))
    graph = helper.make_graph(
        nodes, "g",
        [
            helper.make_tensor_value_info("x", kind, ["N", 6]),
            helper.make_tensor_value_info("n", TensorProto.INT64, ["N", 1]),
        ],
        [helper.make_tensor_value_info("y", kind, ["N", classes]), helper.make_tensor_value_info("z", kind, ["N", 1])],
        tensors,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(proto)


def samples(model: ir.Model, count: int = 24) -> Dataset:
    rng = np.random.default_rng(1)
    arrays = {"x": rng.standard_normal((count, 6)).astype(signature(model).inputs[0].dtype)}
    return Dataset.from_arrays({**arrays, "n": rng.integers(0, 9, (count, 1))}, signature(model))


def answers(model: ir.Model, data: Dataset) -> list[np.ndarray]:
    session = ort.InferenceSession(to_bytes(model), providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, next(iter(data.batches(len(data)))).inputs)
    return found


@pytest.mark.parametrize("number", [np.float16, np.float64])
def test_the_same_function_in_float32(number: type[np.floating]) -> None:
    model = written_in(number)
    kind = other_float_type(model)
    assert kind is not None and kind.numpy() == np.dtype(number)
    wide = compute_in_float32(model, kind)
    assert signature(wide) == signature(model)
    assert other_float_type(wide) is None
    onnx.checker.check_model(ir.to_proto(wide), full_check=True)
    data = samples(model)
    for a, b in zip(answers(model, data), answers(wide, data), strict=True):
        assert a.dtype == b.dtype == np.dtype(number)
        np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=5e-3, atol=5e-3)


def test_numbers_too_large_for_float32_are_refused() -> None:
    model = written_in(np.float64)
    value = model.graph.initializers["w"]
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * 1e300, name="w")
    with pytest.raises(ValueError, match="too large"):
        compute_in_float32(model, ir.DataType.DOUBLE)
    done = run_pass("quantize", model, samples(model))
    assert any("too large for float32" in note for note in done.notes)


@pytest.mark.parametrize("number", [np.float16, np.float64])
@pytest.mark.parametrize("name", ["quantize", "prune", "dynamic", "share", "half", "lowrank"])
def test_passes_work_on_it(name: str, number: type[np.floating]) -> None:
    model = written_in(number)
    data = samples(model)
    goals = {"prune": PruneOptions(ratio=0.5), "lowrank": LowRankOptions(rank=3, goal="size")}
    done = run_pass(name, model, None if name in ("dynamic", "half") else data, goals.get(name))
    assert signature(done.model) == signature(model)
    assert any("computed in float32" in note for note in done.notes)
    assert len(to_bytes(done.model)) < 1.3 * len(to_bytes(model)) + 400
    assert [a.shape for a in answers(done.model, data)] == [a.shape for a in answers(model, data)]
    if name in ("prune", "quantize", "share"):
        assert done.score is not None
        replayed = apply_plan(done.plan, model, data)
        assert to_bytes(replayed.model) == to_bytes(done.model)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_a_file_with_weights_in_sixteen_bits_stays_one(kind: type[np.floating]) -> None:
    model = nets.residual(width=32)
    data = nets.samples(model, 24)
    short = run_pass("half", model, None, HalfOptions("float16" if kind is np.float16 else "bfloat16")).model
    assert sixteen_bit_type(short) is not None and other_float_type(short) is None
    wide = short.clone()
    fold_casts(wide)
    assert sixteen_bit_type(wide) is None
    cut = run_pass("prune", short, data, PruneOptions(ratio=0.3)).model
    assert sixteen_bit_type(cut) == sixteen_bit_type(short)
    assert len(to_bytes(cut)) < 0.9 * len(to_bytes(short))
    simple = run_pass("simplify", short).model
    assert len(to_bytes(simple)) < 1.02 * len(to_bytes(short))


@pytest.mark.slow
def test_optimize_returns_the_types_it_was_given(tmp_path: Path) -> None:
    model = written_in(np.float16)
    found = optimize(model, samples(model, 60), output=tmp_path / "fast.onnx", time_budget=20)
    if found.met:
        assert signature(ir.load(tmp_path / "fast.onnx")) == signature(model)


@pytest.mark.slow
def test_candidates_are_as_their_plans_replay_them(tmp_path: Path) -> None:
    """A float16 file: what optimize times and scores is what the plan gives again, with weights in 16 bits."""
    model = nets.residual(width=32, blocks=2)
    short = run_pass("half", model).model
    found = optimize(short, nets.samples(model, 160), output=tmp_path / "fast.onnx", time_budget=15, max_drop=0.9)
    for candidate in found.candidates:
        if not candidate.int8:
            assert sixteen_bit_type(ir.from_proto(onnx.load_from_string(candidate.data))) is not None, candidate.name
    if found.improved:
        again = apply_plan(found.plan, short, nets.samples(model, 160))
        assert to_bytes(again.model) == found.data
