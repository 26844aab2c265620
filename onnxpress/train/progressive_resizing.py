"""Progressive resizing: images are small at first and grow to full size during training (Tan and Le 2021).

A network with global pooling accepts images of any size.  Small images cost less and teach most of what large ones do,
so that a training of a given duration sees more samples.  The teacher always sees the full image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional as fn

from onnxpress.train.augmentations import InputField
from onnxpress.train.graph.program import Program
from onnxpress.train.graph.tensors import Tensor

STAGES = ((0.45, 0.5), (0.75, 0.75), (1.0, 1.0))  # (fraction of the steps at which the stage ends, scale of the sides)
_MIN_PIXELS = 12  # of the shorter side

Tensors = dict[str, Tensor]


def stages() -> list[tuple[float, float]]:
    """(fraction of the steps, scale) of every stage."""
    ends = [0.0, *(end for end, _ in STAGES)]
    return [(end - begin, scale) for begin, (end, scale) in zip(ends, STAGES, strict=False)]


def scale_at(step: int, steps: int) -> float:
    """Scale of the image sides at a step (0-based)."""
    return next((scale for end, scale in STAGES if step < end * steps), 1.0)


def resize_images(inputs: Mapping[str, Tensor], fields: Sequence[InputField], scale: float) -> Tensors:
    """The inputs with the images of `fields` resized; sides are rounded to even numbers of pixels."""
    found = dict(inputs)
    for field in fields:
        x = found[field.name]
        size = [max(2, 2 * round(scale * x.shape[axis] / 2)) for axis in field.space]
        last = field.channel == 3
        planes = x.permute(0, 3, 1, 2) if last else x
        planes = fn.interpolate(planes, size=size, mode="bilinear", antialias=True, align_corners=False)
        found[field.name] = planes.permute(0, 2, 3, 1).contiguous() if last else planes
    return found


def resizable_fields(program: Program, fields: Sequence[InputField], inputs: Mapping[str, Tensor]) -> list[InputField]:
    """The image inputs that may be resized; empty where the network needs one size or its output shape would change.

    inputs: a few samples.
    """
    first = STAGES[0][1]
    found = [
        f for f in fields if f.kind == "image" and first * min(inputs[f.name].shape[a] for a in f.space) >= _MIN_PIXELS
    ]
    if not found:
        return []
    try:
        with torch.no_grad():
            full, small = program(dict(inputs)), program(resize_images(inputs, found, first))
    except (RuntimeError, ValueError, IndexError):  # the graph contains fixed sizes
        return []
    return found if all(full[n].shape == small[n].shape for n in full) else []
