"""The loop, the contract, plans and run records, on the shipped digits model and small nets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxpress.data.dataset import Splits, open_dataset
from onnxpress.data.shipped import calibration_folder
from onnxpress.errors import InputProblem
from onnxpress.measure.score import Score
from onnxpress.model.files import load, to_bytes
from onnxpress.model.signature import signature
from onnxpress.passes.int8 import node_selection
from onnxpress.plan import result_contract
from onnxpress.plan.candidate_store import CandidateStore
from onnxpress.plan.plan import apply_plan, new_plan, read_plan
from onnxpress.plan.run_record import RunRecord
from onnxpress.result import plain
from onnxpress.runtime.latency import Ratio
from onnxpress.search.finalists import OptimizeResult
from onnxpress.search.optimize import optimize
from onnxpress.search.request import OptimizeOptions
from onnxpress.search.search import Report
from tests import nets

DIGITS = calibration_folder() / "digits"


def digits() -> tuple[ir.Model, Splits]:
    model = load(DIGITS / "digits.onnx")
    parts = (open_dataset(DIGITS / f"{n}.npz", signature(model)) for n in ("train", "select", "validate"))
    return model, Splits(*parts)


@pytest.fixture(scope="module")
def optimized(tmp_path_factory: pytest.TempPathFactory) -> tuple[OptimizeResult, Path]:
    folder = tmp_path_factory.mktemp("optimized")
    _, splits = digits()
    outcome = optimize(DIGITS / "digits.onnx", splits, OptimizeOptions(time_budget=16), output=folder / "fast.onnx")
    return outcome, folder


@pytest.mark.alone
def test_digits_get_faster_smaller_and_stay_good(optimized: tuple[OptimizeResult, Path]) -> None:
    outcome, folder = optimized
    assert outcome.met
    assert outcome.speedup is not None
    assert outcome.score is not None
    assert outcome.speedup.low > 1
    assert outcome.score.drop <= 0.01
    assert (folder / "fast.onnx").stat().st_size * 3 < (DIGITS / "digits.onnx").stat().st_size
    assert (folder / "fast.onnx").read_bytes() == outcome.data


def test_the_plan_of_a_run_replays_to_the_same_bytes(optimized: tuple[OptimizeResult, Path]) -> None:
    outcome, folder = optimized
    model, splits = digits()
    plan = read_plan(folder / "fast.run" / "plan.json")
    data = splits.calibrate
    assert to_bytes(apply_plan(plan, model, data).model) == outcome.data


def test_a_plan_replays_in_another_process(optimized: tuple[OptimizeResult, Path]) -> None:
    """Another hash seed: no set may decide the order of anything."""
    outcome, folder = optimized
    command = [sys.executable, "-m", "onnxpress", "apply", str(folder / "fast.run" / "plan.json"), str(DIGITS / "digits.onnx"),
               "-o", str(folder / "again.onnx"), "-d", str(DIGITS / "train.npz")]  # fmt: skip
    done = subprocess.run(
        command, env={**os.environ, "PYTHONHASHSEED": "4321"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "again.onnx").read_bytes() == outcome.data


def test_the_run_record_tells_everything(optimized: tuple[OptimizeResult, Path]) -> None:
    outcome, folder = optimized
    record = json.loads((folder / "fast.run" / "run.json").read_text())
    assert record["schema"] == 1
    assert {c["name"] for c in record["candidates"]} == {c.name for c in outcome.candidates}
    assert record["outcome"]["chosen"] == outcome.chosen
    assert record["machine"]["isa"] is not None
    assert not (folder / "fast.run" / ".lock").exists()


def test_nothing_allowed_means_the_function_is_kept(tmp_path: Path) -> None:
    """Random answers on random labels: whatever changes an answer is out; what is written equals the original."""
    model = nets.residual(width=16, blocks=1)
    data = nets.samples(model, 60)
    outcome = optimize(model, data, OptimizeOptions(max_drop=0.0, time_budget=8), output=tmp_path / "out.onnx")
    done = load(tmp_path / "out.onnx")
    agree = nets.outputs(model, data).argmax(1) == nets.outputs(done, data).argmax(1)
    if outcome.chosen in ("original", "exact"):
        assert agree.all()
    assert outcome.score is None or outcome.score.drop <= 0


def test_size_goal_prefers_bytes() -> None:
    model = nets.residual(width=32)
    outcome = optimize(
        model, nets.samples(model, 90, labels=True), OptimizeOptions(goal="size", max_drop=0.2, time_budget=10)
    )
    finalists = [
        c.size
        for c in outcome.candidates
        if c.name in {r.name for r in (outcome.final.ratios if outcome.final else ())}
    ]
    assert len(outcome.data) <= min(finalists) or outcome.rejected


def test_requests_are_checked() -> None:
    with pytest.raises(InputProblem, match="max-drop"):
        OptimizeOptions(max_drop=2).check()
    with pytest.raises(InputProblem, match="goal"):
        OptimizeOptions(goal="beauty").check()


def score(drop: float) -> Score:
    return Score("top-1", 0.9 - drop, 0.9, drop, drop - 0.01, drop + 0.01, 500, 0.99, 0.001)


@pytest.mark.parametrize(
    ("drop", "low", "high", "goal", "accepted"),
    [
        (0.005, 1.1, 1.2, "latency", True),
        (0.02, 1.1, 1.2, "latency", False),
        (0.005, 0.98, 1.02, "latency", False),
        (0.005, 0.98, 1.02, "size", True),
        (0.005, 0.9, 0.95, "size", False),
        (float("nan"), 1.1, 1.2, "latency", False),
    ],
)
def test_contract(drop: float, low: float, high: float, goal: str, accepted: bool) -> None:
    verdict = result_contract.scorer(score(drop), Ratio("a", "b", (low + high) / 2, low, high), 0.01, goal, [])
    assert verdict.accepted is accepted
    assert bool(verdict.reasons) is not accepted


def test_contract_sees_a_baked_batch() -> None:
    model = nets.residual(width=16)
    other = nets.image_net()
    x = other.conv("image", 16)
    baked = other.model(other.head(x), {"image": [1, 3, 8, 8]}, [1, 10])
    assert result_contract.same_shape_behaviour(model, to_bytes(baked), nets.samples(model, 2))
    assert not result_contract.same_shape_behaviour(model, to_bytes(model), nets.samples(model, 2))


def test_contract_sees_a_baked_length() -> None:
    """A free axis that is not the batch: [N,L,16] with the length written into a Reshape runs at one length only."""
    free = nets.mlp()
    net = nets.Net()
    shape = net.constant(np.array([-1, 5, 16], np.int64), "shape")
    x = net.op("Reshape", ["tokens", shape], 16)
    weight = net.constant(net.rng.standard_normal((16, 8)).astype(np.float32))
    baked = net.model(net.op("MatMul", [x, weight], 8), {"tokens": ["N", "L", 16]}, ["N", "L", 8])
    baked.graph.outputs[0].name = free.graph.outputs[0].name
    data = nets.samples(free, 3, sequence=5)
    problems = result_contract.same_shape_behaviour(free, to_bytes(baked), data)
    assert any(" L " in f" {p} " for p in problems)
    assert not result_contract.same_shape_behaviour(free, to_bytes(free), data)


def test_contract_lets_sizes_that_depend_on_values_differ() -> None:
    """NonZero: the number of columns is the data's, and may change with the numbers; the rank may not."""

    def chooser(limit: float) -> ir.Model:
        net = nets.image_net()
        x = net.op("Greater", ["image", net.constant(np.array(limit, np.float32))], 3)
        proto = ir.to_proto(net.model(net.op("NonZero", [x], 3), nets.IMAGE, [4, "found"]))
        proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
        return ir.from_proto(proto)

    data = nets.samples(chooser(0.0), 3)
    assert not result_contract.same_shape_behaviour(chooser(0.0), to_bytes(chooser(0.1)), data)


