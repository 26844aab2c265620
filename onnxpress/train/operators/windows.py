"""Windows that slide over spatial axes, for convolution and pooling: pads, sizes, auto_pad."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch.nn import functional

from onnxpress.train.graph.registry import Site
from onnxpress.train.graph.tensors import Tensor


@dataclass(frozen=True)
class Window:
    """Attributes of one node; lists a spatial axis, pads in ONNX order (all begins, then all ends)."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[int]
    auto: str

    @property
    def symmetric(self) -> bool:
        n = len(self.strides)
        return self.auto in ("NOTSET", "VALID") and self.pads[:n] == self.pads[n:]

    def placed(self, sizes: Sequence[int]) -> list[int]:
        """Pads for spatial sizes: SAME_* keep ceil(size / stride) positions."""
        if self.auto not in ("SAME_UPPER", "SAME_LOWER"):
            return self.pads
        before, after = [], []
        for size, k, s, d in zip(sizes, self.kernel, self.strides, self.dilations, strict=True):
            total = max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
            small, large = total // 2, total - total // 2
            before.append(large if self.auto == "SAME_LOWER" else small)
            after.append(small if self.auto == "SAME_LOWER" else large)
        return before + after


def window(site: Site, kernel: Sequence[int]) -> Window:
    n = len(kernel)
    auto = site.text("auto_pad", "NOTSET")
    pads = site.integers("pads") if auto == "NOTSET" else None
    return Window(
        list(kernel),
        site.integers("strides") or [1] * n,
        site.integers("dilations") or [1] * n,
        pads or [0] * (2 * n),
        auto,
    )


def torch_pads(pads: Sequence[int]) -> list[int]:
    """ONNX pads in torch's order: (begin, end) from the last axis on."""
    n = len(pads) // 2
    return [p for axis in reversed(range(n)) for p in (pads[axis], pads[axis + n])]


def padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    return functional.pad(x, torch_pads(pads), value=value) if any(pads) else x
