"""Sliding windows over spatial axes, for convolution and pooling: pads, sizes, auto_pad."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch.nn import functional

from onnxpress.train.graph.registry import NodeContext
from onnxpress.train.graph.tensors import Tensor


@dataclass(frozen=True)
class Window:
    """Attributes of one node; one value per spatial axis, pads in ONNX order (all begins, then all ends)."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[int]
    auto: str

    @property
    def symmetric(self) -> bool:
        """Whether begin and end pads are equal and independent of the input size."""
        n = len(self.strides)
        return self.auto in ("NOTSET", "VALID") and self.pads[:n] == self.pads[n:]

    def pads_for(self, sizes: Sequence[int]) -> list[int]:
        """Pads for the given spatial sizes: SAME_* keeps ceil(size / stride) positions."""
        if self.auto not in ("SAME_UPPER", "SAME_LOWER"):
            return self.pads
        before, after = [], []
        for size, k, s, d in zip(sizes, self.kernel, self.strides, self.dilations, strict=True):
            total = max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
            small, large = total // 2, total - total // 2
            before.append(large if self.auto == "SAME_LOWER" else small)
            after.append(small if self.auto == "SAME_LOWER" else large)
        return before + after


def window(context: NodeContext, kernel: Sequence[int]) -> Window:
    """The attributes of a convolution or pooling node."""
    n = len(kernel)
    auto = context.text("auto_pad", "NOTSET")
    pads = context.integers("pads") if auto == "NOTSET" else None
    return Window(
        list(kernel),
        context.integers("strides") or [1] * n,
        context.integers("dilations") or [1] * n,
        pads or [0] * (2 * n),
        auto,
    )


def torch_pads(pads: Sequence[int]) -> list[int]:
    """ONNX pads in torch's order: (begin, end) from the last axis on."""
    n = len(pads) // 2
    return [p for axis in reversed(range(n)) for p in (pads[axis], pads[axis + n])]


def pad_spatial(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the spatial axes of x, pads in ONNX order."""
    return functional.pad(x, torch_pads(pads), value=value) if any(pads) else x
