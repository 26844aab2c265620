"""`onnxpress quantize MODEL --data SAMPLES -o FILE`."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxpress.cli.lever import Asked, ending, lever

if TYPE_CHECKING:
    from onnxpress.passes.int8.sensitivity import Layer

_LEGEND = (
    "in, out: SQNR of rounding what comes and what leaves; alone: nmse with only this layer in int8; back: nmse of the int8 model with "
    "this layer in float; us: microseconds of a run before and now; ranges, types and shares cut off: --json, or report of it"
)
_NAME = 20  # characters of a layer's name that fit


@click.command("quantize")
@lever
@click.option(
    "--ranges",
    "method",
    metavar="METHOD|FILE.json",
    default="auto",
    show_default=True,
    help="auto (by measured harm), minmax, average, percentile, entropy, mse, weighted or wide; a file is read, or written if it is not there.",
)
@click.option(
    "--equalize",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Bring channels to like ranges first (exact in float).  auto: of the tensors where that harms less.",
)
@click.option(
    "--rounding",
    type=click.Choice(["auto", "nearest", "output"]),
    default="auto",
    show_default=True,
    help="Of weights: to the nearest integer, or so that outputs are kept.  auto: where that harms less.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["qdq", "qoperator"]),
    default="qdq",
    show_default=True,
    help="Pairs that onnxruntime fuses, or integer operators in the file itself.",
)
@click.option(
    "--activations",
    type=click.Choice(["8", "16"]),
    default="8",
    show_default=True,
    help="Bits; 16 for other runtimes: onnxruntime's CPU has no kernels for them.",
)
@click.option(
    "--include",
    multiple=True,
    metavar="PATTERN",
    help="Only these in int8: a name, an operator or a regular expression.",
)
@click.option("--exclude", multiple=True, metavar="PATTERN", help="These stay in float; may be repeated.")
@click.option(
    "--max-drop", type=float, help="Leave as few layers in float as keep the drop on the samples within this."
)
@click.option("--report", is_flag=True, help="Say of every layer its range and what its int8 harms.")
@click.option(
    "--target-cpu",
    type=click.Choice(["auto", "avx2", "avx512", "vnni", "arm"]),
    default="auto",
    show_default=True,
    help="Choose integer types for another CPU.",
)
@ending()
def command(
    asked: Asked,
    method: str,
    equalize: str,
    rounding: str,
    form: str,
    activations: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    max_drop: float | None,
    report: bool,
    target_cpu: str,
) -> None:
    """Static int8 (QDQ) of every node with an integer kernel.  Whether that is faster, `bench` and `optimize` measure."""
    from onnxpress.api.one_pass import quantize
    from onnxpress.runtime.machine import machine_for

    rule = Path(method) if method.endswith(".json") else method
    recipe = {
        "equalize": {"auto": None, "always": True, "never": False}[equalize],
        "rounding": None if rounding == "auto" else rounding,
    }
    ways: dict[str, object] = {
        "method": rule,
        **recipe,
        "form": form,
        "activations": int(activations),
        "include": include,
        "exclude": exclude,
    }
    ways |= {"max_drop": max_drop, "report": report}
    result = asked.do("quantize", quantize, **ways, machine=machine_for(target_cpu))
    if report and not asked.as_json:
        _table(result.layers)


def _table(layers: list[Layer]) -> None:
    from onnxpress.cli import console

    numbers = ("in dB", "out dB", "alone", "back", "us", "us now")
    console.table(
        [("layer", "left"), ("as", "left"), *((n, "right") for n in numbers)],
        [_row(x) for x in layers],
        title="most harmful first",
    )
    console.out(textwrap.fill(_LEGEND, console.WIDTH))


def _row(x: Layer) -> list[str]:
    name = x.node if len(x.node) <= _NAME else "…" + x.node[1 - _NAME :]
    ratios = [
        f"{v:.0f}" if math.isfinite(v) else "" for v in (x.sqnr_in, x.sqnr)
    ]  # what leaves the int8 part at once is not rounded
    spent = ["" if v is None else f"{1e6 * v:.3g}" for v in (x.before, x.after)]
    return [name, "int8" if x.int8 else "float", *ratios, f"{x.alone:.1e}", f"{x.back:.1e}", *spent]
