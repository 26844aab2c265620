"""The command as a user runs it: with torch, without it, and killed half-way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onnxpress.cli.main import COMMANDS, run
from onnxpress.model import edit, files, read
from onnxpress.model.files import load
from tests import nets


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """teacher.onnx, a poor student (the teacher with noise on its weights), samples."""
    model = nets.residual(width=8, blocks=1)
    files.save(model, tmp_path / "teacher.onnx")
    poor = model.clone()
    rng = np.random.default_rng(3)
    for value in poor.graph.initializers.values():
        array = read.constant(value)
        assert array is not None
        noise = rng.standard_normal(array.shape) * 0.4 * np.abs(array).mean()
        edit.set_constant(value, (array + noise).astype(np.float32))
    files.save(poor, tmp_path / "student.onnx")
    np.savez(tmp_path / "data.npz", image=rng.standard_normal((60, 3, 8, 8)).astype(np.float32))
    return tmp_path


def command(folder: Path, *more: str, student: str = "student.onnx") -> list[str]:
    given = [str(folder / student)] if student else []
    return ["distill", *given, "--teacher", str(folder / "teacher.onnx"), "-d", str(folder / "data.npz"),
            "-o", str(folder / "out.onnx"), *more]  # fmt: skip


def test_without_torch_one_line_names_the_extra(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run(command(folder, "--steps", "3")) == 3
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1
    assert "onnxpress[train]" in err[0]
    assert not (folder / "out.onnx").exists()


def test_without_torch_the_closed_form_works(folder: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from onnxpress.cli.main import main; main(sys.argv[1:])"
    words = [sys.executable, "-c", code, *command(folder, "--closed-form", "--json")]
    body = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert body["kind"] == "distill"
    assert body["improved"]
    assert body["score"]["nmse"] < 0.5 * body["start"]["nmse"]
    load(folder / "out.onnx")


def test_every_help_works_without_torch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in COMMANDS:
        assert run([name, "--help"]) == 0


def test_training_prints_its_curve_and_writes_a_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    plan, again = str(folder / "plan.json"), str(folder / "again.onnx")
    more = ["--steps", "40", "--batch", "16", "--threads", "1", "--plan", plan]
    assert run(command(folder, *more)) == 0
    text = capsys.readouterr().out
    assert "(select)" in text
    assert "kept" in text
    assert "before:" in text
    assert all(len(line) <= 80 or "/" in line for line in text.splitlines() if "[" not in line)
    assert run(["apply", plan, str(folder / "student.onnx"), "-d", str(folder / "data.npz"), "-o", again, "-q"]) == 0
    assert Path(again).read_bytes() == (folder / "out.onnx").read_bytes()


def test_a_killed_command_resumes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    from onnxpress.train.trainer import Trainer

    more = ["--steps", "24", "--batch", "16", "--threads", "1", "--augment", "noise", "-q"]
    assert run(command(folder, *more)) == 0
    whole = (folder / "out.onnx").read_bytes()
    real = Trainer.step

    def dying(self: Trainer) -> float:
        if self.settings.steps == 24:
            self.save(folder / "out.run" / "checkpoint.pt")
            if self.steps_done == 15:
                raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr("onnxpress.train.distillation.runner.Distillation.step_seconds", lambda self: 1.0)
    monkeypatch.setattr(Trainer, "step", dying)
    (folder / "out.onnx").unlink()
    assert run(command(folder, *more)) == 130
    assert not (folder / "out.onnx").exists()
    monkeypatch.setattr(Trainer, "step", real)
    assert run(command(folder, "--resume", "-q")) == 0
    assert (folder / "out.onnx").read_bytes() == whole


def test_strict_is_one_where_nothing_is_better(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "student.onnx").write_bytes((folder / "teacher.onnx").read_bytes())
    code = run(command(folder, "--closed-form", "--strict"))
    assert code == 1
    assert "nothing better" in capsys.readouterr().out
    load(folder / "out.onnx")


def test_the_metric_is_the_users(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By name, and as a function of a file; an unknown one is refused before anything is done."""
    (folder / "own.py").write_text("def largest(outputs, label):\n    return float(list(outputs.values())[0].max())\n")
    for metric, shown in (("cosine", "cosine"), (f"{folder / 'own.py'}:largest", "largest")):
        run(command(folder, "--closed-form", "--metric", metric))
        said = capsys.readouterr()
        assert shown in said.out and "judged by" in said.err
    assert run(command(folder, "--closed-form", "--metric", "beauty")) == 2
    assert "no such metric" in capsys.readouterr().err
