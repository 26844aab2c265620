"""Choice among proposals of one pass: the least predicted loss for a wanted saving."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnxpress.passes.core.contract import Proposal


def select_by_saving(
    offers: Sequence[Proposal], goal: float, saving: Callable[[Proposal], float] = lambda p: p.saving.macs
) -> list[Proposal]:
    """Proposals of different units that together save at least `goal`, by least predicted loss for the saving.

    At each step the proposal, or the exchange of a chosen one of the same unit, with the smallest rise of loss for
    what it adds is taken (greedy for the multiple-choice knapsack). All units are taken where the goal is out of
    reach, but none whose loss is not known.
    """
    chosen: dict[str, Proposal] = {}
    while sum(saving(p) for p in chosen.values()) < goal:
        best: tuple[float, Proposal] | None = None
        for offer in offers:
            before = chosen.get(offer.unit)
            more = saving(offer) - (saving(before) if before is not None else 0.0)
            if more <= 0 or offer.loss is None:
                continue
            price = max(offer.loss - (before.assumed_loss if before is not None else 0.0), 1e-12) / more
            if best is None or price < best[0]:
                best = price, offer
        if best is None:
            break
        chosen[best[1].unit] = best[1]
    return [p for p in offers if chosen.get(p.unit) is p]
