"""The commands as a user runs them: tables within 80 columns, JSON that parses, files that load."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxpress.cli.main import COMMANDS, run
from onnxpress.cli.options import DataChoice, open_data
from onnxpress.data.shipped import calibration_folder
from onnxpress.model.files import load, save
from onnxpress.passes.registry import all_passes
from tests import nets
from tests.passes.rewriting.test_rewrite import slow_net

DIGITS = calibration_folder() / "digits"
MODEL, TRAIN = str(DIGITS / "digits.onnx"), str(DIGITS / "train.npz")


def out(capsys: pytest.CaptureFixture[str], *command: str, code: int = 0) -> str:
    capsys.readouterr()
    found = run(list(command))
    captured = capsys.readouterr()
    assert found == code, captured.err
    for line in captured.out.splitlines():
        assert len(line) <= 80 or {"--json", "completion"} & set(command) or "x86_64" in line or "/" in line, line
    return captured.out


@pytest.mark.alone
def test_help_answers_at_once() -> None:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "onnxpress", "--help"], capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 0.5
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = out(capsys, name, "--help")
    assert "Usage: onnxpress" in text


@pytest.mark.alone
def test_bench_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    text = out(capsys, "bench", MODEL, MODEL, "--seconds", "1", "-q")
    assert "95 % interval" in text
    body = json.loads(out(capsys, "bench", MODEL, MODEL, "--seconds", "1", "--json"))
    assert body["kind"] == "bench"
    assert body["schema"] == 1
    assert 0.8 < body["ratios"][0]["speedup"] < 1.25
    assert body["machine"]["onnxruntime"]


@pytest.mark.alone
def test_bench_profile(capsys: pytest.CaptureFixture[str]) -> None:
    text = out(capsys, "bench", MODEL, "--seconds", "0.1", "--profile", "--top", "3", "-q")
    assert "operator" in text and "GFLOP/s" in text and "add up to" in text
    body = json.loads(out(capsys, "bench", MODEL, "--seconds", "0.1", "--profile", "--json"))
    assert sum(k["share"] for k in body["profiles"][0]["kernels"]) == pytest.approx(1)
    assert body["profiles"][0]["peak"]["gflops"] > 1
    assert body["rewritable"] == {Path(MODEL).name: {}}


@pytest.mark.alone
def test_bench_profile_marks_what_is_written_slowly(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "slow.onnx"
    save(slow_net(), path)
    text = out(capsys, "bench", str(path), "--seconds", "0.1", "--profile", "-q")
    assert "`onnxpress rewrite` can change (" in " ".join(text.split())


def test_compare_of_a_model_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    body = json.loads(out(capsys, "compare", MODEL, MODEL, "-d", str(DIGITS / "select.npz"), "--json"))
    assert body["score"]["drop"] == 0
    assert body["outputs"][0]["max_abs"] == 0


def test_inspect_names_what_can_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    text = out(capsys, "inspect", MODEL, "--time-budget", "4s")
    assert "input image: float32[N,1,8,8]" in text
    assert all(name in text for name in all_passes())
    assert json.loads(out(capsys, "inspect", MODEL, "--time-budget", "0", "--json"))["macs"] > 0
    out(capsys, "inspect", MODEL, "--time-budget", "2s", "--nodes")


def test_free_sizes_are_those_of_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = nets.image_net()
    model = net.model(net.head(net.conv("image", 8)), {"image": ["N", 3, "H", "W"]}, ["N", 10])
    save(model, tmp_path / "free.onnx")
    free, shape = str(tmp_path / "free.onnx"), ["--shape", "image=1x3x20x24"]
    assert "image 1x3x20x24" in out(capsys, "inspect", free, "--time-budget", "0", *shape)
    out(capsys, "simplify", free, "-o", str(tmp_path / "simple.onnx"), *shape)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(4):
        Image.fromarray(np.full((30 + number, 40, 3), 60 * number, np.uint8)).save(pictures / f"{number}.png")
    out(capsys, "compare", free, free, "-d", str(pictures), *shape)
    assert open_data(DataChoice(str(pictures), shape=(shape[1],)), free).signature.inputs[0].shape == ("N", 3, 20, 24)


def test_simplify_quantize_prune_apply(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, plan, again = (str(tmp_path / n) for n in ("small.onnx", "plan.json", "again.onnx"))
    model, samples = nets.written(nets.residual(width=32), tmp_path)
    out(capsys, "simplify", model, "-o", str(tmp_path / "simple.onnx"))
    for command in (["quantize"], ["prune", "--ratio", "0.3"]):
        text = out(capsys, *command, model, "-d", samples, "-o", small, "--plan", plan, "--samples", "32")
        assert "smaller" in text
        out(capsys, "apply", plan, model, "-d", samples, "-o", again)
        assert Path(small).read_bytes() == Path(again).read_bytes()
        load(small)
        Path(small).unlink()


def test_compare_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(tmp_path / "cut.onnx")
    out(
        capsys,
        "prune",
        MODEL,
        "--ratio",
        "0.8",
        "--no-refit",
        "--criterion",
        "magnitude",
        "-d",
        TRAIN,
        "-o",
        target,
        "-q",
    )
    out(capsys, "compare", MODEL, target, "-d", str(DIGITS / "select.npz"), "--max-drop", "0.01", code=1)


@pytest.mark.slow
@pytest.mark.alone
def test_optimize_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "fast.onnx"
    text = out(
        capsys,
        "optimize",
        MODEL,
        "-d",
        TRAIN,
        "-o",
        str(target),
        "--time-budget",
        "12s",
        "--max-drop",
        "0.02",
        "--json",
    )
    body = json.loads(text)
    assert body["kind"] == "optimize"
    assert body["bytes"] == target.stat().st_size
    assert (tmp_path / "fast.run" / "plan.json").exists()


@pytest.mark.slow
@pytest.mark.alone
def test_optimize_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = out(
        capsys,
        "optimize",
        MODEL,
        "-d",
        TRAIN,
        "-o",
        str(tmp_path / "f.onnx"),
        "--time-budget",
        "8s",
        "--max-drop",
        "0.02",
        "-q",
    )
    assert "chosen" in text
    assert "validation samples" in text


def test_completion(capsys: pytest.CaptureFixture[str]) -> None:
    assert "_ONNXPRESS_COMPLETE" in out(capsys, "completion", "bash")
