"""Quantization recipe, and its selection by output error on held-out samples.

A recipe states the calibration method, the factors of cross-layer equalization (`equalize.py`), and whether weights are
rounded to nearest or output-aware (`core/rounding.py`). The best recipe differs between models, and statistics look
better on the samples they were taken from. Candidates are therefore made from one half of the samples and evaluated on
the other half, by the error of the outputs in front of a final Softmax; behind it a few uncertain samples would
dominate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, EvidenceKey, evidence_for
from onnxpress.measure.ranges import collect_histograms
from onnxpress.measure.score import Scorer, logits_model
from onnxpress.model.counts import macs
from onnxpress.passes.core.contract import Action
from onnxpress.passes.int8 import calibration
from onnxpress.passes.int8.calibration import RangeSpec
from onnxpress.passes.int8.equalize import EQUALIZE, plan_equalize, sites
from onnxpress.passes.int8.qdq import placement
from onnxpress.passes.int8.qdq.write import HISTOGRAMS, channel_axes, histograms_for

ROUNDINGS = ("nearest", "output-aware")
BITS = (8, 16)
_AUTO_METHODS = ("output-error", "minmax", "mse")  # compared by "auto"
_WITH_HEADROOM = "headroom"
_EVALUATION_SAMPLES = 64
_MIN_GAIN = 0.99  # largest relative loss with which the factors of a tensor are kept
_TENSOR_TRIAL_MACS = 6e8  # multiply-accumulates per sample of all models with one equalized tensor
_TENSOR_TRIAL_LIMITS = (4, 32)  # minimum and maximum number of such models
_TWO_FOLD_MACS = 2e8  # multiply-accumulates per sample up to which both halves of the samples evaluate in turn
_EQUALIZED: EvidenceKey[dict[str, Evidence]] = EvidenceKey("equalized models")


@dataclass(frozen=True)
class QuantizationRecipe:
    """How a model is quantized.

    Attributes:
        ranges: calibration method, or [low, high] by tensor name.
        equalized: decisions of the pass `equalize`, which are applied first.
        rounding: of weights, "nearest" or "output-aware".
        bits: of activations, 8 or 16.
    """

    ranges: RangeSpec = "mse"
    equalized: tuple[Action, ...] = ()
    rounding: str = ROUNDINGS[0]
    bits: int = BITS[0]

    def actions(self) -> list[Action]:
        """The recipe as decisions of a plan."""
        found: list[Action] = [{"ranges": self.ranges}]
        if self.equalized:
            found.append({"equalized": list(self.equalized)})
        if self.rounding != ROUNDINGS[0]:
            found.append({"rounding": self.rounding})
        if self.bits != BITS[0]:
            found.append({"activations": self.bits})
        return found

    @classmethod
    def from_decisions(cls, actions: Sequence[Action]) -> QuantizationRecipe:
        """Read the recipe from decisions of a plan. Raises InputProblem for invalid values."""
        rounding = next((str(d["rounding"]) for d in actions if "rounding" in d), ROUNDINGS[0])
        spec = next((d["ranges"] for d in actions if "ranges" in d), "mse")
        bits = next((d["activations"] for d in actions if "activations" in d), BITS[0])
        RecipeOptions(spec, rounding=rounding, bits=bits).check()
        return cls(spec, tuple(d for entry in actions for d in entry.get("equalized", ())), rounding, bits)


@dataclass(frozen=True)
class RecipeOptions:
    """A recipe before the samples are looked at.  ranges: "auto" where harm decides; equalize, rounding: None the
    same; equalize: every tensor that promises to gain, or those named; factors: those of a file, for equalizing; bits:
    of activations."""

    ranges: RangeSpec = "auto"
    equalize: bool | tuple[str, ...] | None = None
    rounding: str | None = None
    factors: tuple[Action, ...] | None = None
    bits: int = BITS[0]

    def check(self) -> None:
        """Raises InputProblem for what is no recipe."""
        calibration.check_ranges(self.ranges)
        if self.rounding is not None and self.rounding not in ROUNDINGS:
            raise InputProblem("unknown rounding", self.rounding, "", f"one of {', '.join(ROUNDINGS)}")
        if self.bits not in BITS:
            raise InputProblem("activations have 8 or 16 bits", str(self.bits), "", "give one of them")

    def on(self, evidence: Evidence) -> QuantizationRecipe:
        """As these samples have it, where nothing is left open."""
        factors = self.factors
        if factors is None:
            planned = plan_equalize(evidence) if self.equalize else []
            factors = tuple(d for d in planned if not isinstance(self.equalize, tuple) or d["tensor"] in self.equalize)
        return QuantizationRecipe(self.ranges, factors, self.rounding or ROUNDINGS[0], self.bits)


def equalized_evidence(evidence: Evidence, recipe: QuantizationRecipe) -> Evidence:
    """Return the evidence of the model after the cross-layer equalization of a recipe.

    It is made once per evidence, and only the changed tensors are observed again.
    """
    if not recipe.equalized:
        return evidence
    known = evidence.derive(_EQUALIZED, dict)
    key = str(recipe.equalized)
    if key not in known:
        done = EQUALIZE.apply(evidence, recipe.equalized)
        found = replace(evidence_for(done.model, evidence.data, evidence.machine, evidence.seed), cache=evidence.cache)
        tensors = {d["tensor"] for d in recipe.equalized}
        scaled_values = {
            name for s in sites(evidence.model, evidence.trace) if s.tensor in tensors for name in s.scaled
        }
        before = histograms_for(evidence)
        observed_again = collect_histograms(
            found,
            [n for n in before if n in scaled_values],
            channel_axes(found.model),
            placement.nonnegative_values(found.model) & scaled_values,
        )
        found.put(HISTOGRAMS, {n: observed_again.get(n, histogram) for n, histogram in before.items()})
        known[key] = found
    return known[key]


def choose_recipe(
    evidence: Evidence,
    options: RecipeOptions,
    build: Callable[[Evidence, QuantizationRecipe], ir.Model],
    more_time: Callable[[], bool] = lambda: True,
) -> RecipeOptions:
    """Decide the open choices of the options by the output error on held-out samples.

    The calibration method is chosen first, then headroom and the equalized tensors, then the rounding of weights.

    Args:
        evidence: the float model and its samples.
        options: the options.
        build: makes the quantized model by a recipe, from the evidence of some of the samples.
        more_time: whether another recipe may be tried; what is not tried is not chosen.

    Returns:
        The options with nothing left open.
    """
    trials = _RecipeTrials(evidence, build, more_time)
    methods = _AUTO_METHODS if options.ranges == "auto" else (options.ranges,)
    candidates = [
        replace(options, ranges=r, equalize=options.equalize or False, rounding=options.rounding or ROUNDINGS[0])
        for r in methods
    ]
    best = trials.best(candidates)
    candidates = [best, replace(best, ranges=_WITH_HEADROOM)] if options.ranges == "auto" else [best]
    base = candidates[-1]  # with headroom where possible: equalized tensors exceed the observed range further
    if (
        options.equalize is None
        and options.factors is None
        and (names := [str(d["tensor"]) for d in plan_equalize(evidence)])
    ):
        candidates += [replace(f, equalize=True) for f in candidates]
        candidates.append(trials.select_tensors(base, names[: trials.max_tensors]))
    best = trials.best(candidates)
    return trials.best([best, replace(best, rounding=ROUNDINGS[1])]) if options.rounding is None else best


class _RecipeTrials:
    """Losses of recipes made from one half of the samples and evaluated on the other (small models: both ways)."""

    def __init__(
        self,
        evidence: Evidence,
        build: Callable[[Evidence, QuantizationRecipe], ir.Model],
        more_time: Callable[[], bool],
    ) -> None:
        self._evidence, self._build, self._more_time = evidence, build, more_time
        self._losses: dict[str, float] = {}

    @cached_property
    def _macs(self) -> float:
        """Multiply-accumulates per sample."""
        return float(sum(macs(self._evidence.model, self._evidence.trace).values()))

    @cached_property
    def _folds(self) -> list[tuple[Evidence, Scorer]]:
        """Pairs of the evidence a recipe is made from and the evaluation on held-out samples."""
        first, second = self._evidence.halves or (self._evidence, self._evidence)
        pairs = (
            [(first, second), (second, first)]
            if self._macs <= _TWO_FOLD_MACS and first is not second
            else [(first, second)]
        )
        original = logits_model(self._evidence.model)
        return [(train, Scorer(original, held_out.samples().take(_EVALUATION_SAMPLES))) for train, held_out in pairs]

    def best(self, candidates: Sequence[RecipeOptions]) -> RecipeOptions:
        """The candidate with the smallest loss of those that there is time to try; the first of equal ones."""
        best, best_loss = candidates[0], np.inf
        for candidate in candidates if len(candidates) > 1 else ():
            if not self._tried(candidate) and not self._more_time():
                continue
            loss = self._loss(candidate)
            if loss < best_loss:
                best, best_loss = candidate, loss
        return best

    @property
    def max_tensors(self) -> int:
        """Maximum number of tensors to try one by one."""
        return int(np.clip(_TENSOR_TRIAL_MACS / max(self._macs, 1.0), *_TENSOR_TRIAL_LIMITS))

    def select_tensors(self, base: RecipeOptions, names: Sequence[str]) -> RecipeOptions:
        """The options with those tensors equalized that reduce the loss: each is tried alone, then added greedily."""
        single_losses = {name: self._loss(replace(base, equalize=(name,))) for name in names if self._more_time()}
        if not single_losses:
            return base
        base_loss = best_loss = self._loss(base)
        selected: tuple[str, ...] = ()
        for name in sorted(single_losses, key=lambda n: single_losses[n]):
            if single_losses[name] >= _MIN_GAIN * base_loss or not self._more_time():
                break
            loss = self._loss(replace(base, equalize=(*selected, name)))
            if loss < _MIN_GAIN * best_loss:
                selected, best_loss = (*selected, name), loss
        return replace(base, equalize=selected) if selected else base

    def _tried(self, options: RecipeOptions) -> bool:
        return str(options) in self._losses

    def _loss(self, options: RecipeOptions) -> float:
        """Mean relative squared error of the outputs on held-out samples; computed once."""
        if not self._tried(options):
            models = [(scorer, self._build(train, options.on(train))) for train, scorer in self._folds]
            self._losses[str(options)] = float(np.mean([scorer.nmse(logits_model(model)) for scorer, model in models]))
        return self._losses[str(options)]
