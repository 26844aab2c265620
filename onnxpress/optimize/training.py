"""Training in the search: students narrower than repair alone allows, brought back to the original's answers.

A ladder of levels of work is searched by bisection.  At a level stand students of each kind (inner channels, all channels,
whole blocks); the one whose repair comes closest to the original is trained for an equal share of the budget and put
into int8; where that loses too much though the float student does not, the int8 student is trained as well.  Where the
allowed drop holds on the selection samples a lower level is next, else a higher one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from onnxpress.optimize.search import SEARCH_ENDS, Report, Search, allowed, wish_name
from onnxpress.optimize.shelf import Candidate
from onnxpress.passes.prune import Wish

_RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
_LEVELS = (0.8, 0.65, 0.5, 0.4, 0.3, 0.2)  # of the multiply-accumulates of what holds without training
_TRIES = 3
_NEAR = 0.8  # a student may have this share of its level at least


@dataclass(frozen=True)
class Student:
    """One way down to a level: its name, its multiply-accumulates for one sample, and how it is made."""

    name: str
    macs: int
    make: Callable[[], Candidate | None]


@dataclass(frozen=True)
class Rung:
    """A level of multiply-accumulates and the students near it, of each kind the dearest."""

    level: float
    students: tuple[Student, ...]


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
    """Levels below anything that holds without training, dearest first, where there is a student near."""
    search.say("preparing students", SEARCH_ENDS)
    shop = search.shop
    start = min(shop.macs(c) for c in search.found if "int8" not in c.name and allowed(c, search.max_drop))
    kinds = [_pruned(search, "hidden"), _pruned(search, "all"), _shallow(search)]
    ladder = []
    for level in (start * share for share in _LEVELS):
        near = [[s for s in kind if _NEAR * level <= s.macs <= level] for kind in kinds]
        students = tuple(max(some, key=lambda s: s.macs) for some in near if some)
        if students:
            ladder.append(Rung(level, students))
    return ladder


def _pruned(search: Search, scope: str) -> list[Student]:
    wishes = [Wish(ratio, scope) for ratio in _RATIOS] if search.shop.can_prune else []
    return [Student(n := wish_name(w), search.shop.macs_of(w), partial(search.shop.pruned, n, w)) for w in wishes]


def _shallow(search: Search) -> list[Student]:
    shop = search.shop
    counts = range(1, len(shop.removal_order()) + 1)
    return [Student(f"{n} blocks out", shop.macs_without(n), partial(shop.shallower, n)) for n in counts]


def _holds(search: Search, rung: Rung, seconds: float, say: Report) -> bool:
    """Train the best student of a level, keep it and its int8 forms; whether one of them holds the allowed drop."""
    shop = search.shop
    made = [c for s in rung.students if (c := search.attempt(s.name, s.make)) is not None]
    if not made:
        return False
    student = min(made, key=lambda c: (c.score.drop, c.score.nmse))
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
