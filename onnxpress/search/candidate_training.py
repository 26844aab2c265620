"""Training in the search: students faster than repair alone allows, brought back to the original's answers.

A ladder of levels of time is searched by bisection.  At a level stand students of each kind (inner channels, all
channels, whole blocks, blocks and channels), as thin as the level needs in the form that would be written; the one
whose repair comes closest to the original is trained for an equal share of the budget and put into int8; where that
loses too much though the float student does not, the int8 student is trained as well.  Where the allowed drop holds on
the selection samples a lower level is next, else a higher one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np

from onnxpress.passes.core.bisection import largest_allowed
from onnxpress.passes.pruning.options import ALL, INTERNAL, PruneOptions
from onnxpress.plan.candidate_store import Candidate, Stage, candidate_id
from onnxpress.progress import Progress, sub_progress
from onnxpress.search.candidate_factory import UnrepairedCandidate, blocks_name
from onnxpress.search.search import Search, allowed, prune_name

_RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
# Of the time of the fastest that the selection samples allow without training.  At its own time, too: few samples may
# allow what others would not, and training brings it closer to the original.
_LEVELS = (1.0, 0.85, 0.75, 0.65, 0.55, 0.45, 0.35)
_TRIES = 3
_PREPARE = 0.15  # of the training time, at most: finding the order in which blocks go
_MIX = 0.15  # of a student's time: finding which of its nodes run faster in float
_NEAR = 0.8  # a student may take this share of its level's time at least
_NEARLY = 2  # of the metric's default drop, more than what is allowed: training brings it back
_TIMING_SECONDS, _TIMING_SHARE = 0.8, 0.01  # seconds of timing a student, and at most this share of the training time
_TIMED = 3  # students of a kind that are timed; the others' times lie on the line between


@dataclass(frozen=True)
class StudentSpec:
    """One way down: its name, what it would leave, and how the student is made."""

    name: str
    unrepaired: UnrepairedCandidate
    make: Callable[[], Candidate | None]


@dataclass(frozen=True)
class TimedStudent:
    """A way down and the share of the original's time that it leads to."""

    spec: StudentSpec
    time: float


@dataclass(frozen=True)
class LatencyLevel:
    """A level of time (a share of the original's) and the students near it, of each kind the slowest."""

    level: float
    students: tuple[TimedStudent, ...]


def train(search: Search, seconds: float, report: Progress) -> None:
    """Add trained candidates to a search.  seconds: of training in all; report: told the stage and the share done."""
    started = time.monotonic()
    timing_seconds = min(_TIMING_SECONDS, _TIMING_SHARE * seconds)
    ladder = (
        search.attempt(
            "students",
            lambda: latency_levels(search, lambda: time.monotonic() - started < _PREPARE * seconds, timing_seconds),
        )
        or []
    )
    tries = min(_TRIES, math.ceil(math.log2(len(ladder) + 1)))
    seconds = max(seconds - (time.monotonic() - started), 0.5 * seconds)
    numbers = count()

    def holds(place: int) -> bool:
        number = next(numbers)
        progress = sub_progress(report, f"student {number + 1} of {tries}", number / tries, 1 / tries)
        return _holds(search, ladder[place], seconds / tries, progress)

    largest_allowed(-1, len(ladder) - 1, holds, tries)


def latency_levels(
    search: Search, more_time: Callable[[], bool] | None = None, timing_seconds: float = _TIMING_SECONDS
) -> list[LatencyLevel]:
    """Levels at and below what holds without training, slowest first, where there is a student near.

    more_time: for the order of the blocks, where the search before had not enough; timing_seconds: of timing a student.
    """
    search.progress("preparing students", search.budget.searching)
    search.attempt("order of blocks", lambda: search.factory.removal_order(more_time))
    start = min(1 / (c.quick or 1.0) for c in search.found if allowed(c, search.max_drop))
    specs = [_pruned(search, INTERNAL), _pruned(search, ALL), _shallow(search)]
    specs += [_pruned(search, INTERNAL, count) for count in _counts(search)]
    kinds = [time_students(search, some, timing_seconds) for some in specs]
    kinds.append(_replaced(search))
    ladder: list[LatencyLevel] = []
    for level in (start * share for share in _LEVELS):
        near = [[s for s in kind if _NEAR * level <= s.time <= level] for kind in kinds]
        students = tuple(max(some, key=lambda s: s.time) for some in near if some)
        if students and (not ladder or students != ladder[-1].students):
            ladder.append(LatencyLevel(level, students))
    return ladder


