"""Reports: of real records, safe for any names, and drawn in a real browser."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from onnxpress.cli.main import run as cli
from onnxpress.data.shipped import calibration_folder
from onnxpress.errors import InputProblem
from onnxpress.reporting.facts import Page
from onnxpress.reporting.page import html, markdown, render, script_json
from onnxpress.reporting.reading import page, read
from tests import nets

pytest.importorskip("jinja2")

DIGITS = calibration_folder() / "digits"
HOSTILE = "</script><img src=x onerror=alert(1)>|*&"
BROWSER = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --virtual-time-budget=3000""".split()


def optimized() -> dict[str, Any]:
    """A record of `optimize`."""

    def score(drop: float) -> dict[str, Any]:
        return {
            "metric": "top-1",
            "value": 0.9 - drop,
            "reference": 0.9,
            "drop": drop,
            "low": drop - 0.01,
            "high": drop + 0.01,
            "agreement": 0.95,
            "nmse": 0.01,
            "samples": 500,
        }

    names = ("exact", "int8", HOSTILE)
    candidates = [
        {
            "name": n,
            "size": 1000 * (4 - i),
            "select": score(0.004 * i),
            "notes": [],
            "quick_speedup": 1.0 + i,
            "seconds": 1.0,
            "predicted": {"loss": 0.02, "speedup": None} if n == "int8" else {"loss": None, "speedup": None},
        }
        for i, n in enumerate(names)
    ]
    timings = [
        {
            "name": n,
            "median": 0.002 / (1 + i),
            "p90": 0.003,
            "minimum": 0.001,
            "low": 0.0019 / (1 + i),
            "high": 0.0021 / (1 + i),
            "rounds": 50,
            "quantiles": [(0.0018 + 0.00001 * q) / (1 + i) for q in range(41)],
        }
        for i, n in enumerate(("original", *names))
    ]
    pairs = [
        {"name": f"/stage{n}/block{n}/conv_with_a_long_name/Conv{HOSTILE}", "before": 64, "after": 48 + n}
        for n in range(17)
    ]
    sides = {"operators": pairs[:3], "layers": pairs, "widths": pairs}
    outcome = {
        "chosen": "int8",
        "met": True,
        "reasons": [],
        "advice": ["give a longer --time-budget"],
        "bytes": 3000,
        "original_bytes": 12000,
        "validate": score(0.002),
        "timings": timings,
        "ratios": [],
        "warnings": ["the machine was busy"],
        "notes": [HOSTILE],
        "seconds": 12.0,
        "rejected": {HOSTILE: ["slower"]},
        "profile_comparison": sides,
        "refused": [{"unit": HOSTILE, "reason": "int8: no kernel"}],
        "speedup": {"name": "int8", "baseline": "original", "speedup": 2.0, "low": 1.9, "high": 2.1},
    }
    return {
        "schema": 1,
        "kind": "run",
        "model": HOSTILE,
        "candidates": candidates,
        "outcome": outcome,
        "machine": {"model": "a CPU", "cores": 2},
    }


def searched() -> dict[str, Any]:
    """The JSON output of `nas`."""
    score = {
        "metric": "top-1",
        "value": 0.8,
        "reference": 0.9,
        "drop": 0.1,
        "low": 0.08,
        "high": 0.12,
        "agreement": 0.9,
        "nmse": 0.1,
        "samples": 500,
    }
    candidates = [
        {
            "name": f"candidate-{n}",
            "ms": 0.1 * (n + 1),
            "score": score,
            "macs": 1e6,
            "parameters": 1e4,
            "bytes": 4e4,
            "on_front": not n,
            "choices": {"block": HOSTILE},
        }
        for n in range(3)
    ]
    ratios = [{"name": "candidate-0", "baseline": "anchor", "speedup": 2.0, "low": 1.9, "high": 2.1}]
    return {
        "schema": 1,
        "kind": "nas",
        "evaluated": 9,
        "distinct": 8,
        "candidates": candidates,
        "ratios": ratios,
        "notes": [],
    }


