"""Replacements as a technique of the search: each part of the model is kept or replaced, with the lowest loss.

The model is cut where all computation passes through one value. Each part has cheaper forms, which are made in closed
form (`forms.py`), measured alone (`survey.py`) and allocated for the latency to save (`allocation.py`). Savings do not
quite add up, so the whole model is timed, and where it is too slow or faster than needed, allocated again for another
saving. The first speed is the target's, or a little above the exact form's; it grows while the samples allow what it
costs, and then lies between what was allowed and what was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from onnxpress.measure.evidence import evidence_for
from onnxpress.plan.candidate_store import Candidate, Prediction, Stage, candidate_id
from onnxpress.plan.plan import PlanStep
from onnxpress.search.replacements.allocation import ReplacementAllocation, ReplacementAllocator
from onnxpress.search.replacements.forms import Replacement, plan_steps
from onnxpress.search.replacements.survey import ReplacementEvaluator, survey
from onnxpress.search.scheduling import LITTLE, UNKNOWN
from onnxpress.search.search import Search, allowed

SURVEY, _ALLOCATION = 0.2, 0.08  # shares of the time budget: of the survey, and of one speed
_ROUNDS = (0.0, 0.6, 0.85, 1.0)  # of the allocation for a speed: fractions of its time at which each must end
_MIN_SPEED_RATIO = 1.01  # of the measured speed-up to the one that is asked for
_TARGET_SPEED_RATIO = 1.03  # aimed at
_MAX_SPEED_RATIO = 1.08  # above, another allocation saves less
_STEP = 1.25  # ratio of successive speeds
_CLOSE = 1.1  # ratio of a speed that is not allowed to one that is, at which there is nothing in between
_REACHABLE = 0.97  # of the largest speed
_LIKELY = 0.5  # that a speed is allowed
_CLOSED_FORM: dict[str, object] = {"mode": "closed-form", "teacher": "original", "samples": 128}


class ReplacementTechnique:
    """The steps, and what the next one promises."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._allocation: _Allocation | None = None
        self._held, self._refused = 1.0, math.inf  # speed-ups that the samples allow, and do not
        self._tried: set[float] = set()

    def steps(self) -> Iterator[None]:
        """The survey; then one step for each speed."""
        search = self._search
        search.report("replacements of parts")
        self._allocation = _surveyed(search)
        if self._allocation is None:
            return
        self._held = self._allocation.base
        yield
        while (speedup := self._next_speedup()) is not None:
            self._tried.add(speedup)
            name = f"replaced for {speedup:.2f}x"
            search.report(name)
            made = search.attempt(name, partial(self._allocation.candidate, name, speedup))
            if made is not None and allowed(made, search.max_drop):
                self._held = max(self._held, speedup)
            else:
                self._refused = min(self._refused, speedup)
            yield

    def promise(self) -> float:
        """What the next step may bring beyond the best candidate."""
        if self._allocation is None:
            return UNKNOWN
        speedup = self._next_speedup()
        if speedup is None:
            return 0.0
        gain = math.log(speedup) + max(self._search.int8_gain(), 0.0) - self._search.value()
        return max(_LIKELY * gain, LITTLE / 2)

    def _next_speedup(self) -> float | None:
        """The speed-up over the original to try next; None where there is none."""
        search, largest = self._search, _REACHABLE * (self._allocation.largest if self._allocation else math.inf)
        if math.isinf(self._refused):
            useful = math.exp(search.value() - max(search.int8_gain(), 0.0))  # slower ones would not be the best
            first = [search.target] if search.target and not self._tried else [self._held * _STEP, useful]
            wanted = min(max(first), largest)
        else:
            wanted = math.sqrt(self._held * self._refused)
            if self._refused / self._held < _CLOSE:
                return None
        return wanted if wanted > 1 and wanted not in self._tried and wanted > self._held * 1.01 else None


