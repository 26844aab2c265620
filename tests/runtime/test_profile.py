"""Profiles: the profiler's events, and the nodes of the file that a kernel implements."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import util
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxpress.model.counts import macs
from onnxpress.model.files import load
from onnxpress.runtime.builtin_models import PeakRate
from onnxpress.runtime.kernel_to_node import Kernel, nodes_of_kernels
from onnxpress.runtime.profile import parse_profile, profile
from onnxpress.runtime.session import trace
from tests import nets

PEAK = PeakRate(100.0, 1)


def event(name: str, ts: int, dur: int, op: str = "Conv", index: int = 0) -> dict[str, object]:
    args = {"op_name": op, "node_index": str(index), "input_type_shape": [{"float": [1]}]}
    return {"cat": "Node", "ph": "X", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": args}


def whole(ts: int, dur: int) -> dict[str, object]:
    return {"cat": "Session", "ph": "X", "name": "model_run", "ts": ts, "dur": dur, "args": {}}


def test_events_are_split_by_run_and_node_and_nested_ones_are_separate() -> None:
    warm = [event("a", 10, 50), whole(0, 90)]
    first = [event("a", 110, 20), event("r", 140, 5, "ReorderOutput", 1), event("r", 150, 7, "ReorderOutput", 2)]
    second = [
        event("in", 220, 10, "Tanh", 5),
        event("in", 235, 12, "Tanh", 5),
        event("loop", 215, 40, "Loop", 4),
        event("a", 260, 30),
    ]
    found = parse_profile([*warm, *first, whole(100, 90), *second, whole(200, 95)], runs=2)
    micro = {key: (seen.seconds * 1e6).round(6).tolist() for key, seen in found.items()}
    assert micro == {("a", 0): [20, 30], ("r", 0): [5, 0], ("r", 1): [7, 0], ("loop", 0): [0, 18], ("in", 0): [0, 22]}
    assert found["loop", 0].inner.tolist() == [0, 2]
    assert found["in", 0].calls.tolist() == [0, 2]


def test_nodes_of_kernels() -> None:
    """Epilogues, prologues, additions of a branch, and operators inserted for the layout."""
    model = nets.residual(width=8, blocks=1)
    conv = [n for n in model.graph if n.op_type == "Conv"]
    out = [n.outputs[0].name or "" for n in conv]
    pooled = next(n for n in model.graph if n.op_type == "GlobalAveragePool")
    gemm = next(n for n in model.graph if n.op_type == "Gemm")
    kernels = [
        Kernel((f"{out[0]}_nchwc", 0), "Conv", ("reorder",), 3),
        Kernel((f"{conv[1].name}_token_4", 0), "QLinearConv", ("new",), 9),
        Kernel((f"{out[2]}_nchwc", 0), "Conv", ("reorder_token_2",), 4),
        Kernel(("ReorderOutput", 0), "ReorderOutput", (pooled.inputs[0].name or "",), 1),
        Kernel((f"{pooled.outputs[0].name}_nchwc", 0), "GlobalAveragePool", ("x9",), 1),
        Kernel((f"{gemm.name}/MatMulAddFusion", 0), "Gemm", (gemm.outputs[0].name or "",), 3),
    ]
    behind = nodes_of_kernels(model, kernels)
    kinds = {n.name: n.op_type for n in model.graph}
    assert [[kinds[n] for n in behind[k.key]] for k in kernels] == [
        ["Conv", "Relu"],
        ["Conv", "Relu"],
        ["Conv", "Add", "Relu"],
        [],
        ["GlobalAveragePool"],
        ["Flatten", "Gemm"],
    ]


@pytest.mark.alone
def test_a_profile_counts_all_macs_of_the_file() -> None:
    model = nets.residual(width=32, blocks=1)
    feeds = {k: np.repeat(v, 2, 0) for k, v in next(nets.samples(model, 1).batches(1)).inputs.items()}
    found = profile(model, feeds, seconds=0.1, peak=PEAK)
    assert sum(k.macs for k in found.kernels) == sum(macs(model, trace(model, feeds)).values()) > 0
    assert {n for k in found.kernels for n in k.nodes} == {n.name for n in model.graph}
    assert sum(k.share for k in found.kernels) == pytest.approx(1)
    assert sum(o.seconds for o in found.operators) == pytest.approx(sum(k.seconds for k in found.kernels))
    assert found.operators[0].op == "Conv"
    assert found.kernels[0].gflops == pytest.approx(2e-9 * found.kernels[0].macs / found.kernels[0].seconds)
    assert 0.3 < found.covered < 1.7


@pytest.mark.alone
def test_kernels_within_a_loop_are_counted_once() -> None:
    """The loop's own time excludes that of its kernels."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [48, 48]) for n in ("s", "t", "x", "y")]
    flags = [helper.make_tensor_value_info(n, TensorProto.BOOL, []) for n in ("go", "on")]
    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    body = [
        helper.make_node("MatMul", ["s", "w"], ["t"], name="inner"),
        helper.make_node("Identity", ["go"], ["on"], name="same"),
    ]
    inside = helper.make_graph(body, "body", [count, flags[0], values[0]], [flags[1], values[1]])
    loop = helper.make_node("Loop", ["n", "", "x"], ["y"], body=inside, name="loop")
    weight = numpy_helper.from_array(np.eye(48, dtype=np.float32), "w")
    trips = numpy_helper.from_array(np.array(6), "n")
    graph = helper.make_graph([loop], "g", [values[2]], [values[3]], [weight, trips])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    found = {k.name: k for k in profile(model, {"x": np.ones((48, 48), np.float32)}, seconds=0.1, peak=PEAK).kernels}
    assert found["inner"].calls == 6
    assert found["loop"].calls == 1
    assert found["loop"].seconds < found["inner"].seconds + 60e-6


@pytest.mark.alone
@pytest.mark.slow
def test_the_peak_equals_that_of_numpy() -> None:
    code = "from tests.runtime.helpers import peaks; peaks()"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    own, other = (float(v) for v in done.stdout.split())
    assert abs(own / other - 1) < 0.15, (own, other)


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.skipif("ONNXPRESS_ZOO" not in os.environ, reason="ONNXPRESS_ZOO is not set")
@pytest.mark.parametrize("name", ["kws", "vww", "resnet8", "resnet20_bn", "resnet56", "lite0", "sst2"])
def test_kernels_add_up_to_the_latency(name: str) -> None:
    """Within 10 % of the median; the best of three, since load from other programs affects only some of the runs."""
    zoo = Path(os.environ["ONNXPRESS_ZOO"])
    spec = util.spec_from_file_location("cases", zoo / "cases.py")
    assert spec is not None and spec.loader is not None
    cases = util.module_from_spec(spec)
    sys.modules["cases"] = cases
    spec.loader.exec_module(cases)
    case = cases.load(name)
    feeds, _ = case.data("train", 0, 1)
    shares = []
    for _ in range(3):
        shares.append(profile(load(case.model), feeds, seconds=4).covered)
        if abs(shares[-1] - 1) <= 0.1:
            return
    pytest.fail(f"kernels add up to {json.dumps(shares)} of the median")
