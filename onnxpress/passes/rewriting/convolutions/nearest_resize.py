"""Nearest Resize by whole numbers, in the coordinates of onnxruntime's fast kernels.

before -> after

    Resize(nearest; half_pixel, ...; scales or sizes) -> Resize(nearest; asymmetric, floor; scales)

Why: in these coordinates onnxruntime copies pixels, in the blocked layout too; in others it computes the place of each.

Conditions: constant scales, or sizes that are whole multiples of sizes fixed in the file; H and W of [N, C, H, W] only;
and the place of every output pixel is proved to be floor(i / scale), for one period in exact fractions: the map repeats
with it.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.trace import Trace

_MODE, _ROUNDING = "coordinate_transformation_mode", "nearest_mode"
_LARGEST = 64  # scale that is looked at


def as_pixel_copy(model: ir.Model, node: ir.Node, sizes: Trace) -> bool:
    """Change one Resize, in place; whether it was one that can be."""
    if node.op_type != "Resize" or not read.standard(node) or read.node_opset(node) < 11:
        return False
    if _text(node, "mode", "nearest") != "nearest" or node.inputs[0] is None:
        return False
    if read.ints_attribute(node, "axes") or _text(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return False
    shape = sizes.shape(node.inputs[0].name)
    scales = _scales(node)
    if scales is None or shape is None or len(shape) != 4 or scales[:2] != [1, 1]:
        return False
    mode, rounding = _text(node, _MODE, "half_pixel"), _text(node, _ROUNDING, "round_prefer_floor")
    by_scales = len(node.inputs) == 3
    if (mode, rounding) == ("asymmetric", "floor") and by_scales:
        return False
    if not all(_copies(scale, mode, rounding) for scale in scales[2:]):
        return False
    node.attributes[_MODE] = ir.AttrString(_MODE, "asymmetric")
    node.attributes[_ROUNDING] = ir.AttrString(_ROUNDING, "floor")
    if not by_scales:
        node.resize_inputs(3)
        node.replace_input_with(2, edit.add_constant(model, np.array(scales, np.float32), "scales"))
    return True


def _scales(node: ir.Node) -> list[int] | None:
    """The whole numbers by which each axis grows; None where they are not whole or not known."""
    given = read.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if given is not None and given.size:
        whole = [int(v) for v in given]
        return whole if np.array_equal(np.array(whole, given.dtype), given) and min(whole) >= 1 else None
    wanted = read.constant(node.inputs[3]) if len(node.inputs) > 3 else None
    source = node.inputs[0]
    if wanted is None or source is None or source.shape is None or len(source.shape) != len(wanted):
        return None
    found = []
    for size, target in zip(source.shape, wanted, strict=True):
        if not isinstance(size, int) or size < 1 or int(target) % size:
            return None
        found.append(int(target) // size)
    return found


def _copies(scale: int, mode: str, rounding: str) -> bool:
    """Whether output pixel i is input pixel floor(i / scale), everywhere."""
    if scale > _LARGEST or mode not in ("half_pixel", "pytorch_half_pixel", "asymmetric"):
        return False
    half = Fraction(1, 2)
    for i in range(scale):
        place = Fraction(i, scale) if mode == "asymmetric" else (i + half) / scale - half
        nearest = {
            "floor": floor(place),
            "ceil": ceil(place),
            "round_prefer_floor": ceil(place - half),
            "round_prefer_ceil": floor(place + half),
        }.get(rounding)
        if nearest != 0:
            return False
    return True


def _text(node: ir.Node, name: str, default: str) -> str:
    found = read.attribute(node, name, default)
    return found.decode() if isinstance(found, bytes) else str(found)
