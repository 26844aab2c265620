"""The start of every pass: what is said of the file as given."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnxpress
from onnxpress.model.files import load, save
from onnxpress.runtime.session import SessionSettings, open_session
from tests import nets

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("level", "said"), [("all", True), ("basic", False)])
def test_a_file_that_was_optimized_for_one_cpu(level: str, said: bool, tmp_path: Path) -> None:
    save(nets.residual(width=32), tmp_path / "net.onnx")
    open_session(tmp_path / "net.onnx", SessionSettings(level=level, dump=str(tmp_path / "saved.onnx")))
    saved = load(tmp_path / "saved.onnx")
    blocked = any(node.domain == "com.microsoft.nchwc" for node in saved.graph)
    notes = onnxpress.prune(saved, nets.samples(saved, 16), ratio=0.3).notes
    assert any("level extended" in note for note in notes) == blocked
    assert said or not blocked  # other CPUs have no blocked convolutions at any level
