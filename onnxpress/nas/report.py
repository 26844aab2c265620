"""report.md of a search: the found networks, the machine, and the commands that make each file again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxpress.model.files import write_atomic
from onnxpress.nas.evaluation.evaluator import Evaluator
from onnxpress.nas.search import FoundNetwork, NasResult
from onnxpress.plan.candidate_store import Candidate
from onnxpress.runtime.latency import Ratio
from onnxpress.runtime.machine import Machine
from onnxpress.search.finalists import OptimizeResult as SearchOutcome
from onnxpress.search.front import file_stem, front_candidates

FRONT, REPORT = "front", "report.md"
_MAX_NAMED = 12  # replacements that a row lists
_COLUMNS = ("network", "drop, 95 % interval", "ms", "speed-up over the anchor", "MACs", "weights", "training time")


def search_report(result: NasResult, evaluator: Evaluator, samples: str) -> str:
    """The report of a search in a space, as Markdown.

    samples: the command line options that name the model and the samples.
    """
    request, ratios = evaluator.request, {r.name: r for r in result.timing.ratios}
    duplicates = sum(t.duplicate_of is not None for t in result.trials)
    beyond = sum(t.violation > 0 for t in result.trials)
    metric = result.networks[0].score.metric if result.networks else "score"
    front = [n for n in result.networks if n.on_front]
    return "\n".join([
        f"# Search in {request.space}",
        "",
        f"{len(result.trials)} candidates evaluated ({duplicates} duplicates of earlier ones, "
        f"{beyond} beyond a limit), {result.seconds:.0f} s; strategy {request.strategy}, "
        f"proxy {request.proxy}, seed {request.seed}.",
        "",
        f"Machine: {evaluator.machine.text()}",
        "",
        *_table([_COLUMNS[0], metric, *_COLUMNS[1:]], [_network_row(n, ratios[n.name]) for n in result.networks]),
        "",
        *(f"- {note}" for note in result.notes),
        "Bold: on the Pareto front, with a file in `front/`.  Scores are on the validation samples; latency is from "
        "one interleaved run with one thread.",
        "",
        "## How to make each file again",
        "",
        "```",
        *(f"onnxpress nas build {FRONT}/{n.name}.json {samples} -o {n.name}.onnx" for n in front),
        "```",
        "",
        "## Choices in the search space",
        "",
        *_table(["choice", *(n.name for n in front)], _choice_rows([n.choices for n in front])),
        "",
    ])  # fmt: skip


def _network_row(network: FoundNetwork, ratio: Ratio) -> list[str]:
    score = network.score
    return [
        f"**{network.name}**" if network.on_front else network.name,
        f"{score.value:.4f}",
        f"{score.drop:+.4f} [{score.low:+.4f}, {score.high:+.4f}]",
        f"{network.ms:.3f}",
        f"{ratio.speedup:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
        f"{network.macs / 1e6:.1f} M",
        f"{network.parameters / 1e3:.0f} k",
        f"{network.seconds:.0f} s",
    ]


def in_model_report(outcome: SearchOutcome, machine: Machine, model: str, samples: str) -> str:
    """The report of a search inside a model, as Markdown.

    samples: the command line options that name the samples.
    """
    final = {r.name: r for r in outcome.final.ratios} if outcome.final else {}
    front = front_candidates(outcome)
    names = {c.name for c in front}
    rows = []
    for c in outcome.candidates:
        r = final.get(c.id)
        speedup = f"{r.speedup:.2f} [{r.low:.2f}, {r.high:.2f}]" if r else f"about {c.quick or 0:.2f}"
        status = "chosen" if c.id == outcome.chosen_id else "; ".join(outcome.rejected.get(c.name, []))
        name = f"**{c.name}**" if c.name in names else c.name
        rows.append([name, speedup, f"{c.score.drop:+.4f}", f"{c.size / 1e3:.0f} kB", status])
    return "\n".join([
        f"# Search inside {model}",
        "",
        f"Chosen: {outcome.chosen}; the goal was {'met' if outcome.met else 'not met'}; {outcome.seconds:.0f} s.",
        "",
        f"Machine: {machine.text()}",
        "",
        *_table(["candidate", "speed-up, 95 % interval", "drop on the selection samples", "size", ""], rows),
        "",
        "Bold: on the Pareto front of speed-up, drop and size, with a file in `front/`.",
        "",
        *([*(f"- {reason}" for reason in (*outcome.reasons, *outcome.advice)), ""] if not outcome.met else []),
        "## Replacements",
        "",
        *(f"- {c.name}: {_replacements_text(c)}" for c in outcome.candidates),
        "",
        "## How to make each file again",
        "",
        "```",
        *(f"onnxpress apply {FRONT}/{file_stem(c.name)}.json {model} {samples} -o {file_stem(c.name)}.onnx"
          for c in front),
        "```",
        "",
    ])  # fmt: skip


def write_report(folder: Path, text: str) -> None:
    """Write report.md."""
    write_atomic(folder / REPORT, text.encode())


def _replacements_text(candidate: Candidate) -> str:
    notes = candidate.notes
    more = f"; and {len(notes) - _MAX_NAMED} more" if len(notes) > _MAX_NAMED else ""
    return "; ".join(notes[:_MAX_NAMED]) + more or "none"


def _choice_rows(columns: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One row per choice, one column per network."""
    names = dict.fromkeys(name for choices in columns for name in choices)
    return [[name, *(str(choices.get(name, "")) for choices in columns)] for name in names]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines]