@pytest.mark.slow
def test_a_sweep_is_shown_completely(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "bench",
        str(DIGITS / "digits.onnx"),
        "-d",
        str(DIGITS / "validate.npz"),
        "--seconds",
        "0.2",
        "--batch",
        "1,4",
        "--json",
        "-q",
    ]
    assert cli([*command, "--cold", "--memory", "--self-check", "--throughput"]) == 0
    (tmp_path / "bench.json").write_text(capsys.readouterr().out)
    made = page(read(tmp_path / "bench.json"))
    assert [h.label for h in made.headlines] == ["digits.onnx (1 thread, batch 1)", "digits.onnx (1 thread, batch 4)"]
    assert {t.title for t in made.tables} >= {
        "Milliseconds",
        "Cold start",
        "Memory in a fresh process",
        "Throughput",
        "Machine",
    }
    assert all(
        {row[0] for row in t.rows} == {"1 thread, batch 1", "1 thread, batch 4"}
        for t in made.tables
        if t.title == "Milliseconds"
    )
    assert sum(r.startswith("self-check (1 thread") for r in made.remarks) == 2
    sweep = made.charts[0]
    assert (sweep.title, [p.x for p in sweep.points]) == ("Sweep", [1, 1, 4, 4]), (
        "the first model and its second session"
    )


def test_a_search_is_shown(tmp_path: Path) -> None:
    made = page(searched())
    assert made.tables[0].rows[0][:5] == (
        "candidate-0",
        "0.100",
        "2.00x [1.90, 2.10]",
        "0.8000",
        "+0.1000 [+0.0800, +0.1200]",
    )
    assert (made.charts[0].points[0].low, made.charts[0].points[0].high) == (pytest.approx(0.78), pytest.approx(0.82))
    assert page({"schema": 1, "kind": "run", "command": "nas", "candidates": []}).title == "Search: not finished"


def written(folder: Path, body: dict[str, Any], plan: bool = False) -> Path:
    run = folder / "x.run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps(body))
    if plan:
        steps = [{"pass": "quantize", "actions": [{"nodes": [HOSTILE]}]}]
        (run / "plan.json").write_text(json.dumps({"steps": steps}))
    return run


def test_measurements_are_shown(tmp_path: Path) -> None:
    made = page(read(written(tmp_path, optimized(), plan=True)))
    assert [h.value for h in made.headlines] == ["2.00x", "4.00x", "0.8980", "12 s"]
    where = "Where the time goes: "
    assert [c.title for c in made.charts] == [
        "Candidates",
        "Latency in one interleaved run",
        "Distribution of the runs",
        f"{where}operators",
        f"{where}layers",
        "Changed widths",
    ]
    assert {(p.group, p.x) for p in made.charts[-1].points if "stage0" in p.name} == {("before", 64), ("after", 48)}
    assert "stage16" not in str(made.charts[-1]), "unchanged widths are not shown"
    assert [p.chosen for p in made.charts[0].points] == [False, True, False]
    assert made.charts[1].points[0].x == pytest.approx(2.0)
    titles = {"Candidates", "Predicted and measured", "Plan", "Unchanged nodes", "Machine"}
    assert {t.title for t in made.tables} == titles
    assert any("rejected: slower" in r for r in made.remarks)


def test_names_are_escaped(tmp_path: Path) -> None:
    text = html(page(read(written(tmp_path, optimized(), plan=True))))
    assert "<img src=x" not in text
    assert text.count("</script>") == 3, "the data, the library, and the page's script"
    data = re.search(r'<script type="application/json" id="charts">(.*?)</script>', text, re.S)
    assert data is not None
    assert HOSTILE in [p["name"] for p in json.loads(data[1])[0]["points"]]
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", text.replace("https://www.chartjs.org", "")), (
        "nothing is fetched"
    )
    assert "\u2028" not in script_json("\u2028")


def test_markdown_and_json_agree(tmp_path: Path) -> None:
    made = page(read(written(tmp_path, optimized())))
    text = markdown(made)
    assert "**2.00x** faster" in text
    assert "| name | faster | drop | size | notes |" in text
    assert "| int8 (chosen) | 2.00x | +0.0040 [-0.0060, +0.0140] |" in text
    assert "| int8 |  | 2.00x | 0.02 | 0.01 |" in text, "predicted beside measured"
    assert "&lt;/script>" in text
    assert json.loads(render(made, "json"))["headlines"][0]["value"] == "2.00x"


