"""Sources: what a reader returns for a Dataset, samples by index, unchecked, with notes on what was assumed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


class SampleSource(ABC):
    """Random access to raw samples.  Reading an index twice gives the same values.

    labels: one per sample, None where unlabelled; all are held in memory, the inputs need not be
    """

    labels: Sequence[Any | None]

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int) -> dict[str, np.ndarray]:
        """Arrays by input name, each with its batch axis of size 1 or without it.  Raises InputProblem."""

    @abstractmethod
    def key(self, index: int) -> str:
        """A stable name of the sample for messages: "train.npz[17]"."""

    def scan(self, indices: Iterable[int]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """The samples of the given indices in this order; sources without random access override this."""
        for index in indices:
            yield index, self.read(index)


@dataclass
class LoadedSource:
    """A source and what was assumed to read it.

    name:  for messages
    notes: what was assumed
    class_names: all classes in order, where labels name them
    ready: whether the reader has applied the preprocessing itself (images, text); else it is applied to the arrays
    """

    source: SampleSource
    name: str
    notes: list[str] = field(default_factory=list)
    ready: bool = False
    class_names: tuple[str, ...] = ()
