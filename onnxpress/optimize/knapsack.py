"""Multiple choice under a budget: of every set exactly one option, least harm in all, and the costs within the budget.

Solved exactly as a mixed-integer linear program (HiGHS, through scipy).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

_SECONDS = 20.0


def choose(harms: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float) -> list[int] | None:
    """For every set the number of its option; None where even the cheapest options exceed the budget.

    harms, costs: of the options of each set, in equal order (finite).
    """
    sizes = [len(h) for h in harms]
    if not sizes:
        return []
    cheapest = [int(np.argmin(c)) for c in costs]
    if sum(c[i] for c, i in zip(costs, cheapest, strict=True)) > budget:
        return None
    objective, weights = (np.concatenate([np.asarray(v, float) for v in values]) for values in (harms, costs))
    owner = np.repeat(np.arange(len(sizes)), sizes)
    one_each = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    scale = max(abs(budget), 1e-30)  # so that the solver's tolerance is relative
    found = milp(
        objective / max(float(np.abs(objective).max()), 1e-30),
        integrality=np.ones(len(owner)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint((weights / scale)[None], -np.inf, budget / scale),
        ],
        options={"time_limit": _SECONDS},
    )
    if found.x is None:
        return cheapest
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return [int(np.argmax(found.x[s : s + n])) for s, n in zip(starts, sizes, strict=True)]