def test_a_part_without_numbers_is_left_out() -> None:
    made = page({"schema": 1, "kind": "run", "model": "m.onnx", "candidates": []})
    assert made == Page("Not finished", "m.onnx"), "an interrupted or running command"
    assert "<canvas" not in html(made)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no run to report"),
        ("{", "damaged"),
        ('{"schema": 1, "kind": "inspect"}', "not the record"),
        ("[]", "not the record"),
        ('{"schema": 1, "kind": "nas", "candidates": [{}], "evaluated": 1}', "incomplete"),
        ('{"schema": 1, "kind": ["run"]}', "not the record"),
        ("[" * 100_000, "damaged"),
    ],
)
def test_errors_are_one_line(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.json"
    if content is not None:
        file.write_text(content)
    assert cli(["report", str(file), "-o", str(tmp_path / "o.html")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "o.html").exists()


def test_a_record_is_not_overwritten_by_its_report(tmp_path: Path) -> None:
    run = written(tmp_path, optimized())
    with pytest.raises(InputProblem):
        read(tmp_path / "absent")
    assert cli(["report", str(run / "run.json"), "-o", str(run / "run.json")]) == 2
    assert read(run)["model"] == HOSTILE


def rendered_bodies(files: list[Path], width: int, folder: Path) -> list[dict[str, str]]:
    """The data attributes of each page's body after its script ran, in frames of this width (a window has a minimum
    width); all pages in one run of the browser."""
    assert BROWSER is not None
    frames = ""
    for number, file in enumerate(files):
        seen = "Object.assign({seen: this.contentWindow.innerWidth}, this.contentDocument.body.dataset)"
        onload = f"document.body.dataset.page{number} = JSON.stringify({seen})"
        attributes = f'width="{width}" height="900" style="border: 0" onload="{onload}"'
        frames += f'<iframe src="{file.name}" {attributes}></iframe>'
    frame = folder / "frames.html"
    frame.write_text(f"<body>{frames}</body>")
    command = [
        BROWSER,
        *FLAGS,
        "--allow-file-access-from-files",
        f"--user-data-dir={folder / f'browser{width}'}",
        "--window-size=1400,900",
    ]
    done = subprocess.run(
        [*command, "--dump-dom", frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "HOME": str(folder)},
    )
    found = [re.search(rf'data-page{n}="([^"]*)"', done.stdout) for n in range(len(files))]
    bodies = [json.loads(unescape(m[1])) for m in found if m is not None]
    assert len(bodies) == len(files), done.stdout[:2000]
    assert all(b["seen"] == width for b in bodies), bodies
    return bodies


def quantize_command(folder: Path) -> list[str]:
    """`quantize --report --json` of a small network."""
    model, samples = nets.written(nets.residual(width=32), folder)
    return ["quantize", model, "-d", samples, "--samples", "8", "-o", str(folder / "o.onnx"), "--report", "--json"]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of `quantize --report --json`."""
    folder = tmp_path_factory.mktemp("quantized")
    record = folder / "quantize.json"
    with record.open("w") as out, contextlib.redirect_stdout(out):
        assert cli(quantize_command(folder)) == 0
    return record


def test_a_record_of_quantize_fills_its_charts_and_table(quantized: Path) -> None:
    record = quantized
    made = page(read(record))
    layers = json.loads(record.read_text())["details"]["layers"]
    loss, distribution = made.charts[:2]
    assert [p.x for p in loss.points] == sorted((x["one_at_a_time"] for x in layers), reverse=True)
    assert distribution.points
    table = next(t for t in made.tables if t.title == "Layers")
    for name in ("SQNR in", "clipped", "alone", "back", "µs", "µs now"):
        column = table.columns.index(name)
        assert any(row[column] for row in table.rows), name


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
@pytest.mark.parametrize("width", [pytest.param(1280, marks=pytest.mark.slow), 400])
def test_a_browser_draws_every_chart(
    width: int, quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Records of optimize, bench, quantize and nas: no error, no empty chart, nothing wider than the window."""
    bench = tmp_path / "bench.json"
    samples = ["-d", str(DIGITS / "validate.npz")]
    assert (
        cli(
            [
                "bench",
                str(DIGITS / "digits.onnx"),
                *samples,
                "--seconds",
                "0.3",
                "--profile",
                "--cold",
                "--memory",
                "--self-check",
                "--batch",
                "1,2",
                "--json",
                "-q",
            ]
        )
        == 0
    )
    bench.write_text(capsys.readouterr().out)
    nas = tmp_path / "nas.json"
    nas.write_text(json.dumps(searched()))
    expected = ((written(tmp_path, optimized(), plan=True), 6), (bench, 7), (quantized, 4), (nas, 1))
    targets = [tmp_path / f"{record.stem}.html" for record, _ in expected]
    for (record, _), target in zip(expected, targets, strict=True):
        assert cli(["report", str(record), "-o", str(target)]) == 0
        assert target.stat().st_size < 6e6
    for (record, charts), body in zip(expected, rendered_bodies(targets, width, tmp_path), strict=True):
        assert body["charts"] == f"{charts} of {charts}", (record, body)
        assert body["errors"] == "", (record, body)
        assert body["wide"] == "0", (record, body)
