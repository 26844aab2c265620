"""The search for candidates: which levers are tried, in which order, and when to stop.

Exact reductions; int8 of everything, then the mix that the clock prefers, then (if it loses too much) the mix that
harms least; where size is the goal, weights in fewer bits; blocks taken out and channels pruned, more while the
samples allow it; int8 of those models.  A lever that fails on a model is recorded with its reason, and the search goes
on without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import onnx_ir as ir

from onnxpress.errors import Problem
from onnxpress.passes.pruning.options import ALL, INTERNAL, PruneOptions
from onnxpress.plan.candidate_store import Candidate, Stage
from onnxpress.plan.run_record import RunRecord
from onnxpress.runtime.latency import Effort, compare_latency
from onnxpress.search.candidate_factory import CandidateFactory

T = TypeVar("T")
Progress = Callable[[str, float], None]
_RECIPE_ENDS = 0.25  # share of the time budget until which recipes of int8 are compared
SEARCH_ENDS = 0.72  # of the time budget; the rest is for timing the finalists and validating
_BLOCKS_END, _PRUNING_BEGINS = 0.64, 0.68  # no further block is taken out then; no pruning begins that could not end
_CHANGED_BY_LUCK = 1.5  # answers on the border between two classes, which any change may move
_RATIOS = (0.1, 0.2, 0.35, 0.5)
_FAILURES = (Problem, ValueError, ArithmeticError, LookupError, RuntimeError, AssertionError)


@dataclass
class TimeBudget:
    """A budget of wall-clock seconds, and how much of it is used."""

    seconds: float
    start: float = field(default_factory=time.perf_counter)

    @property
    def used(self) -> float:
        return time.perf_counter() - self.start

    @property
    def share_used(self) -> float:
        """Share of the budget that is used; above 1 once it is exceeded."""
        return self.used / self.seconds

    def until(self, share: float) -> Callable[[], bool]:
        """A question: is less than this share of the budget used?"""
        return lambda: self.used < share * self.seconds


def allowed(candidate: Candidate, max_drop: float) -> bool:
    """Good enough to be a finalist: the drop on the selection samples, and not too many answers changed."""
    score = candidate.score
    if score.agreement is None:
        return score.keeps(max_drop)
    of_classes = (score.parts or (score,))[0].metric in ("top-1", "agreement")
    share = 6 * max(max_drop if of_classes else 0.01, 0.002)
    return score.keeps(max_drop) and 1 - score.agreement <= share + _CHANGED_BY_LUCK / max(score.samples, 1)


def prune_name(options: PruneOptions) -> str:
    """A pruned candidate's name."""
    return f"prune {options.ratio:.0%}" + ("" if options.scope == INTERNAL else " all")


