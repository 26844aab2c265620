"""`onnxpress lowrank MODEL --data SAMPLES (--ratio R | --rank N | --energy E) -o FILE`."""

from __future__ import annotations

import click

from onnxpress.cli.lever import Asked, ending, lever


@click.command("lowrank")
@lever
@click.option("--ratio", type=float, help="Share of the layers' work (--goal size: weights) to save, such as 0.3.")
@click.option("--rank", type=int, metavar="N", help="Instead: the same rank for every layer.")
@click.option("--energy", type=float, help="Instead: share of every layer's output power to keep, such as 0.99.")
@click.option(
    "--goal",
    type=click.Choice(["latency", "size"]),
    default="latency",
    show_default=True,
    help="latency: only layers whose factors are measured to be faster.",
)
@ending("Only factor; do not refit the second factors.")
def command(asked: Asked, ratio: float | None, rank: int | None, energy: float | None, goal: str) -> None:
    """Write weights as products of two thinner ones, ranked by what your samples use of them."""
    from onnxpress.api.one_pass import lowrank
    from onnxpress.passes.structure.lowrank import Wish

    asked.do("lowrank", lowrank, Wish(ratio, rank, energy, goal))
