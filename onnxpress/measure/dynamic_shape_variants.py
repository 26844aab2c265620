"""Variants of one sample with other sizes of a model's dynamic axes: batch size, sequence length, image size.

Axes that share a symbol change together.  Added positions repeat existing ones, so that values stay valid (token ids
stay ids, masks stay masks).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from onnxpress.data.layout import batch_layout
from onnxpress.measure.evidence import repeat_feeds
from onnxpress.model.signature import Signature

Feeds = dict[str, np.ndarray]
Axis = tuple[str, int]  # input, axis
BATCHES = (1, 2, 3)


def dynamic_shape_variants(feeds: Mapping[str, np.ndarray], sig: Signature) -> Iterator[tuple[str, Feeds]]:
    """(description, feeds) of a few batch sizes, then of 0.5 and 1.5 times the size of each dynamic axis."""
    for size in BATCHES:
        yield f"batch {size}", repeat_feeds(feeds, sig, size)
    for name, axes in free_axes(sig).items():
        old = max((feeds[port].shape[axis] for port, axis in axes), default=0)
        for size in dict.fromkeys((max(old // 2, 1), old + (old + 1) // 2)):
            if old and size != old:
                yield f"{name} {size}", resize_axes(feeds, axes, size)


def free_axes(sig: Signature) -> dict[str, list[Axis]]:
    """Dynamic axes other than the batch, by symbol; unnamed axes at the same position share one entry."""
    batch = {port.name: port.axis for port in batch_layout(sig).ports}
    found: dict[str, list[Axis]] = {}
    for spec in sig.inputs:
        for axis, dim in enumerate(spec.shape or ()):
            if isinstance(dim, str) and axis != batch[spec.name]:
                found.setdefault(dim or f"axis {axis}", []).append((spec.name, axis))
    return found


def resize_axes(feeds: Mapping[str, np.ndarray], axes: list[Axis], size: int) -> Feeds:
    """The feeds with the given axes cut to `size`, or extended to it by repetition."""
    out = dict(feeds)
    for name, axis in axes:
        old = out[name].shape[axis]
        out[name] = np.take(out[name], np.arange(size) % max(old, 1), axis=axis) if old else out[name]
    return out
