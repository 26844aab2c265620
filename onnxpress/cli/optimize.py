"""`onnxpress optimize MODEL --data SAMPLES -o FILE`."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxpress.cli.options import (
    DataChoice,
    QualityChoice,
    Seconds,
    data_options,
    json_option,
    max_drop_option,
    quality_options,
    quiet_option,
    run_options,
    session_options,
    speed_options,
    splits_of,
)
from onnxpress.errors import EXIT_INTERRUPTED, EXIT_UNMET
from onnxpress.result import size_change_text

if TYPE_CHECKING:
    from onnxpress.search.finalists import OptimizeResult


@click.command("optimize")
@click.argument("model", type=click.Path(path_type=Path))
@data_options(required=True)
@click.option("--select", "select_source", metavar="PATH", help="Samples for selection; default: a part of --data.")
@click.option(
    "--validate", "validate_source", metavar="PATH", help="Samples for the final validation; default: a part of --data."
)
@click.option("--output", "-o", metavar="FILE", required=True, help="The file to write.")
@max_drop_option
@quality_options()
@click.option(
    "--goal", type=click.Choice(["latency", "size"]), default="latency", show_default=True, help="What to reduce."
)
@speed_options
@click.option(
    "--time-budget", type=Seconds(), default="5m", show_default=True, help="Time of the search, such as 90s or 10m."
)
@click.option(
    "--train-budget",
    type=Seconds(),
    help="Additional time to train smaller models towards the original (needs the extra train); 0s: no training. "
    "Default: none additional, but they are trained within the time budget where torch is installed.",
)
@session_options
@click.option(
    "--front",
    metavar="FOLDER",
    help="New folder for every model on the Pareto front of speed, drop and size, with the plan that makes it again.",
)
@run_options
@json_option
@quiet_option
def command(
    model: Path,
    source: DataChoice,
    select_source: str | None,
    validate_source: str | None,
    output: str,
    max_drop: float | None,
    quality: QualityChoice,
    goal: str,
    speedup: float,
    latency_ms: float,
    time_budget: float,
    train_budget: float | None,
    threads: int,
    provider: str,
    front: str | None,
    seed: int,
    run: str | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Make MODEL smaller and faster on this CPU, within a maximum drop of accuracy.

    The samples are split into disjoint parts for calibration, selection and validation.  A smaller model is written
    only if it loads, keeps the signature, loses at most --max-drop and is measured to be faster (with --goal size: not
    slower).  Ctrl-C ends the search with the best result so far; the same command resumes a run that was killed.
    """
    from onnxpress.cli.output.progress_display import progress
    from onnxpress.model.files import check_target
    from onnxpress.search.front import check_front_folder
    from onnxpress.search.optimize import optimize
    from onnxpress.search.request import OptimizeOptions

    check_target(output, model)
    if front is not None:
        check_front_folder(front)
    judged = quality.options()
    splits = splits_of(model, source, select_source, validate_source, quiet, crossed=True)
    options = OptimizeOptions(
        max_drop, goal, time_budget, threads, seed, train_budget, speedup, latency_ms,
        judged.metric, judged.decode, judged.outputs, provider,
    )  # fmt: skip
    with progress(quiet or as_json, time_budget + (train_budget or 0.0)) as bar:
        outcome = optimize(model, splits, options, output=output, run=run, progress=bar, front=front)
    return ended(outcome, output, as_json, source.strict)


def ended(outcome: OptimizeResult, output: str, as_json: bool, strict: bool) -> int:
    """Show what was found; the exit code of it."""
    show(outcome, output, as_json)
    if outcome.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_UNMET if not outcome.improved or (strict and not outcome.met) else 0