def time_students(
    search: Search, specs: list[StudentSpec], timing_seconds: float = _TIMING_SECONDS
) -> list[TimedStudent]:
    """Students of one kind with their times: some measured, the others' between those by their multiply-accumulates."""
    specs = sorted(specs, key=lambda w: w.unrepaired.macs)
    if not specs:
        return []
    marks = sorted({round(i) for i in np.linspace(0, len(specs) - 1, _TIMED)})
    work = [specs[i].unrepaired.macs for i in marks]
    times = [
        search.factory.relative_latency(specs[i].name, specs[i].unrepaired, search.chosen, timing_seconds)
        for i in marks
    ]
    return [TimedStudent(w, float(np.interp(w.unrepaired.macs, work, times))) for w in specs]


def _pruned(search: Search, scope: str, removed: int = 0) -> list[StudentSpec]:
    """Narrower, behind so many blocks taken out."""
    factory, before = search.factory, f"{blocks_name(removed)}, " if removed else ""
    ground = factory.ground(removed)
    options_by_ratio = [
        w for w in (PruneOptions(ratio, scope=scope) for ratio in _RATIOS) if ground.can_prune and ground.actions(w)
    ]
    return [
        StudentSpec(
            n := before + prune_name(w), factory.narrowed(w, removed), partial(factory.pruned, n, w, count=removed)
        )
        for w in options_by_ratio
    ]


def _counts(search: Search) -> list[int]:
    """How many blocks are out where both levers work together: as many as can be without training, or nearly, and
    half."""
    limit = search.max_drop + _NEARLY * search.factory.scorer.allowed_drop(None)
    able = [n for n in range(1, len(search.factory.removal_order()) + 1) if _drop(search, blocks_name(n)) <= limit]
    most = max(able, default=0)
    return sorted({n for n in (most, most // 2) if n})


def _drop(search: Search, name: str) -> float:
    """Of a candidate that was looked at; infinite for another."""
    return next((c.score.equivalent_drop for c in search.found if c.id == candidate_id(name)), math.inf)


def _shallow(search: Search) -> list[StudentSpec]:
    factory = search.factory
    counts = range(1, len(factory.removal_order()) + 1)
    return [StudentSpec(blocks_name(n), factory.without(n), partial(factory.shallower, n)) for n in counts]


def _replaced(search: Search) -> list[TimedStudent]:
    """Candidates with replacements, in float or int8: whichever is faster."""
    students = []
    for c in (c for c in search.found if c.stage == Stage.REPLACEMENTS):
        speed = max(d.quick or 1.0 for d in (c, *search.descendants(c, Stage.INT8)))
        cut = UnrepairedCandidate(0, partial(search.factory.evidence, c))
        students.append(TimedStudent(StudentSpec(c.name, cut, partial(_itself, c)), 1 / speed))
    return students


def _itself(candidate: Candidate) -> Candidate:
    return candidate


def _holds(search: Search, level_: LatencyLevel, seconds: float, progress: Progress) -> bool:
    """Train the best student of a level; whether one of its forms holds the allowed drop."""
    made = [c for s in level_.students if (c := search.attempt(s.spec.name, s.spec.make)) is not None]
    if not made:
        return False
    student = min(made, key=lambda c: (c.score.used(), c.score.nmse))
    known = search.descendants(student, Stage.TRAINING)
    if known:  # the best at another level, too
        return any(allowed(c, search.max_drop) for c in known)
    return teach(search, student, seconds, progress)


def teach(search: Search, student: Candidate, seconds: float, progress: Progress) -> bool:
    """Train a student, keep it and its int8 forms; whether one of them holds the allowed drop."""
    factory = search.factory
    name = f"{student.name}, trained"
    trained = search.attempt(name, lambda: search.keep(factory.trained(name, student, seconds, progress)))
    if trained is None:
        return False
    good = allowed(trained, search.max_drop)
    if not search.chosen:
        return good
    whole = f"{name} + int8"
    evidence = factory.evidence(trained)
    nodes = _mix(search, trained, _MIX * seconds) if good and search.goal == "latency" else search.chosen
    int8 = search.attempt(whole, lambda: search.keep(factory.int8(whole, nodes, trained, evidence)))
    if int8 is None or allowed(int8, search.max_drop) or not good:
        return good or (int8 is not None and allowed(int8, search.max_drop))
    last = f"{whole}, trained"
    search.attempt(last, lambda: search.keep(factory.trained(last, int8, seconds / 3, progress)))
    return True


def _mix(search: Search, student: Candidate, seconds: float) -> frozenset[str]:
    """Nodes that the clock prefers in int8 on this student, whose layers are thinner than those it was found for."""
    started = time.monotonic()
    return search.factory.select_int8_by_latency(search.chosen, lambda: time.monotonic() - started < seconds, student)[
        0
    ]
