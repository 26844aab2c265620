"""`onnxpress prune MODEL --ratio R --data SAMPLES -o FILE`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

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
@click.option("--ratio", type=float, help="Share of the channels to remove, such as 0.3.")
@click.option("--macs", type=float, help="Share of the multiply-accumulates that is left, such as 0.6.")
@click.option("--params", type=float, help="Share of the weights that is left.")
@click.option("--speedup", type=float, help="Times as fast as the original, measured.")
@click.option("--ignore", multiple=True, metavar="PATTERN", help="Nodes whose channels stay, such as 'stem*'; may be repeated.")
@click.option("--granularity", type=click.IntRange(min=1), help="Channels go in multiples of it; default: as this CPU's kernels like.")
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
    "--criterion",
    type=click.Choice(["second-order", "activation", "magnitude", "magnitude-l1", "fpgm", "random"]),
    default="second-order",
    show_default=True,
    help="Which channels of a group go first.",
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
    ignore: tuple[str, ...],
    granularity: int | None,
    no_repair: bool,
    samples: int,
    seed: int,
    plan_path: str | None,
    as_json: bool,
    quiet: bool,
    **wished: Any,
) -> None:
    """Remove channels, heads and groups, on widths this CPU likes, and refit the rest by least squares.

    How much: one of --ratio, --macs, --params, --speedup.
    """
    from onnxpress.cli.result import show
    from onnxpress.model.files import check_target
    from onnxpress.optimize.single import prune
    from onnxpress.passes.allocate import Wish
    from onnxpress.runtime.machine import this_machine

    wish = Wish(ignore=ignore, **wished)
    wish.check()
    check_target(output, model)
    dataset = need_data(source, model, quiet)
    result = prune(
        model, dataset, wish, output=output, plan_path=plan_path, repair=not no_repair, samples=samples, seed=seed,
        machine=replace(this_machine(), granularity=granularity or 0),
    )  # fmt: skip
    show("prune", result, output, as_json, quiet)
