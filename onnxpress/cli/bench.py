"""`onnxpress bench MODEL [MODEL …]`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxpress.cli.bench_options import conditions_options, gate_options, measurement_options
from onnxpress.cli.options import DataChoice, Seconds, data_options, files_options, json_option, open_data, quiet_option
from onnxpress.errors import EXIT_OK, EXIT_UNMET, Problem

if TYPE_CHECKING:
    from onnxpress.data.dataset import Dataset
    from onnxpress.evaluate.bench import BenchConditions, BenchOptions
    from onnxpress.evaluate.gate import GateOptions


@click.command("bench")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@data_options(required=False)
@click.option(
    "--seconds",
    type=Seconds(),
    default="10s",
    show_default=True,
    help="Maximum measurement time, of each point of a sweep.",
)
@click.option(
    "--precision", default=0.01, show_default=True, help="Stop when the half-width of the interval is this small."
)
@conditions_options
@measurement_options
@gate_options
@files_options
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=15,
    show_default=True,
    help="Number of rows in the tables of the profile.",
)
@click.option("--seed", default=0, show_default=True, help="Random seed.")
@json_option
@quiet_option
def command(
    models: tuple[Path, ...],
    source: DataChoice,
    seconds: float,
    precision: float,
    conditions: BenchConditions,
    options: BenchOptions,
    gate: GateOptions,
    junit: Path | None,
    markdown: Path | None,
    top: int,
    seed: int,
    as_json: bool,
    quiet: bool,
) -> int:
    """Measure the latency of one or more models; with several, compare each with the first.

    All are measured in one interleaved run.  Compare by the ratio and its 95 % interval, not by single times.

    \b
    In CI: onnxpress bench old.onnx new.onnx --fail-slower 5% --junit out.xml
    """
    from onnxpress.cli.output import bench_files, bench_tables, console
    from onnxpress.cli.output.junit import junit as as_junit
    from onnxpress.cli.output.progress_display import progress
    from onnxpress.evaluate.bench import REBUILDS
    from onnxpress.evaluate.gate import run_gate
    from onnxpress.model.files import check_target, write_atomic
    from onnxpress.result import document
    from onnxpress.runtime.latency import Effort
    from onnxpress.runtime.machine import this_machine

    for target in (junit, markdown):
        if target is not None:
            check_target(target, *models)
    samples = open_data(source, models[0], quiet, doubted=source.strict)
    if samples is None:
        conditions = replace(conditions, shape=source.shapes)
    if samples is None and not quiet:
        console.note("note: no --data: inputs are synthetic")
    effort = Effort(seconds=seconds, precision=precision, rebuilds=REBUILDS, seed=seed)
    with progress(quiet or as_json) as report:
        found = run_gate(
            _names(models), samples, effort, lambda done: report("timing", done), options, conditions, gate
        )
    result, machine = found.bench, this_machine()
    rewritable = _rewritable(models, samples) if options.profile else {}
    if junit is not None:
        cases = bench_files.cases(result.all_points, found.decisions)
        write_atomic(
            junit, as_junit("onnxpress bench", cases, machine.text(), sum(p.seconds for p in result.all_points))
        )
    if markdown is not None:
        write_atomic(markdown, bench_files.markdown(result.all_points, found.decisions, machine.text()).encode())
    if as_json:
        verdicts = {r.name: r.verdict for r in result.ratios}
        decisions = [{**d.__dict__, "passed": d.passed, "why": d.why} for d in found.decisions]
        body = {
            **result.__dict__,
            "verdicts": verdicts,
            "conditions": conditions,
            "decisions": decisions,
            "baseline_ratio": found.baseline_ratio,
            "rewritable": rewritable,
        }
        console.emit_json(document("bench", machine=machine.as_dict(), **body))
        return EXIT_OK if found.passed else EXIT_UNMET
    for point in result.all_points:
        bench_tables.point(point, conditions, top, len(result.all_points) > 1, rewritable)
    if found.baseline_ratio:
        bench_tables.ratios([found.baseline_ratio], "speed-up")
    bench_tables.decisions(found.decisions)
    console.out(machine.text())
    for warning in dict.fromkeys(w for point in result.all_points for w in point.warnings):
        console.note(f"warning: {warning}")
    return EXIT_OK if found.passed else EXIT_UNMET


def _rewritable(models: tuple[Path, ...], samples: Dataset | None) -> dict[str, dict[str, str]]:
    """By the name of a model, its nodes that a family of rewrites changes, with the family."""
    from onnxpress.measure.evidence import evidence_for
    from onnxpress.model.files import load_lazy
    from onnxpress.passes.rewriting.rewrite import rewritable_nodes

    found = {}
    for name, path in _names(models).items():
        try:
            found[name] = rewritable_nodes(evidence_for(load_lazy(path), samples))
        except Problem:  # what no pass can change has no forms either
            found[name] = {}
    return found


def _names(models: tuple[Path, ...]) -> dict[str, Path]:
    """A name for each file: short where that is unique; the same file twice is an A/A test."""
    names: dict[str, Path] = {}
    for path in models:
        name = path.name if sum(p.name == path.name for p in set(models)) == 1 else str(path)
        unique, count = name, 2
        while unique in names:
            unique, count = f"{name} ({count})", count + 1
        names[unique] = path
    return names
