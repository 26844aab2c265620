"""Progress follows what is reported and the clock; lines where there is no terminal."""

from __future__ import annotations

import io
import sys
import time

import pytest

from onnxpress.cli.output import progress_display
from onnxpress.cli.output.progress_display import Stage, line, progress

pytestmark = pytest.mark.unit


def test_within_a_step_the_bar_follows_the_clock() -> None:
    stage = Stage(budget=100, start=time.monotonic() - 30)
    assert stage.share == pytest.approx(0.3, abs=0.01)
    stage.report("int8", 0.5)
    assert stage.share == 0.5
    stage.report("pruning", 0.4)
    assert stage.share == 0.5, "it does not go back"
    late = Stage(budget=10, start=time.monotonic() - 30)
    assert late.share == 0.99
    assert line(late) == "30 s, 99%: starting"


def test_without_a_budget_nothing_is_made_up() -> None:
    stage = Stage(name="prune", start=time.monotonic() - 12)
    assert stage.share is None
    assert line(stage) == "12 s: prune"
    stage.report("timing", 0.25)
    assert line(stage) == "12 s, 25%: timing"


def test_lines_come_now_and_then_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_display, "_REFRESH", 0.01)
    monkeypatch.setattr(progress_display, "_FIRST_LINE", 0.1)
    monkeypatch.setattr(progress_display, "_NEXT_LINE", 0.1)
    with progress(budget=2) as report:
        report("int8", 0.1)
        time.sleep(0.25)
        report("pruning", 0.2)
        time.sleep(0.25)
    shown = capsys.readouterr().err.splitlines()
    assert [text.split(": ")[1] for text in shown] == ["int8", "pruning"]
    with progress(quiet=True) as report:
        report("int8", 0.1)
        time.sleep(0.15)
    assert capsys.readouterr().err == ""


def test_short_commands_show_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(name="simplify"):
        pass
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(progress_display, "_REFRESH", 0.02)
    with progress(budget=1) as report:
        report("which blocks can go", 0.1)
        time.sleep(0.6)
    shown = stream.getvalue()
    assert "which blocks can go" in shown and "%" in shown and "0:00:00" in shown
