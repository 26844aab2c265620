"""torch is optional: without it everything but training imports and works, and training says what is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from onnxpress.errors import EnvironmentProblem
from onnxpress.train import optional_torch

pytestmark = pytest.mark.unit

WITHOUT = """
import pkgutil, importlib, sys
sys.modules["torch"] = None
import onnxpress
for found in pkgutil.walk_packages(onnxpress.__path__, "onnxpress."):
    if not found.name.startswith("onnxpress.train.") and not found.name.endswith("__main__"):
        importlib.import_module(found.name)
import onnxpress.train.optional_torch
"""


def test_nothing_but_training_imports_torch() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_training_without_torch_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional_torch, "has_torch", lambda: False)
    with pytest.raises(EnvironmentProblem, match=r"distillation needs the package torch.*onnxpress\[train\]"):
        optional_torch.require_torch("distillation")
