"""`onnxpress nas --from MODEL --data SAMPLES -o FILE`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from onnxpress.cli.options import (
    DataChoice,
    QualityChoice,
    Seconds,
    data_options,
    json_option,
    max_drop_option,
    output_option,
    quality_options,
    quiet_option,
    run_options,
    sample_arguments,
    session_options,
    speed_options,
    splits_of,
)


@click.command("inside")
@click.option("--from", "model", required=True, type=click.Path(path_type=Path), help="The model to search inside.")
@data_options(required=True)
@click.option("--select", metavar="PATH", help="Samples for selection; default: a part of --data.")
@click.option("--validate", metavar="PATH", help="Samples for the final validation; default: a part of --data.")
@output_option
@speed_options
@max_drop_option
@quality_options()
@click.option("--time-budget", type=Seconds(), default="10m", show_default=True, help="Time of the search.")
@click.option(
    "--train-budget",
    type=Seconds(),
    help="Additional time to train smaller models towards the original; 0s: no training. "
    "Default: none additional, but they are trained within the time budget where torch is installed.",
)
@session_options
@run_options
@json_option
@quiet_option
def inside_command(
    model: Path,
    source: DataChoice,
    select: str | None,
    validate: str | None,
    output: str,
    speedup: float,
    latency_ms: float,
    max_drop: float | None,
    quality: QualityChoice,
    time_budget: float,
    train_budget: float | None,
    threads: int,
    provider: str,
    seed: int,
    run: str | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Search inside a model for the least loss at a target speed-up: the search of `optimize`, with a report.md."""
    from onnxpress.cli.optimize import ended
    from onnxpress.cli.output.progress_display import progress
    from onnxpress.model.files import check_target
    from onnxpress.nas.report import FRONT, in_model_report, write_report
    from onnxpress.runtime.machine import this_machine
    from onnxpress.search.front import write_front
    from onnxpress.search.optimize import optimize
    from onnxpress.search.request import OptimizeOptions

    check_target(output, model)
    judged = quality.options()
    request = OptimizeOptions(
        max_drop,
        time_budget=time_budget,
        seed=seed,
        train_budget=train_budget,
        speedup=speedup,
        latency_ms=latency_ms,
        metric=judged.metric,
        decode=judged.decode,
        outputs=judged.outputs,
        threads=threads,
        provider=provider,
    )
    request.check()
    splits = splits_of(model, source, select, validate, quiet, crossed=True)
    with progress(quiet or as_json, time_budget + (train_budget or 0.0)) as report:
        outcome = optimize(model, splits, request, output=output, run=run, progress=report)
    folder = Path(run or Path(output).with_suffix(".run"))
    write_front(outcome, folder / FRONT)
    write_report(
        folder,
        in_model_report(
            outcome, this_machine(), shlex.quote(str(model)), shlex.join(sample_arguments(source, None, None))
        ),
    )
    return ended(outcome, output, as_json, source.strict)