@dataclass
class Search:
    """The state of a search.

    found: candidates in the order they were made. failed: stages that failed on this model, and why. chosen: nodes for
    which int8 is faster. target: target speed-up (0: as fast as possible).
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

    def run_stages(self) -> None:
        from onnxpress.search.other_passes import try_other_passes

        if not self.make_base():
            return
        self.chosen = self.attempt("int8", self.int8) or frozenset()
        if self.goal == "size":
            self.progress("weights in fewer bits", 0.3)
            for bits in (4, 8):
                self.attempt(f"weights in {bits} bits", partial(self.fewer_bits, bits))
        try_other_passes(self)
        self.attempt("blocks", self.blocks)
        self.attempt("pruning", self.pruning)

    def make_base(self) -> bool:
        """Make the base of everything else; whether there is one."""
        if self.attempt("exact reductions", lambda: self.keep(self.factory.exact())) is None:
            self.attempt("clean-up", lambda: self.keep(self.factory.bare()))
        return self.factory.exact_evidence is not None

    def descendants(self, candidate: Candidate, stage: Stage) -> list[Candidate]:
        """Candidates that were made from another by a stage, and all forms of those."""
        ids = {c.id for c in self.found if c.parent == candidate.id and c.stage == stage}
        while more := {c.id for c in self.found if c.parent in ids} - ids:
            ids |= more
        return [c for c in self.found if c.id in ids]

    def attempt(self, name: str, work: Callable[[], T]) -> T | None:
        """The result of a piece of work; None where it failed, which is recorded."""
        try:
            return work()
        except _FAILURES as error:
            self.failed[name] = error.line() if isinstance(error, Problem) else f"{type(error).__name__}: {error}"
            if self.run is not None:
                self.run.set(failed=self.failed)
            return None

    def keep(self, candidate: Candidate, seconds: float = 0.8) -> Candidate:
        """Time a candidate shortly, and record it."""
        effort = Effort(seconds=seconds, precision=0.006, rebuilds=1, resamples=200)
        models: dict[str, ir.Model | bytes | str] = {"original": self.factory.original, "candidate": candidate.data}
        candidate.quick = compare_latency(models, self.factory.feeds, effort).ratios[0].speedup
        self.found.append(candidate)
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
                }
            )
        return candidate

    def int8(self, until: float = 0.42) -> frozenset[str]:
        """int8 candidates; the set of nodes that later int8 models start from.  until: share of the time budget that
        may be used when the mix is found."""
        self.progress("int8 of everything", 0.08)
        whole = self.factory.int8_nodes()
        if not whole:
            return whole
        self.factory.int8_recipe(self.budget.until(_RECIPE_ENDS))
        first = self.keep(self.factory.int8("int8", whole))
        best = whole
        if self.goal == "latency":
            self.progress("which nodes gain from int8", 0.15)
            best, how = self.factory.select_int8_by_latency(whole, self.budget.until(until))
            if best != whole:
                first = self.keep(self.factory.int8("int8 mixed", best))
                first.notes.append(how)
        if not allowed(first, self.max_drop):
            self.progress("which nodes lose too much", 0.4)
            safe = self.factory.select_int8_by_accuracy(best, self.max_drop * 0.5, self.budget.until(until + 0.13))
            if safe and safe != best:
                self.keep(self.factory.int8("int8 careful", safe))
                best = safe
        return best

    def fewer_bits(self, bits: int) -> Candidate:
        """The exact model with its weights as codebooks of 16, or in 8 bits: a smaller file of the same speed."""
        return self.keep(self.factory.fewer_bits(bits))

    def blocks(self) -> None:
        """Whole blocks taken out, more of them while the samples allow it."""
        self.progress("which blocks can go", 0.4)
        self.attempt("blocks out", lambda: self._descend(self._shallower()))

    def _shallower(self) -> Iterator[Candidate]:
        order = self.factory.removal_order(self.budget.until(0.54))
        count = 1
        while count <= len(order) and self.budget.until(_BLOCKS_END)():
            self._report_stage(f"without {count} blocks")
            yield self.factory.shallower(count)
            count = max(count + 1, count * 3 // 2)

    def pruning(self) -> None:
        """Channels pruned, more of them while the samples allow it: inner widths, then all."""
        if not self.factory.ground().can_prune or not self.budget.until(_PRUNING_BEGINS)():
            return
        for scope in (INTERNAL, ALL):
            self._descend(self._narrower(scope))

    def _narrower(self, scope: str) -> Iterator[Candidate]:
        for ratio in _RATIOS:
            if not self.budget.until(SEARCH_ENDS)():
                return
            self._report_stage(f"pruning {ratio:.0%} of the channels")
            options = PruneOptions(ratio, scope=scope)
            made = self.factory.pruned(prune_name(options), options, self.budget.until(0.65))
            if made is not None and made.plan.to_json() not in {c.plan.to_json() for c in self.found}:
                yield made

    def _descend(self, candidates: Iterator[Candidate]) -> None:
        """Keep candidates with more and more taken out until the samples no longer allow it, and the thinnest that they
        do in int8 (where that loses too much, the one before it)."""
        good: list[Candidate] = []
        for candidate in candidates:
            self.keep(candidate)
            if allowed(candidate, self.max_drop):
                good.append(candidate)
            elif candidate.score.used(self.max_drop) > 3:
                break
        for candidate in reversed(good[-2:] if self.chosen else []):
            int8 = self.attempt(f"{candidate.name} + int8", partial(self.in_int8, candidate))
            if int8 is None or allowed(int8, self.max_drop):
                return

    def in_int8(self, candidate: Candidate) -> Candidate:
        """The chosen nodes of a candidate in int8."""
        evidence = self.factory.evidence(candidate)
        return self.keep(self.factory.int8(f"{candidate.name} + int8", self.chosen, candidate, evidence))

    def _report_stage(self, stage: str) -> None:
        self.progress(stage, min(SEARCH_ENDS, self.budget.share_used))
