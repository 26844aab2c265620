"""Pictures that are small at first and grow while a network learns (progressive resizing, as in Tan and Le 2021).

A network that averages over all positions takes pictures of any size.  Small ones cost less and teach most of what large ones
do, so that a training of so many seconds sees more of them.  The teacher is asked about the full picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional as fn

from onnxpress.train.augmentations import Field
from onnxpress.train.graph.program import Program
from onnxpress.train.graph.tensors import Tensor

STAGES = ((0.45, 0.5), (0.75, 0.75), (1.0, 1.0))  # until this share of the steps, sides are that share of the full ones
_LEAST = 12  # pixels of the shorter side, below which a picture shows nothing

Tensors = dict[str, Tensor]


def shares() -> list[tuple[float, float]]:
    """(share of the steps, scale) of every stage."""
    ends = [0.0, *(end for end, _ in STAGES)]
    return [(end - begun, scale) for begun, (end, scale) in zip(ends, STAGES, strict=False)]


def scale_at(step: int, steps: int) -> float:
    """Of the pictures' sides, at a step (0-based)."""
    return next((scale for end, scale in STAGES if step < end * steps), 1.0)


def scaled(inputs: Mapping[str, Tensor], fields: Sequence[Field], scale: float) -> Tensors:
    """The inputs with their pictures at another size (even numbers of pixels)."""
    found = dict(inputs)
    for field in fields:
        x = found[field.name]
        size = [max(2, 2 * round(scale * x.shape[axis] / 2)) for axis in field.space]
        last = field.channel == 3
        planes = x.permute(0, 3, 1, 2) if last else x
        planes = fn.interpolate(planes, size=size, mode="bilinear", antialias=True, align_corners=False)
        found[field.name] = planes.permute(0, 2, 3, 1).contiguous() if last else planes
    return found


def growing(program: Program, fields: Sequence[Field], inputs: Mapping[str, Tensor]) -> list[Field]:
    """The pictures that may be small at first: none where the network takes only one size, or answers in another form.

    inputs: a few samples."""
    first = STAGES[0][1]
    found = [
        f for f in fields if f.kind == "picture" and first * min(inputs[f.name].shape[a] for a in f.space) >= _LEAST
    ]
    if not found:
        return []
    try:
        with torch.no_grad():
            full, small = program(dict(inputs)), program(scaled(inputs, found, first))
    except (RuntimeError, ValueError, IndexError):  # written-down sizes
        return []
    return found if all(full[n].shape == small[n].shape for n in full) else []
