"""A search inside a given model: every section is kept or replaced, so that least is harmed within a time.

The model is cut where one value carries everything; each section has a library of cheaper replacements, made in closed form;
what one harms is measured on the whole model with it alone, what it saves on the section beside its replacements.  Which are
taken is a knapsack of multiple choice.  Times do not quite add up, so that the whole is measured, and where it is too slow the
knapsack is packed again, tighter.  The same in int8, whose gain the structure then need not bring; and, where there is time,
trained towards the original.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx_ir as ir

from onnxpress.data.dataset import Dataset, Splits
from onnxpress.errors import Problem
from onnxpress.measure.evidence import Evidence
from onnxpress.measure.score import Judge
from onnxpress.model import blocks as bl
from onnxpress.model import edit
from onnxpress.model.sections import Section, sections
from onnxpress.nas.replacements import Replacement, library, steps
from onnxpress.optimize import training
from onnxpress.optimize.finals import Outcome
from onnxpress.optimize.knapsack import choose
from onnxpress.optimize.loop import optimize
from onnxpress.optimize.plan import Step, take_step
from onnxpress.optimize.request import Request
from onnxpress.optimize.search import Report, Search
from onnxpress.optimize.shelf import Candidate
from onnxpress.passes.depth import removable
from onnxpress.runtime.latency import Effort, compare_latency

_LOOKING = 0.15, 0.5  # of the time budget: harms and times of the replacements, at least, and until
_PACKING = 0.68
_PACKINGS = 4  # until the whole is as fast as wished
_SURELY = 1.03  # times the wish: all of the interval must lie above it
_STEP = 1.25  # without a wish: how much faster every next packing is to be
_CLOSED: dict[str, object] = {"mode": "closed-form", "teacher": "original", "samples": 128}
_PACKING_WORD = ", packing "
_TAUGHT = 2
_EACH, _TIMING = 0.25, 0.03  # seconds of timing a section, and at most this share of the time budget for all of them
_SLACK = 1e-6  # of the solver's tolerance
_TINY, _IDLE = 1e-12, "nothing"


@dataclass(frozen=True)
class Measured:
    """A section or a replacement of it.  seconds: of the section alone; harm: nmse of the outputs with it alone."""

    replacement: Replacement | None
    seconds: float
    harm: float


def inside(
    model: str | Path | ir.Model,
    data: Dataset | Splits,
    request: Request,
    output: str | Path | None = None,
    run_folder: str | Path | None = None,
    report: Report | None = None,
) -> Outcome:
    """Search inside a model; everything else is as `optimize` does it: the contract, the plan, the record of the run."""
    return optimize(model, data, request, output, run_folder, report, explore=explore, train=train)


def explore(search: Search) -> None:
    """Add the candidates of this search to another: exact, int8, and packings of replacements, each in float and int8."""
    if not search.based():
        return
    search.chosen = search.attempt("int8", search.int8) or frozenset()
    found = search.attempt("sections", lambda: measured(search)) or []
    if not any(len(options) > 1 for options in found):
        search.failed.setdefault("sections", "nothing was found that is faster in the place of a section")
        return
    speeds = {c.name: c.quick or 1.0 for c in search.found}
    base = speeds["exact"]
    int8 = max([base, *(v for n, v in speeds.items() if n.startswith("int8"))])
    targets = [search.target] if search.target else [base * _STEP**n for n in range(1, 9)]
    for target in targets:
        for gain in (1.0, int8 / base)[: 1 + (int8 > base)]:
            if not search.clock.until(_PACKING)():
                search.failed.setdefault("packing", "no time was left for it: give a longer --time-budget")
                return
            name = f"{target:.2f}x" + (" with int8" if gain > 1 else "")
            made = search.attempt(name, partial(_packed, search, found, target / gain, gain, name))
            if made is not None and not search.target and made.score.drop > 2 * search.max_drop + 0.02:
                return


def train(search: Search, seconds: float, report: Report) -> None:
    """Train the packings that came closest to the original, one of every wish."""
    last: dict[str, Candidate] = {}
    for candidate in search.found:
        if _PACKING_WORD in candidate.name and not candidate.name.endswith("int8"):
            last[candidate.name.split(_PACKING_WORD)[0]] = candidate
    students = sorted(last.values(), key=lambda c: (c.score.drop, c.score.nmse))[:_TAUGHT]
    for number, student in enumerate(students):
        training.teach(search, student, seconds / len(students), training.told_within(report, number, len(students)))


def measured(search: Search) -> list[list[Measured]]:
    """For every section itself and its replacements; those of dear sections first, as far as time allows."""
    shop = search.shop
    base = shop.base
    parts = sections(base.model, base.trace)
    offers = library(base, parts)
    judge = Judge(base.model, base.samples())
    each = min(_EACH, _TIMING * search.clock.budget / max(len(parts), 1))
    own = {s.output: _seconds({"": edit.between(base.model, s.source, s.output)}, base, s, each)[""] for s in parts}
    found = [[Measured(None, own[s.output], 0.0)] for s in parts]
    more = search.clock.until(max(_LOOKING[1], search.clock.used / search.clock.budget + _LOOKING[0]))
    for place in sorted(range(len(parts)), key=lambda i: -own[parts[i].output]):
        search.say(f"replacements of {parts[place].name}", min(0.5, search.clock.used / search.clock.budget))
        if not more():
            break
        found[place] += _replaced(base, parts[place], offers[place], judge, own[parts[place].output], more)
    return found


def _replaced(
    base: Evidence,
    section: Section,
    offers: Sequence[Replacement],
    judge: Judge,
    own: float,
    more_time: Callable[[], bool],
) -> list[Measured]:
    """A section's replacements that are faster than it."""
    models: dict[str, ir.Model] = {"": edit.between(base.model, section.source, section.output)}
    harms: dict[str, float] = {}
    by_name = {r.name: r for r in offers}
    for name, offer in by_name.items():
        if not more_time():
            break
        try:
            whole = take_step(offer.step, base, base.model).model
            models[name] = edit.between(whole, section.source, _end(base, whole, section, offer))
            harms[name] = judge.score(whole).nmse
        except (Problem, ValueError, LookupError, ArithmeticError):  # this one cannot be made; others can
            models.pop(name, None)
    if not harms:
        return []
    seconds = _seconds(models, base, section)
    scale = own / max(seconds[""], _TINY)
    return [
        Measured(by_name[n], scale * seconds[n], h) for n, h in harms.items() if seconds[n] < seconds[""] and math.isfinite(h)
    ]


