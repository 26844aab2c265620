"""What `bench` writes for other programs: JUnit XML and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxpress.cli.output.junit import Case

if TYPE_CHECKING:
    from onnxpress.evaluate.bench import BenchPoint
    from onnxpress.evaluate.slowdown import SlowdownDecision


def cases(points: Sequence[BenchPoint], decisions: Sequence[SlowdownDecision]) -> list[Case]:
    """One case a model and condition; a decision against a model is its failure.

    A case's time is the model's median in seconds.  The n-th decision of a name belongs to the n-th point with that
    name.
    """
    made = []
    for number, point in enumerate(points):
        for timing in point.timings:
            own = [d for d in decisions if d.name == timing.name]
            decision = own[number] if number < len(own) else None
            failed = decision is not None and not decision.passed
            text = [f"95 % interval of the median [{timing.low:.9f}, {timing.high:.9f}] s, {timing.rounds} rounds"]
            made.append(Case(
                f"onnxpress.bench.threads {point.threads}, batch {point.batch}", timing.name, timing.median,
                "\n".join([*text, *([decision.why] if decision else [])]),
                decision.why if decision is not None and failed else "", "slower", decision.how if decision else "",
            ))  # fmt: skip
    return made


def markdown(points: Sequence[BenchPoint], decisions: Sequence[SlowdownDecision], machine: str) -> str:
    """Tables of times and ratios, then what was decided and why."""
    lines = ["## onnxpress bench", "", machine, ""]
    for point in points:
        lines += [f"### {point.threads} thread{'s' if point.threads != 1 else ''}, batch {point.batch}", ""]
        lines += ["| model | median ms | 95 % interval | p90 ms | CPU ms |", "|---|---:|---:|---:|---:|"]
        for t in point.timings:
            low, high = t.low * 1e3, t.high * 1e3
            lines.append(
                f"| {_cell(t.name)} | {t.median * 1e3:.4g} | [{low:.4g}, {high:.4g}] "
                f"| {t.p90 * 1e3:.4g} | {t.cpu * 1e3:.4g} |"
            )
        if point.ratios:
            lines += [
                "",
                f"| against {_cell(point.ratios[0].baseline)} | speed-up | 95 % interval | |",
                "|---|---:|---:|---|",
            ]
            lines += [
                f"| {_cell(r.name)} | {r.speedup:.3f} | [{r.low:.3f}, {r.high:.3f}] | {r.verdict} |"
                for r in point.ratios
            ]
        lines += ["", *(f"Warning: {w}." for w in point.warnings), ""]
    lines += [f"- **{'pass' if d.passed else 'FAIL'}**: {_cell(d.why)} ({d.how})" for d in decisions]
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
