"""The latency gate: decisions by the interval, and stored baselines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from onnxpress.cli.main import run
from onnxpress.evaluate.baseline import Baseline, ratio_to_baseline
from onnxpress.evaluate.slowdown import decide_slowdown
from onnxpress.model import files
from onnxpress.runtime.latency import Ratio
from tests import nets


@pytest.mark.parametrize(
    ("speedup", "low", "high", "passed", "decided", "why"),
    [
        (0.90, 0.88, 0.92, False, True, "above the allowed 1.050"),
        (0.90, 0.80, 1.01, True, False, "inconclusive"),
        (0.99, 0.97, 1.01, True, True, "no significant difference"),
        (0.98, 0.97, 0.99, True, True, "below the allowed 1.050"),
        (1.50, 1.40, 1.60, True, True, "below the allowed 1.050"),
        (1.00, 0.0, 3.0, True, False, "inconclusive"),
    ],
)
def test_decided_by_the_interval(
    speedup: float, low: float, high: float, passed: bool, decided: bool, why: str
) -> None:
    found = decide_slowdown(Ratio("new", "old", speedup, low, high), 0.05)
    assert (found.passed, found.decided) == (passed, decided)
    assert why in found.why
    assert "new takes" in found.why


def test_two_runs_are_less_certain_than_one() -> None:
    """Half as fast as the baseline in units of the reference; the interval is wider than that of either run."""
    kept = Baseline("m.onnx", "0", 1e-3, 2.0, 1.98, 2.02, {}, {})
    found = ratio_to_baseline(kept, Ratio("new", "reference", 1.0, 0.99, 1.01))
    assert found.speedup == pytest.approx(0.5)
    assert found.high / found.speedup > 1.05
    assert found.verdict == "slower"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """A small model, and one that takes several times as long."""
    paths = tmp_path / "small.onnx", tmp_path / "large.onnx"
    files.save(nets.residual(width=8, blocks=1), paths[0])
    files.save(nets.residual(width=64, blocks=2), paths[1])
    return str(paths[0]), str(paths[1])


@pytest.mark.alone
def test_a_slower_model_fails_and_is_reported(pair: tuple[str, str], tmp_path: Path) -> None:
    small, large = pair
    reports = ["--junit", str(tmp_path / "j.xml"), "--markdown", str(tmp_path / "m.md")]
    usual = ["--seconds", "0.2", "--fail-slower", "20%", "-q"]
    assert run(["bench", small, large, *usual, *reports]) == 1
    suite = ElementTree.parse(tmp_path / "j.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    failed = [case for case in suite.iter("testcase") if case.find("failure") is not None]
    assert [case.get("name") for case in failed] == ["large.onnx"]
    assert "**FAIL**" in (tmp_path / "m.md").read_text()
    assert run(["bench", large, small, *usual]) == 0


@pytest.mark.alone
def test_a_stored_baseline_by_file_and_by_reference(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the old file exists it is timed again; without it, its ratio to the built-in model is used."""
    small, large = pair
    kept = str(tmp_path / "b.json")
    assert run(["bench", small, "--seconds", "0.2", "-q", "--save-baseline", kept]) == 0
    usual = ["--baseline", kept, "--seconds", "0.2", "-q", "--json", "--fail-slower", "20%"]
    for how in ("interleaved", "reference"):
        capsys.readouterr()
        code = run(["bench", large, *usual])
        decision = json.loads(capsys.readouterr().out)["decisions"][0]
        assert how in decision["how"]
        assert decision["times"] > 1.5
        assert not decision["passed"]
        assert code == 1
        Path(small).unlink(missing_ok=True)


def test_a_forced_baseline_of_another_machine(pair: tuple[str, str], tmp_path: Path) -> None:
    small, kept = pair[0], tmp_path / "b.json"
    assert run(["bench", small, "--seconds", "0.1", "-q", "--save-baseline", str(kept)]) == 0
    body = json.loads(kept.read_text())
    body["machine"]["model"] = "another"
    kept.write_text(json.dumps(body))
    assert run(["bench", small, "--seconds", "0.1", "-q", "--baseline", str(kept)]) == 2
    assert run(["bench", small, "--seconds", "0.1", "-q", "--baseline", str(kept), "--force"]) == 0


def test_measurements_need_no_command_line() -> None:
    """The functions run where click is not installed."""
    program = (
        "import sys; sys.modules['click'] = None\n"
        "from onnxpress.evaluate import baseline, bench, compare, gate, slowdown\n"
        "gate.GateOptions(fail_slower=0.05).check({'old': 'a.onnx', 'new': 'b.onnx'}, bench.BenchConditions())\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
