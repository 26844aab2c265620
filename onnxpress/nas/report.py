"""report.md of a search: what was found beside what, on which machine, and the command that makes each file again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxpress.model.files import write_atomic
from onnxpress.nas.evaluation.evaluator import Look
from onnxpress.nas.search import Outcome
from onnxpress.nas.strategies import pareto
from onnxpress.plan.candidate_store import Candidate
from onnxpress.runtime.machine import Machine
from onnxpress.search.finalists import OptimizeResult as Packed

FRONT, REPORT = "front", "report.md"
_SAID = 12  # replacements that a row names


def searched(outcome: Outcome, look: Look, samples: str) -> str:
    """Of a search in a space.  samples: the options that name the model and the samples, as a command line has them."""
    request, ratios = look.request, {r.name: r for r in outcome.final.ratios}
    twins = sum(e.twin is not None for e in outcome.entries)
    beyond = sum(e.violation > 0 for e in outcome.entries)
    rows = []
    for f in outcome.found:
        r = ratios[f.name]
        lost = f"{f.score.drop:+.4f} [{f.score.low:+.4f}, {f.score.high:+.4f}]"
        rows.append([
            f"**{f.name}**" if f.on_front else f.name, f"{f.score.value:.4f}", lost,
            f"{f.ms:.3f}", f"{r.speedup:.2f} [{r.low:.2f}, {r.high:.2f}]", f"{f.macs / 1e6:.1f} M", f"{f.parameters / 1e3:.0f} k",
            f"{f.seconds:.0f} s",
        ])  # fmt: skip
    metric = outcome.found[0].score.metric if outcome.found else "score"
    made = [f for f in outcome.found if f.on_front]
    return "\n".join([
        f"# Search in {request.space}",
        "",
        f"{len(outcome.entries)} candidates looked at ({twins} built before under other choices, {beyond} beyond a limit), "
        f"{outcome.seconds:.0f} s; strategy {request.strategy}, proxy {request.proxy}, seed {request.seed}.",
        "",
        f"Machine: {look.machine.text()}",
        "",
        *_table(
            ["trained", metric, "drop, 95 % interval", "ms", "speed-up over the anchor", "MACs", "weights", "trained for"], rows
        ),
        "",
        *(f"- {note}" for note in outcome.notes),
        "Bold: on the front, a file in `front/`.  Scores are on the validation samples; times are of one interleaved run, one thread.",
        "",
        "## How each file is made again",
        "",
        "```",
        *(f"onnxpress nas build {FRONT}/{f.name}.json {samples} -o {f.name}.onnx" for f in made),
        "```",
        "",
        "## What they are",
        "",
        *_table(["choice", *(f.name for f in made)], _choices([f.choices for f in made])),
        "",
    ])  # fmt: skip


def packed(outcome: Packed, machine: Machine, model: str, samples: str) -> str:
    """Of a search inside a model.  samples: the options that name the samples, as a command line has them."""
    final = {r.name: r for r in outcome.final.ratios} if outcome.final else {}
    best = {c.name for c in frontier(outcome)}
    rows = []
    for c in outcome.candidates:
        r = final.get(c.name)
        speed = f"{r.speedup:.2f} [{r.low:.2f}, {r.high:.2f}]" if r else f"about {c.quick or 0:.2f}"
        fate = "chosen" if c.name == outcome.chosen else "; ".join(outcome.rejected.get(c.name, []))
        rows.append(
            [
                f"**{c.name}**" if c.name in best else c.name,
                speed,
                f"{c.score.drop:+.4f}",
                f"{c.size / 1e3:.0f} kB",
                fate,
            ]
        )
    return "\n".join([
        f"# Search inside {model}",
        "",
        f"Chosen: {outcome.chosen}; the goal was {'met' if outcome.met else 'not met'}; {outcome.seconds:.0f} s.",
        "",
        f"Machine: {machine.text()}",
        "",
        *_table(["candidate", "speed-up, 95 % interval", "drop on the selection samples", "size", ""], rows),
        "",
        "Bold: on the front of speed and drop, a file in `front/`.",
        "",
        *([*(f"- {reason}" for reason in (*outcome.reasons, *outcome.advice)), ""] if not outcome.met else []),
        "## What stands in the place of what",
        "",
        *(f"- {c.name}: {_said(c)}" for c in outcome.candidates),
        "",
        "## How each file is made again",
        "",
        "```",
        *(f"onnxpress apply {FRONT}/{stem(c.name)}.json {model} {samples} -o {stem(c.name)}.onnx" for c in frontier(outcome)),
        "```",
        "",
    ])  # fmt: skip


def write_front(outcome: Packed, folder: Path) -> None:
    """The candidates that none beats in speed and drop: file and plan of each, those of an earlier run gone."""
    target = folder / FRONT
    target.mkdir(exist_ok=True)
    for old in target.glob("*"):
        if old.suffix in (".onnx", ".json"):
            old.unlink()
    for candidate in frontier(outcome):
        write_atomic(target / f"{stem(candidate.name)}.onnx", candidate.data)
        write_atomic(target / f"{stem(candidate.name)}.json", candidate.plan.to_json().encode())


def frontier(outcome: Packed) -> list[Candidate]:
    """By drop on the selection samples, and by speed: of the last timing where there was one."""
    final = {r.name: r.speedup for r in outcome.final.ratios} if outcome.final else {}
    timed = [(c, final.get(c.name, c.quick or 0.0)) for c in outcome.candidates]
    return [timed[i][0] for i in pareto.front([(c.score.drop, -speed) for c, speed in timed])]


def stem(name: str) -> str:
    """A candidate's name as a file's."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")


def write_report(folder: Path, text: str) -> None:
    write_atomic(folder / REPORT, text.encode())


def _said(candidate: Candidate) -> str:
    notes = candidate.notes
    return "; ".join(notes[:_SAID]) + (f"; and {len(notes) - _SAID} more" if len(notes) > _SAID else "") or "nothing"


def _choices(columns: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    names = dict.fromkeys(name for choices in columns for name in choices)
    return [[name, *(str(choices.get(name, "")) for choices in columns)] for name in names]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines]
