"""The techniques of `optimize`, each as steps that add candidates to a search; `scheduling.py` says whose turn it is.

The first step of each is the cheapest that tells what it is good for: int8 of everything by the simplest recipe, a
fifth of the channels, the first blocks (`removal.py`), proposals of a pass with little predicted loss. Later steps go
further while the samples allow it, and then look between what was allowed and what was not. What comes close is
trained (`candidate_training.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

from onnxpress.passes.core.contract import AnyPass, Proposal, proposals
from onnxpress.passes.registry import all_passes
from onnxpress.plan.candidate_store import Candidate, Prediction, Stage
from onnxpress.plan.plan import PlanStep
from onnxpress.progress import Progress
from onnxpress.search.candidate_training import TrainingTechnique
from onnxpress.search.removal import BlockRemoval, RemovalTechnique, channel_kinds
from onnxpress.search.replacements.technique import SURVEY, ReplacementTechnique
from onnxpress.search.scheduling import LITTLE, UNKNOWN, Technique, schedule
from onnxpress.search.search import Search, allowed, uses_little

# Passes that a technique of this file uses, the exact base, or training; every other pass has a technique of its own.
_HANDLED = frozenset(("simplify", "rewrite", "prune", "depth", "quantize", "equalize", "share", "weights", "distill"))
_FIRST_TOTAL = 0.02  # predicted relative squared error of the outputs, of the first combination of a pass
_TOTALS, _AIM = 5, 0.7  # combinations of one pass; share of the allowed drop that the next one is to use
_REFUSED = 1.01
_SECOND_TOTAL = 0.5  # of the gain of a pass's first combination, that the second is expected to have
_SLICE = 0.12  # share of the time budget that one analysis may take
_COMFORTABLE = 0.3  # of the allowed drop: int8 that uses less needs no better recipe
_MORE_TRAINING = 0.25  # share of the time for training alone, of one training
_FASTER = 1.02  # of a candidate that is worth another technique on top


def explore(search: Search, trains: bool = False) -> None:
    """Make the exact base, and let all techniques work in turn on it.  trains: whether students are trained as well."""
    if search.make_base():
        working = techniques(search)
        if trains:
            working.append(_technique(TrainingTechnique(search), like=working[0]))
        idle = _schedule(search, working)
        search.untried = [technique.name for technique in idle if technique.promise is None]


def train(search: Search, seconds: float, progress: Progress) -> None:
    """More time of a search, in which students are trained."""
    with search.extended(seconds, progress):
        technique = TrainingTechnique(search, _MORE_TRAINING, asked=True)
        _schedule(search, [_technique(technique), _int8_of_others(search)])


def _schedule(search: Search, working: list[Technique]) -> list[Technique]:
    return schedule(working, search.value, search.seconds_left, search.step, search.budget.seconds)


def _technique(training: TrainingTechnique, like: Technique | None = None) -> Technique:
    return Technique("training", training.steps, training.promise, like=like, seconds=training.seconds)


def _int8_of_others(search: Search, like: Technique | None = None) -> Technique:
    """Has its turn before time is over: what others found in float counts only in the form that is the fastest."""
    return Technique(
        "int8 of others", partial(int8_of_others, search), partial(_int8_promise, search), like=like, last=True
    )


def techniques(search: Search) -> list[Technique]:
    """All techniques, in the order of their first steps."""
    kinds = channel_kinds(search)
    pruned = RemovalTechnique(search, lambda: kinds if search.factory.ground().can_prune else [], kinds[0])
    shallow = BlockRemoval(search, kinds[0])
    whole, narrow, lower = (
        Technique("int8", partial(int8, search), partial(_refined_promise, search)),
        Technique("channels", pruned.steps, pruned.promise),
        Technique("blocks", shallow.steps, shallow.promise),
    )
    known = [whole, lower, narrow]
    if search.goal == "size":
        known.insert(1, Technique("fewer bits", partial(fewer_bits, search)))
    more = [(name, asked) for name, asked in all_passes().items() if name not in _HANDLED]
    if search.goal == "latency":
        more = [(name, asked) for name, asked in more if getattr(asked, "saves_time", True)]
    parts = ReplacementTechnique(search)
    others = [
        Technique(
            name,
            partial(one_pass, search, asked),
            rival=partial(search.float_value, name),
            like=narrow,
            growth_kept=_SECOND_TOTAL,
        )
        for name, asked in more
    ]
    on_top = [
        _int8_of_others(search, like=whole),
        Technique("channels behind blocks", shallow.steps_behind, shallow.promise_behind, like=narrow),
    ]
    survey = SURVEY * search.budget.seconds
    others.append(Technique("replacements", parts.steps, parts.promise, like=narrow, seconds=survey))
    return [*known, *others, *on_top]


def int8(search: Search) -> Iterator[None]:
    """int8 of all nodes by the simplest recipe; then the nodes that the clock prefers, and where that loses too much a
    better recipe and the nodes that lose least."""
    factory = search.factory
    search.report("int8 of everything")
    whole = factory.int8_nodes()
    if not whole:
        return
    search.chosen = whole
    best = search.keep(factory.int8("int8", whole))
    yield
    if not allowed(best, search.max_drop):
        if (better := _better_recipe(search)) is not None:
            best = better
        yield
    if search.goal == "latency":
        search.report("which nodes gain from int8")
        search.chosen, how = factory.select_int8_by_latency(whole, search.slice(_SLICE))
        if search.chosen and search.chosen != whole:
            best = search.keep(factory.int8("int8 mixed", search.chosen))
            best.notes.append(how)
        yield
    if search.chosen and best.score.used(search.max_drop) > _COMFORTABLE:
        if (better := _better_recipe(search)) is not None:
            best = better
        yield
    if search.chosen and not allowed(best, search.max_drop):
        search.report("which nodes lose too much")
        safe = factory.select_int8_by_accuracy(search.chosen, 0.5 * search.max_drop, search.slice(_SLICE))
        if safe and safe != search.chosen:
            search.chosen = safe
            search.keep(factory.int8("int8 careful", safe))
        yield


def _better_recipe(search: Search) -> Candidate | None:
    """int8 of the chosen nodes by the best of several recipes; None where that is the one used so far."""
    search.report("recipes of int8")
    if not search.factory.settle_recipe(search.slice(_SLICE)):
        return None
    return search.keep(search.factory.int8("int8 tuned", search.chosen))


def one_pass(search: Search, asked: AnyPass) -> Iterator[None]:
    """What any other pass proposes, combined up to a total of predicted loss; what a candidate lost tells the next."""
    search.report(f"pass {asked.name}")
    wanted = [p for p in proposals(asked, search.factory.base) if _promises(p, search.goal)]
    tried: list[tuple[float, float]] = []
    seen: set[str] = set()
    while len(tried) < _TOTALS and (total := next_total(tried)) > 0:
        chosen = combine(wanted, total)
        predicted = sum(p.assumed_loss for p in chosen)
        key = str([p.action for p in chosen])
        if not chosen or key in seen:
            return
        seen.add(key)
        step = PlanStep(asked.name, tuple(p.action for p in chosen))
        name = f"{asked.name} of {len(chosen)} units"
        if any(c.name == name for c in search.found):  # as many, but others
            name += f" ({len(tried) + 1})"
        made = search.keep(search.factory.changed(name, [step]), Prediction(loss=predicted))
        yield
        used = made.score.used(search.max_drop)
        tried.append((predicted, used if allowed(made, search.max_drop) else max(used, _REFUSED)))


def next_total(tried: Sequence[tuple[float, float]]) -> float:
    """The total of predicted losses to try next; 0 where there is none.

    Predictions of one pass err in the same direction, so that what a candidate used of the allowed drop tells how far
    to go.

    tried: total predicted loss, and used share of the allowed drop (above 1: not allowed).
    """
    if not tried:
        return _FIRST_TOTAL
    held = max((total for total, used in tried if used <= 1), default=0.0)
    refused = min((total for total, used in tried if used > 1), default=math.inf)
    if held and math.isfinite(refused):
        return math.sqrt(held * refused) if refused > 1.3 * held else 0.0
    total, used = tried[-1]
    if held:
        return total * min(max(_AIM / max(used, 1e-9), 1.5), 10.0)
    return total * min(max(_AIM / used, 0.03), 0.7)


def fewer_bits(search: Search) -> Iterator[None]:
    """Weights as codebooks of 16 values or as integers: smaller files of the same speed."""
    for bits in (4, 8):
        search.report(f"weights in {bits} bits")
        search.keep(search.factory.fewer_bits(bits))
        yield


def int8_of_others(search: Search) -> Iterator[None]:
    """The chosen nodes in int8, of the best candidates of other techniques; where none is left, the nodes that the
    clock prefers for the best of them."""
    while True:
        if waiting := _without_int8(search):
            candidate = waiting[0]
            search.report(f"{candidate.name} + int8")
            search.attempted.add(candidate.id)
            search.attempt(f"{candidate.name} + int8", partial(search.in_int8, candidate))
        elif (best := _best_unmixed(search)) is not None:
            search.report(f"which nodes of {best.name} gain from int8")
            search.attempted.add(f"mix of {best.id}")
            search.attempt(f"{best.name} + int8 mixed", partial(_mixed, search, best))
        yield


def _without_int8(search: Search) -> list[Candidate]:
    """Candidates of other techniques whose form in int8 may be the best, or the best with drop to spare; the best
    first."""
    if not search.chosen:
        return []
    left = [(_in_int8(search, c), c) for c in _of_others(search) if c.id not in search.attempted]
    left = [(worth, c) for worth, c in left if worth > search.worth(c)]
    good = [(worth, c) for worth, c in left if worth > search.value() + math.log(_FASTER)]
    if not good:
        spare = [(worth, c) for worth, c in left if uses_little(c, search.max_drop)]
        good = [(worth, c) for worth, c in spare if worth > search.safe_value() + math.log(_FASTER)]
    return [c for _, c in sorted(good, key=lambda found: found[0], reverse=True)]


def _in_int8(search: Search, candidate: Candidate) -> float:
    """What a candidate is expected to give in int8."""
    return search.worth(candidate) + search.int8_gain(candidate.last_pass)


def _of_others(search: Search) -> list[Candidate]:
    """Allowed candidates in float, of other techniques."""
    able = [c for c in search.found if c.stage not in (Stage.INT8, Stage.EXACT, Stage.LOW_BIT) and not c.int8]
    return [c for c in able if allowed(c, search.max_drop)]


def _best_unmixed(search: Search) -> Candidate | None:
    """The best of them, where some of its nodes may be better in float and that was not looked at."""
    best = max(_of_others(search), key=search.worth, default=None)
    if best is None or search.goal != "latency" or f"mix of {best.id}" in search.attempted:
        return None
    return best if any(c.parent == best.id for c in search.found) else None


def _mixed(search: Search, candidate: Candidate) -> None:
    factory = search.factory
    evidence = factory.evidence(candidate)
    start = factory.int8_nodes(evidence)
    nodes, how = factory.select_int8_by_latency(start, search.slice(_SLICE), candidate)
    if nodes and nodes != start:
        search.keep(factory.int8(f"{candidate.name} + int8 mixed", nodes, candidate, evidence)).notes.append(how)


def _refined_promise(search: Search) -> float:
    """Of other nodes or recipes: little where int8 holds, else what it would give if it did."""
    found = [c for c in search.found if c.stage == Stage.INT8 and not c.parent]
    if not found:
        return UNKNOWN
    best = max(found, key=search.worth)
    return LITTLE / 2 if allowed(best, search.max_drop) else max(search.worth(best) - search.value(), LITTLE / 2)


def _int8_promise(search: Search) -> float:
    waiting = _without_int8(search)
    if waiting:
        return max(_in_int8(search, waiting[0]) - search.value(), LITTLE)
    return LITTLE / 2 if _best_unmixed(search) is not None else 0.0


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
