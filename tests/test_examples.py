"""The examples in the docstrings of public functions run."""

from __future__ import annotations

import doctest
import inspect
import pathlib
from pathlib import Path

import numpy as np
import pytest

import onnxpress
from onnxpress.model.files import save
from tests import nets

SLOW = {"nas_search", "nas_from", "nas_worker", "nas_build"}
FUNCTIONS = [
    n for n in dir(onnxpress) if callable(getattr(onnxpress, n)) and not inspect.isclass(getattr(onnxpress, n))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the examples name."""
    path = tmp_path_factory.mktemp("examples")
    save(nets.residual(width=32), path / "model.onnx")
    save(nets.residual(width=32, seed=1), path / "other.onnx")
    rng = np.random.default_rng(0)
    images = rng.standard_normal((60, 3, 8, 8)).astype(np.float32)
    np.savez(path / "samples.npz", image=images, labels=rng.integers(0, 10, 60))
    return path


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(getattr(onnxpress, name)) or "")
    assert examples, f"{name} has no example"
    names = {"onnxpress": onnxpress, "pathlib": pathlib}
    for example in examples:
        exec(example.source, names)


@pytest.mark.alone
@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n not in SLOW and n != "report"])
def test_examples_run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(name, folder, monkeypatch)
    if name == "optimize":
        run("report", folder, monkeypatch)


@pytest.mark.slow
def test_examples_of_architecture_search_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("optuna")
    for name in ("nas_search", "nas_worker", "nas_build", "nas_from"):
        run(name, folder, monkeypatch)
