"""`onnxpress depth MODEL --data SAMPLES (--keep SHARE | --remove N) -o FILE`."""

from __future__ import annotations

import click

from onnxpress.cli.lever import Asked, ending, lever


@click.command("depth")
@lever
@click.option("--keep", type=float, help="Share of the removable blocks' work to keep, such as 0.5.")
@click.option("--remove", type=int, metavar="N", help="Instead: how many blocks to take out.")
@click.option("--max-drop", type=float, help="Take out fewer where the repaired model would lose more than this.")
@click.option(
    "--units",
    type=click.Choice(["all", "branches", "layers"]),
    default="all",
    show_default=True,
    help="layers: the largest groups that repeat, such as attention with its feed-forward.",
)
@ending("Only take out; do not refit the rest.")
def command(asked: Asked, keep: float | None, remove: int | None, max_drop: float | None, units: str) -> None:
    """Take whole residual blocks or layers out, those that harm least, and refit the rest by least squares."""
    from onnxpress.api.one_pass import depth
    from onnxpress.passes.structure.depth import Wish

    asked.do("depth", depth, Wish(keep, remove, max_drop, units))
