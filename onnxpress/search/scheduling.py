"""Scheduling: which technique works next.

A technique is work in steps, each of which may add candidates. The main ones have one step each before any has a
second. After that the one goes on from which the largest gain of the best candidate a second is expected. One whose own
best candidate grew is expected to grow on, by somewhat less with each step, in the time that its last step took; it may
need several steps until it overtakes the best. One that did not is expected to gain little, less with every such step,
and of one that was not tried something is expected. None takes more than a third of the time while others wait for
their first step: a step that does not end within that time is stopped, and tried once more, with the time that is left,
when the others had theirs (what it measured by then is kept). A step that would not end in time, by what the last one
took, is not started.

All values are logarithms of speed-ups (or of how much smaller a file is): what independent techniques give adds up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Clock = Callable[[], float]
LITTLE, UNKNOWN = 0.03, 0.1  # that a step is expected to gain where nothing speaks for more; a first one
_MOST = 1 / 3  # share of the time that a technique may take while others wait for their first step
_FADING = 0.5  # of that, with every step that brought nothing
_GROWTH_KEPT, _HORIZON = 0.95, 10  # of a technique's growth with each step; number of steps that are looked ahead
_PRIOR_SECONDS = 0.02  # share of the time that a first step is expected to take
_UNENDED = 2.0  # times the time that it had: what a stopped step is expected to take
_ENDING = 2.5  # of the steps that have the last turns: so many are still to fit in
_OVERRUN = 1.5  # by how much a step may take longer than the last one of its technique


@dataclass(frozen=True)
class Step:
    """What a step of a technique was.

    more:     whether there are more
    found:    value of the best candidate that it added; None: it added none that holds
    prepared: seconds that it took for what later steps do not need again
    stopped:  whether it did not end in time
    """

    more: bool
    found: float | None = None
    prepared: float = 0.0
    stopped: bool = False


@dataclass
class Technique:
    """Work in steps, and what they brought.

    name:          for progress and records
    start:         starts the steps, each of which ends at a `yield`
    promise:       what the next step may bring beyond the best candidate, where the technique itself knows, asked
                   before every turn; 0: there is nothing to do now
    rival:         the value that its own candidates must exceed to be of use, asked before every turn; None: that of
                   the best candidate of all
    growth_kept:   share of its growth by one step that the next one is expected to have
    last:          whether it has the last turns, when little time is left
    like:          another whose steps take about what the first of this one takes. A technique with one waits for
                   its first step until its gain for the time is the largest
    taken:         number of steps
    seconds:       that the last step took, without what it prepared for later ones; before the first: its own, if known
    first_seconds: of the first step, with that
    total_seconds: of all steps
    best:          value of its own best candidate
    growth:        of that by the last step
    idle:          number of steps in a row without growth
    postponed:     whether its first step was stopped, and is tried again
    """

    name: str
    start: Callable[[], Iterator[None]]
    promise: Callable[[], float] | None = None
    rival: Callable[[], float] | None = None
    like: Technique | None = None
    last: bool = False
    growth_kept: float = _GROWTH_KEPT
    taken: int = 0
    seconds: float = 0.0
    first_seconds: float = 0.0
    total_seconds: float = 0.0
    best: float = 0.0
    growth: float = 0.0
    idle: int = 0
    postponed: bool = False

    def __post_init__(self) -> None:
        self.steps = self.start()

    def postpone(self, seconds: float) -> None:
        """Start again later.  seconds: that the first step had and did not end in."""
        self.steps, self.seconds, self.postponed = self.start(), _UNENDED * seconds, True

    def expected_gain(self, value: float) -> float:
        """Of the next step, beyond the value of the best candidate of all techniques; of several the mean."""
        little = LITTLE * _FADING**self.idle
        if self.promise is not None:
            known = self.promise()
            return max(known, little) if known > 0 else 0.0
        if not self.taken:
            return UNKNOWN
        value = value if self.rival is None else self.rival()
        grown, ahead = self.best, [little]
        for number in range(1, _HORIZON + 1):
            grown += self.growth * self.growth_kept**number
            ahead.append((grown - value) / number)
        return max(ahead)

    def expected_seconds(self, prior: float) -> float:
        """Of the next step."""
        return self.seconds or (self.like.seconds if self.like is not None else 0.0) or prior

    def record(self, step: Step, seconds: float) -> None:
        """A step that took so long in all."""
        grown = max((step.found or 0.0) - self.best, 0.0)
        self.best, self.growth, self.seconds = self.best + grown, grown, max(seconds - step.prepared, 1e-3)
        self.first_seconds, self.total_seconds = self.first_seconds or seconds, self.total_seconds + seconds
        self.idle = 0 if grown > 0 else self.idle + 1
        self.taken += 1


def schedule(
    techniques: Sequence[Technique],
    value: Callable[[], float],
    seconds_left: Callable[[], float],
    step: Callable[[Technique, float], Step],
    budget: float,
    clock: Clock = time.perf_counter,
) -> list[Technique]:
    """Let techniques work in turn until time is over or none has anything to do; returns those that were never tried.

    value: of the best candidate so far. seconds_left: of the search. step: takes one step of a technique,
    within some seconds. budget: seconds, of which a technique takes a third at most while others wait.
    """
    working, whole = list(techniques), max(seconds_left(), 1e-9)
    while (left := seconds_left()) > 0:
        now = value()
        gains = {v.name: v.expected_gain(now) for v in working if v.expected_seconds(0.0) <= _OVERRUN * left}
        able = [v for v in working if gains.get(v.name, 0.0) > 0]
        if not able:
            break
        if new := [v for v in able if v.like is None and not v.taken and not v.postponed]:
            technique = new[0]
        else:
            waiting = any(not v.taken for v in able)
            modest = [v for v in able if not waiting or v.total_seconds < _MOST * budget] or able
            ending = [
                v for v in able if v.last and gains[v.name] > LITTLE / 2 and left < _ENDING * v.expected_seconds(0)
            ]
            modest = ending or modest
            technique = max(modest, key=lambda v: gains[v.name] / v.expected_seconds(_PRIOR_SECONDS * whole))
        start = clock()
        others_wait = any(v is not technique and not v.taken and not v.postponed for v in new)
        limit = min(left, _MOST * budget) if others_wait else left
        done = step(technique, limit)
        if done.stopped and others_wait and not technique.taken:
            technique.postpone(limit)
            continue
        if not done.more:
            working.remove(technique)
        technique.record(done, clock() - start)
    return [v for v in techniques if not v.taken and not v.postponed]
