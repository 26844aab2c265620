"""Candidates of the passes that the search has no stage of its own for, those of other packages among them.

Every such pass is asked for proposals. Those that promise what the goal wants are combined, the least predicted loss
first and without overlaps, up to a total loss; where the model then loses too much on the selection samples, a smaller
total is tried.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxpress.passes.core.contract import AnyPass, Proposal, proposals
from onnxpress.passes.registry import all_passes
from onnxpress.plan.candidate_store import Candidate
from onnxpress.plan.plan import PlanStep
from onnxpress.search.search import Search, allowed

# The stages of the search: exact rewrites, pruning, blocks, int8 with its equalization, fewer bits, training.
STAGES = frozenset(("simplify", "prune", "depth", "quantize", "equalize", "share", "weights", "distill"))
_LOSSES = (0.1, 0.01, 0.001)  # total predicted relative squared error of the outputs, the largest first
_SHARE = 0.12  # of the time budget for all of these passes together
_LAST_START = 0.58  # share of the time budget until which a pass that was not tried yet is still started
_FASTER = 1.01  # of a candidate that is worth a form in int8


def try_other_passes(search: Search) -> None:
    """Add the candidates of every pass without a stage to the search; failures are recorded by pass."""
    end = search.budget.share_used + _SHARE
    more_time = search.budget.until(end)
    for name, asked in all_passes().items():
        if name in STAGES or not (more_time() or search.budget.share_used < _LAST_START):
            continue
        search.progress(f"pass {name}", min(0.5, search.budget.share_used))
        best = search.attempt(name, lambda asked=asked: _best(search, asked))  # type: ignore[misc]
        if best is not None and search.chosen and (best.quick or 0.0) > _FASTER and more_time():
            search.attempt(f"{best.name} + int8", lambda best=best: search.in_int8(best))  # type: ignore[misc]


def _best(search: Search, asked: AnyPass) -> Candidate | None:
    """The candidate with the largest total loss that the selection samples allow; None where there is none."""
    wanted = [p for p in proposals(asked, search.factory.base) if _promises(p, search.goal)]
    tried: set[str] = set()
    for total in _LOSSES:
        chosen = combine(wanted, total)
        key = str([p.action for p in chosen])
        if not chosen or key in tried:
            continue
        tried.add(key)
        step = PlanStep(asked.name, tuple(p.action for p in chosen))
        title = f"{asked.name} of {len(chosen)} units"
        candidate = search.keep(search.factory.changed(title, [step]))
        if allowed(candidate, search.max_drop):
            return candidate
    return None


def _promises(proposal: Proposal, goal: str) -> bool:
    """Whether a proposal saves what the goal wants."""
    saving = proposal.saving
    return saving.weight_bytes > 0 if goal == "size" else saving.macs > 0 or (saving.seconds or 0.0) > 0


def combine(offers: Sequence[Proposal], total: float) -> list[Proposal]:
    """Proposals without overlaps, one for each unit, whose predicted losses sum to at most `total`.

    Taken by the least loss for the saved work; of one unit the proposal that saves most within what is left.
    """

    def work(offer: Proposal) -> float:
        return offer.saving.seconds or offer.saving.macs or offer.saving.weight_bytes

    chosen: list[Proposal] = []
    touched: set[str] = set()
    left = total
    for offer in sorted(offers, key=lambda p: (p.assumed_loss / max(work(p), 1e-30), -work(p))):
        if offer.assumed_loss <= left and not (offer.touches or {offer.unit}) & touched:
            chosen.append(offer)
            touched |= offer.touches or {offer.unit}
            left -= offer.assumed_loss
    return chosen