def _surveyed(search: Search) -> _Allocation | None:
    """None where no replacement is faster than its part."""
    evaluator = ReplacementEvaluator(search.factory.base)
    found = survey(evaluator, search.budget.seconds, search.slice(SURVEY), search.report)
    if found.empty:
        return None
    allocator = ReplacementAllocator(found.options, evaluator.loss_increase, search.factory.seed)
    return _Allocation(search, evaluator, allocator, found.seconds, search.base_speedup)


class _Allocation:
    """Makes the candidate of a speed-up.

    whole: seconds of the original, as the sum of the parts. base: speed-up of the exact form over the original.
    """

    def __init__(
        self,
        search: Search,
        evaluator: ReplacementEvaluator,
        allocator: ReplacementAllocator,
        whole: float,
        base: float,
    ) -> None:
        self._search, self._evaluator, self._allocator = search, evaluator, allocator
        self._whole, self.base = whole * base, base

    @property
    def largest(self) -> float:
        """The largest speed-up, if savings added up."""
        return self._whole / max(self._whole / self.base - self._allocator.max_saved, 1e-12)

    def candidate(self, name: str, speedup: float) -> Candidate:
        """The model with the lowest loss increase that reaches a speed-up, else the fastest; all layers refitted."""
        if self._search.factory.store.get(candidate_id(name)) is not None:  # made by an interrupted run
            return self._built(name, [], Prediction())
        found = self._allocated(speedup, self._search.slice)
        expected = self._whole / max(self._whole / self.base - found.saved, 1e-12)
        return self._built(name, found.replaced, Prediction(found.loss_increase, expected))

    def _allocated(self, speedup: float, share: Callable[[float], Callable[[], bool]]) -> ReplacementAllocation:
        """The best allocation of a few, each for another saving.  share: a question whether a share of the time budget
        is left, from now on."""
        ends = [share(_ALLOCATION * end) for end in _ROUNDS]
        saving = self._limited(self._whole / self.base - self._whole / speedup)
        best: tuple[bool, float, ReplacementAllocation] | None = None
        for number, in_time in enumerate(ends):
            allocation = self._allocator.allocate(saving, in_time)
            if allocation is None or not allocation.replaced:
                break
            found = self._measured(allocation)
            reached = found >= _MIN_SPEED_RATIO * speedup
            rated = (reached, -allocation.loss_increase if reached else found, allocation)
            if best is None or rated[:2] > best[:2]:
                best = rated
            missing = 1 / found - 1 / (_TARGET_SPEED_RATIO * speedup)
            following = self._limited(allocation.saved + missing * self._whole)
            close = reached and found <= _MAX_SPEED_RATIO * speedup
            unchanged = abs(following - saving) < 1e-3 * self._whole
            if (close and number) or not ends[-1]() or (not close and unchanged):
                break
            saving = saving if close else following
        if best is None:
            raise ValueError("no allocation of replacements saves so much")
        return best[2]

    def _limited(self, seconds: float) -> float:
        """The saving, at most what is possible."""
        return min(max(seconds, 0.0), self._allocator.max_saved * (1 - 1e-6))

    def _measured(self, allocation: ReplacementAllocation) -> float:
        """Measured speed-up of an allocation over the original."""
        names, factory = ", ".join(r.name for r in allocation.replaced), self._search.factory
        model, samples = self._evaluator.apply(allocation.replaced), self._evaluator.small.samples()
        evidence = evidence_for(model, samples, factory.machine, factory.seed)
        return 1 / factory.relative_latency(names, evidence.model)

    def _built(self, name: str, replaced: Sequence[Replacement], predicted: Prediction) -> Candidate:
        steps = [*plan_steps(replaced), PlanStep("distill", (_CLOSED_FORM,))]
        notes = [r.name for r in replaced]
        made = self._search.factory.changed(name, steps, notes, Stage.REPLACEMENTS)
        return self._search.keep(made, predicted)
