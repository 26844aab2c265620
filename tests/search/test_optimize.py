"""The optimization of the shipped digits model: result, plan, run record, resuming and interruption."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxpress.cli.main import run as cli
from onnxpress.data.dataset import Splits, open_dataset
from onnxpress.data.shipped import calibration_folder
from onnxpress.errors import InputProblem
from onnxpress.model.files import load, to_bytes
from onnxpress.model.signature import signature
from onnxpress.passes.int8 import node_selection
from onnxpress.plan.candidate_store import CandidateStore
from onnxpress.plan.plan import apply_plan, read_plan
from onnxpress.progress import Progress
from onnxpress.search.finalists import OptimizeResult
from onnxpress.search.optimize import optimize
from onnxpress.search.request import OptimizeOptions
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
    outcome = optimize(DIGITS / "digits.onnx", splits, OptimizeOptions(time_budget=20), output=folder / "fast.onnx")
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


@pytest.mark.alone
def test_the_plan_of_a_run_replays_to_the_same_bytes(optimized: tuple[OptimizeResult, Path]) -> None:
    outcome, folder = optimized
    model, splits = digits()
    plan = read_plan(folder / "fast.run" / "plan.json")
    data = splits.calibrate
    assert to_bytes(apply_plan(plan, model, data).model) == outcome.data


@pytest.mark.slow
@pytest.mark.alone
def test_a_plan_replays_in_another_process(optimized: tuple[OptimizeResult, Path]) -> None:
    """Another hash seed: no set may decide the order of anything."""
    outcome, folder = optimized
    command = [
        sys.executable,
        "-m",
        "onnxpress",
        "apply",
        str(folder / "fast.run" / "plan.json"),
        str(DIGITS / "digits.onnx"),
        "-o",
        str(folder / "again.onnx"),
        "-d",
        str(DIGITS / "train.npz"),
    ]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONHASHSEED": "4321"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "again.onnx").read_bytes() == outcome.data


@pytest.mark.alone
def test_the_run_record_tells_everything(optimized: tuple[OptimizeResult, Path]) -> None:
    outcome, folder = optimized
    record = json.loads((folder / "fast.run" / "run.json").read_text())
    assert record["schema"] == 1
    assert {c["name"] for c in record["candidates"]} == {c.name for c in outcome.candidates}
    assert record["outcome"]["chosen"] == outcome.chosen
    assert record["machine"]["isa"] is not None
    assert not (folder / "fast.run" / ".lock").exists()


@pytest.mark.slow
def test_nothing_allowed_means_the_function_is_kept(tmp_path: Path) -> None:
    """The written model gives the class of the original for every validation sample."""
    model = nets.residual(width=16, blocks=1)
    splits = Splits(*(nets.samples(model, 30, seed) for seed in range(3)))
    outcome = optimize(model, splits, OptimizeOptions(max_drop=0.0, time_budget=5), output=tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").exists() == outcome.improved
    before, after = (
        nets.outputs(m, splits.validate) for m in (model, ir.from_proto(onnx.load_from_string(outcome.data)))
    )
    np.testing.assert_array_equal(before.argmax(1), after.argmax(1))


@pytest.mark.slow
@pytest.mark.alone
def test_size_goal_prefers_bytes() -> None:
    model = nets.residual(width=32)
    outcome = optimize(
        model, nets.samples(model, 90, labels=True), OptimizeOptions(goal="size", max_drop=0.2, time_budget=6)
    )
    assert outcome.met
    assert len(outcome.data) < 0.5 * outcome.original_size
    assert outcome.final is not None
    sizes = {c.id: c.size for c in outcome.candidates}
    timed = [r.name for r in outcome.final.ratios]
    assert len(timed) > 1
    smaller = [name for name in timed if sizes[name] < len(outcome.data)]
    assert all(outcome.rejected[name] for name in smaller), "smaller finalists were rejected, with reasons"


def test_requests_are_checked() -> None:
    with pytest.raises(InputProblem, match="max_drop"):
        OptimizeOptions(max_drop=2).check()
    with pytest.raises(InputProblem, match="goal"):
        OptimizeOptions(goal="beauty").check()


class Killed(BaseException):
    """Stands for a signal: no handler catches it."""


def killer(stage: str, error: type[BaseException]) -> Progress:
    def report(expected: str, fraction: float) -> None:
        if stage in expected:
            raise error

    return report


@pytest.mark.slow
@pytest.mark.alone
def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was made before is taken from the run folder, and the result is the one an unbroken run would give."""
    model, splits = digits()
    request, out = OptimizeOptions(time_budget=10), tmp_path / "fast.onnx"
    with pytest.raises(Killed):
        optimize(model, splits, request, output=out, progress=killer("candidate prune", Killed))
    assert not out.exists()
    kept = sorted(p.stem for p in (tmp_path / "fast.run" / "work").glob("*.onnx"))
    assert kept[:2] == ["exact", "int8"]
    made: list[str] = []
    shelved = CandidateStore.keep
    monkeypatch.setattr(CandidateStore, "keep", lambda self, c: (made.append(c.name), shelved(self, c))[1])
    monkeypatch.setattr(node_selection, "select_int8_by_latency", lambda *a: pytest.fail("timed again"))
    outcome = optimize(model, splits, request, output=out)
    assert not {"exact", "int8"} & set(made)
    assert outcome.met
    record = json.loads((tmp_path / "fast.run" / "run.json").read_text())
    assert record["resumed"]
    assert not (tmp_path / "fast.run" / "work").exists(), "models of an ended run are gone"
    assert {c["name"] for c in record["candidates"]} >= {"exact", "int8"}
    assert (tmp_path / "fast.run" / "plans" / "exact.json").exists()