def _end(base: Evidence, whole: ir.Model, section: Section, offer: Replacement) -> str:
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
    every = {**models, _IDLE: edit.between(base.model, source, source)}
    groups: dict[tuple[str, ...], dict[str, ir.Model | bytes | str]] = {}
    for name, model in every.items():
        groups.setdefault(tuple(v.name or "" for v in model.graph.inputs), {})[name] = model
    found: dict[str, float] = {}
    for names, some in groups.items():
        effort = Effort(seconds=each * (len(some) + 1), precision=0.01, rebuilds=1, resamples=100)
        feeds = {n: values[n] for n in names}
        found.update({t.name: t.median for t in compare_latency(some, [feeds], effort).timings})
    return {n: max(found[n] - found[_IDLE], 0.0) for n in models}


def _packed(search: Search, found: Sequence[Sequence[Measured]], wish: float, gain: float, name: str) -> Candidate | None:
    """The least harmful choice whose measured speed is `wish` times the original's in float (`gain` more in int8), or the
    closest that was found.  With int8 the candidate in int8 is kept, too."""
    speed = next(c.quick or 1.0 for c in search.found if c.name == "exact")
    own = sum(options[0].seconds for options in found)
    whole = own / max(speed, _TINY)  # of the original, in the sections' own time
    least = sum(min(m.seconds for m in options) for options in found)
    budget = max(min(own, whole / wish), least * (1 + _SLACK))  # where the wish is out of reach: as far as can be
    last: Candidate | None = None
    seen: set[str] = set()
    for number in range(_PACKINGS):
        taken = choose([[m.harm for m in o] for o in found], [[m.seconds for m in o] for o in found], budget)
        if taken is None:
            break
        picked = [o[i].replacement for o, i in zip(found, taken, strict=True)]
        replaced = [r for r in picked if r is not None]
        key = ", ".join(r.name for r in replaced)
        if replaced and key not in seen:
            seen.add(key)
            last = _made(search, f"{name}{_PACKING_WORD}{number + 1}", replaced, gain > 1)
            reached = (last.quick or 0.0) / (wish * gain)
        else:
            reached = speed / wish if not replaced else 0.99
        tighter = max(budget * min(max(reached, 0.8), 0.99), least * (1 + _SLACK))
        if reached >= _SURELY or tighter >= budget or not search.clock.until(_PACKING)():
            break
        budget = tighter
    return last


def _made(search: Search, name: str, replaced: Sequence[Replacement], int8: bool) -> Candidate:
    """The whole with its replacements, all layers refitted to the original's in the end; in int8 where wished."""
    plan = [*steps(replaced), Step("distill", (_CLOSED,))]
    candidate = search.keep(search.shop.changed(name, plan))
    candidate.notes += [r.name for r in replaced]
    if not int8 or not search.chosen:
        return candidate
    evidence = search.shop.evidence(candidate)
    return search.keep(search.shop.int8(f"{name} + int8", search.chosen, candidate, evidence))
