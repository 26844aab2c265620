"""`onnxpress nas SPACE --teacher MODEL --data SAMPLES -o FOLDER`; `nas worker`, `nas build`."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxpress.cli.nas_inside import inside_command
from onnxpress.cli.options import (
    DataChoice,
    QualityChoice,
    Seconds,
    data_options,
    json_option,
    output_option,
    quality_options,
    quiet_option,
    sample_arguments,
    splits_of,
)
from onnxpress.errors import EXIT_UNMET, InputProblem

if TYPE_CHECKING:
    from onnxpress.nas.search import NasResult


class SearchFirst(click.Group):
    """`nas SPACE` is `nas search SPACE`, and `nas --from MODEL` is `nas inside --from MODEL`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and any(a == "--from" or a.startswith("--from=") for a in args):
            args = ["inside", *args]
        elif args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["search", *args]
        return super().parse_args(ctx, args)


F = TypeVar("F", bound=Callable[..., Any])


def samples_options(function: F) -> F:
    """Options that name the reference model and the samples of a search."""
    for option in reversed(
        (
            click.option(
                "--teacher",
                "-t",
                type=click.Path(path_type=Path),
                help="Teacher model; the networks get its inputs and outputs.",
            ),
            click.option(
                "--like",
                type=click.Path(path_type=Path),
                help="Without a teacher: a model whose inputs and outputs the networks get.",
            ),
            data_options(required=True),
            click.option("--select", metavar="PATH", help="Samples for selection; default: a part of --data."),
            click.option(
                "--validate", metavar="PATH", help="Samples for the final validation; default: a part of --data."
            ),
        )
    ):
        function = option(function)
    return function


@click.group("nas", cls=SearchFirst)
def command() -> None:
    """Search for networks that are fast on this CPU and accurate on your samples.

    \b
    onnxpress nas SPACE --teacher MODEL --data SAMPLES -o FOLDER
    onnxpress nas --from MODEL --data SAMPLES --speedup 2 -o FILE
    """


@command.command("search")
@click.argument("space")
@samples_options
@click.option(
    "--output", "-o", required=True, metavar="FOLDER", help="Folder of the study and the networks on the Pareto front."
)
@click.option(
    "--strategy", type=click.Choice(["evolution", "nsga2", "tpe", "random"]), default="evolution", show_default=True
)
@click.option(
    "--proxy",
    default="capacity",
    show_default=True,
    help="Estimate of the quality before training: capacity (MACs and parameters), macs, "
    "parameters, naswot, zen, synflow, "
    "snip, grad-norm, jacobian, training (a short one), or FILE.py:function.",
)
@click.option(
    "--proxy-train-time",
    type=Seconds(),
    default="20s",
    show_default=True,
    help="Training time of the proxy `training`.",
)
@click.option("--trials", default=200, show_default=True, help="Number of candidates to evaluate.")
@click.option(
    "--time-budget", type=Seconds(), default="30m", show_default=True, help="Time of the whole search: 90s, 10m, 1h."
)
@click.option("--latency-ms", type=float, default=math.inf, help="Maximum latency in ms, with one thread.")
@click.option("--size-mb", type=float, default=math.inf, help="Maximum size of the weights, in MB.")
@click.option("--memory-mb", type=float, default=math.inf, help="Maximum memory of intermediate values, in MB.")
@click.option(
    "--schedule",
    type=click.Choice(["halving", "hyperband"]),
    default="halving",
    show_default=True,
    help="How training time is divided among candidates.",
)
@click.option(
    "--aim",
    "aims",
    multiple=True,
    type=click.Choice(["size", "memory"]),
    help="Objective to minimize besides latency; can be repeated.",
)
@click.option("--trainees", default=8, show_default=True, help="Number of candidates that start training.")
@click.option("--keep", default=2, show_default=True, help="Number of candidates that are trained to the end.")
@click.option(
    "--warm",
    multiple=True,
    metavar="FOLDER",
    help="Folder of an earlier search, whose front is evaluated first; can be repeated.",
)
@click.option(
    "--storage", default="", metavar="URL", help="Storage of the study; default: study.db in the output folder."
)
@click.option(
    "--role",
    type=click.Choice(["both", "train"]),
    default="both",
    show_default=True,
    help="train: latency is measured by `nas worker --role latency`.",
)
@click.option("--seed", default=0, show_default=True, help="Random seed.")
@quality_options()
@json_option
@quiet_option
def search_command(
    space: str,
    teacher: Path | None,
    like: Path | None,
    source: DataChoice,
    select: str | None,
    validate: str | None,
    output: str,
    role: str,
    quality: QualityChoice,
    as_json: bool,
    quiet: bool,
    **fields: Any,
) -> int:
    """Search SPACE, train promising candidates, and write the best.

    SPACE: image-small, image-mobile, keyword-1d, tabular-mlp, text-encoder, cell, FILE.toml, or FILE.py:function.
    """
    from onnxpress.cli.output import console
    from onnxpress.cli.output.progress_display import progress
    from onnxpress.model.files import load
    from onnxpress.nas.optional_dependencies import require_optuna

    require_optuna("nas")
    from onnxpress.nas.evaluation.evaluator import Evaluator
    from onnxpress.nas.report import search_report, write_report
    from onnxpress.nas.request import NasRequest
    from onnxpress.nas.search import search
    from onnxpress.runtime.machine import this_machine

    judged = quality.options()
    request = NasRequest(
        space, **fields, metric=next(iter(quality.metric), None), decode=quality.decode, outputs=judged.outputs
    )
    ports = _ports(teacher, like)
    request.check()
    splits = splits_of(ports, source, select, validate, quiet)
    with progress(quiet or as_json) as bar:
        evaluator = Evaluator(load(ports), splits, request, teacher is not None, this_machine())
        result = search(evaluator, output, bar, role)
    ports_option = ["--like" if teacher is None else "--teacher", str(ports)]
    write_report(
        Path(output),
        search_report(result, evaluator, shlex.join([*ports_option, *sample_arguments(source, select, validate)])),
    )
    _show(result, output, as_json)
    if not quiet:
        for note in result.notes:
            console.note(f"note: {note}")
    return 0 if result.met else EXIT_UNMET


