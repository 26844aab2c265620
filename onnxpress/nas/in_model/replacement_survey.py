"""What could be done at each place of a model, what it would save, and what it would harm.

A place is a section between two values that carry everything, or a width that several sections share.  What a replacement
saves is measured on its place alone beside itself; what it harms on the whole model, on samples that its repair did not see.
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
from onnxpress.nas.in_model.replacements import Replacement, library, shared_widths, steps
from onnxpress.passes.structure.depth import LOCAL, removable
from onnxpress.plan.plan import take_step
from onnxpress.runtime.latency import Effort, compare_latency

_FITTED, _JUDGED = 64, 128  # samples that repairs see, and others that tell the harm
_EACH, _TIMING = (
    0.25,
    0.1,
)  # seconds of timing a form of a place, and at most this share of the time budget for all of them
_WORTH = 0.98  # of its place's time: what takes more is not looked at
_TINY, _IDLE = 1e-12, "nothing"
_FAILURES = (Problem, ValueError, LookupError, ArithmeticError)

More = Callable[[], bool]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Choice:
    """What a place may be.  replacement: None, as it is; saved: seconds of a run; harm: nmse of the outputs with it alone."""

    replacement: Replacement | None
    saved: float = 0.0
    harm: float = 0.0


@dataclass(frozen=True)
class Survey:
    """choices: of every place, the first one being as it is; seconds: of all sections together."""

    choices: list[list[Choice]]
    seconds: float

    @property
    def empty(self) -> bool:
        return all(len(some) == 1 for some in self.choices)


class Ground:
    """The model whose places are looked at.  base: on all calibration samples; small: on those that repairs see here."""

    def __init__(self, base: Evidence) -> None:
        self.base = base
        data = base.samples()
        fitted = min(_FITTED, max(1, len(data) // 2))
        self.small = evidence_for(base.model, data.take(fitted), base.machine, base.seed)
        rest = data.select(range(fitted, min(len(data), fitted + _JUDGED))) if len(data) > fitted else data
        self.judge = Scorer(base.model, rest)
        self.known: dict[tuple[str, ...], float] = {}  # shares of their place's time, by structures

    def changed(self, chosen: Sequence[Replacement]) -> ir.Model:
        """The model with replacements, repaired on few samples."""
        evidence = self.small
        for step in steps(chosen, LOCAL):
            model = take_step(step, evidence).model
            evidence = evidence_for(model, self.small.samples(), self.base.machine, self.base.seed)
        return evidence.model

    def harm(self, chosen: Sequence[Replacement]) -> float:
        """nmse of the outputs; infinite where these replacements do not go together."""
        try:
            found = self.judge.score(self.changed(chosen)).nmse
        except _FAILURES:
            return math.inf
        return found if math.isfinite(found) else math.inf


@dataclass
class _Place:
    """own: seconds of it, of a run; ways: its replacements that save time, what saves most first, and their shares of it."""

    section: Section
    own: float
    ways: list[tuple[Replacement, float]]
    choices: list[Choice]


def survey(ground: Ground, budget: float, more: More, say: Say) -> Survey:
    """Every place with its choices.  What saves most is looked at first, at every place, and then the next, as far as time
    allows.  budget: seconds of the whole search."""
    base = ground.base
    parts = sections(base.model, base.trace)
    wished = [*zip(parts, library(base, parts), strict=True), *shared_widths(base, parts)]
    each = min(_EACH, _TIMING * budget / (len(parts) + sum(1 + len(offers) for _, offers in wished)))
    own = _own_seconds(base, parts, each)
    places = []
    for section, offers in wished:
        seconds = sum(t for t, s in zip(own, parts, strict=True) if s.nodes <= section.nodes)
        ways = _faster(ground, section, offers, each) if more() else []
        places.append(_Place(section, seconds, ways, [Choice(None)]))
    places.sort(key=lambda p: -p.own)
    for turn in range(max((len(p.ways) for p in places), default=0)):
        for place in (p for p in places if turn < len(p.ways)):
            if not more():
                break
            say(f"replacements of {place.section.name}")
            offer, share = place.ways[turn]
            harm = ground.harm([offer])
            if math.isfinite(harm):
                place.choices.append(Choice(offer, (1 - share) * place.own, harm))
    return Survey([p.choices for p in places], sum(own))


def _own_seconds(base: Evidence, parts: Sequence[Section], each: float) -> list[float]:
    """Of every section; equal ones are timed once."""
    known: dict[tuple[str, str], float] = {}
    found = []
    for section in parts:
        form = submodels.between(base.model, section.source, section.output)
        key = _key(base, section, form)
        if key not in known:
            known[key] = _seconds({"": form}, base, section, each)[""]
        found.append(known[key])
    return found


def _faster(
    ground: Ground, section: Section, offers: Sequence[Replacement], each: float
) -> list[tuple[Replacement, float]]:
    """A place's replacements that are faster than it, with the share of its time that each takes, the fastest first."""
    base = ground.base
    forms = {"": submodels.between(base.model, section.source, section.output)}
    for offer in offers:
        try:
            whole = take_step(offer.step("none"), ground.small).model
            forms[offer.name] = submodels.between(whole, section.source, end(base, whole, section, offer))
        except _FAILURES:  # this one cannot be made; others can
            continue
    shares = _shares(ground, section, forms, each)
    return sorted(((o, shares[o.name]) for o in offers if shares.get(o.name, 1.0) < _WORTH), key=lambda pair: pair[1])