def test_plan_is_bound_to_its_model_and_data() -> None:
    model = nets.residual(width=16)
    data = nets.samples(model, 4)
    plan = new_plan(model, data).then("simplify", [{"fold": "batchnorm"}])
    apply_plan(plan, model, data)
    with pytest.raises(InputProblem, match="another model"):
        apply_plan(plan, nets.residual(seed=3, width=16), data)
    with pytest.raises(InputProblem, match="other samples"):
        apply_plan(plan, model, nets.samples(model, 4, seed=9))


class Killed(BaseException):
    """Stands for a signal: no handler catches it."""


def killer(stage: str, error: type[BaseException]) -> Report:
    def report(said: str, fraction: float) -> None:
        if stage in said:
            raise error

    return report


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was made before is taken from the run folder, and the result is the one an unbroken run would give."""
    model, splits = digits()
    request, out = OptimizeOptions(time_budget=10), tmp_path / "fast.onnx"
    with pytest.raises(Killed):
        optimize(model, splits, request, out, report=killer("which blocks", Killed))
    assert not out.exists()
    kept = sorted(p.stem for p in (tmp_path / "fast.run" / "work").glob("*.onnx"))
    assert kept[:2] == ["exact", "int8"]
    made: list[str] = []
    shelved = CandidateStore.keep
    monkeypatch.setattr(CandidateStore, "keep", lambda self, c: (made.append(c.name), shelved(self, c))[1])
    monkeypatch.setattr(node_selection, "select_int8_by_latency", lambda *a: pytest.fail("timed again"))
    outcome = optimize(model, splits, request, out)
    assert not {"exact", "int8"} & set(made)
    assert outcome.met
    record = json.loads((tmp_path / "fast.run" / "run.json").read_text())
    assert record["resumed"]
    assert not (tmp_path / "fast.run" / "work").exists(), "models of an ended run are gone"
    assert {c["name"] for c in record["candidates"]} >= {"exact", "int8"}
    assert (tmp_path / "fast.run" / "plans" / "exact.json").exists()


def test_another_request_starts_anew(tmp_path: Path) -> None:
    model, splits = digits()
    for drop in (0.01, 0.02):
        with pytest.raises(Killed):
            optimize(
                model, splits, OptimizeOptions(drop, time_budget=8), tmp_path / "o.onnx", report=killer("which", Killed)
            )
        record = json.loads((tmp_path / "o.run" / "run.json").read_text())
        assert not record["resumed"]


def test_interrupting_keeps_the_best_so_far(tmp_path: Path) -> None:
    model, splits = digits()
    outcome = optimize(
        model, splits, OptimizeOptions(time_budget=60), tmp_path / "o.onnx", report=killer("which", KeyboardInterrupt)
    )
    assert outcome.interrupted
    assert outcome.met
    assert (tmp_path / "o.onnx").read_bytes() == outcome.data
    assert outcome.chosen.startswith("int8")


def test_two_runs_on_one_folder(tmp_path: Path) -> None:
    first = RunRecord(tmp_path / "r")
    with pytest.raises(InputProblem, match="another run"):
        RunRecord(tmp_path / "r")
    first.close()
    RunRecord(tmp_path / "r").close()
    (tmp_path / "r" / ".lock").write_text("999999999")  # a killed run's lock does not hold
    RunRecord(tmp_path / "r").close()


def test_json_has_no_infinities() -> None:
    assert json.loads(json.dumps(plain({"a": float("inf"), "b": np.float32(2), "c": (1, np.int64(3))}))) == {
        "a": None, "b": 2.0, "c": [1, 3]}  # fmt: skip


def test_with_a_goal_in_time_the_least_harmed_that_reach_it_come_first() -> None:
    from types import SimpleNamespace as Some

    from onnxpress.search.finalists import _goal, _ranked

    def candidate(name: str, drop: float) -> Any:
        return Some(name=name, score=Some(drop=drop, nmse=drop), size=1)

    some = [candidate("a", 0.01), candidate("b", 0.0), candidate("c", 0.0)]
    speeds = {"a": 4.0, "b": 2.5, "c": 1.5}
    assert [c.name for c in _ranked(some, speeds, "latency", 0.0)] == ["a", "b", "c"]
    assert [c.name for c in _ranked(some, speeds, "latency", 2.0)] == ["b", "a", "c"]
    assert [c.name for c in _ranked(some, speeds, "latency", 9.0)] == ["a", "b", "c"]
    assert _goal(Some(speedup=Some(speedup=4.0)), 9.0) == [  # type: ignore[arg-type]
        "9.00x the original's speed was not reached: the fastest that holds is 4.00x"
    ]
