"""The techniques of `optimize`, each as steps that add candidates to a search; `scheduling.py` says whose turn it is.

The first step of each is the cheapest that tells what it is good for: int8 of everything by the simplest recipe, a
fifth of the channels, the first block. Later steps go further while the samples allow it, and then look between what
was allowed and what was not.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from functools import partial

from onnxpress.passes.core.contract import AnyPass, Proposal, proposals
from onnxpress.passes.pruning.options import ALL, INTERNAL, PruneOptions
from onnxpress.passes.registry import all_passes
from onnxpress.plan.candidate_store import Candidate, Prediction, Stage
from onnxpress.plan.plan import PlanStep
from onnxpress.search.candidate_factory import blocks_name
from onnxpress.search.replacements.technique import SURVEY, ReplacementTechnique
from onnxpress.search.scheduling import LITTLE, UNKNOWN, Technique, schedule
from onnxpress.search.search import Search, allowed, prune_name, uses_little

# Passes that a technique of this file uses, the exact base, or training; every other pass has a technique of its own.
_HANDLED = frozenset(("simplify", "rewrite", "prune", "depth", "quantize", "equalize", "share", "weights", "distill"))
_FIRST_TOTAL = 0.02  # predicted relative squared error of the outputs, of the first combination of a pass
_TOTALS, _AIM = 5, 0.7  # combinations of one pass; share of the allowed drop that the next one is to use
_REFUSED = 1.01
_SLICE = 0.12  # share of the time budget that one analysis may take
_LOOK = 0.05  # of one whose rest can be told from less
_RATIOS, _LESS = (
    (0.2, 0.35, 0.5, 0.65, 0.8, 0.9),
    (0.1, 0.05),
)  # of channels: further; where 0.2 is too much
_BETWEEN = 2  # ratios tried between what is allowed and what is not
_FAR = 3.0  # times the allowed drop, from which more of the same is hopeless
_COMFORTABLE = 0.3  # of the allowed drop: int8 that uses less needs no better recipe
_CLEARLY = 1.05  # predicted speed-up from which on it can be compared with the measured one
_FASTER = 1.02  # of a candidate that is worth another technique on top


def explore(search: Search) -> None:
    """Make the exact base, and let all techniques work in turn on it."""
    if search.make_base():
        idle = schedule(techniques(search), search.value, search.seconds_left, search.step, search.budget.seconds)
        search.untried = [technique.name for technique in idle if technique.promise is None]


def techniques(search: Search) -> list[Technique]:
    """All techniques, in the order of their first steps."""
    whole, narrow = (
        Technique("int8", partial(int8, search), partial(_refined_promise, search)),
        Technique("channels", partial(channels, search)),
    )
    known = [whole, narrow, Technique("blocks", partial(blocks, search))]
    if search.goal == "size":
        known.insert(1, Technique("fewer bits", partial(fewer_bits, search)))
    more = [(name, asked) for name, asked in all_passes().items() if name not in _HANDLED]
    parts = ReplacementTechnique(search)
    others = [Technique(name, partial(one_pass, search, asked), like=narrow) for name, asked in more]
    on_top = [
        Technique("int8 of others", partial(int8_of_others, search), partial(_int8_promise, search), like=whole),
        Technique(
            "channels behind blocks", partial(behind_blocks, search), partial(_behind_promise, search), like=narrow
        ),
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


def channels(search: Search) -> Iterator[None]:
    """Channels pruned: of inner widths, then of all."""
    if not search.factory.ground().can_prune:
        return
    for scope in (INTERNAL, ALL):
        yield from _narrower(search, scope)


def behind_blocks(search: Search) -> Iterator[None]:
    """Channels pruned behind the blocks that can be taken out."""
    done = 0
    while (best := _best_without_blocks(search)) is not None and best.blocks_out > done:
        done = best.blocks_out
        yield from _narrower(search, INTERNAL, done)


def _narrower(search: Search, scope: str, count: int = 0) -> Iterator[None]:
    """More and more channels while the samples allow it, then between; behind `count` blocks taken out."""
    good, bad = 0.0, 1.0
    tried: set[float] = set()
    waiting = list(_RATIOS)
    while waiting:
        ratio = waiting.pop(0)
        tried.add(ratio)
        search.report(f"pruning {ratio:.0%} of the channels")
        options = PruneOptions(ratio, scope=scope)
        name = prune_name(options) if not count else f"{blocks_name(count)}, {prune_name(options)}"
        made = search.factory.pruned(name, options, search.slice(_LOOK), count)
        if made is None or search.has(made):  # the grid of widths leaves nothing between
            yield
            continue
        search.keep(made, _predicted(search, made, count))
        if allowed(made, search.max_drop):
            good = max(good, ratio)
        else:
            bad = min(bad, ratio)
            waiting = [r for r in waiting if r < bad]
        yield
        if not waiting and good == 0:
            waiting = [r for r in _LESS if r < bad and r not in tried][:1]
        if not waiting and 0 < good < bad < 1 and len(tried) < len(_RATIOS) + _BETWEEN and bad - good > 0.05:
            middle = round((good + bad) / 2, 2)
            waiting = [middle] if middle not in tried else []


def _predicted(search: Search, pruned: Candidate, count: int) -> Prediction | None:
    """The speed of a pruned candidate, by the times of single units, corrected by those that were measured."""
    saved = _by_units(search, pruned)
    if saved is None:
        return None
    known = [(c, _by_units(search, c)) for c in search.found if c.stage == Stage.PRUNING and c is not pruned]
    seen = [(own, (c.quick or 1.0) / _unpruned(search, c.blocks_out)) for c, own in known if own is not None]
    return Prediction(speedup=_unpruned(search, count) * saved ** correction(seen))


def _by_units(search: Search, pruned: Candidate) -> float | None:
    """The speed-up of pruning by the times of single units; None where those are not known."""
    left = search.factory.ground(pruned.blocks_out).remaining_time(pruned.plan.steps[-1].actions)
    return None if left is None or left <= 0 else 1 / left


def _unpruned(search: Search, count: int) -> float:
    """The speed-up of what is pruned, over the original."""
    names = {c.name: c.quick or 1.0 for c in search.found}
    return names.get(blocks_name(count), 1.0) if count else search.base_speedup


def correction(seen: Sequence[tuple[float, float]]) -> float:
    """By what power of their predicted speed-ups candidates were faster: the median; 1 where nothing is known.

    Units take longer alone than within a model, and what does not depend on channels takes time as well. seen:
    predicted and measured speed-ups.
    """
    powers = [math.log(measured) / math.log(predicted) for predicted, measured in seen if predicted > _CLEARLY]
    return min(max(statistics.median(powers), 0.2), 2.0) if powers else 1.0


def blocks(search: Search) -> Iterator[None]:
    """Blocks taken out, more of them while the samples allow it."""
    search.report("which blocks can go")
    order = search.factory.removal_order(search.slice(_SLICE))
    count = 1
    while count <= len(order):
        search.report(f"without {count} blocks")
        made = search.keep(search.factory.shallower(count))
        yield
        if made.score.used(search.max_drop) > _FAR:
            return
        count = max(count + 1, count * 3 // 2)


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
    gain = search.int8_gain()
    if not search.chosen or gain <= 0:
        return []
    left = [c for c in _of_others(search) if c.id not in search.attempted]
    worth = [c for c in left if search.worth(c) + gain > search.value() + math.log(_FASTER)]
    if not worth:
        spare = [c for c in left if uses_little(c, search.max_drop)]
        worth = [c for c in spare if search.worth(c) + gain > search.safe_value() + math.log(_FASTER)]
    return sorted(worth, key=search.worth, reverse=True)


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
        return max(search.worth(waiting[0]) + search.int8_gain() - search.value(), LITTLE)
    return LITTLE / 2 if _best_unmixed(search) is not None else 0.0


def _best_without_blocks(search: Search) -> Candidate | None:
    """The best candidate with nothing but blocks taken out; None where none is faster."""
    good = [c for c in search.found if c.stage == Stage.BLOCKS and allowed(c, search.max_drop)]
    good = [c for c in good if search.worth(c) > math.log(_FASTER)]
    return max(good, key=search.worth, default=None)


def _behind_promise(search: Search) -> float:
    """What blocks and channels gave apart adds up."""
    pruned = [c for c in search.found if c.stage == Stage.PRUNING and allowed(c, search.max_drop)]
    channels_alone = max((search.worth(c) for c in pruned if not c.blocks_out), default=0.0)
    best = _best_without_blocks(search)
    if best is None or channels_alone <= math.log(_FASTER):
        return 0.0
    return max(search.worth(best) + channels_alone - search.value(), LITTLE / 2)


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
