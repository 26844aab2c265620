"""`onnxpress nas SPACE --teacher MODEL --data SAMPLES -o FOLDER`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxpress.cli.options import DataChoice, Seconds, data_options, json_option, quiet_option, splits_of
from onnxpress.errors import EXIT_UNMET

if TYPE_CHECKING:
    from onnxpress.nas.search import Outcome


@click.command("nas")
@click.argument("space")
@click.option("--teacher", "-t", type=click.Path(path_type=Path), help="The model to learn from, whose ports are kept.")
@click.option("--like", type=click.Path(path_type=Path), help="Without a teacher: a model whose ports are kept.")
@data_options(required=True)
@click.option("--select", metavar="PATH", help="Samples that choose; default: a part of --data.")
@click.option("--validate", metavar="PATH", help="Samples for the final score; default: a part of --data.")
@click.option("--output", "-o", required=True, metavar="FOLDER", help="Of the study and the front's files.")
@click.option("--strategy", type=click.Choice(["evolution", "nsga2", "tpe", "random"]), default="evolution", show_default=True)
@click.option("--proxy", default="naswot", show_default=True,
              help="Quality before training: naswot, zen, synflow, snip, grad-norm, jacobian, macs, parameters.")  # fmt: skip
@click.option("--trials", default=200, show_default=True, help="Candidates to look at.")
@click.option("--time-budget", type=Seconds(), default="30m", show_default=True, help="Of everything: 90s, 10m, 1h.")
@click.option("--latency-ms", type=float, default=math.inf, help="A run may take so long, one thread.")
@click.option("--size-mb", type=float, default=math.inf, help="Weights may take so much.")
@click.option("--pupils", default=8, show_default=True, help="Candidates whose training begins.")
@click.option("--keep", default=2, show_default=True, help="Candidates trained to the end.")
@click.option("--storage", default="", metavar="URL", help="Of the study; default: study.db in the folder.")
@click.option("--seed", default=0, show_default=True)
@json_option
@quiet_option
def command(
    space: str,
    teacher: Path | None,
    like: Path | None,
    source: DataChoice,
    select: str | None,
    validate: str | None,
    output: str,
    strategy: str,
    proxy: str,
    trials: int,
    time_budget: float,
    latency_ms: float,
    size_mb: float,
    pupils: int,
    keep: int,
    storage: str,
    seed: int,
    as_json: bool,
    quiet: bool,
) -> int:
    """Search SPACE for networks that are fast on this CPU and good on your samples.

    SPACE: image-small, image-mobile, keyword-1d, tabular-mlp, text-encoder, cell, FILE.toml, or FILE.py:function.
    """
    from onnxpress.cli import console
    from onnxpress.errors import InputProblem
    from onnxpress.model.files import load
    from onnxpress.nas.extra import require_optuna

    require_optuna("nas")
    from onnxpress.nas.search import Request, search

    ports = teacher or like
    if ports is None:
        raise InputProblem("no model whose inputs and outputs are kept", "", "", "add --teacher MODEL, or --like MODEL")
    request = Request(
        space, strategy, proxy, trials, time_budget, latency_ms / 1e3, size_mb * 1e6, pupils, keep, seed, storage
    )
    request.check()
    splits = splits_of(ports, source, select, validate, quiet)
    with console.progress(quiet or as_json) as bar:
        outcome = search(load(ports), splits, request, output, teacher is not None, bar)
    _show(outcome, output, as_json)
    return 0 if any(f.on_front for f in outcome.found) else EXIT_UNMET


def _show(outcome: Outcome, output: str, as_json: bool) -> None:
    from onnxpress.cli import console
    from onnxpress.nas.search import summary
    from onnxpress.optimize.run import document

    if as_json:
        console.emit_json(document("nas", output=output, **summary(outcome)))
        return
    twins = sum(e.twin is not None for e in outcome.entries)
    console.out(f"{len(outcome.entries)} candidates looked at, {twins} of them built before under other choices")
    console.table(
        [("trained", "left"), ("score", "right"), ("ms", "right"), ("speed-up", "right"), ("weights", "right"), ("MACs", "right")],
        [[("* " if f.on_front else "  ") + f.name, f"{f.score.value:.4f}", f"{f.ms:.3f}",
          f"{outcome.final.ratio(f.name).speedup:.2f} "
          f"{console.interval(outcome.final.ratio(f.name).low, outcome.final.ratio(f.name).high, 2)}",
          console.size(4 * f.parameters), f"{f.macs / 1e6:.1f} M"] for f in outcome.found],
    )  # fmt: skip
    if outcome.found:
        score = outcome.found[0].score
        console.out(f"* on the front; {score.metric} on {score.samples} validation samples, the original {score.reference:.4f}")
    console.out(f"speed-up: over the model whose ports are kept; files and choices in {output}/front")
