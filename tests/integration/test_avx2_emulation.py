"""Files for a CPU without VNNI, run on one: qemu-user emulates a Haswell (AVX2) with MLAS's saturating kernels.

Needs `qemu-x86_64` (Debian: apt-get install qemu-user). Slow, since every instruction is emulated.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onnxpress import quantize
from onnxpress.data.dataset import Dataset
from onnxpress.data.shipped import calibration_folder
from onnxpress.model.files import load, save
from onnxpress.model.signature import signature
from onnxpress.runtime.session import open_session

DIGITS = calibration_folder() / "digits"
SCRIPT = """
import sys, numpy as np, onnxruntime as ort
options = ort.SessionOptions(); options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
np.save(sys.argv[3], session.run(None, {"image": np.load(sys.argv[2])})[0])
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("qemu-x86_64") is None or platform.machine() != "x86_64", reason="needs qemu-user on x86-64"
    ),
]


def on_haswell(model: Path, images: np.ndarray, folder: Path) -> np.ndarray:
    np.save(folder / "in.npy", images)
    qemu = shutil.which("qemu-x86_64")
    assert qemu is not None
    command = [
        qemu,
        "-cpu",
        "Haswell",
        sys.executable,
        "-c",
        SCRIPT,
        str(model),
        str(folder / "in.npy"),
        str(folder / "out.npy"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(folder / "out.npy")


@pytest.mark.parametrize(("target", "right"), [("avx2", True), ("vnni", False)])
def test_digits_in_int8_on_avx2(target: str, right: bool, tmp_path: Path) -> None:
    """A file written for AVX2 keeps its outputs there; one written for VNNI saturates with such weights."""
    model = load(DIGITS / "digits.onnx")
    with np.load(DIGITS / "train.npz") as stored:
        images, labels = stored["image"].astype(np.float32), stored["labels"]
    data = Dataset.from_arrays({"image": images[:128]}, signature(model))
    done = quantize(model, data, target_cpu=target).model
    save(done, tmp_path / "int8.onnx")
    here = open_session(done).run(None, {"image": images[128:328]})[0]
    there = on_haswell(tmp_path / "int8.onnx", images[128:328], tmp_path)
    gap = np.abs(here - there).max() / np.abs(here).max()
    accuracy = (there.argmax(1) == labels[128:328]).mean()
    if right:
        assert gap < 0.02
        assert accuracy >= (here.argmax(1) == labels[128:328]).mean() - 0.01
    else:
        assert gap > 0.0
