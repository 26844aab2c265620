"""One sample at the other sizes that a model's free axes allow: more of a batch, longer and shorter sequences, pictures.

Axes that share a symbol change together; what is added repeats what is there, so that values stay sensible (token ids
stay ids, masks stay masks).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from onnxpress.data.layout import layout
from onnxpress.measure.evidence import repeat_feeds
from onnxpress.model.signature import Signature

Feeds = dict[str, np.ndarray]
Axis = tuple[str, int]  # input, axis
BATCHES = (1, 2, 3)


def dynamic_shape_variants(feeds: Mapping[str, np.ndarray], sig: Signature) -> Iterator[tuple[str, Feeds]]:
    """(what was varied, feeds): the sample at a few batch sizes, then at half and one and a half of each free axis."""
    for size in BATCHES:
        yield f"batch {size}", repeat_feeds(feeds, sig, size)
    for name, axes in free_axes(sig).items():
        old = max((feeds[port].shape[axis] for port, axis in axes), default=0)
        for size in dict.fromkeys((max(old // 2, 1), old + (old + 1) // 2)):
            if old and size != old:
                yield f"{name} {size}", resize_axes(feeds, axes, size)


def free_axes(sig: Signature) -> dict[str, list[Axis]]:
    """Axes of free size that are not the batch, by symbol; nameless ones of one position count as one."""
    batch = {port.name: port.axis for port in layout(sig).ports}
    found: dict[str, list[Axis]] = {}
    for spec in sig.inputs:
        for axis, dim in enumerate(spec.shape or ()):
            if isinstance(dim, str) and axis != batch[spec.name]:
                found.setdefault(dim or f"axis {axis}", []).append((spec.name, axis))
    return found


def resize_axes(feeds: Mapping[str, np.ndarray], axes: list[Axis], size: int) -> Feeds:
    """The feeds with the given axes cut, or filled up by starting over."""
    out = dict(feeds)
    for name, axis in axes:
        old = out[name].shape[axis]
        out[name] = np.take(out[name], np.arange(size) % max(old, 1), axis=axis) if old else out[name]
    return out
