"""Survey of the replacements at each place of a model: the latency that they save, and the loss increase.

A place is a section between two values through which all computation passes, or a width that several sections share.
The latency of a replacement is measured on its place alone, interleaved with the original; its loss increase on the
whole model, on samples that the refit did not use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxpress.errors import Problem
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.measure.score import Scorer
from onnxpress.model import blocks as bl
from onnxpress.model import submodels
from onnxpress.model.cut_points import Section, sections
from onnxpress.model.structural_hash import structural_hash
from onnxpress.passes.structure.depth import LOCAL, removable
from onnxpress.plan.plan import take_step
from onnxpress.runtime.latency import Effort, compare_latency
from onnxpress.search.replacements.forms import (
    Replacement,
    plan_steps,
    section_replacements,
    shared_width_replacements,
)

_REFIT_SAMPLES, _LOSS_SAMPLES = 64, 128
_TIMING_SECONDS = 0.25  # per form of a place
_TIMING_FRACTION = 0.1  # of the time budget, for all timings
_MAX_TIME_RATIO = 0.98  # of a replacement's time to that of its place
_TINY, _BASELINE = 1e-12, "nothing"
_FAILURES = (Problem, ValueError, LookupError, ArithmeticError)

InTime = Callable[[], bool]
OnStage = Callable[[str], None]


@dataclass(frozen=True)
class PlaceOption:
    """An option of a place.

    replacement: None keeps the original.
    saved: seconds per run.
    loss_increase: normalized mean squared error of the outputs with this replacement alone.
    """

    replacement: Replacement | None
    saved: float = 0.0
    loss_increase: float = 0.0


@dataclass(frozen=True)
class Survey:
    """The options of all places.

    options: of each place; the first keeps the original.
    seconds: of all sections together.
    """

    options: list[list[PlaceOption]]
    seconds: float

    @property
    def empty(self) -> bool:
        """Whether no place has a replacement."""
        return all(len(some) == 1 for some in self.options)


class ReplacementEvaluator:
    """Applies replacements to a model, and measures the loss increase.

    base: the model with all calibration samples; `small` has the samples of the refit.
    """

    def __init__(self, base: Evidence) -> None:
        self.base = base
        data = base.samples()
        count = min(_REFIT_SAMPLES, max(1, len(data) // 2))
        self.small = evidence_for(base.model, data.take(count), base.machine, base.seed)
        rest = data.select(range(count, min(len(data), count + _LOSS_SAMPLES))) if len(data) > count else data
        self.scorer = Scorer(base.model, rest)
        self.time_fractions: dict[tuple[str, ...], float] = {}  # of the place's time, by structures

    def apply(self, replacements: Sequence[Replacement]) -> ir.Model:
        """The model with replacements, refitted on few samples."""
        evidence = self.small
        for step in plan_steps(replacements, LOCAL):
            model = take_step(step, evidence).model
            evidence = evidence_for(model, self.small.samples(), self.base.machine, self.base.seed)
        return evidence.model

    def loss_increase(self, replacements: Sequence[Replacement]) -> float:
        """Normalized mean squared error of the outputs; infinite where the replacements cannot be combined."""
        try:
            found = self.scorer.nmse(self.apply(replacements))
        except _FAILURES:
            return math.inf
        return found if math.isfinite(found) else math.inf


@dataclass
class _Place:
    """A place.

    seconds: per run.
    replacements: those that save time, with their fraction of it, the fastest first.
    options: surveyed so far.
    """

    section: Section
    seconds: float
    replacements: list[tuple[Replacement, float]]
    options: list[PlaceOption]


def survey(evaluator: ReplacementEvaluator, budget: float, in_time: InTime, on_stage: OnStage) -> Survey:
    """Measure the options of every place.

    First the fastest replacement of each place is measured, then the next one, while there is time.

    budget: seconds of the whole search.
    in_time: whether there is time left for the survey.
    on_stage: called with the name of each stage.
    """
    base = evaluator.base
    parts = sections(base.model, base.trace)
    candidates = [
        *zip(parts, section_replacements(base, parts), strict=True),
        *shared_width_replacements(base, parts),
    ]
    forms = len(parts) + sum(1 + len(some) for _, some in candidates)
    timing = min(_TIMING_SECONDS, _TIMING_FRACTION * budget / forms)
    section_seconds = _section_seconds(base, parts, timing)
    places = []
    for section, some in candidates:
        seconds = sum(t for t, s in zip(section_seconds, parts, strict=True) if s.nodes <= section.nodes)
        faster = _faster_replacements(evaluator, section, some, timing) if in_time() else []
        places.append(_Place(section, seconds, faster, [PlaceOption(None)]))
    places.sort(key=lambda p: -p.seconds)
    for turn in range(max((len(p.replacements) for p in places), default=0)):
        for place in (p for p in places if turn < len(p.replacements)):
            if not in_time():
                break
            on_stage(f"replacements of {place.section.name}")
            replacement, fraction = place.replacements[turn]
            loss = evaluator.loss_increase([replacement])
            if math.isfinite(loss):
                place.options.append(PlaceOption(replacement, (1 - fraction) * place.seconds, loss))
    return Survey([p.options for p in places], sum(section_seconds))


def _section_seconds(base: Evidence, parts: Sequence[Section], timing: float) -> list[float]:
    """Seconds of each section; equal ones are timed once.  timing: seconds of a measurement."""
    known: dict[tuple[str, str], float] = {}
    found = []
    for section in parts:
        form = submodels.between(base.model, section.source, section.output)
        key = _timing_key(base, section, form)
        if key not in known:
            known[key] = _seconds({"": form}, base, section, timing)[""]
        found.append(known[key])
    return found


def _faster_replacements(
    evaluator: ReplacementEvaluator, section: Section, replacements: Sequence[Replacement], timing: float
) -> list[tuple[Replacement, float]]:
    """The replacements that are faster than their place, with their fraction of its time, the fastest first."""
    base = evaluator.base
    forms = {"": submodels.between(base.model, section.source, section.output)}
    for replacement in replacements:
        try:
            whole = take_step(replacement.step("none"), evaluator.small).model
            output = output_name(base, whole, section, replacement)
            forms[replacement.name] = submodels.between(whole, section.source, output)
        except _FAILURES:  # this replacement is not possible; others may be
            continue
    fractions = _time_fractions(evaluator, section, forms, timing)
    faster = [(r, fractions[r.name]) for r in replacements if fractions.get(r.name, 1.0) < _MAX_TIME_RATIO]
    return sorted(faster, key=lambda pair: pair[1])


def _time_fractions(
    evaluator: ReplacementEvaluator, section: Section, forms: Mapping[str, ir.Model], timing: float
) -> dict[str, float]:
    """The fraction of the place's time that each form takes.  Forms of equal structure are timed once."""
    whole = _timing_key(evaluator.base, section, forms[""])
    keys = {name: (*whole, structural_hash(form, named=False)) for name, form in forms.items()}
    known = evaluator.time_fractions
    unknown = {name: form for name, form in forms.items() if keys[name] not in known or not name}
    if len(unknown) > 1:
        seconds = _seconds(unknown, evaluator.base, section, timing)
        for name in unknown:
            known[keys[name]] = seconds[name] / max(seconds[""], _TINY)
    return {name: known[keys[name]] for name in forms if name}


