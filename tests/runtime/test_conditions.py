"""Conditions of a measurement, and measurements in fresh processes and with several callers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxpress.data.synthetic import sample_shapes, synthetic
from onnxpress.evaluate.bench import BenchConditions, BenchOptions, bench
from onnxpress.model.files import to_bytes
from onnxpress.model.index_bounds import index_bounds
from onnxpress.runtime import latency, subprocess_metrics, throughput
from onnxpress.runtime.builtin_models import matmul_model
from onnxpress.runtime.intervals import median_interval, order_statistic_interval
from onnxpress.runtime.latency import Effort, compare_latency
from onnxpress.runtime.machine import pinned
from onnxpress.runtime.session import SessionSettings, open_session
from tests import nets
from tests.data.helpers import sig

SHORT = Effort(seconds=0.15, precision=0.2)


def embedding(rows: int) -> ir.Model:
    """ids [N, L] (cast first) index rows of a table, which are summed over L."""
    table = numpy_helper.from_array(np.ones((rows, 4), np.float32), "table")
    nodes = [
        helper.make_node("Cast", ["ids"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "wide"], ["picked"]),
        helper.make_node("ReduceSum", ["picked", "axis"], ["y"], keepdims=0),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT32, ["N", "L"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    graph = helper.make_graph(nodes, "g", [ids], [y], [table, numpy_helper.from_array(np.array([1]), "axis")])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_synthetic_ids_stay_within_the_table() -> None:
    model = embedding(7)
    assert index_bounds(model) == {"ids": 7}
    found = bench(
        {"m": model}, effort=SHORT, conditions=BenchConditions(shape={"ids": (2, 33)})
    )  # out of range would not run
    assert (found.batch, found.timings[0].rounds > 3) == (2, True)


def test_every_combination_is_a_point() -> None:
    model = nets.residual(width=8, blocks=1)
    found = bench({"m": model}, effort=SHORT, conditions=BenchConditions(threads=(1, 2), batch=(1, 8)))
    assert [(p.threads, p.batch) for p in found.all_points] == [(1, 1), (1, 8), (2, 1), (2, 8)]
    assert (
        found.all_points[1].timings[0].minimum > 1.2 * found.all_points[0].timings[0].minimum
    )  # what noise cannot lower
    assert found.timings == found.all_points[0].timings
    assert all(p.timings[0].cpu > 0 for p in found.all_points)


def test_the_self_check_is_separate() -> None:
    model = nets.residual(width=8, blocks=1)
    found = bench(
        {"a": model, "b": nets.residual(width=16, blocks=1)}, effort=SHORT, options=BenchOptions(self_check=True)
    )
    assert [r.name for r in found.ratios] == ["b"]
    assert found.self_check is not None
    assert 0.5 < found.self_check.speedup < 2


def test_shapes_determine_symbols_and_the_batch() -> None:
    model = sig("ids int64 B L", "mask int64 B L", "image float32 B 3 H W")
    shapes, batch = sample_shapes(model, {"ids": (4, 9), "image": (4, 3, 20, 24)})
    assert (shapes, batch) == ({"ids": (1, 9), "image": (1, 3, 20, 24)}, 4)
    rows = next(synthetic(model, 4, shapes=shapes).batches(4)).inputs
    assert [rows[n].shape for n in ("ids", "mask", "image")] == [(4, 9), (4, 9), (4, 3, 20, 24)]


def test_pinning_ends_with_the_block() -> None:
    before = os.sched_getaffinity(0)
    with pinned([min(before)]):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before


def test_session_options_reach_onnxruntime() -> None:
    settings = SessionSettings(threads=2, level="none", spinning=True, config=(("session.use_env_allocators", "0"),))
    options = open_session(nets.residual(width=8, blocks=1), settings).get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert options.get_session_config_entry("session.use_env_allocators") == "0"


def test_a_slow_model_gets_few_rounds_and_a_wide_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve rounds of this model would take several times the allowed time."""
    monkeypatch.setattr(latency, "_OVERTIME", 0.02)
    data, feeds = matmul_model(768), [{"x": np.ones((768, 768), np.float32)}]
    found = compare_latency({"a": data, "b": data}, feeds, Effort(seconds=0.02))
    assert found.timings[0].rounds == 3
    ratio = found.ratios[0]
    assert ratio.low < ratio.speedup < ratio.high < np.inf


