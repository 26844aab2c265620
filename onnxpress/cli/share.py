"""`onnxpress share MODEL --data SAMPLES -o FILE`."""

from __future__ import annotations

import click

from onnxpress.cli.lever import Asked, ending, lever


@click.command("share")
@lever
@click.option(
    "--centres", default=16, show_default=True, help="Values in a codebook: 16 (4 bits), 256 (8 bits), 8 or 4."
)
@click.option(
    "--per",
    default="scaled",
    show_default=True,
    metavar="scaled|tensor|N",
    help="A codebook a tensor and a scale a row; one a tensor; or one for every N rows.",
)
@click.option(
    "--spare",
    type=float,
    help="Share of the bytes to spend on 8 bits for the weights that lose most; without it: as little as is needed.",
)
@click.option(
    "--smaller",
    type=float,
    metavar="TIMES",
    help="How many times smaller the file shall be: each weight gets so many centres, fewer, 8 bits or float, as harms least.",
)
@ending("Do not take the mean error back through biases.")
def command(asked: Asked, centres: int, per: str, spare: float | None, smaller: float | None) -> None:
    """Keep weights as short codes and codebooks of few values, chosen by what your samples use of them.  The file shrinks;
    onnxruntime makes plain weights of them at load, so time and memory stay as they are."""
    from onnxpress.api.weight_passes import share
    from onnxpress.passes.weights.share import Wish

    asked.do("share", share, Wish(centres, per, spare, smaller))