def _timing_key(base: Evidence, section: Section, form: ir.Model) -> tuple[str, str]:
    """Key of places with the same work."""
    return str(base.trace.shapes.get(section.source)), structural_hash(form, named=False)


def output_name(base: Evidence, whole: ir.Model, section: Section, replacement: Replacement) -> str:
    """Name of the section's output in the changed model: where its last block was removed, of the block's input."""
    if any(v.name == section.output for n in whole.graph for v in n.outputs):
        return section.output
    removed = {d["block"] for d in replacement.actions if "block" in d}
    return bl.resolve(base.model, [b for b in removable(base)[0] if b.name in removed])[section.output]


def _seconds(
    models: Mapping[str, ir.Model], base: Evidence, section: Section, timing: float = _TIMING_SECONDS
) -> dict[str, float]:
    """Seconds per run of each model, interleaved, on one sample's input of the section, minus the overhead of a run.

    timing: seconds of measuring a model.
    """
    source = section.source
    values = dict(base.probe) | (next(iter(base.stream([source], 1))) if source not in base.probe else {})
    every = {**models, _BASELINE: submodels.between(base.model, source, source)}
    groups: dict[tuple[str, ...], dict[str, ir.Model | bytes | str]] = {}
    for name, model in every.items():
        groups.setdefault(tuple(v.name or "" for v in model.graph.inputs), {})[name] = model
    found: dict[str, float] = {}
    for names, some in groups.items():
        effort = Effort(seconds=timing * (len(some) + 1), precision=0.01, rebuilds=1, resamples=100)
        feeds = {n: values[n] for n in names}
        found.update({t.name: t.median for t in compare_latency(some, [feeds], effort).timings})
    return {n: max(found[n] - found[_BASELINE], 0.0) for n in models}
