"""Training block by block: each block of the student learns its teacher's block alone, fed the teacher's own values.

Blocks lie between matched cut points.  What enters and what should leave a block is asked of the teacher once and kept,
for as many samples as fit the memory bound; where the student is narrower only its channels are taken.  Blocks are
independent, so that a short run of each repairs much; errors that add up over blocks are left to the end-to-end mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from onnxpress.train.distillation import losses
from onnxpress.train.distillation.feature_matching import Pair
from onnxpress.train.distillation.teacher_batches import KEEP_BYTES, Order, Pool, Teacher

Make = Callable[[Sequence[str], Sequence[str]], nn.Module]


@dataclass(frozen=True)
class Block:
    """first: the pair whose value enters (None: the graph's inputs); last: the pair whose value leaves."""

    first: Pair | None
    last: Pair

    @property
    def name(self) -> str:
        return f"{self.first.student if self.first else 'input'}..{self.last.student}"


def blocks(pairs: Sequence[Pair], outputs: Sequence[Pair]) -> list[Block]:
    """Consecutive cut points as blocks, the last ones ending in the outputs; projected pairs cannot feed a block."""
    usable = [p for p in pairs if not p.project]
    found = [Block(a, b) for a, b in zip([None, *usable[:-1]], usable, strict=True)] if usable else []
    last = usable[-1] if usable else None
    return found + [Block(last, out) for out in outputs]


def share_steps(steps: int, count: int) -> list[int]:
    """Steps of each block; the sum is `steps` where that is at least one a block."""
    edges = [steps * i // count for i in range(count + 1)]
    return [max(1, b - a) for a, b in pairwise(edges)]


class BlockLessons:
    """loss(step) of one block.  Samples beyond the memory bound are left out (`samples` says how many serve)."""

    def __init__(self, pool: Pool, teacher: ir.Model, block: Block, batch: int, seed: int) -> None:
        names = [block.last.teacher] + ([block.first.teacher] if block.first else [])
        self.block = block
        asked = Teacher(teacher, names, pool.data)
        first = asked(pool.sample(0))
        each = sum(v.nbytes for v in first.values())
        self.samples = int(max(1, min(len(pool.data), KEEP_BYTES // max(each, 1))))
        stretch = np.linspace(0, len(pool.data) - 1, self.samples).astype(int)
        self._pool = pool
        self._known = {int(i): asked(pool.sample(int(i))) for i in stretch}
        held = [b[np.isin(b, stretch)] for b in pool.buckets]
        self._order = Order([b for b in held if len(b)], min(batch, self.samples), seed)
        values = np.concatenate([self._taken(block.last, k[block.last.teacher]) for k in self._sample_of_known()])
        self.scale = losses.variance(torch.from_numpy(values), block.last.channel)
        self.alone = pool.alone

    def _sample_of_known(self) -> list[dict[str, np.ndarray]]:
        shape = None
        found = []
        for known in list(self._known.values())[:64]:
            value = known[self.block.last.teacher]
            shape = shape or value.shape
            if value.shape == shape:
                found.append(known)
        return found

    @staticmethod
    def _taken(pair: Pair, value: np.ndarray) -> np.ndarray:
        return value if pair.kept is None else np.take(value, pair.kept, axis=pair.channel)

    def parts(self, module: nn.Module, step: int, together: bool) -> Iterator[Tensor]:
        """The losses whose gradients are added in one step."""
        chosen = self._order.at(step).tolist()
        groups = [chosen] if together and not self.alone else [[i] for i in chosen]
        for group in groups:
            yield self._loss(module, group) * (len(group) / len(chosen))

    def _loss(self, module: nn.Module, chosen: list[int]) -> Tensor:
        feeds = {n: torch.from_numpy(v) for n, v in self._pool.stack(chosen).items()}
        first, last = self.block.first, self.block.last
        if first is not None:
            values = [self._taken(first, self._known[i][first.teacher]) for i in chosen]
            feeds[first.student] = torch.from_numpy(np.ascontiguousarray(np.concatenate(values)))
        wished = torch.from_numpy(
            np.ascontiguousarray(np.concatenate([self._taken(last, self._known[i][last.teacher]) for i in chosen]))
        )
        return losses.relative_mse(module(feeds)[last.student], wished, self.scale)
