"""`onnxpress nas --from`: the search of `optimize`, with a report; requests that make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxpress.cli.main import run as cli
from onnxpress.data.shipped import calibration_folder
from tests import nets


@pytest.mark.slow
def test_the_report_names_commands_that_make_each_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, data = nets.written(nets.residual(width=64), tmp_path, 128)
    command = ["nas", "--from", model, "-d", data, "-o", "out.onnx", "--time-budget", "25s", "--max-drop", "0.9", "-q"]
    assert cli([*command, "--speedup", "1.2"]) == 0
    text = (tmp_path / "out.run" / "report.md").read_text()
    files = sorted((tmp_path / "out.run" / "front").glob("*.onnx"))
    assert files
    for file in files:
        assert f"onnxpress apply front/{file.stem}.json" in text
        plan = str(file.with_suffix(".json"))
        assert cli(["apply", plan, model, "-d", data, "-o", "again.onnx", "-q"]) == 0
        assert (tmp_path / "again.onnx").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--speedup", "0.5"], "above 1"),
        (["--speedup", "2", "--latency-ms", "3"], "mutually exclusive"),
        (["--max-drop", "7"], "between 0 and 1"),
    ],
)
def test_invalid_requests_are_one_line(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = calibration_folder() / "digits"
    command = [
        "nas",
        "--from",
        str(digits / "digits.onnx"),
        "-d",
        str(digits / "train.npz"),
        "-o",
        str(tmp_path / "o.onnx"),
    ]
    assert cli([*command, *arguments]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
