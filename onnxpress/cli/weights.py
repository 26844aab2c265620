"""`onnxpress weights MODEL --bits 4 --data SAMPLES -o FILE`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import click

from onnxpress.cli.lever import Asked, ending, lever

if TYPE_CHECKING:
    from onnxpress.passes.weights.weights import Wish


@click.command("weights")
@functools.partial(lever, data=False)
@click.option("--bits", default=8, show_default=True, help="Of a weight: 8, 4, 3 or 2.")
@click.option("--block", default=0, show_default=True, metavar="N", help="Weights that share a scale; 0: a row.")
@click.option(
    "--spare",
    type=float,
    help="Share of the bytes to spend on 8 bits for the weights that lose most; without it: as little as is needed.",
)
@click.option(
    "--smaller",
    type=float,
    metavar="TIMES",
    help="How many times smaller the file shall be: each weight gets so many bits, fewer, or float, as harms least.",
)
@ending("Do not take the mean error back through biases.")
def command(asked: Asked, bits: int, block: int, spare: float | None, smaller: float | None) -> None:
    """Keep weights as integers of few bits, chosen by what your samples use of them; activations stay in float.  The file
    shrinks; onnxruntime makes plain weights of them at load, so time and memory stay as they are.

    Without --data each row is rounded by itself, one weight in memory at a time: for files of any size."""
    from onnxpress.api.weight_passes import weights
    from onnxpress.passes.weights.weights import Wish

    wish = Wish(bits, block, spare, smaller)
    if asked.source.path is None:
        _stream(asked, wish)
    else:
        asked.do("weights", weights, wish)


def _stream(asked: Asked, wish: Wish) -> None:
    from onnxpress.api.external_data_quantization import stream_weights
    from onnxpress.cli import console
    from onnxpress.cli.options import tell
    from onnxpress.errors import InputProblem
    from onnxpress.plan.run_record import document

    for option, given in (("--plan", asked.plan_path), ("--spare", wish.spare), ("--smaller", wish.smaller)):
        if given is not None:
            raise InputProblem("this needs samples", option, "no data was given", "add --data, or leave it out")
    with console.progress(asked.quiet or asked.as_json) as bar:
        done = stream_weights(asked.model, asked.output, wish, bar)
    if asked.as_json:
        console.emit_json(document("weights", output=asked.output, bytes_before=done.before, bytes_after=done.after, notes=done.notes,
                                   refused=done.refused))  # fmt: skip
        return
    tell(done.notes, asked.quiet)
    console.out(
        f"{asked.output}: {console.size(done.before)} -> {console.size(done.after)} ({done.before / max(done.after, 1):.2f}x smaller)"
    )
