"""Every command on the nine networks of the onnx wheel, as the files are: an answer or a reason, no internal error.

Their weights are computed by ConstantOfShape, so that a file of 10 kB becomes one of up to 575 MB.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.exported_forms import Exported
from tests.integration.test_exported_forms import problems

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
_SAMPLES = 6


def wheel_model(path: Path) -> Exported:
    """A file with random pictures."""
    model = onnx.load(path)
    stored = {t.name for t in model.graph.initializer}
    (given,) = (v for v in model.graph.input if v.name not in stored)
    shape = [d.dim_value for d in given.type.tensor_type.shape.dim]
    pictures = np.random.default_rng(0).normal(size=(_SAMPLES, *shape[1:])).astype(np.float32)
    return Exported(model, {given.name: pictures}, path.stem)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(LIGHT.glob("light_*.onnx")), ids=lambda p: p.stem)
def test_commands_answer_on_the_networks_of_the_wheel(path: Path, tmp_path: Path) -> None:
    assert not problems(wheel_model(path), tmp_path)
