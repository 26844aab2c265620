"""Multiple-choice knapsack: one option per set, minimal total loss, total cost within a budget.

Solved by dynamic programming over a discretized budget. The result is deterministic, and no solver writes to the
terminal (HiGHS, through scipy, occasionally does).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_TABLE_CELLS = 2**24  # approximate size of the table: budget steps times options
_MIN_STEPS, _MAX_STEPS = 2**14, 2**20  # number of steps that the budget is divided into


def multiple_choice_knapsack(
    losses: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float
) -> list[int] | None:
    """Choose one option per set that minimizes the total loss within a budget.

    Args:
        losses: for each set the finite loss of each option.
        costs: for each set the finite cost of each option, in the same order and in the unit of `budget`.
        budget: maximum total cost.

    Returns:
        The index of the chosen option for each set, or None where even the cheapest options exceed the budget. The
        total loss is at most that of the optimum; the budget is exceeded by at most one discretization step per set.

    Source: Kellerer, Pferschy and Pisinger, Knapsack Problems (2004), chapter 11.
    """
    if not losses:
        return []
    cheapest = [int(np.argmin(c)) for c in costs]
    slack = budget - sum(c[i] for c, i in zip(costs, cheapest, strict=True))
    if slack < 0:
        return None
    steps = int(np.clip(_TABLE_CELLS // sum(len(h) for h in losses), _MIN_STEPS, _MAX_STEPS))
    cell = max(slack / steps, 1e-12 * max(abs(budget), 1e-12))
    # Cost above the cheapest option in steps, rounded up; one extra step per set compensates for the rounding.
    extra_costs = [
        np.ceil((np.asarray(c, float) - min(c)) / cell).clip(max=2.0 * _MAX_STEPS).astype(np.int64) for c in costs
    ]
    capacity = steps + len(losses)
    best_loss = np.zeros(capacity + 1)  # [capacity + 1]: loss of the sets so far, by the steps spent
    picks: list[np.ndarray] = []
    for loss, extra_cost in zip(losses, extra_costs, strict=True):
        new_loss, pick = np.full(capacity + 1, np.inf), np.zeros(capacity + 1, np.int16)
        for option, (option_loss, spent) in enumerate(zip(loss, extra_cost.tolist(), strict=True)):
            if spent > capacity:
                continue
            total = best_loss[: capacity + 1 - spent] + option_loss
            better = total < new_loss[spent:]
            new_loss[spent:][better], pick[spent:][better] = total[better], option
        best_loss = new_loss
        picks.append(pick)
    chosen, remaining = [], capacity
    for pick, extra_cost in zip(reversed(picks), reversed(extra_costs), strict=True):
        chosen.append(int(pick[remaining]))
        remaining -= int(extra_cost[chosen[-1]])
    return chosen[::-1]
