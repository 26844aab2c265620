"""The command nas: a search from a space to files, candidates built again, and bad input."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

pytest.importorskip("optuna")

from onnxpress.cli.main import run as cli
from onnxpress.data.shipped import calibration_folder
from onnxpress.model.files import load

DIGITS = calibration_folder() / "digits"


COMMON = [
    "-d",
    str(DIGITS / "train.npz"),
    "--select",
    str(DIGITS / "select.npz"),
    "--validate",
    str(DIGITS / "validate.npz"),
    "-q",
]


@pytest.mark.alone
def test_a_search_from_space_to_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    command = ["nas", "image-small", "-t", str(DIGITS / "digits.onnx"), *COMMON, "-o", str(tmp_path / "out")]
    assert cli([*command, "--trials", "4", "--time-budget", "5s", "--trainees", "2", "--keep", "1", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["kind"] == "nas"
    assert 1 <= body["evaluated"] <= 4
    files = sorted((tmp_path / "out" / "front").glob("*.onnx"))
    assert files
    for file in files:
        model = load(file)
        assert [n.op_type for n in model.graph].count("BatchNormalization") == 0
        again = tmp_path / "again.onnx"
        build = ["nas", "build", str(file.with_suffix(".json")), "-t", str(DIGITS / "digits.onnx"), *COMMON]
        assert cli([*build, "-o", str(again)]) == 0
        assert again.read_bytes() == file.read_bytes()
        assert "the bytes of the search" in capsys.readouterr().out
        record = json.loads(file.with_suffix(".json").read_text())
        file.with_suffix(".json").write_text(json.dumps(record | {"model": "other", "versions": {"onnx": "0.1"}}))
        assert cli([*build, "-o", str(again)]) == 0
        assert "not the bytes of the search: onnx was 0.1" in capsys.readouterr().err
        assert cli([*build[:-1], "--seed", "1", "-o", str(again)]) == 2, "a record holds its seed"
    assert len(body["candidates"]) == 1
    report = (tmp_path / "out" / "report.md").read_text()
    for file in files:
        samples = f"--teacher {DIGITS / 'digits.onnx'} --data {DIGITS / 'train.npz'}"
        assert f"onnxpress nas build front/{file.stem}.json {samples}" in report


@pytest.mark.alone
def test_candidates_are_judged_by_the_metric_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    (tmp_path / "mine.py").write_text(
        "def hits(outputs, label):\n    return float(max(outputs.values(), key=len).argmax() == label)\n"
    )
    command = ["nas", "image-small", "-t", str(DIGITS / "digits.onnx"), *COMMON, "-o", str(tmp_path / "out")]
    limits = ["--trials", "2", "--time-budget", "4s", "--trainees", "1", "--keep", "1", "--json"]

    assert cli([*command, *limits, "--metric", f"{tmp_path / 'mine.py'}:hits"]) == 0

    body = json.loads(capsys.readouterr().out)
    score = body["candidates"][0]["score"]
    assert score["metric"].endswith("mine.py:hits") and 0 <= score["value"] <= 1
    (record,) = (tmp_path / "out" / "front").glob("*.json")
    assert (
        cli(["nas", "build", str(record), "-t", str(DIGITS / "digits.onnx"), *COMMON, "-o", str(tmp_path / "a.onnx")])
        == 0
    )


@pytest.mark.slow
@pytest.mark.alone
def test_a_warm_search_starts_from_the_front_of_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    command = ["nas", "image-small", "-t", str(DIGITS / "digits.onnx"), *COMMON, "-o", str(tmp_path / "out")]
    assert cli([*command, "--trials", "4", "--time-budget", "5s", "--trainees", "2", "--keep", "1", "--json"]) == 0
    capsys.readouterr()
    files = sorted((tmp_path / "out" / "front").glob("*.onnx"))
    warm = [
        *command[:-1],
        str(tmp_path / "next"),
        "--warm",
        str(tmp_path / "out"),
        "--trials",
        "1",
        "--time-budget",
        "3s",
        "--json",
    ]
    assert cli(warm) == 0
    assert json.loads(capsys.readouterr().out)["evaluated"] == 1
    (record,) = (tmp_path / "next" / "front").glob("*.json")
    assert json.loads(record.read_text())["choices"] == json.loads(files[0].with_suffix(".json").read_text())["choices"]


@pytest.mark.alone
@pytest.mark.slow
def test_a_search_ends_near_its_time_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    command = ["nas", "image-small", "-t", str(DIGITS / "digits.onnx"), *COMMON[:-1], "-o", str(tmp_path / "out")]
    start = time.monotonic()
    assert cli([*command, "--time-budget", "40s", "--json"]) == 0
    assert time.monotonic() - start < 80
    expected = capsys.readouterr()
    assert "of 8 trainings only" in expected.err
    assert max(c["score"]["value"] for c in json.loads(expected.out)["candidates"]) > 0.5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["image-huge"], "no such search space"),
        (["image-small", "--proxy", "hope"], "unknown proxy"),
        (["image-small", "--trials", "0"], "out of range"),
        (["image-small", "--latency-ms", "0"], "must be positive"),
        (["image-small", "--metric", "beauty"], "no such metric"),
        (["image-small", "--decode", "mine.py:boxes"], "mine.py"),
        (["image-small", "--outputs", "no-such-output"], "no-such-output"),
        (["image-small", "--warm", "no-such-search"], "no earlier search"),
        (["text-encoder"], "encoder takes tokens"),
        (["image-small", "--storage", "postgresql://nobody@127.0.0.1:1/none"], "storage"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    code = cli(["nas", *arguments, "-t", str(DIGITS / "digits.onnx"), *COMMON, "-o", str(tmp_path / "out")])
    error = capsys.readouterr().err.strip().splitlines()
    assert code in (2, 3), error
    assert re.search(expected, error[-1])
    assert all(line.startswith("assumed") for line in error[:-1])


def test_a_record_of_another_search_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {
        "space": "image-small",
        "seed": 0,
        "use_teacher": True,
        "hashes": {"teacher": "x"},
        "choices": {},
        "trainings": [],
    }
    (tmp_path / "r.json").write_text(json.dumps(record))
    (tmp_path / "s.json").write_text('{"space": "cell"}')
    for name, expected in (
        ("r", "differ from the search's.*teacher"),
        ("s", "not a record of a candidate"),
        ("t", "no such record"),
    ):
        build = ["nas", "build", str(tmp_path / f"{name}.json"), "-t", str(DIGITS / "digits.onnx"), *COMMON]
        assert cli([*build, "-o", str(tmp_path / "again.onnx")]) == 2
        assert re.search(expected, capsys.readouterr().err)
    assert not (tmp_path / "again.onnx").exists()


def test_a_limit_that_no_candidate_meets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    command = ["nas", "image-small", "-t", str(DIGITS / "digits.onnx"), *COMMON, "-o", str(tmp_path / "out")]
    assert cli([*command, "--trials", "2", "--time-budget", "20s", "--latency-ms", "0.0001"]) == 2
    assert "no candidate meets the limits" in capsys.readouterr().err


def test_without_optuna_one_line_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "optuna" else object())
    assert cli(["nas", "image-small", "-t", str(DIGITS / "digits.onnx"), *COMMON, "-o", str(tmp_path / "out")]) == 3
    assert "onnxpress[nas]" in capsys.readouterr().err
