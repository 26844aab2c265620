"""The lock of a run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxpress.errors import InputProblem
from onnxpress.plan.run_record import RunRecord

pytestmark = pytest.mark.unit


def test_two_runs_on_one_folder(tmp_path: Path) -> None:
    first = RunRecord(tmp_path / "r")
    with pytest.raises(InputProblem, match="another run"):
        RunRecord(tmp_path / "r")
    first.close()
    RunRecord(tmp_path / "r").close()
    (tmp_path / "r" / ".lock").write_text("999999999")  # a killed run's lock does not hold
    RunRecord(tmp_path / "r").close()
