"""Training in the search: students narrower than repair alone allows, brought back to the original's answers.

A ladder of pruned students, from the gentlest to the narrowest, is searched by bisection.  Every student tried gets an
equal share of the training budget and is put into int8 afterwards; where that loses too much though the float student
does not, the int8 student is trained as well.  Where the allowed drop holds on the selection samples a narrower student is
next, else a gentler one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxpress.optimize.search import SEARCH_ENDS, Report, Search, allowed, wish_name
from onnxpress.passes.prune import Wish

_LADDER = (("hidden", (0.2, 0.35, 0.5, 0.65, 0.8)), ("all", (0.15, 0.25, 0.35, 0.5, 0.65)))
_TRIES = 3
_CLOSER = 0.95  # a rung saves at least this much of the multiply-accumulates of the one before it


@dataclass(frozen=True)
class Rung:
    """A student to be made, and its multiply-accumulates for one sample."""

    name: str
    wish: Wish
    macs: int


def train(search: Search, seconds: float, report: Report) -> None:
    """Add trained candidates to a search.  seconds: of training in all; report: told the stage and the share done."""
    ladder = search.attempt("students", lambda: rungs(search)) or []
    tries = min(_TRIES, math.ceil(math.log2(len(ladder) + 1)))
    low, high = 0, len(ladder)
    for number in range(tries):
        if low >= high:
            return
        middle = (low + high) // 2
        say = _within(report, number, tries)
        if _holds(search, ladder[middle], seconds / tries, say):
            low = middle + 1
        else:
            high = middle


def rungs(search: Search) -> list[Rung]:
    """Students that cost less than anything that holds without training, dearest first, none close to another."""
    search.say("preparing students", SEARCH_ENDS)
    limit = min(search.shop.macs(c) for c in search.found if "int8" not in c.name and allowed(c, search.max_drop))
    made = []
    for scope, ratios in _LADDER:
        for ratio in ratios:
            wish = Wish(ratio, scope)
            made.append(Rung(wish_name(wish), wish, search.shop.macs_of(wish)))
    ladder: list[Rung] = []
    for rung in sorted(made, key=lambda r: -r.macs):
        if 0 < rung.macs < _CLOSER * (ladder[-1].macs if ladder else limit):
            ladder.append(rung)
    return ladder


def _holds(search: Search, rung: Rung, seconds: float, say: Report) -> bool:
    """Train one student and keep it and its int8 forms; whether one of them holds the allowed drop."""
    shop = search.shop
    student = search.attempt(rung.name, lambda: shop.pruned(rung.name, rung.wish))
    if student is None:
        return False
    name = f"{student.name}, trained"
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
