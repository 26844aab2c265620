"""Allocation: which option each place takes, so that the loss increase is lowest for the latency to save.

A multiple-choice knapsack decides by the loss increases of the options, each measured alone.  These do not add up: two
changes may harm the same function, or compensate each other.  So the loss increase of each allocation is measured, too,
the places are weighted differently, and weights that lead to better allocations are kept (as SPDY does for layers:
Frantar and Alistarh 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxpress.passes.core.knapsack import multiple_choice_knapsack
from onnxpress.search.replacements.forms import Replacement
from onnxpress.search.replacements.survey import PlaceOption

# exponents of the loss increases in the first tries: small ones are larger together than alone
_INITIAL_POWERS = (1.0, 0.5)
_CHANGED_FRACTION = 0.3  # of the places, whose weight a try changes
_FIRST_SIGMA, _LAST_SIGMA = 2.0, 0.5  # of the logarithm of the change
_MAX_STALE_TRIES = 12  # tries without a new allocation, after which the search ends
_TRIES = 200


@dataclass
class ReplacementAllocation:
    """An option for each place.

    selection: index of the option of each place.
    replaced: the replacements.
    saved: predicted seconds per run.
    loss_increase: measured, of all replacements together.
    """

    selection: tuple[int, ...]
    replaced: list[Replacement]
    saved: float
    loss_increase: float


@dataclass
class ReplacementAllocator:
    """Allocates replacements for several amounts of latency; measurements and the best weights are kept between them.

    options: of each place.
    measure: the loss increase of replacements together.
    seed: of the tries.
    """

    options: Sequence[Sequence[PlaceOption]]
    measure: Callable[[Sequence[Replacement]], float]
    seed: int = 0
    _measured: dict[tuple[int, ...], float] = field(default_factory=dict)
    _weights: np.ndarray | None = None

    @property
    def max_saved(self) -> float:
        """Maximum of the seconds that can be saved."""
        return sum(max(o.saved for o in some) for some in self.options)

    @property
    def measurements(self) -> int:
        """Number of allocations whose loss increase was measured."""
        return len(self._measured)

    def allocate(self, saving: float, in_time: Callable[[], bool]) -> ReplacementAllocation | None:
        """The allocation with the lowest loss increase found that saves `saving` seconds.

        At least one try is made, further ones while there is time.  None where the saving cannot be reached.
        """
        rng = np.random.default_rng([self.seed, len(self._measured)])
        losses = [np.array([o.loss_increase for o in some]) for some in self.options]
        best: tuple[float, tuple[int, ...], np.ndarray] | None = None
        stale = 0
        for number in range(_TRIES):
            if number and (not in_time() or (best is not None and stale >= _MAX_STALE_TRIES)):
                break
            weights, power = self._propose(number, best[2] if best else None, rng)
            selection = self._solve([w * x**power for w, x in zip(weights, losses, strict=True)], saving)
            if selection is None:
                return None
            stale = stale + 1 if selection in self._measured and number else 0
            loss = self._loss_increase(selection)
            if math.isfinite(loss) and (best is None or loss < best[0]):
                best = (loss, selection, weights)
        if best is None:
            return None
        self._weights = best[2]
        return ReplacementAllocation(best[1], self._replacements(best[1]), self._saved(best[1]), best[0])

    def _propose(self, number: int, best: np.ndarray | None, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """Weights of the places, and the exponent of the loss increases: initial ones, then changes of the best."""
        initial = np.ones(len(self.options)) if self._weights is None else self._weights
        if number < len(_INITIAL_POWERS):
            return initial, _INITIAL_POWERS[number]
        changed = rng.random(len(initial)) < _CHANGED_FRACTION
        if best is None:  # no valid allocation yet: larger and larger changes
            return initial * np.exp(rng.normal(0, _FIRST_SIGMA * (1 + number / 10), len(initial))), 1.0
        sigma = max(_LAST_SIGMA, _FIRST_SIGMA * 0.95 ** (number - len(_INITIAL_POWERS)))
        return best * np.exp(rng.normal(0, sigma, len(initial)) * changed), 1.0

    def _solve(self, losses: Sequence[np.ndarray], saving: float) -> tuple[int, ...] | None:
        """Solve the knapsack."""
        found = multiple_choice_knapsack(
            [x.tolist() for x in losses], [[-o.saved for o in some] for some in self.options], -saving
        )
        return None if found is None else tuple(found)

    def _loss_increase(self, selection: tuple[int, ...]) -> float:
        if selection not in self._measured:
            self._measured[selection] = self.measure(self._replacements(selection))
        return self._measured[selection]

    def _replacements(self, selection: Sequence[int]) -> list[Replacement]:
        selected = (some[i].replacement for some, i in zip(self.options, selection, strict=True))
        return [r for r in selected if r is not None]

    def _saved(self, selection: Sequence[int]) -> float:
        return sum(some[i].saved for some, i in zip(self.options, selection, strict=True))
