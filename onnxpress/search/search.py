"""The state of a search for candidates: what was found, what failed, what the best so far gives, and the time.

The exact base is made first; then the techniques (`techniques.py`) work in turn (`scheduling.py`). One that fails on a
model is recorded with its reason, and the search goes on without it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import onnx_ir as ir

from onnxpress.errors import Problem
from onnxpress.model.files import to_bytes
from onnxpress.passes.pruning.options import INTERNAL, PruneOptions
from onnxpress.plan import result_contract
from onnxpress.plan.candidate_store import Candidate, Prediction, Stage
from onnxpress.plan.run_record import RunRecord
from onnxpress.runtime.latency import Effort, Ratio, compare_latency
from onnxpress.runtime.time_limit import OutOfTime, time_limit
from onnxpress.search.candidate_factory import CandidateFactory
from onnxpress.search.scheduling import Step, Technique

T = TypeVar("T")
Progress = Callable[[str, float], None]
_REWRITE_SHARE = 0.1  # of the time budget, for timing the kernel rewrites at most
_BASE_SHARE = 1 / 3  # of the time budget, for the exact reductions at most
_TIMED, _LEAST_TIMED, _MOST_TIMED = 0.01, 0.25, 0.8  # of a candidate: share of the time budget, bounds in seconds
_SAFE = 0.5  # share of the allowed drop
_LUCKY_SAMPLES = 2
_CHANGED_BY_LUCK = 1.5  # answers on the border between two classes, which any change may move
_FAILURES = (Problem, ValueError, ArithmeticError, LookupError, RuntimeError, AssertionError)


@dataclass
class TimeBudget:
    """A budget of wall-clock seconds, and how much of it is used.

    searching: share of it until which candidates are made; the rest is for timing the finalists and validating
    before:    seconds of the search before this budget
    """

    seconds: float
    searching: float = 0.72
    start: float = field(default_factory=time.perf_counter)
    before: float = 0.0

    @property
    def used(self) -> float:
        return time.perf_counter() - self.start

    @property
    def elapsed(self) -> float:
        """Seconds since the search began."""
        return self.before + self.used

    @property
    def share_used(self) -> float:
        """Share of the budget that is used; above 1 once it is exceeded."""
        return self.used / self.seconds

    def until(self, share: float) -> Callable[[], bool]:
        """A question: is less than this share of the budget used?"""
        return lambda: self.used < share * self.seconds


@dataclass(frozen=True)
class Improvement:
    """A candidate that was the best so far, and measured to be better than the original.

    seconds: of the search until then. speedup, low: of a short timing, with the lower end of its interval. size: bytes
    """

    seconds: float
    name: str
    speedup: float
    low: float
    size: int


def allowed(candidate: Candidate, max_drop: float) -> bool:
    """Good enough to be a finalist: the drop on the selection samples, and not too many answers changed."""
    return candidate.score.keeps(max_drop) and _changed_share(candidate, max_drop) <= 1


def used_share(candidate: Candidate, max_drop: float) -> float:
    """Of the allowed drop, or of the answers that may change: the larger share. Above 1 it is not allowed."""
    return max(candidate.score.used(max_drop), _changed_share(candidate, max_drop))


def clearly_refused(candidate: Candidate, max_drop: float) -> bool:
    """Whether not even two samples more, answered as by the original, would make it allowed."""
    return used_share(candidate, max_drop) > 1 + _LUCKY_SAMPLES * one_sample(candidate, max_drop)


def one_sample(candidate: Candidate, max_drop: float) -> float:
    """The share of the allowed drop that one sample makes, where answers are counted; 0 elsewhere."""
    score = candidate.score
    return 0.0 if score.agreement is None or not max_drop else 1 / (max_drop * max(score.samples, 1))


def _changed_share(candidate: Candidate, max_drop: float) -> float:
    """Changed answers, as a share of those that may change; 0 where there are no classes."""
    score = candidate.score
    if score.agreement is None:
        return 0.0
    of_classes = (score.parts or (score,))[0].metric in ("top-1", "agreement")
    share = 6 * max(max_drop if of_classes else 0.01, 0.002)
    return (1 - score.agreement) / (share + _CHANGED_BY_LUCK / max(score.samples, 1))


def prune_name(options: PruneOptions) -> str:
    """A pruned candidate's name."""
    return f"prune {options.ratio:.0%}" + ("" if options.scope == INTERNAL else " all")


def uses_little(candidate: Candidate, max_drop: float) -> bool:
    """Whether it is allowed with half of the drop to spare, so that other samples hardly refuse it."""
    return allowed(candidate, max_drop) and candidate.score.used(max_drop) <= _SAFE


