"""Multiple choice under a budget: of every set exactly one option, least harm in all, and the costs within the budget.

Dynamic programming over the budget in small parts: the same answer every time, and no solver that writes to the terminal (HiGHS, through
scipy, does now and then).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_WORK = 2**24  # parts times options, about
_FEWEST, _MOST = 2**14, 2**20  # parts


def choose(harms: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float) -> list[int] | None:
    """For every set the number of its option; None where even the cheapest options exceed the budget.

    harms, costs: of the options of each set, in equal order (finite).  The choice is as good as the best within the budget, and exceeds
    it by a part a set at most.
    """
    if not harms:
        return []
    cheapest = [int(np.argmin(c)) for c in costs]
    spare = budget - sum(c[i] for c, i in zip(costs, cheapest, strict=True))
    if spare < 0:
        return None
    parts = int(np.clip(_WORK // sum(len(h) for h in harms), _FEWEST, _MOST))
    unit = max(spare / parts, 1e-12 * max(abs(budget), 1e-12))
    # What an option costs more than the cheapest, rounded up; a part a set makes up for that.
    more = [np.ceil((np.asarray(c, float) - min(c)) / unit).clip(max=2.0 * _MOST).astype(np.int64) for c in costs]
    last = parts + len(harms)
    least = np.zeros(last + 1)  # harm of the sets so far, by the parts that are spent at most
    picks: list[np.ndarray] = []
    for harm, extra in zip(harms, more, strict=True):
        found, pick = np.full(last + 1, np.inf), np.zeros(last + 1, np.int16)
        for number, (own, taken) in enumerate(zip(harm, extra.tolist(), strict=True)):
            if taken > last:
                continue
            with_it = least[: last + 1 - taken] + own
            better = with_it < found[taken:]
            found[taken:][better], pick[taken:][better] = with_it[better], number
        least = found
        picks.append(pick)
    chosen, left = [], last
    for pick, extra in zip(reversed(picks), reversed(more), strict=True):
        chosen.append(int(pick[left]))
        left -= int(extra[chosen[-1]])
    return chosen[::-1]
