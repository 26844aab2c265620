"""Which choice every place takes, so that the whole is harmed least for the time that is to be saved.

A knapsack of multiple choice decides by the harms of the choices, each measured alone.  Harms do not add up: two changes can
hurt the same function, or one make up for another.  So the packing is made and its true harm measured, the harms are weighted
differently place by place, and what packs better is kept (as SPDY does for layers: Frantar and Alistarh 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxpress.nas.in_model.replacement_survey import Choice
from onnxpress.nas.in_model.replacements import Replacement
from onnxpress.passes.core.knapsack import multiple_choice_knapsack

_POWERS = (1.0, 0.5)  # of the harms, to begin with: alone, small harms look smaller than they are together
_TOUCHED = 0.3  # share of the places whose weight a try changes
_WIDE, _NARROW = 2.0, 0.5  # of the change's logarithm, at first and in the end
_STALE = 12  # tries without a new packing, after which there is none to be found
_TRIES = 200


@dataclass
class Packing:
    """taken: of every place the number of its choice; harm: measured, of all of them together; saved: seconds, predicted."""

    taken: tuple[int, ...]
    replaced: list[Replacement]
    saved: float
    harm: float


@dataclass
class Packer:
    """Packs for one amount of time after another; what was measured and the best weights are kept between them.

    choices: of every place; harm: of replacements taken together, measured.
    """

    choices: Sequence[Sequence[Choice]]
    harm: Callable[[Sequence[Replacement]], float]
    seed: int = 0
    _known: dict[tuple[int, ...], float] = field(default_factory=dict)
    _weights: np.ndarray | None = None

    @property
    def most(self) -> float:
        """Seconds that can be saved at most."""
        return sum(max(c.saved for c in some) for some in self.choices)

    @property
    def made(self) -> int:
        """Packings whose harm was measured."""
        return len(self._known)

    def pack(self, wish: float, more: Callable[[], bool]) -> Packing | None:
        """The least harmful packing found that saves `wish` seconds; one try at least, others while there is time.

        None where nothing saves as much, or nothing that does can be made.
        """
        rng = np.random.default_rng([self.seed, len(self._known)])
        harms = [np.array([c.harm for c in some]) for some in self.choices]
        best: tuple[float, tuple[int, ...], np.ndarray] | None = None
        stale = 0
        for number in range(_TRIES):
            if number and (not more() or (best is not None and stale >= _STALE)):
                break
            weights, power = self._proposal(number, best[2] if best else None, rng)
            taken = self._taken([w * h**power for w, h in zip(weights, harms, strict=True)], wish)
            if taken is None:
                return None
            stale = stale + 1 if taken in self._known and number else 0
            harm = self._measured(taken)
            if math.isfinite(harm) and (best is None or harm < best[0]):
                best = (harm, taken, weights)
        if best is None:
            return None
        self._weights = best[2]
        return Packing(best[1], self._replaced(best[1]), self._saved(best[1]), best[0])

    def _proposal(self, number: int, best: np.ndarray | None, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """Weights of the places, and the power that harms are taken to: plain ones first, then changes of the best."""
        ones = np.ones(len(self.choices)) if self._weights is None else self._weights
        if number < len(_POWERS):
            return ones, _POWERS[number]
        touched = rng.random(len(ones)) < _TOUCHED
        if best is None:  # nothing goes together yet: farther and farther away
            return ones * np.exp(rng.normal(0, _WIDE * (1 + number / 10), len(ones))), 1.0
        spread = max(_NARROW, _WIDE * 0.95 ** (number - len(_POWERS)))
        return best * np.exp(rng.normal(0, spread, len(ones)) * touched), 1.0

    def _taken(self, harms: Sequence[np.ndarray], wish: float) -> tuple[int, ...] | None:
        found = multiple_choice_knapsack(
            [h.tolist() for h in harms], [[-c.saved for c in some] for some in self.choices], -wish
        )
        return None if found is None else tuple(found)

    def _measured(self, taken: tuple[int, ...]) -> float:
        if taken not in self._known:
            self._known[taken] = self.harm(self._replaced(taken))
        return self._known[taken]

    def _replaced(self, taken: Sequence[int]) -> list[Replacement]:
        picked = (some[i].replacement for some, i in zip(self.choices, taken, strict=True))
        return [r for r in picked if r is not None]

    def _saved(self, taken: Sequence[int]) -> float:
        return sum(some[i].saved for some, i in zip(self.choices, taken, strict=True))