@dataclass
class Search:
    """The state of a search.

    found: candidates in the order they were made. failed: stages that failed on this model, and why; stopped: those
    of them that did not end in time. chosen: nodes for
    which int8 is faster. target: target speed-up (0: as fast as possible). attempted: ids of candidates whose form in
    int8 was tried. untried: techniques that had no turn. improvements: the best candidates so
    far, each with its time. original_seconds: of one run of the original, by the last timing.
    """

    factory: CandidateFactory
    max_drop: float
    goal: str
    budget: TimeBudget
    progress: Progress
    run: RunRecord | None
    found: list[Candidate] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    chosen: frozenset[str] = frozenset()
    target: float = 0.0
    attempted: set[str] = field(default_factory=set)
    untried: list[str] = field(default_factory=list)
    stopped: set[str] = field(default_factory=set)
    improvements: list[Improvement] = field(default_factory=list)
    original_seconds: float = 0.0
    _best_noted: float = 0.0

    def step(self, technique: Technique, seconds: float) -> Step:
        """Take one step of a technique, within some seconds. What fails is recorded, and has no more steps."""
        before, prepared = len(self.found), self.factory.prepared
        self.failed.pop(technique.name, None)  # it is tried again
        self.stopped.discard(technique.name)
        more = self.attempt(technique.name, lambda: next(technique.steps, True) is None, seconds)
        added = [self.worth(c) for c in self.found[before:] if allowed(c, self.max_drop)]
        best = max(added, default=None)
        return Step(bool(more), best, self.factory.prepared - prepared, technique.name in self.stopped)

    def seconds_left(self) -> float:
        return self.budget.searching * self.budget.seconds - self.budget.used

    def slice(self, share: float) -> Callable[[], bool]:
        """A question: is less than this share of the budget used from now on, and time left?"""
        return self.budget.until(min(self.budget.share_used + share, self.budget.searching))

    def worth(self, candidate: Candidate) -> float:
        """What a candidate gives of the goal: the logarithm of its speed-up, or of how much smaller it is."""
        ratio = self.original_size / candidate.size if self.goal == "size" else candidate.quick or 1.0
        return math.log(max(ratio, 1e-3))

    def safe_value(self) -> float:
        """What the best candidate that has drop to spare gives of the goal."""
        return max((self.worth(c) for c in self.found if uses_little(c, self.max_drop)), default=0.0)

    def value(self) -> float:
        """What the best candidate that holds on the selection samples gives of the goal."""
        return max((self.worth(c) for c in self.found if allowed(c, self.max_drop)), default=0.0)

    def float_value(self, pass_name: str = "") -> float:
        """What a candidate in float must give to be the best in int8.  pass_name: of the pass that makes it."""
        return self.value() - max(self.int8_gain(pass_name), 0.0)

    @property
    def base_speedup(self) -> float:
        """Speed-up of the exact form that candidates are made of over the original, by a short timing."""
        return next((c.quick or 1.0 for c in reversed(self.found) if c.exact), 1.0)

    def int8_gain(self, pass_name: str = "") -> float:
        """What int8 was worth where it holds: of the logarithm of the speed-up, or of how much smaller the file is.

        pass_name: on top of this pass, where that was tried; factors, for one, may be slower in int8.
        """
        exact = max((self.worth(c) for c in self.found if c.exact), default=0.0)
        by_id = {c.id: c for c in self.found}
        able = [c for c in self.found if c.stage == Stage.INT8 and allowed(c, self.max_drop)]
        gains = [
            (self.worth(c) - (self.worth(by_id[c.parent]) if c.parent in by_id else exact), by_id.get(c.parent))
            for c in able
        ]
        own = [gain for gain, parent in gains if parent is not None and parent.last_pass == pass_name]
        return max(own or [gain for gain, _ in gains], default=0.0)

    @cached_property
    def original_size(self) -> int:
        return len(to_bytes(self.factory.original))

    def has(self, candidate: Candidate) -> bool:
        """Whether the same steps were kept before, maybe under another name."""
        return candidate.plan.to_json() in {c.plan.to_json() for c in self.found}

    @contextmanager
    def extended(self, seconds: float, progress: Progress) -> Iterator[None]:
        """More time for what runs within, all of it for making candidates; and how it is reported."""
        budget, before = self.budget, self.progress
        self.budget, self.progress = TimeBudget(seconds, 1.0, before=budget.elapsed), progress
        try:
            yield
        finally:
            spent = self.budget.used
            self.budget = replace(budget, start=budget.start + spent, before=budget.before + spent)
            self.progress = before

    def report(self, stage: str) -> None:
        self.progress(stage, min(self.budget.searching, self.budget.share_used))

    def make_base(self) -> bool:
        """Make the base of everything else; whether there is one."""
        seconds = _BASE_SHARE * self.budget.seconds
        if self.attempt("exact reductions", lambda: self.keep(self.factory.exact()), seconds) is None:
            self.attempt("clean-up", lambda: self.keep(self.factory.bare()))
        if self.factory.exact_evidence is not None and self.goal == "latency":
            self.report("kernel rewrites")
            self.attempt("kernel rewrites", self._rewrite, seconds)
        return self.factory.exact_evidence is not None

    def _rewrite(self) -> None:
        """Make the base of the rewrites that the clock keeps, where there are any."""
        made = self.factory.rewritten(_REWRITE_SHARE * self.budget.seconds)
        if made is not None:
            self.keep(made)

    def descendants(self, candidate: Candidate, stage: Stage) -> list[Candidate]:
        """Candidates that were made from another by a stage, and all forms of those."""
        ids = {c.id for c in self.found if c.parent == candidate.id and c.stage == stage}
        while more := {c.id for c in self.found if c.parent in ids} - ids:
            ids |= more
        return [c for c in self.found if c.id in ids]

    def attempt(self, name: str, work: Callable[[], T], seconds: float = math.inf) -> T | None:
        """The result of a piece of work; None where it failed, or did not end within some seconds, which is
        recorded."""
        try:
            with time_limit(seconds):
                return work()
        except OutOfTime:
            if not math.isfinite(seconds):  # another limit, of what this is a part of
                raise
            self.stopped.add(name)
            self.failed[name] = f"it did not end within {seconds:.0f} s: increase `time_budget`"
        except _FAILURES as error:
            self.failed[name] = error.line() if isinstance(error, Problem) else f"{type(error).__name__}: {error}"
        if self.run is not None:
            self.run.set(failed=self.failed)
        return None

    def keep(self, candidate: Candidate, predicted: Prediction | None = None) -> Candidate:
        """Time a candidate shortly, and record it, with what was expected of it."""
        candidate.predicted = predicted or candidate.predicted
        seconds = min(max(_TIMED * self.budget.seconds, _LEAST_TIMED), _MOST_TIMED)
        effort = Effort(seconds=seconds, precision=0.006, rebuilds=1, resamples=200)
        models: dict[str, ir.Model | bytes | str] = {"original": self.factory.original, "candidate": candidate.data}
        timed = compare_latency(models, self.factory.feeds, effort)
        ratio = timed.ratios[0]
        candidate.quick = ratio.speedup
        self.original_seconds = timed.timings[0].median
        self.found.append(candidate)
        self._improve(candidate, ratio)
        if self.run is not None:
            self.run.add(
                {
                    "id": candidate.id,
                    "name": candidate.name,
                    "stage": candidate.stage,
                    "size": candidate.size,
                    "select": candidate.score,
                    "notes": candidate.notes,
                    "quick_speedup": candidate.quick,
                    "seconds": candidate.seconds,
                    "predicted": candidate.predicted,
                }
            )
        return candidate

    def _improve(self, candidate: Candidate, ratio: Ratio) -> None:
        """Note a candidate that is the best so far. The first has its behaviour checked as well: from then on an
        interrupted search has a result."""
        worth = self.worth(candidate)
        better = candidate.size < self.original_size if self.goal == "size" else ratio.low > 1
        if not better or worth <= self._best_noted or not allowed(candidate, self.max_drop):
            return
        samples = self.factory.scorer.data
        if not self.improvements and result_contract.same_shape_behaviour(
            self.factory.original, candidate.data, samples
        ):
            return
        self._best_noted = worth
        found = Improvement(self.budget.elapsed, candidate.name, ratio.speedup, ratio.low, candidate.size)
        self.improvements.append(found)
        if self.run is not None:
            self.run.set(improvements=self.improvements)

    def in_int8(self, candidate: Candidate) -> Candidate:
        """The chosen nodes of a candidate in int8."""
        evidence = self.factory.evidence(candidate)
        expected = (candidate.quick or 1.0) * math.exp(self.int8_gain()) if self.goal == "latency" else None
        made = self.factory.int8(f"{candidate.name} + int8", self.chosen, candidate, evidence)
        return self.keep(made, Prediction(speedup=expected))