def test_intervals_widen_with_few_values() -> None:
    values = np.array([3.0, 1.0, 2.0, 5.0, 4.0, 6.0])
    assert order_statistic_interval(values) == (3.5, 1.0, 6.0)
    assert order_statistic_interval(np.arange(12.0))[1:] == (2.0, 9.0)
    middle, low, high = median_interval(np.array([1.0, 2.0, 3.0]), 100, 0)
    assert (middle, round(high - low, 2)) == (2.0, round(2 * 4.303 / np.sqrt(3), 2))
    assert median_interval(np.array([1.0]), 100, 0)[1:] == (-np.inf, np.inf)


def test_order_statistics_cover_the_median() -> None:
    draws = np.random.default_rng(0).exponential(size=(600, 9))
    hits = [low <= np.log(2) <= high for _, low, high in map(order_statistic_interval, draws)]
    assert np.mean(hits) > 0.93


def test_variance_between_sessions_counts() -> None:
    """Each of 6 sessions is off by 2 %, its rounds by far less.

    Intervals from the rounds alone mostly miss the truth.
    """
    alone = together = 0
    groups = np.repeat(np.arange(6), 40)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        values = 0.02 * rng.standard_normal(6)[groups] + 0.002 * rng.standard_normal(240)
        _, low, high = median_interval(values, 100, seed)
        alone += low <= 0 <= high
        _, low, high = median_interval(values, 100, seed, groups)
        together += low <= 0 <= high
    assert together >= 27
    assert alone < together


def test_throughput_counts_all_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "_SLICE", 0.03)
    small, large = (to_bytes(nets.residual(width=w, blocks=2)) for w in (8, 40))
    feeds = [b.inputs for b in nets.samples(nets.residual(width=8, blocks=1), 4).batches(2)]
    rates, ratios = throughput.throughput({"s": small, "l": large}, feeds, seconds=0.3, callers=2, batch=2)
    assert rates[0].low <= rates[0].per_second <= rates[0].high
    assert rates[0].callers == 2
    assert ratios[0].speedup < 0.8


def request(folder: Path, runs: int) -> dict[str, float]:
    """The result of the child process, computed in this one."""
    model = nets.residual(width=8, blocks=1)
    np.save(folder / "x.npy", next(nets.samples(model, 1).batches(1)).inputs["image"])
    (folder / "m.onnx").write_bytes(to_bytes(model))
    settings = {"threads": 1, "config": [["session.use_env_allocators", "0"]]}
    asked = {"model": str(folder / "m.onnx"), "feeds": {"image": str(folder / "x.npy")}, "texts": [], "runs": runs}
    (folder / "ask.json").write_text(json.dumps({**asked, "settings": settings}))
    subprocess_metrics.child(str(folder / "ask.json"), str(folder / "answer.json"))
    answer: dict[str, float] = json.loads((folder / "answer.json").read_text())
    return answer


def test_a_child_reports_times_and_memory(tmp_path: Path) -> None:
    told = request(tmp_path, 2)
    assert 0 < told["first"] < 5 and 0 < told["load"] < 5
    assert 20 < told["base"] <= told["peak"] < 100_000


@pytest.mark.slow
def test_fresh_processes_distinguish_large_and_small_models() -> None:
    """64 MB of weights show in the peak and in the loading time; the parent's own memory does not."""
    ballast = np.ones(40_000_000, np.float32)  # 160 MB here, of which the children must know nothing
    small, large = matmul_model(64), matmul_model(4096)
    found = subprocess_metrics.peak_memory({"large": large}, {"x": np.ones((4096, 4096), np.float32)})[0]
    assert 64 < found.peak < 420
    assert subprocess_metrics.peak_memory({"small": small}, {"x": np.ones((64, 64), np.float32)})[0].peak < 30
    starts, ratios = subprocess_metrics.cold_starts(
        {"a": small, "b": small}, {"x": np.ones((64, 64), np.float32)}, seconds=15
    )
    assert starts[0].children >= 6
    assert ratios[0].low < 1 < ratios[0].high
    assert ballast.sum() > 0
