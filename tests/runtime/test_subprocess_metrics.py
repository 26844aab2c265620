"""Cold starts and peak memory, measured in child processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from onnxpress.model.files import to_bytes
from onnxpress.runtime import subprocess_metrics
from onnxpress.runtime.builtin_models import matmul_model
from tests import nets


def request(folder: Path, runs: int) -> dict[str, float]:
    """The result of the child process, computed in this one."""
    model = nets.residual(width=8, blocks=1)
    np.save(folder / "x.npy", next(nets.samples(model, 1).batches(1)).inputs["image"])
    (folder / "m.onnx").write_bytes(to_bytes(model))
    settings = {"threads": 1, "config": [["session.use_env_allocators", "0"]]}
    asked = {"model": str(folder / "m.onnx"), "feeds": {"image": str(folder / "x.npy")}, "texts": [], "runs": runs}
    (folder / "ask.json").write_text(json.dumps({**asked, "settings": settings}))
    subprocess_metrics.child(str(folder / "ask.json"), str(folder / "answer.json"))
    answer: dict[str, float] = json.loads((folder / "answer.json").read_text())
    return answer


@pytest.mark.alone
def test_a_child_reports_times_and_memory(tmp_path: Path) -> None:
    found = request(tmp_path, 2)
    assert 0 < found["first"] < 5 and 0 < found["load"] < 5
    assert 20 < found["base"] <= found["peak"] < 100_000


@pytest.mark.alone
@pytest.mark.slow
def test_fresh_processes_distinguish_large_and_small_models() -> None:
    """64 MB of weights show in the peak and in the loading time; the parent's own memory does not."""
    ballast = np.ones(40_000_000, np.float32)  # 160 MB here, of which the children must know nothing
    small, large = matmul_model(64), matmul_model(4096)
    found = subprocess_metrics.peak_memory({"large": large}, {"x": np.ones((4096, 4096), np.float32)})[0]
    assert 64 < found.peak < 420
    assert subprocess_metrics.peak_memory({"small": small}, {"x": np.ones((64, 64), np.float32)})[0].peak < 30
    starts, ratios = subprocess_metrics.cold_starts(
        {"a": small, "b": small}, {"x": np.ones((64, 64), np.float32)}, seconds=15
    )
    assert starts[0].children >= 6
    assert ratios[0].low < 1 < ratios[0].high
    assert ballast.sum() > 0
