"""`onnxpress sparsify MODEL --data SAMPLES -o FILE`."""

from __future__ import annotations

import click

from onnxpress.cli.lever import Asked, ending, lever


@click.command("sparsify")
@lever
@click.option("--ratio", default=0.5, show_default=True, help="Share of each weight's numbers that become zero.")
@click.option("--pattern", default="", metavar="N:M", help="Instead: of every M neighbours in a row N stay, as in 2:4.")
@click.option(
    "--method",
    default="update",
    show_default=True,
    metavar="update|activation|magnitude",
    help="Choose by what the outputs lose while other weights make up for it, by size times input, or by size.",
)
@ending("Do not take the mean error back through biases.")
def command(asked: Asked, ratio: float, pattern: str, method: str) -> None:
    """Make weights zero, chosen by what your samples use of them.  Only the compressed file shrinks: onnxruntime multiplies zeros
    like other numbers, so time stays as it is.  To be faster, `prune` takes whole channels out."""
    from onnxpress.api.weight_passes import sparsify
    from onnxpress.passes.weights.sparsify import Wish

    asked.do("sparsify", sparsify, Wish(ratio, pattern, method))
