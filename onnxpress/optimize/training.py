"""Training in the search: students narrower than repair alone allows, brought back to the original's answers.

A ladder of pruned students, from the gentlest to the narrowest, is searched by bisection.  Every student tried gets an
equal share of the training budget and is put into int8 afterwards; where that loses too much though the float student
does not, the int8 student is trained as well.  Where the allowed drop holds on the selection samples a narrower student is
next, else a gentler one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxpress.model.counts import macs
from onnxpress.optimize.search import Report, Search, allowed
from onnxpress.optimize.shelf import Candidate
from onnxpress.passes.prune import Wish

_LADDER = (("hidden", (0.2, 0.35, 0.5, 0.65, 0.8)), ("all", (0.15, 0.25, 0.35, 0.5, 0.65)))
_TRIES = 3
_CLOSER = 0.95  # a rung saves at least this much of the multiply-accumulates of the one before it


@dataclass(frozen=True)
class Rung:
    """A student before it is trained, and its multiply-accumulates for one sample."""

    student: Candidate
    macs: int


def train(search: Search, seconds: float, report: Report) -> None:
    """Add trained candidates to a search.  seconds: of training in all; report: told the stage and the share done."""
    ladder = rungs(search)
    tries = min(_TRIES, math.ceil(math.log2(len(ladder) + 1)))
    low, high = 0, len(ladder)
    for number in range(tries):
        if low >= high:
            return
        middle = (low + high) // 2
        say = _within(report, number, tries)
        if _holds(search, ladder[middle].student, seconds / tries, say):
            low = middle + 1
        else:
            high = middle


def rungs(search: Search) -> list[Rung]:
    """Students that cost less than anything that holds without training, dearest first, none close to another."""
    made = [_rung(search, c) for c in search.found if c.name.startswith("prune") and "int8" not in c.name]
    start = _macs(search, next(c for c in search.found if c.name == "exact"))
    limit = min([r.macs for r in made if allowed(r.student, search.max_drop)], default=start)
    names = {r.student.name for r in made}
    for scope, ratios in _LADDER:
        for ratio in ratios:
            name = f"prune {ratio:.0%}" + ("" if scope == "hidden" else " all")
            if name not in names:
                search.say(f"preparing students ({name})", 0.72)
                student = search.attempt(name, lambda n=name, w=Wish(ratio, scope): search.shop.pruned(n, w))  # type: ignore[misc]
                made += [] if student is None else [_rung(search, student)]
    ladder: list[Rung] = []
    for rung in sorted(made, key=lambda r: -r.macs):
        if rung.macs < _CLOSER * (ladder[-1].macs if ladder else limit):
            ladder.append(rung)
    return ladder


def _rung(search: Search, candidate: Candidate) -> Rung:
    return Rung(candidate, _macs(search, candidate))


def _macs(search: Search, candidate: Candidate) -> int:
    evidence = search.shop.evidence(candidate)
    return sum(macs(evidence.model, evidence.trace).values())


def _holds(search: Search, student: Candidate, seconds: float, say: Report) -> bool:
    """Train one student and keep it and its int8 forms; whether one of them holds the allowed drop."""
    name = f"{student.name}, trained"
    shop = search.shop
    taught = search.attempt(name, lambda: search.keep(shop.taught(name, student, seconds, say)))
    if taught is None:
        return False
    good = allowed(taught, search.max_drop)
    if not search.chosen:
        return good
    whole = f"{name} + int8"
    evidence = shop.evidence(taught)
    int8 = search.attempt(whole, lambda: search.keep(shop.int8(whole, search.chosen, taught, evidence)))
    if int8 is None or allowed(int8, search.max_drop) or not good:
        return good
    last = f"{whole}, trained"
    search.attempt(last, lambda: search.keep(shop.taught(last, int8, seconds / 3, say)))
    return True


def _within(report: Report, number: int, of: int) -> Report:
    """Progress of one student as a part of the whole."""
    return lambda stage, share: report(f"student {number + 1} of {of}: {stage}", (number + share) / of)
