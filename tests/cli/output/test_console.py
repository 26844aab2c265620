"""Arguments in messages: Python names in the library, options on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxpress.cli.main import run
from onnxpress.cli.options import print_notes
from onnxpress.cli.output.console import with_options
from onnxpress.errors import InputProblem

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("give `data`", "give --data"),
        ("`max_drop` is below 0, or `fail_slower` is missing", "--max-drop is below 0, or --fail-slower is missing"),
        ("run `onnxpress inspect model.onnx`", "run `onnxpress inspect model.onnx`"),
        ("node `Conv_1` and array 'labels'", "node `Conv_1` and array 'labels'"),
    ],
)
def test_arguments_become_options(text: str, shown: str) -> None:
    assert with_options(text) == shown


def test_a_problem_names_arguments_in_python_and_options_on_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = InputProblem("no such metric", "`metric`", "top-2", "pass `force`")
    assert problem.line() == "no such metric (`metric`): top-2. TRY: pass `force`."

    def fail(**_: object) -> None:
        raise problem

    monkeypatch.setattr("onnxpress.cli.main.cli.main", fail)
    assert run(["bench"]) == 2
    assert capsys.readouterr().err == "error: no such metric (--metric): top-2. TRY: pass --force.\n"


def test_notes_name_options(capsys: pytest.CaptureFixture[str]) -> None:
    print_notes(["no samples: `data` was not given"], quiet=False)
    assert capsys.readouterr().err == "note: no samples: --data was not given\n"


def test_every_option_in_a_message_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"")
    assert run(["bench", str(model), "--force"]) == 2
    shown = capsys.readouterr().err
    assert "--force" in shown and "--baseline" in shown and "`" not in shown
