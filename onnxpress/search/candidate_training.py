"""Training as a technique of the search: students faster than repair alone allows, brought back to the original.

A student is a candidate with a price: what it promises is the speed-up that it would have in int8 if training made it
as good as the original, and it costs the time of one training. Students of one kind (inner channels, blocks, channels
behind blocks) differ in how much is removed; where the trained student holds on the selection samples the next one is
smaller, else one between the two is next. Candidates of other techniques, and int8 forms, that lose a little too much
are students as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnxpress.plan.candidate_store import Candidate, Stage
from onnxpress.search.removal import (
    LEAST_USED,
    RemovalKind,
    block_kind,
    channel_kinds,
    expectation,
    held_level,
    probability,
)
from onnxpress.search.search import Search, allowed, used_share

TRAINING_SHARE = 0.15  # of the time budget, of one training
_LEAST_SHARE = 0.4  # of the time of a training, that must be left for the last one
_LEAST_SECONDS = 4.0  # of a training: loading torch and finding the learning rate take as long
_LEAST_SAMPLES = 256  # to learn from
_LEAST_SEEN = 500  # samples that a student must see in a training, repeated ones included
_STEP_COST = 4.0  # time of a training step, in runs of the original
_FASTER = math.log(1.05)  # than the best candidate, that a student must promise to be
_ASKED_GAIN = 1e-3  # that a student promises at least, where the user asked for training
_RECOVERY = 0.35  # what training leaves of a student's drop, before the first one tells
_MOST_FAILURES = 2  # after which no other student is trained
_FINISHING = 0.05  # of the time budget, for the int8 form of a student
_LATE = 1.25  # times its time, that a training may take with its student's making and scoring


@dataclass(frozen=True)
class Student:
    """What may be trained next.  make: the candidate as it is before; gain: what it promises beyond the best, times how
    likely that is."""

    name: str
    make: Callable[[], Candidate | None]
    gain: float


class TrainingTechnique:
    """The steps, and what the next one promises."""

    def __init__(self, search: Search, share: float = TRAINING_SHARE, asked: bool = False) -> None:
        """share: of the time budget, of one training. asked: whether the user asked for it, however little there is to
        learn from."""
        self._search, self.seconds, self._asked = search, share * search.budget.seconds, asked
        self._channels: dict[int, list[RemovalKind]] = {}  # by the number of blocks out
        self._blocks: RemovalKind | None = None
        self._too_small: set[str] = set()  # names of students that do not hold after training
        self._refused: set[str] = set()  # of those that cannot be made or trained
        self._left = [math.log(_RECOVERY)]  # logarithms of what trainings left of the drop
        self._failures, self._ended = 0, False

    def steps(self) -> Iterator[None]:
        """A step for each student."""
        while not self._ended and (student := self._best_student()) is not None:
            self._search.report(f"training {student.name}")
            self._train(student)
            yield

    def promise(self) -> float:
        """What the next step may bring beyond the best candidate."""
        if self._ended or not self._worth_starting():
            return 0.0
        best = self._best_student()
        return best.gain if best is not None else 0.0

    def _worth_starting(self) -> bool:
        """Whether there is something to learn from, and time to learn it."""
        search, time = self._search, self._time()
        if self._asked:
            return time > _LEAST_SHARE * self.seconds
        if len(search.factory.learn) < _LEAST_SAMPLES or time < _LEAST_SECONDS:
            return False
        a_run = _STEP_COST * search.original_seconds / search.factory.cores
        return time / max(a_run, 1e-9) >= _LEAST_SEEN

    def _time(self) -> float:
        """Seconds for the next training, so that it ends in time."""
        search = self._search
        left = search.seconds_left() - _FINISHING * search.budget.seconds
        return min(self.seconds, left / _LATE)

    def _best_student(self) -> Student | None:
        able = [*self._as_found(), *(s for kind in self._all_kinds() for s in self._of_kind(kind))]
        return max(able, key=lambda s: s.gain, default=None)

    @property
    def _recovery(self) -> float:
        """What a training leaves of the drop, by those so far."""
        return math.exp(float(np.mean(self._left)))

    def _as_found(self) -> list[Student]:
        """Candidates of other techniques that lose a little too much, and int8 forms."""
        search = self._search
        trained = {c.parent for c in search.found if c.stage == Stage.TRAINING}
        stages = (Stage.PASS, Stage.REPLACEMENTS, Stage.INT8)
        found = []
        for c in search.found:
            untrained = c.id not in trained and c.name not in self._refused
            if c.stage in stages and untrained and not allowed(c, search.max_drop):
                gain = search.worth(c) - (search.value() if c.int8 else search.float_value())
                if gain >= _FASTER:
                    likely = probability(self._recovery * used_share(c, search.max_drop))
                    found.append(Student(c.name, partial(_itself, c), likely * gain))
        return found

    def _all_kinds(self) -> list[RemovalKind]:
        """Blocks, channels, and channels behind the blocks that can be out."""
        search, order = self._search, self._search.factory.known_removal_order()
        if self._blocks is None and order:
            self._blocks = block_kind(search, len(order))
        kinds = self._of_count(0) if search.factory.ground().can_prune else []
        if self._blocks is None:
            return kinds
        count = held_level(search, self._blocks, _forms)
        return [*kinds, self._blocks, *(self._of_count(count) if count else [])]

    def _of_count(self, count: int) -> list[RemovalKind]:
        if count not in self._channels:
            self._channels[count] = channel_kinds(self._search, count)
        return self._channels[count]

    def _of_kind(self, kind: RemovalKind) -> list[Student]:
        """The students of a kind that would be faster than the best candidate."""
        search, found = self._search, []
        expected = expectation(search, kind, self._of_count(0)[0])
        if expected is None:
            return []
        held = held_level(search, kind, _forms)
        limit = min((v for v in kind.levels if v > held and kind.name(v) in self._too_small), default=math.inf)
        rival = search.float_value()
        for level in kind.between(held, limit):
            if kind.name(level) in self._refused:
                continue
            gain = expected.gain(kind.depth(level), rival, self._recovery)
            if self._asked:  # little is promised, and yet there is time for it
                gain = max(gain, _ASKED_GAIN)
            if self._asked or expected.worth(kind.depth(level)) - rival >= _FASTER:
                found.append(Student(kind.name(level), partial(_made, kind, level), gain))
        return found

    def _train(self, student: Student) -> None:
        """Make a student, and train it if it does not hold as it is."""
        search = self._search
        made = student.make()
        if made is None or (search.has(made) and made.name not in {c.name for c in search.found}):
            self._refused.add(student.name)  # another one under another name
            return
        if not search.has(made):
            search.keep(made)
        if allowed(made, search.max_drop):
            return
        seconds = max(self._time(), _LEAST_SHARE * self.seconds)

        def progress(stage: str, share: float) -> None:
            search.report(f"training {made.name}: {stage}")

        name = trained_name(made.name)
        trained = search.attempt(name, lambda: search.keep(search.factory.trained(name, made, seconds, progress)))
        if trained is None:  # what fails twice fails for all, such as an operator that cannot be trained
            self._refused.add(student.name)
            self._failures += 1
            self._ended = self._failures >= _MOST_FAILURES
            return
        before, after = (max(used_share(c, search.max_drop), LEAST_USED) for c in (made, trained))
        self._left.append(math.log(after / before))
        if not allowed(trained, search.max_drop):
            self._too_small.add(student.name)


def trained_name(name: str) -> str:
    """A candidate's name after training."""
    return f"{name}, trained"


def _forms(name: str) -> set[str]:
    """Names of a candidate and of its trained form."""
    return {name, trained_name(name)}


def _made(kind: RemovalKind, level: int) -> Candidate | None:
    """The candidate of a level; where it is no other than one that is there, it is skipped from now on."""
    made = kind.make(level)
    if made is None:
        kind.skipped.add(level)
        return None
    return made[0]


def _itself(candidate: Candidate) -> Candidate:
    return candidate
