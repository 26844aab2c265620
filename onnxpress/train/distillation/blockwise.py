"""Blockwise distillation: each block of the student is trained alone to reproduce the teacher's block.

Blocks lie between matched cut points.  The teacher's values at the boundaries of a block are computed once and kept in
memory, for as many samples as fit; where the student is narrower only its channels are used.  Blocks are trained
independently, with few steps each; errors that accumulate over blocks are left to the end-to-end mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from onnxpress.train.distillation import losses
from onnxpress.train.distillation.feature_matching import FeaturePair
from onnxpress.train.distillation.teacher_batches import CACHE_BYTES, BatchOrder, SamplePool, Teacher

_SCALE_SAMPLES = 64  # whose values give the variance that losses are relative to


@dataclass(frozen=True)
class ModelBlock:
    """A block of the student.

    first: the pair whose value enters (None: the graph's inputs).
    last: the pair whose value leaves.
    """

    first: FeaturePair | None
    last: FeaturePair

    @property
    def name(self) -> str:
        """The names of the values that enter and leave."""
        return f"{self.first.student if self.first else 'input'}..{self.last.student}"


def model_blocks(pairs: Sequence[FeaturePair], outputs: Sequence[FeaturePair]) -> list[ModelBlock]:
    """The blocks between consecutive pairs, and from the last pair to the outputs.

    Pairs with a learned projection are left out: their teacher value cannot enter a block.
    """
    usable = [p for p in pairs if not p.project]
    found = [ModelBlock(a, b) for a, b in zip([None, *usable[:-1]], usable, strict=True)] if usable else []
    last = usable[-1] if usable else None
    return found + [ModelBlock(last, out) for out in outputs]


def divide_steps(steps: int, count: int) -> list[int]:
    """Steps of each of `count` blocks, at least one each; their sum is `steps` where that is possible."""
    edges = [steps * i // count for i in range(count + 1)]
    return [max(1, b - a) for a, b in pairwise(edges)]


class BlockBatches:
    """Batches and losses of one block.  `samples` is the number of samples used: those whose values fit into memory."""

    def __init__(self, pool: SamplePool, teacher: ir.Model, block: ModelBlock, batch: int, seed: int) -> None:
        names = [block.last.teacher] + ([block.first.teacher] if block.first else [])
        self.block = block
        run_teacher = Teacher(teacher, names, pool.data)
        first = run_teacher(pool.sample(0))
        sample_bytes = sum(v.nbytes for v in first.values())
        self.samples = int(max(1, min(len(pool.data), CACHE_BYTES // max(sample_bytes, 1))))
        used = np.linspace(0, len(pool.data) - 1, self.samples).astype(int)
        self._pool = pool
        self._values = {int(i): run_teacher(pool.sample(int(i))) for i in used}
        buckets = [b[np.isin(b, used)] for b in pool.buckets]
        self._order = BatchOrder([b for b in buckets if len(b)], min(batch, self.samples), seed)
        outputs = np.concatenate([self._select_channels(block.last, v) for v in self._outputs_of_equal_shape()])
        self.scale = losses.variance(torch.from_numpy(outputs), block.last.channel)
        self.alone = pool.alone

    def _outputs_of_equal_shape(self) -> list[np.ndarray]:
        """The teacher's block outputs on some samples, those of the first one's shape."""
        values = [v[self.block.last.teacher] for v in list(self._values.values())[:_SCALE_SAMPLES]]
        return [v for v in values if v.shape == values[0].shape]

    @staticmethod
    def _select_channels(pair: FeaturePair, value: np.ndarray) -> np.ndarray:
        return value if pair.kept is None else np.take(value, pair.kept, axis=pair.channel)

    def step_losses(self, module: nn.Module, step: int, batched: bool) -> Iterator[Tensor]:
        """The losses whose gradients are added in one step.  batched: whether the student accepts batches."""
        indices = self._order.at(step).tolist()
        groups = [indices] if batched and not self.alone else [[i] for i in indices]
        for group in groups:
            yield self._loss(module, group) * (len(group) / len(indices))

    def _loss(self, module: nn.Module, indices: list[int]) -> Tensor:
        feeds = {n: torch.from_numpy(v) for n, v in self._pool.stack(indices).items()}
        first, last = self.block.first, self.block.last
        if first is not None:
            feeds[first.student] = self._teacher_values(first, indices)
        target = self._teacher_values(last, indices)
        return losses.relative_mse(module(feeds)[last.student], target, self.scale)

    def _teacher_values(self, pair: FeaturePair, indices: list[int]) -> Tensor:
        values = [self._select_channels(pair, self._values[i][pair.teacher]) for i in indices]
        return torch.from_numpy(np.ascontiguousarray(np.concatenate(values)))
