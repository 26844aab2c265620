"""`onnxpress prune MODEL --ratio R --data SAMPLES -o FILE`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxpress.cli.options import (
    DataChoice,
    data_options,
    json_option,
    need_data,
    output_option,
    plan_option,
    quiet_option,
)


@click.command("prune")
@click.argument("model", type=click.Path(path_type=Path))
@data_options(required=True)
@output_option
@click.option("--ratio", type=float, required=True, help="Share of the channels to remove, such as 0.3.")
@click.option(
    "--scope",
    type=click.Choice(["all", "hidden"]),
    default="all",
    show_default=True,
    help="hidden: inner widths only, residual spines stay whole.",
)
@click.option(
    "--spread",
    type=click.Choice(["harm", "uniform"]),
    default="harm",
    show_default=True,
    help="harm: take as much as uniform would, from where it harms least.",
)
@click.option(
    "--criterion", type=click.Choice(["second-order", "magnitude"]), default="second-order", show_default=True
)
@click.option("--no-repair", is_flag=True, help="Only cut; do not refit the readers.")
@click.option("--samples", default=128, show_default=True, help="Samples at most that feed statistics.")
@click.option("--seed", default=0, show_default=True)
@plan_option
@json_option
@quiet_option
def command(
    model: Path,
    source: DataChoice,
    output: str,
    ratio: float,
    scope: str,
    spread: str,
    criterion: str,
    no_repair: bool,
    samples: int,
    seed: int,
    plan_path: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Remove channels of Conv, Gemm and MatMul, on widths this CPU likes, and refit the rest by least squares."""
    from onnxpress.cli.result import show
    from onnxpress.model.files import check_target
    from onnxpress.optimize.single import prune
    from onnxpress.passes.prune import Wish

    wish = Wish(ratio, scope, spread, criterion)
    wish.check()
    check_target(output, model)
    dataset = need_data(source, model, quiet)
    result = prune(
        model, dataset, wish, output=output, plan_path=plan_path, repair=not no_repair, samples=samples, seed=seed
    )
    show("prune", result, output, as_json, quiet)
