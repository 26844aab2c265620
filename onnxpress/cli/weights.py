"""`onnxpress weights MODEL --bits 4 --data SAMPLES -o FILE`."""

from __future__ import annotations

import click

from onnxpress.cli.lever import Asked, ending, lever


@click.command("weights")
@lever
@click.option("--bits", default=8, show_default=True, help="Of a weight: 8, 4, 3 or 2.")
@click.option("--block", default=0, show_default=True, metavar="N", help="Weights that share a scale; 0: a row.")
@click.option(
    "--spare",
    type=float,
    help="Share of the bytes to spend on 8 bits for the weights that lose most; without it: as little as is needed.",
)
@ending("Do not take the mean error back through biases.")
def command(asked: Asked, bits: int, block: int, spare: float | None) -> None:
    """Keep weights as integers of few bits, chosen by what your samples use of them; activations stay in float.  The file
    shrinks; onnxruntime makes plain weights of them at load, so time and memory stay as they are."""
    from onnxpress.optimize.bits import weights
    from onnxpress.passes.weightonly import Wish

    asked.do("weights", weights, Wish(bits, block, spare))