@pytest.mark.slow
@pytest.mark.alone
def test_another_request_starts_anew(tmp_path: Path) -> None:
    model, splits = digits()
    for drop in (0.01, 0.02):
        with pytest.raises(Killed):
            optimize(
                model,
                splits,
                OptimizeOptions(drop, time_budget=8),
                output=tmp_path / "o.onnx",
                progress=killer("int8", Killed),
            )
        record = json.loads((tmp_path / "o.run" / "run.json").read_text())
        assert not record["resumed"]


@pytest.mark.alone
def test_interrupting_keeps_the_best_so_far(tmp_path: Path) -> None:
    model, splits = digits()
    outcome = optimize(
        model,
        splits,
        OptimizeOptions(time_budget=12),
        output=tmp_path / "o.onnx",
        progress=killer("candidate prune", KeyboardInterrupt),
    )
    assert outcome.interrupted
    assert outcome.met
    assert (tmp_path / "o.onnx").read_bytes() == outcome.data
    assert outcome.chosen.startswith("int8")


@pytest.mark.slow
def test_nothing_is_written_where_nothing_is_better(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One small product: its exact form is the file itself."""
    net = nets.Net()
    flat = net.op("Flatten", ["image"], 192)
    weight = net.constant(np.random.default_rng(0).standard_normal((10, 192)).astype(np.float32))
    model = net.model(net.op("Gemm", [flat, weight], 10, transB=1), nets.IMAGE, ["N", 10])
    path, data = nets.written(model, tmp_path)
    out = tmp_path / "out.onnx"
    assert cli(["optimize", path, "-d", data, "--time-budget", "5", "-o", str(out), "-q"]) == 1
    assert not out.exists()
    assert "out.onnx was not written" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.slow
def test_few_samples_are_cross_validated(tmp_path: Path) -> None:
    """With 30 samples three parts would decide nothing; the plan replays from the same 30."""
    model, splits = digits()
    few = splits.calibrate.select(range(30))
    found = optimize(model, few, time_budget=15, output=tmp_path / "fast.onnx")
    assert found.met and found.score is not None and found.score.samples == 30
    assert "cross-validation" in found.sample_notes[0]
    replayed = apply_plan(read_plan(tmp_path / "fast.run" / "plan.json"), model, few)
    assert to_bytes(replayed.model) == found.data


@pytest.mark.alone
def test_the_first_result_comes_early_and_results_only_get_better(optimized: tuple[OptimizeResult, Path]) -> None:
    outcome, folder = optimized
    assert outcome.improvements
    first = outcome.improvements[0]
    assert first.low > 1
    assert first.seconds <= 0.5 * 20, "on a busy machine: else in a quarter of the budget"
    speeds = [i.speedup for i in outcome.improvements]
    assert speeds == sorted(speeds)
    record = json.loads((folder / "fast.run" / "run.json").read_text())
    assert [i["name"] for i in record["improvements"]] == [i.name for i in outcome.improvements]
