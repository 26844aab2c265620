"""Execution mode of training: the precision of matrix products and the memory layout of images.

With bfloat16, weights, optimizer moments and losses stay in 32 bits, and the inputs of the operators on torch's
autocast list are rounded (Micikevicius et al. 2018, Kalamkar et al. 2019).  This suits untrained weights, which learn
from many noisy steps; fine-tuning changes weights by less than the rounding error and uses 32 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import torch

from onnxpress.train.graph.tensors import Tensor
from onnxpress.train.settings import LAYOUTS, PRECISIONS, TrainingSettings

# torch's names of the CPU features with bfloat16 instructions; without them torch emulates bfloat16, which is slow
_BFLOAT16_FEATURES = ("amx_bf16", "avx512_bf16", "bf16")


@dataclass(frozen=True)
class ExecMode:
    """Execution mode.

    precision: of matrix products, one of PRECISIONS.
    layout: memory layout of 4-D inputs, one of LAYOUTS; values computed from them keep it.
    """

    precision: str = PRECISIONS[0]
    layout: str = LAYOUTS[0]

    @classmethod
    def from_settings(cls, settings: TrainingSettings) -> ExecMode:
        """The execution mode that the settings name."""
        return cls(settings.precision, settings.layout)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Context in which forward passes use the precision of this mode."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
            yield

    def to_layout(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs in the memory layout of this mode; their values are unchanged."""
        if self.layout != "channels_last":
            return dict(inputs)
        return {n: v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for n, v in inputs.items()}


def exec_modes() -> list[ExecMode]:
    """The modes that this CPU has instructions for; the default mode comes first."""
    features = torch.cpu.get_capabilities()
    precisions = PRECISIONS if any(features.get(name) for name in _BFLOAT16_FEATURES) else PRECISIONS[:1]
    return [ExecMode(p, layout) for p, layout in product(precisions, LAYOUTS)]


def to_float32(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values with bfloat16 tensors converted to float32."""
    return {n: v.float() if v.dtype == torch.bfloat16 else v for n, v in values.items()}
