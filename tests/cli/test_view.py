"""view: hands a good model to netron, and says in one line what is missing."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from onnxpress.cli.main import run as cli
from onnxpress.data.shipped import calibration_folder

pytestmark = pytest.mark.unit

MODEL = str(calibration_folder() / "digits" / "digits.onnx")


def test_netron_gets_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    fake = SimpleNamespace(start=lambda path, address: seen.append((path, address)), wait=lambda: seen.append("waited"))
    monkeypatch.setitem(sys.modules, "netron", fake)
    assert cli(["view", MODEL, "--port", "8123"]) == 0
    assert seen == [(MODEL, ("localhost", 8123)), "waited"]


def test_without_netron_one_line_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "netron", None)
    assert cli(["view", MODEL]) == 3
    error = capsys.readouterr().err
    assert "onnxpress[view]" in error
    assert len(error.strip().splitlines()) == 1
    assert cli(["view", "absent.onnx"]) == 2
