"""What a reader hands to a Dataset: samples by index, not yet checked, and what was assumed to find them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


class SampleSource(ABC):
    """Random access to raw samples.  Reading the same index twice gives the same values.

    labels: one a sample, None where unlabelled.  All of them are held; the inputs need not be.
    """

    labels: Sequence[Any | None]

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int) -> dict[str, np.ndarray]:
        """Arrays by input name, each with its batch axis of size 1 or without it.  Raises InputProblem."""

    @abstractmethod
    def key(self, index: int) -> str:
        """A stable name of the sample for people: "train.npz[17]"."""

    def scan(self, indices: Iterable[int]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """The samples of the given indices in that order; sources without random access override this."""
        for index in indices:
            yield index, self.read(index)


@dataclass
class LoadedSource:
    """source with the clauses of what was assumed.

    ready: the reader applied the preprocessing recipe itself (images, text); otherwise it is applied to
    the arrays.
    """

    source: SampleSource
    name: str
    notes: list[str] = field(default_factory=list)
    ready: bool = False
