"""`onnxpress bench MODEL [MODEL …]`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxpress.cli.options import DataChoice, Seconds, data_options, json_option, open_data, quiet_option


@click.command("bench")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@data_options(required=False)
@click.option("--seconds", type=Seconds(), default="10s", show_default=True, help="At most so long.")
@click.option("--precision", default=0.01, show_default=True, help="Stop when the interval's half-width is this small.")
@click.option("--threads", default=1, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--profile", is_flag=True, help="Also where the time goes, operator by operator and node by node.")
@click.option("--top", type=click.IntRange(min=1), default=15, show_default=True, help="Rows of the profile's tables.")
@json_option
@quiet_option
def command(
    models: tuple[Path, ...],
    source: DataChoice,
    seconds: float,
    precision: float,
    threads: int,
    seed: int,
    profile: bool,
    top: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure latency; with several MODELs, each against the first, side by side.

    Times are for information; the ratio and its 95 % interval are what can be believed.
    """
    from onnxpress.cli import bench_tables, console
    from onnxpress.optimize.bench import Ask, bench
    from onnxpress.optimize.run import document
    from onnxpress.runtime.latency import Effort
    from onnxpress.runtime.machine import this_machine

    samples = open_data(source, models[0], quiet)
    if samples is None and not quiet:
        console.note("note: no --data: inputs are synthetic")
    effort = Effort(seconds=seconds, precision=precision, threads=threads, seed=seed)
    with console.progress(quiet or as_json) as report:
        result = bench(_names(models), samples, effort, lambda done: report("timing", done), Ask(profile=profile))
    if as_json:
        console.emit_json(
            document(
                "bench",
                machine=this_machine().as_dict(),
                threads=threads,
                **result.__dict__,
                verdicts={r.name: r.verdict for r in result.ratios},
            )
        )
        return
    bench_tables.latency(result.timings)
    if result.ratios:
        bench_tables.ratios(result.ratios)
    for found in result.profiles:
        bench_tables.profile(found, top)
    console.out(f"{threads} thread{'s' if threads != 1 else ''}, {result.seconds:.1f} s; {this_machine().text()}")
    for warning in result.warnings:
        console.note(f"warning: {warning}")


def _names(models: tuple[Path, ...]) -> dict[str, Path]:
    """A name for each file: short where that is unique; the same file twice is an A/A test."""
    names: dict[str, Path] = {}
    for path in models:
        name = path.name if sum(p.name == path.name for p in models) == 1 else str(path)
        unique, count = name, 2
        while unique in names:
            unique, count = f"{name} ({count})", count + 1
        names[unique] = path
    return names
