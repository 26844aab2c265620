"""Trained models of a zoo (ONNXPRESS_ZOO: a folder with cases.py) as programs: onnxruntime's numbers, gradients
everywhere.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from onnxpress.model.files import load  # noqa: E402
from onnxpress.runtime.session import SessionSettings, open_session  # noqa: E402
from onnxpress.train.graph import weight_selection  # noqa: E402
from onnxpress.train.graph.program import Program  # noqa: E402

FOLDER = os.environ.get("ONNXPRESS_ZOO", "")
NAMES = sorted(p.parent.name for p in Path(FOLDER).glob("*/case.json")) if FOLDER else []
pytestmark = pytest.mark.slow


def zoo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("zoo_cases", Path(FOLDER) / "cases.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES or [pytest.param("", marks=pytest.mark.skip(reason="ONNXPRESS_ZOO is not set"))])
def test_parity_and_gradients(name: str) -> None:
    case = zoo().load(name)
    model = load(case.model)
    program = Program(model)
    feeds, _ = case.data("select", 0, 4)
    expected = open_session(model, SessionSettings(level="none")).run(None, feeds)
    results = list(program({k: torch.from_numpy(v) for k, v in feeds.items()}).values())
    for want, got in zip(expected, results, strict=True):
        assert np.abs(want - got.detach().numpy()).max() <= 1e-4 * np.abs(want).max()
    sum(r.square().sum() for r in results).backward()
    for weight in program.names:
        gradient = program.parameter(weight).grad
        assert gradient is not None and bool(gradient.isfinite().all()) and bool(gradient.any()), weight
    trained = {
        n
        for n, v in model.graph.initializers.items()
        if v.const_value is not None and weight_selection.is_weight(v.const_value, False)
    }
    statistics = {
        v.name for n in model.graph if n.op_type == "BatchNormalization" for v in n.inputs[3:] if v is not None
    }
    assert set(program.names) == trained - statistics
