"""The table of `onnxpress quantize --report`: what int8 costs at every layer, and where the time goes."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

from onnxpress.cli.output import console

if TYPE_CHECKING:
    from onnxpress.passes.int8.sensitivity import LayerSensitivity

_LEGEND = (
    "in, out: SQNR of rounding the input and the output; alone: nmse with only this layer in int8; "
    "back: nmse of the int8 model with this layer in float; us: microseconds of a run before and now; "
    "ranges, types and clipped shares: --json, or its report"
)
_NAME = 20  # characters of a layer's name that fit


def show_layers(layers: list[LayerSensitivity]) -> None:
    """Print the sensitivity of every layer, the most sensitive first."""
    numbers = ("in dB", "out dB", "alone", "back", "us", "us now")
    console.table(
        [("layer", "left"), ("as", "left"), *((n, "right") for n in numbers)],
        [_row(x) for x in layers],
        title="most sensitive first",
    )
    console.out(textwrap.fill(_LEGEND, console.WIDTH))


def _row(x: LayerSensitivity) -> list[str]:
    name = x.node if len(x.node) <= _NAME else "…" + x.node[1 - _NAME :]
    ratios = [
        f"{v:.0f}" if math.isfinite(v) else "" for v in (x.input_sqnr, x.output_sqnr)
    ]  # what leaves the int8 part at once is not rounded
    spent = ["" if v is None else f"{1e6 * v:.3g}" for v in (x.seconds_before, x.seconds_after)]
    return [name, "int8" if x.int8 else "float", *ratios, f"{x.one_at_a_time:.1e}", f"{x.leave_one_out:.1e}", *spent]
