"""In which way a network is computed while it trains: how many bits products have, and in which order pictures lie in memory.

With bfloat16, weights, their moments and the losses stay in 32 bits and what the operators of torch's autocast list multiply is
rounded (Micikevicius et al. 2018, Kalamkar et al. 2019).  Fine for weights that were just drawn, which learn from many noisy
steps; weights that were trained already are moved by less than the rounding, and stay in 32 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import torch

from onnxpress.train.graph.tensors import Tensor
from onnxpress.train.settings import LAYOUTS, PRECISIONS, Settings

_UNITS = (
    "amx_bf16",
    "avx512_bf16",
    "bf16",
)  # what torch calls the instructions; without them torch emulates, many times slower


@dataclass(frozen=True)
class Way:
    """precision: of products; layout: of pictures ([N,C,H,W] inputs), which what is computed of them keeps."""

    precision: str = PRECISIONS[0]
    layout: str = LAYOUTS[0]

    @classmethod
    def of(cls, settings: Settings) -> Way:
        return cls(settings.precision, settings.layout)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Forward runs are computed so."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
            yield

    def laid(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs as they are to lie in memory; their numbers are the same."""
        if self.layout != "channels_last":
            return dict(inputs)
        return {n: v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for n, v in inputs.items()}


def ways() -> list[Way]:
    """What this CPU has instructions for, the plain way first."""
    able = torch.cpu.get_capabilities()
    precisions = PRECISIONS if any(able.get(unit) for unit in _UNITS) else PRECISIONS[:1]
    return [Way(p, layout) for p, layout in product(precisions, LAYOUTS)]


def full(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values in 32 bits, where they came out in 16."""
    return {n: v.float() if v.dtype == torch.bfloat16 else v for n, v in values.items()}
