"""`onnxpress prune MODEL --ratio R --data SAMPLES -o FILE`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from onnxpress.cli.lever import Asked, ending, lever


@click.command("prune")
@lever
@click.option("--ratio", type=float, help="Share of the channels to remove, such as 0.3.")
@click.option("--macs", type=float, help="Share of the multiply-accumulates that is left, such as 0.6.")
@click.option("--params", type=float, help="Share of the weights that is left.")
@click.option("--speedup", type=float, help="Times as fast as the original, measured.")
@click.option(
    "--ignore", multiple=True, metavar="PATTERN", help="Nodes whose channels stay, such as 'stem*'; may be repeated."
)
@click.option(
    "--granularity",
    type=click.IntRange(min=1),
    help="Channels go in multiples of it; default: as this CPU's kernels like.",
)
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
@ending("Only cut; do not refit the readers.")
def command(asked: Asked, ignore: tuple[str, ...], granularity: int | None, **wished: Any) -> None:
    """Remove channels, heads and groups, on widths this CPU likes, and refit the rest by least squares.

    How much: one of --ratio, --macs, --params, --speedup.
    """
    from onnxpress.api.one_pass import prune
    from onnxpress.passes.pruning.allocation import Wish
    from onnxpress.runtime.machine import this_machine

    machine = replace(this_machine(), granularity=granularity or 0)
    asked.do("prune", prune, Wish(ignore=ignore, **wished), machine=machine)