def show(outcome: OptimizeResult, output: str, as_json: bool) -> None:
    """The table of candidates with the Pareto front, and the verdict in words."""
    from onnxpress.cli.output import console
    from onnxpress.result import document
    from onnxpress.search.finalists import summary

    if as_json:
        console.emit_json(document("optimize", output=output, **summary(outcome)))
        return
    console.table(
        [
            ("candidate", "left"),
            ("speed-up", "right"),
            ("95 % interval", "right"),
            ("size", "right"),
            ("drop", "right"),
            ("", "left"),
        ],
        _rows(outcome),
    )
    console.out(_verdict(outcome, output))
    _show_other_bounds(outcome)


def _show_other_bounds(outcome: OptimizeResult) -> None:
    """What other values of --max-drop give; nothing where all give the chosen candidate."""
    from onnxpress.cli.output import console

    if {b.id for b in outcome.other_bounds} <= {outcome.chosen_id}:
        return
    console.out("")
    columns = [
        ("--max-drop", "right"),
        ("fastest candidate", "left"),
        ("speed-up", "right"),
        ("size", "right"),
        ("drop", "right"),
    ]
    rows = [
        [
            f"{b.max_drop:.4g}",
            b.name,
            f"{'' if b.timed else '~'}{b.speedup:.3g}x",
            console.size(b.size),
            f"{b.drop:+.4f}",
        ]
        for b in outcome.other_bounds
    ]
    console.table(columns, rows)
    console.out("on the selection samples: run again with another --max-drop to validate one")


def _rows(outcome: OptimizeResult) -> list[list[str]]:
    from onnxpress.cli.output import console

    final = {r.name: r for r in outcome.final.ratios} if outcome.final else {}
    rows = [["original", "1.000x", "", console.size(outcome.original_size), "", ""]]
    front = outcome.front
    for c in outcome.candidates:
        ratio = final.get(c.id)
        speed = f"{ratio.speedup:.3f}x" if ratio else f"~{c.quick:.2f}x" if c.quick else "?"
        fate = "chosen" if c.id == outcome.chosen_id else "failed" if c.id in outcome.rejected else ""
        marks = ("* " if c.id in front else "  ") + fate
        rows.append(
            [
                c.name,
                speed,
                console.interval(ratio.low, ratio.high) if ratio else "",
                console.size(c.size),
                f"{c.score.equivalent_drop:+.4f}",
                marks,
            ]
        )
    return rows


def _verdict(outcome: OptimizeResult, output: str) -> str:
    from onnxpress.cli.output import console
    from onnxpress.cli.output.quality_lines import quality_lines

    lines = ["* on the Pareto front; drop: on the selection samples; ~: a short timing"]
    lines += [*outcome.judged_by, ""]
    if outcome.score is not None and outcome.speedup is not None:
        s, r = outcome.score, outcome.speedup
        lines += [
            f"{output}: {outcome.chosen}",
            f"  {r.speedup:.3f}x the original's speed {console.interval(r.low, r.high)}, {r.verdict}",
            *(line for part in s.parts or (s,) for line in quality_lines(part, "validation samples")),
            f"  {size_change_text(outcome.original_size, len(outcome.data))}",
        ]
        if outcome.looks > 1:
            lines.append(
                f"  the validation samples were looked at {outcome.looks} times: "
                + "; ".join(f"{c.name} failed" for c in outcome.candidates if c.id in outcome.rejected)
            )
    else:
        lines.append(f"{output} was not written: nothing is measurably better than the original and as good")
    for note in outcome.sample_notes:
        lines.append(textwrap.fill(note, console.WIDTH, initial_indent="  ", subsequent_indent="  "))
    if not outcome.met:
        lines += ["  the goal was not met"] + [f"  - {console.with_options(reason)}" for reason in outcome.reasons[:8]]
        lines += [f"  try: {console.with_options(advice)}" for advice in outcome.advice]
    lines += ["  interrupted: this is the best of what had been found by then"] if outcome.interrupted else []
    lines += [f"  warning: {w}" for w in (outcome.final.warnings if outcome.final else ())]
    return "\n".join(lines)