def _shares(ground: Ground, section: Section, forms: Mapping[str, ir.Model], each: float) -> dict[str, float]:
    """Of the place's time that each form takes.  What was timed at a place of the same structure is not timed again."""
    whole = _key(ground.base, section, forms[""])
    keys = {name: (*whole, structural_hash(form, named=False)) for name, form in forms.items()}
    unknown = {name: form for name, form in forms.items() if keys[name] not in ground.known or not name}
    if len(unknown) > 1:
        seconds = _seconds(unknown, ground.base, section, each)
        for name in unknown:
            ground.known[keys[name]] = seconds[name] / max(seconds[""], _TINY)
    return {name: ground.known[keys[name]] for name in forms if name}


def _key(base: Evidence, section: Section, form: ir.Model) -> tuple[str, str]:
    """What places of equal work have in common."""
    return str(base.trace.shapes.get(section.source)), structural_hash(form, named=False)


def end(base: Evidence, whole: ir.Model, section: Section, offer: Replacement) -> str:
    """The section's output, by the name it has in the changed model: what was read there, where a block is gone."""
    if any(v.name == section.output for n in whole.graph for v in n.outputs):
        return section.output
    gone = {d["block"] for d in offer.decisions if "block" in d}
    return bl.resolve(base.model, [b for b in removable(base)[0] if b.name in gone])[section.output]


def _seconds(models: Mapping[str, ir.Model], base: Evidence, section: Section, each: float = _EACH) -> dict[str, float]:
    """Of one run of each, side by side, on what one sample brings to the section; without what any run costs.

    each: seconds of timing a model."""
    source = section.source
    values = dict(base.probe) | (next(iter(base.stream([source], 1))) if source not in base.probe else {})
    every = {**models, _IDLE: submodels.between(base.model, source, source)}
    groups: dict[tuple[str, ...], dict[str, ir.Model | bytes | str]] = {}
    for name, model in every.items():
        groups.setdefault(tuple(v.name or "" for v in model.graph.inputs), {})[name] = model
    found: dict[str, float] = {}
    for names, some in groups.items():
        effort = Effort(seconds=each * (len(some) + 1), precision=0.01, rebuilds=1, resamples=100)
        feeds = {n: values[n] for n in names}
        found.update({t.name: t.median for t in compare_latency(some, [feeds], effort).timings})
    return {n: max(found[n] - found[_IDLE], 0.0) for n in models}
