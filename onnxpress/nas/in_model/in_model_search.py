"""Search inside a model: each place is kept or replaced, with the lowest loss increase for a target speed-up.

The model is cut where all computation passes through one value.  Each place has cheaper replacements, which are made in
closed form (`replacements`), measured (`replacement_survey`) and allocated for the latency to save
(`replacement_allocation`).  Savings do not quite add up, so the whole model is timed, and where it is too slow or
faster than needed, allocated again for another saving.  With int8 the replacements need to save less.  Where there is
training time, the best candidates are trained towards the original.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from onnxpress.data.any_data import DataSource
from onnxpress.data.dataset import Splits
from onnxpress.measure.evidence import evidence_for
from onnxpress.model.source import ModelSource
from onnxpress.nas.in_model.replacement_allocation import ReplacementAllocation, ReplacementAllocator
from onnxpress.nas.in_model.replacement_survey import ReplacementEvaluator, survey
from onnxpress.nas.in_model.replacements import Replacement, plan_steps
from onnxpress.plan.candidate_store import Candidate, Stage, candidate_id
from onnxpress.plan.plan import PlanStep
from onnxpress.progress import Progress, no_progress, sub_progress
from onnxpress.search import candidate_training, techniques
from onnxpress.search.candidate_factory import UnrepairedCandidate
from onnxpress.search.finalists import OptimizeResult
from onnxpress.search.optimize import Strategy, optimize
from onnxpress.search.request import OptimizeOptions
from onnxpress.search.scheduling import Technique
from onnxpress.search.search import Search

_INT8_END = 0.25  # fraction of the time budget at which the search for int8 nodes ends
_SURVEY_MIN, _SURVEY_END = 0.2, 0.45  # fractions of the time budget: at least, and normally the end of the survey
_ALLOCATION_END = 0.68  # fraction of the time budget
_ROUNDS = (0.0, 0.6, 0.85, 1.0)  # of the allocation for a target: fractions of its time at which each must end
_MIN_SPEED_RATIO = 1.01  # of the measured speed-up to the target
_TARGET_SPEED_RATIO = 1.03  # aimed at
_MAX_SPEED_RATIO = 1.08  # above, another allocation saves less
_STEP = 1.25  # ratio of successive speed-ups, without a target
_MAX_ALLOCATIONS = 4  # that share the remaining time
_CLOSED_FORM: dict[str, object] = {"mode": "closed-form", "teacher": "original", "samples": 128}
_NAME_PREFIX = "replaced for "
_MAX_TRAINED = 2


def in_model_search(
    model: ModelSource,
    data: DataSource | Splits,
    request: OptimizeOptions,
    output: str | Path | None = None,
    run: str | Path | None = None,
    progress: Progress | None = None,
) -> OptimizeResult:
    """Search inside a model; the request, the plan and the record of the run are those of `optimize`.

    model: the model or its file.
    data: the samples.
    request: of `optimize`.
    output: file of the result.
    run: folder of the record.
    progress: callback.
    """
    strategy = Strategy(explore, train)
    return optimize(model, data, request, output=output, run=run, progress=progress or no_progress, strategy=strategy)


def explore(search: Search) -> None:
    """Add candidates to a search: exact, int8, and allocated replacements, each in float and int8."""
    if not search.make_base():
        return
    int8 = Technique("int8", partial(techniques.int8, search))
    while search.budget.share_used < _INT8_END and search.step(int8, search.seconds_left()).more:
        pass
    search.attempt("replacements", lambda: _search_replacements(search))


def train(search: Search, seconds: float, progress: Progress) -> None:
    """Train the candidates with replacements that are closest to the original."""
    replaced = [c for c in search.found if c.stage == Stage.REPLACEMENTS]
    students = sorted(replaced, key=lambda c: (c.score.used(), c.score.nmse))[:_MAX_TRAINED]
    for number, student in enumerate(students):
        part = sub_progress(
            progress, f"student {number + 1} of {len(students)}", number / len(students), 1 / len(students)
        )
        candidate_training.teach(search, student, seconds / len(students), part)


def _search_replacements(search: Search) -> None:
    """Survey the places, and allocate replacements for every target speed-up."""
    budget = search.budget
    evaluator = ReplacementEvaluator(search.factory.base)
    until = max(_SURVEY_END, budget.share_used + _SURVEY_MIN)
    found = survey(
        evaluator, budget.seconds, budget.until(until), lambda stage: search.progress(stage, min(0.5, _used(search)))
    )
    if found.empty:
        search.failed.setdefault("replacements", "no replacement is faster than the part that it replaces")
        return
    allocator = ReplacementAllocator(found.options, evaluator.loss_increase, search.factory.seed)
    base = next(c.quick or 1.0 for c in search.found if c.exact)
    targets = _targets(search, base)
    for number, (label, speedup, int8_gain) in enumerate(targets):
        used = _used(search)
        if used >= _ALLOCATION_END:
            search.failed.setdefault("replacements", "there was no time left to allocate them: increase `time_budget`")
            return
        name = f"{_NAME_PREFIX}{label}" + (", fewer" if int8_gain > 1 else "")  # int8 contributes the rest
        search.progress(name, min(0.5, used))
        interval = (used, (_ALLOCATION_END - used) / min(len(targets) - number, _MAX_ALLOCATIONS))
        target = _SpeedTarget(search, evaluator, allocator, found.seconds * base, speedup, int8_gain)
        made = search.attempt(name, partial(_allocate_for_target, target, name, interval))
        if made is not None and not search.target and made.score.used(search.max_drop) > 4:
            return


def _used(search: Search) -> float:
    """Used fraction of the time budget."""
    return search.budget.share_used


def _targets(search: Search, base: float) -> list[tuple[str, float, float]]:
    """Targets: label, speed-up over the original, and speed-up that int8 contributes.

    base: speed-up of the exact candidate.
    """
    int8 = [c.quick or 1.0 for c in search.found if c.int8 and not c.parent]
    gain = max([base, *int8]) / base
    if search.target:
        targets = {"the goal": search.target}
    else:
        targets = {f"{_STEP**n:.2f}x": base * _STEP**n for n in range(1, 9)}
    gains = (1.0, gain) if gain > 1 and search.chosen else (1.0,)
    return [(label, target, g) for label, target in targets.items() for g in gains]


class _SpeedTarget:
    """A target speed-up.

    whole: seconds of the original, as the sum of the places.
    speedup: over the original.
    int8_gain: speed-up that int8 contributes.
    """

    def __init__(
        self,
        search: Search,
        evaluator: ReplacementEvaluator,
        allocator: ReplacementAllocator,
        whole: float,
        speedup: float,
        int8_gain: float,
    ) -> None:
        self.search, self.evaluator, self.allocator = search, evaluator, allocator
        self.whole, self.speedup, self.int8_gain = whole, speedup, int8_gain
        self.present = whole / max(next(c.quick or 1.0 for c in search.found if c.exact), 1e-12)

    def first_saving(self) -> float:
        """Seconds to save, if savings added up."""
        return self._limited(self.present - self.int8_gain * self.whole / self.speedup)

    def _limited(self, seconds: float) -> float:
        """The saving, at most what is possible."""
        return min(max(seconds, 0.0), self.allocator.max_saved * (1 - 1e-6))

    def measure(self, allocation: ReplacementAllocation) -> float:
        """Measured speed-up of an allocation over the original, in int8 where int8 contributes."""
        names = ", ".join(r.name for r in allocation.replaced)
        chosen = self.search.chosen if self.int8_gain > 1 else frozenset[str]()
        factory = self.search.factory
        model = self.evaluator.apply(allocation.replaced)
        evidence = partial(evidence_for, model, self.evaluator.small.samples(), factory.machine, factory.seed)
        return 1 / factory.relative_latency(
            f"{names}, int8 {self.int8_gain > 1}", UnrepairedCandidate(0, evidence), chosen
        )

    def next_saving(self, allocation: ReplacementAllocation, speedup: float) -> float:
        """Seconds to save next, given the measured speed-up of an allocation."""
        missing = 1 / speedup - 1 / (_TARGET_SPEED_RATIO * self.speedup)
        return self._limited(allocation.saved + missing * self.whole * self.int8_gain)


def _allocate_for_target(target: _SpeedTarget, name: str, interval: tuple[float, float]) -> Candidate | None:
    """The candidate with the lowest loss increase that reaches the target, else the fastest; also in int8 with int8.

    interval: begin and length, as fractions of the time budget.
    """
    if target.search.factory.store.get(candidate_id(name)) is not None:  # made by an interrupted run
        return _build_candidate(target, name, [])
    saving = target.first_saving()
    best: tuple[bool, float, ReplacementAllocation] | None = None
    for number, end in enumerate(_ROUNDS):
        in_time = target.search.budget.until(interval[0] + end * interval[1])
        allocation = target.allocator.allocate(saving, in_time)
        if allocation is None or not allocation.replaced:
            break
        speedup = target.measure(allocation)
        reached = speedup >= _MIN_SPEED_RATIO * target.speedup
        rated = (reached, -allocation.loss_increase if reached else speedup, allocation)
        if best is None or rated[:2] > best[:2]:
            best = rated
        next_saving = target.next_saving(allocation, speedup)
        close = reached and speedup <= _MAX_SPEED_RATIO * target.speedup
        more_time = target.search.budget.until(sum(interval))
        unchanged = abs(next_saving - saving) < 1e-3 * target.whole
        if (close and number) or not more_time() or (not close and unchanged):
            break
        saving = saving if close else next_saving
    if best is None:
        return None
    return _build_candidate(target, name, best[2].replaced)


def _build_candidate(target: _SpeedTarget, name: str, replaced: Sequence[Replacement]) -> Candidate:
    """The model with replacements, all layers refitted to the original's; in int8 where int8 contributes."""
    search = target.search
    plan = [*plan_steps(replaced), PlanStep("distill", (_CLOSED_FORM,))]
    candidate = search.keep(search.factory.changed(name, plan, [r.name for r in replaced], Stage.REPLACEMENTS))
    if target.int8_gain == 1:
        return candidate
    evidence = search.factory.evidence(candidate)
    return search.keep(search.factory.int8(f"{name} + int8", search.chosen, candidate, evidence))
