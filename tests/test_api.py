"""The public names: lazy, callable, and the README's own Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnxpress
from onnxpress.data.shipped import calibration_folder


def test_every_public_name_is_there() -> None:
    for name in onnxpress.__all__:
        assert getattr(onnxpress, name) is not None
    assert callable(onnxpress.optimize)


def test_importing_costs_nothing() -> None:
    code = "import sys, onnxpress; print(any(m in sys.modules for m in ('onnx', 'onnxruntime', 'numpy')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_optimize_can_be_called_after_its_floor_was_imported(tmp_path: Path) -> None:
    from onnxpress.search.request import OptimizeOptions

    folder = calibration_folder() / "digits"
    model = onnxpress.load(folder / "digits.onnx")
    data = onnxpress.open_dataset(folder / "train.npz", onnxpress.signature(model))
    outcome = onnxpress.optimize(
        folder / "digits.onnx", data, OptimizeOptions(time_budget=6), output=tmp_path / "fast.onnx"
    )
    assert (tmp_path / "fast.onnx").read_bytes() == outcome.data
    assert onnxpress.bench({"a": model}, data=data).timings[0].median > 0