command.add_command(inside_command)


@command.command("worker")
@samples_options
@click.option(
    "--storage", required=True, metavar="URL", help="Storage of the study: postgresql://USER@HOST/DATABASE, or a file."
)
@click.option("--study", default="", metavar="NAME", help="Name of the study, or a part of it; default: the only one.")
@click.option(
    "--role",
    type=click.Choice(["both", "train", "latency"]),
    default="both",
    show_default=True,
    help="train: score candidates; latency: time candidates that others score.",
)
@click.option(
    "--time-budget", type=Seconds(), default="1h", show_default=True, help="Time after which the worker leaves."
)
@json_option
@quiet_option
def worker_command(
    teacher: Path | None,
    like: Path | None,
    source: DataChoice,
    select: str | None,
    validate: str | None,
    storage: str,
    study: str,
    role: str,
    time_budget: float,
    as_json: bool,
    quiet: bool,
) -> int:
    """Join a search that was started by another process, on any machine, with the same files."""
    from onnxpress.cli.output import console
    from onnxpress.model.files import load
    from onnxpress.nas.optional_dependencies import require_optuna

    require_optuna("nas")
    from onnxpress.nas.worker import run_worker
    from onnxpress.result import document

    ports = _ports(teacher, like)
    splits = splits_of(ports, source, select, validate, quiet)
    done = run_worker(storage, load(ports), splits, role, study, time_budget)
    if as_json:
        console.emit_json(document("nas-worker", **done.__dict__))
    else:
        console.out(f"{done.study}: {done.scored} candidates scored here, {done.timed} timed for others")
        console.out("all workers: " + ", ".join(f"{count} {state}" for state, count in done.states.items()))
    return 0


@command.command("build")
@click.argument("record", type=click.Path(path_type=Path))
@samples_options
@output_option
@quiet_option
def build_command(
    record: Path,
    teacher: Path | None,
    like: Path | None,
    source: DataChoice,
    select: str | None,
    validate: str | None,
    output: str,
    quiet: bool,
) -> int:
    """Rebuild a network from its RECORD (front/candidate-N.json), with the same bytes."""
    from onnxpress.cli.output import console
    from onnxpress.model.files import check_target, load, save
    from onnxpress.nas.optional_dependencies import require_optuna

    require_optuna("nas")
    from onnxpress.nas.rebuild import rebuild

    check_target(output)
    ports = _ports(teacher, like)
    splits = splits_of(ports, source, select, validate, quiet)
    done = rebuild(record, load(ports), splits)
    save(done.model, output)
    if not done.same:
        other = (
            ", ".join(f"{name} was {version}" for name, version in done.versions.items())
            or "another kind of CPU, or other threads"
        )
        console.note(f"note: not the bytes of the search: {other}")
    console.out(f"wrote {output}" + (", the bytes of the search" if done.same else ""))
    return 0


def _ports(teacher: Path | None, like: Path | None) -> Path:
    """The model whose inputs and outputs candidates have."""
    ports = teacher or like
    if ports is None:
        raise InputProblem("no model whose inputs and outputs are kept", "", "", "add --teacher MODEL, or --like MODEL")
    return ports


def _show(result: NasResult, output: str, as_json: bool) -> None:
    from onnxpress.cli.output import console
    from onnxpress.nas.search import summary
    from onnxpress.result import document

    if as_json:
        console.emit_json(document("nas", output=output, **summary(result)))
        return
    duplicates = sum(t.duplicate_of is not None for t in result.trials)
    console.out(f"{len(result.trials)} candidates evaluated, {duplicates} of them duplicates of earlier ones")
    console.table(
        [
            ("network", "left"),
            ("score", "right"),
            ("ms", "right"),
            ("speed-up", "right"),
            ("weights", "right"),
            ("MACs", "right"),
        ],
        [
            [
                ("* " if f.on_front else "  ") + f.name,
                f"{f.score.value:.4f}",
                f"{f.ms:.3f}",
                f"{result.timing.ratio(f.name).speedup:.2f} "
                f"{console.interval(result.timing.ratio(f.name).low, result.timing.ratio(f.name).high, 2)}",
                console.size(4 * f.parameters),
                f"{f.macs / 1e6:.1f} M",
            ]
            for f in result.networks
        ],
    )
    if result.networks:
        score = result.networks[0].score
        console.out(
            f"* on the Pareto front; {score.metric} on {score.samples} validation samples, "
            f"the original {score.reference:.4f}"
        )
    console.out(f"speed-up: over the reference model; files in {output}/front, `nas build` makes each again")
