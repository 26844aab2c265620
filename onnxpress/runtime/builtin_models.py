"""Built-in models for measuring the machine.

A large product for its peak rate, chains of trivial kernels for the profiler's overhead, and a small reference network
for comparisons between runs.  All are made from fixed numbers, so they are the same on every machine and in every run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxpress.runtime.session import SessionSettings, open_session

REFERENCE_VERSION = 1  # of reference_model: ratios to different versions are not comparable
_OPSET, _IR = 17, 8
_SIDES = (512, 1024)


@dataclass(frozen=True)
class PeakRate:
    """The highest measured float32 rate of this machine in GFLOP/s (2 per multiply-accumulate)."""

    gflops: float
    threads: int
    kind: str = "float32 MatMul in onnxruntime"


def measured_peak(settings: SessionSettings | None = None, seconds: float = 0.6) -> PeakRate:
    """The highest rate over large float32 products: noise only lowers a rate, so the maximum is the estimate."""
    settings = replace(settings or SessionSettings(), level="all", profile="")
    best = 0.0
    for side in _SIDES:
        session = open_session(matmul_model(side), settings)
        feeds = {"x": np.random.default_rng(1).standard_normal((side, side)).astype(np.float32)}
        session.run(None, feeds)
        started, count = time.perf_counter(), 0
        while count < 3 or time.perf_counter() - started < seconds / len(_SIDES):
            start = time.perf_counter()
            session.run(None, feeds)
            best = max(best, 2e-9 * side**3 / (time.perf_counter() - start))
            count += 1
    return PeakRate(best, settings.threads)


def matmul_model(side: int) -> bytes:
    """x [side, side] times a constant weight."""
    weight = np.random.default_rng(0).standard_normal((side, side)).astype(np.float32)
    return _model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}, [side, side], [side, side])


def chain_model(length: int, operands: int) -> bytes:
    """`length` operators with `operands` tensors of four numbers each: kernels that take almost no time."""
    names = ["x", *(f"v{i}" for i in range(length))]
    constants = {f"c{i}": np.full(4, i, np.float32) for i in range(operands - 1)}
    op = "Max" if operands > 1 else "Abs"
    nodes = [helper.make_node(op, [a, *constants], [b], name=b) for a, b in pairwise(names)]
    return _model(nodes, constants, [4], [4], names[-1])


def reference_model() -> bytes:
    """A small network of typical operators: convolutions, products, elementwise; about one millisecond."""
    rng = np.random.default_rng(0)
    shapes = {"k1": (32, 16, 3, 3), "k2": (32, 1, 3, 3), "k3": (64, 32, 1, 1), "m1": (256, 256), "m2": (256, 64)}
    weights = {n: (rng.standard_normal(s) / np.sqrt(np.prod(s[1:]))).astype(np.float32) for n, s in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["x", "k1"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "k2"], ["c"], pads=[1] * 4, group=32),
        helper.make_node("Conv", ["c", "k3"], ["d"], strides=[2, 2]),
        helper.make_node("Reshape", ["d", "rows"], ["e"]),
        helper.make_node("MatMul", ["e", "m1"], ["f"]),
        helper.make_node("Tanh", ["f"], ["g"]),
        helper.make_node("MatMul", ["g", "m2"], ["h"]),
        helper.make_node("Softmax", ["h"], ["y"], axis=-1),
    ]
    return _model(nodes, {**weights, "rows": np.array([64, 256], np.int64)}, [1, 16, 32, 32], [64, 64])


def reference_feeds() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((1, 16, 32, 32)).astype(np.float32)}


def _model(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], given: list[int], made: list[int], output: str = "y"
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "builtin",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, given)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, made)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    made_model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    return bytes(made_model.SerializeToString(deterministic=True))
