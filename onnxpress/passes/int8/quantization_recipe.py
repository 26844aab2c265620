"""How a model is put into integers beside which nodes are: its recipe, and the choice of one by measured harm.

A recipe says by which rule ranges are found, by which factors channels are brought to like ranges first (`equalize.py`), and whether
weights are rounded to the nearest integer or so that the layer's output is kept (`rounding.py`).  What is best differs from model to
model, and statistics look better on the samples they were taken from: so candidates are made from one half of the samples and judged
on the other, by the error of the outputs in front of a last Softmax, whose few doubtful samples would otherwise decide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.measure.ranges import collect_histograms
from onnxpress.measure.score import Scorer, logits_model
from onnxpress.model.counts import macs
from onnxpress.passes.core.contract import Action
from onnxpress.passes.int8 import calibration, qdq
from onnxpress.passes.int8.calibration import Rule
from onnxpress.passes.int8.equalize import EQUALIZE, plan_equalize, sites
from onnxpress.passes.int8.qdq_write import channel_axes, histograms_for

ROUNDINGS = ("nearest", "output")
BITS = (8, 16)
_RULES = ("weighted", "minmax", "mse")  # what "auto" chooses from; and then
_ROOMY = "wide"
_JUDGED = 64  # samples
_GAIN = 0.99  # of the harm that may be left for a tensor's factors to be kept
_WORK, _FEW_OR_MANY = (
    6e8,
    (4, 32),
)  # multiply-accumulates a sample that tensors tried one by one may take together; at least, at most so many
_BOTH = 2e8  # multiply-accumulates a sample up to which both halves of the samples take their turn at judging


@dataclass(frozen=True)
class Recipe:
    """ranges: a method, or [low, high] by tensor; equalized: decisions of the pass of that name; rounding: of weights; bits: of
    activations."""

    ranges: Rule = "mse"
    equalized: tuple[Action, ...] = ()
    rounding: str = ROUNDINGS[0]
    bits: int = BITS[0]

    def decisions(self) -> list[Action]:
        """As a plan says it."""
        found: list[Action] = [{"ranges": self.ranges}]
        if self.equalized:
            found.append({"equalized": list(self.equalized)})
        if self.rounding != ROUNDINGS[0]:
            found.append({"rounding": self.rounding})
        if self.bits != BITS[0]:
            found.append({"activations": self.bits})
        return found

    @classmethod
    def said(cls, decisions: Sequence[Action]) -> Recipe:
        """What a plan says.  Raises InputProblem for what is no recipe."""
        rounding = next((str(d["rounding"]) for d in decisions if "rounding" in d), ROUNDINGS[0])
        rule = next((d["ranges"] for d in decisions if "ranges" in d), "mse")
        bits = next((d["activations"] for d in decisions if "activations" in d), BITS[0])
        Wish(rule, rounding=rounding, bits=bits).check()
        return cls(rule, tuple(d for given in decisions for d in given.get("equalized", ())), rounding, bits)


@dataclass(frozen=True)
class Wish:
    """A recipe before the samples are looked at.  ranges: "auto" where harm decides; equalize, rounding: None the same; equalize: every
    tensor that promises to gain, or those named; factors: those of a file, for equalizing; bits: of activations."""

    ranges: Rule = "auto"
    equalize: bool | tuple[str, ...] | None = None
    rounding: str | None = None
    factors: tuple[Action, ...] | None = None
    bits: int = BITS[0]

    def check(self) -> None:
        """Raises InputProblem for what is no recipe."""
        calibration.check(self.ranges)
        if self.rounding is not None and self.rounding not in ROUNDINGS:
            raise InputProblem("unknown rounding", self.rounding, "", f"one of {', '.join(ROUNDINGS)}")
        if self.bits not in BITS:
            raise InputProblem("activations have 8 or 16 bits", str(self.bits), "", "give one of them")

    def on(self, evidence: Evidence) -> Recipe:
        """As these samples have it, where nothing is left open."""
        factors = self.factors
        if factors is None:
            planned = plan_equalize(evidence) if self.equalize else []
            factors = tuple(d for d in planned if not isinstance(self.equalize, tuple) or d["tensor"] in self.equalize)
        return Recipe(self.ranges, factors, self.rounding or ROUNDINGS[0], self.bits)


def equalized(evidence: Evidence, recipe: Recipe) -> Evidence:
    """The evidence of the model whose channels the recipe has brought to like ranges; made once, what did not change not seen anew."""
    if not recipe.equalized:
        return evidence
    known: dict[str, Evidence] = evidence.kept.setdefault("equalized", {})
    key = str(recipe.equalized)
    if key not in known:
        done = EQUALIZE.apply(evidence, recipe.equalized)
        found = replace(evidence_for(done.model, evidence.data, evidence.machine, evidence.seed), cache=evidence.cache)
        wanted = {d["tensor"] for d in recipe.equalized}
        moved = {name for s in sites(evidence.model, evidence.trace) if s.tensor in wanted for name in s.scaled}
        before = histograms_for(evidence)
        again = collect_histograms(
            found, [n for n in before if n in moved], channel_axes(found.model), qdq.floors(found.model) & moved
        )
        found.kept["histograms"] = {n: again.get(n, histogram) for n, histogram in before.items()}
        known[key] = found
    return known[key]


def choose(evidence: Evidence, wish: Wish, build: Callable[[Evidence, Recipe], ir.Model]) -> Wish:
    """The wish with nothing left open, so that least is harmed.  build: the model by a recipe, from some samples' evidence.

    First the ranges are settled, then whether they need room and which channels factors, at last the rounding.
    """
    trial = _Trial(evidence, build)
    rules = _RULES if wish.ranges == "auto" else (wish.ranges,)
    forms = [
        replace(wish, ranges=r, equalize=wish.equalize or False, rounding=wish.rounding or ROUNDINGS[0]) for r in rules
    ]
    best = trial.best(forms)
    forms = [best, replace(best, ranges=_ROOMY)] if wish.ranges == "auto" else [best]
    plain = forms[-1]  # with room, where that is free: what has factors goes further beyond its samples
    if (
        wish.equalize is None
        and wish.factors is None
        and (names := [str(d["tensor"]) for d in plan_equalize(evidence)])
    ):
        forms += [replace(f, equalize=True) for f in forms]
        forms.append(trial.picked(plain, names[: trial.affordable]))
    best = trial.best(forms)
    return trial.best([best, replace(best, rounding=ROUNDINGS[1])]) if wish.rounding is None else best


class _Trial:
    """Recipes made from one half of the samples and judged on the other, and of a small model the other way round as well."""

    def __init__(self, evidence: Evidence, build: Callable[[Evidence, Recipe], ir.Model]) -> None:
        self._evidence, self._build = evidence, build
        self._harm: dict[str, float] = {}

    @cached_property
    def _work(self) -> float:
        """Multiply-accumulates a sample."""
        return float(sum(macs(self._evidence.model, self._evidence.trace).values()))

    @cached_property
    def _turns(self) -> list[tuple[Evidence, Scorer]]:
        """Whose statistics are tried on whose samples."""
        first, second = self._evidence.halves or (self._evidence, self._evidence)
        pairs = [(first, second), (second, first)] if self._work <= _BOTH and first is not second else [(first, second)]
        original = logits_model(self._evidence.model)
        return [(fitted, Scorer(original, judged.samples().take(_JUDGED))) for fitted, judged in pairs]

    def best(self, offers: Sequence[Wish]) -> Wish:
        """The one that harms least, the first of equals."""
        return min(offers, key=self._of) if len(offers) > 1 else offers[0]

    @property
    def affordable(self) -> int:
        """How many tensors can be tried one by one."""
        return int(np.clip(_WORK / max(self._work, 1.0), *_FEW_OR_MANY))

    def picked(self, plain: Wish, names: Sequence[str]) -> Wish:
        """The wish with those tensors equalized that gain by it: each by itself, the best first, and on top of those before it."""
        alone = {name: self._of(replace(plain, equalize=(name,))) for name in names}
        bare = least = self._of(plain)
        some: tuple[str, ...] = ()
        for name in sorted(alone, key=lambda n: alone[n]):
            if alone[name] >= _GAIN * bare:
                break
            harm = self._of(replace(plain, equalize=(*some, name)))
            if harm < _GAIN * least:
                some, least = (*some, name), harm
        return replace(plain, equalize=some) if some else plain

    def _of(self, form: Wish) -> float:
        if str(form) not in self._harm:
            made = [(judge, self._build(fitted, form.on(fitted))) for fitted, judge in self._turns]
            self._harm[str(form)] = float(np.mean([judge.score(logits_model(model)).nmse for judge, model in made]))
        return self._harm[str(form)]
