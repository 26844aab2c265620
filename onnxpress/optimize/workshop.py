"""Makes candidates: each a plan, the model it gives, and its score on the selection samples.

The workshop keeps the evidence of the exact-reduced model, from which int8 and pruned models are built, so that every
candidate costs its own work only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.measure.score import Judge, Score
from onnxpress.model.files import to_bytes
from onnxpress.optimize import mixed
from onnxpress.optimize.plan import CALIBRATION, Plan, Step, new_plan, take_step
from onnxpress.passes import qdq
from onnxpress.passes.base import Decision
from onnxpress.passes.downdate import Curve
from onnxpress.passes.prune import Wish, curves, plan_pruning, sensitivities, widths
from onnxpress.passes.quantize import decisions_for, quantizable
from onnxpress.passes.reduce import REDUCE
from onnxpress.runtime.machine import Machine


@dataclass
class Candidate:
    """name: short, for tables; score: on the selection samples; quick: speed-up of a short timing (None: untimed)."""

    name: str
    plan: Plan
    data: bytes
    score: Score
    notes: list[str] = field(default_factory=list)
    quick: float | None = None
    seconds: float = 0.0

    @property
    def size(self) -> int:
        return len(self.data)


class Workshop:
    """original: as the user gave it; calibrate: feeds statistics; judge: scores on the selection samples."""

    def __init__(self, original: ir.Model, calibrate: Dataset, judge: Judge, machine: Machine, seed: int = 0) -> None:
        self.original, self.judge, self.machine, self.seed = original, judge, machine, seed
        self.calibrate = calibrate.take(CALIBRATION)
        self.feeds: list[Mapping[str, np.ndarray]] = [b.inputs for b in self.calibrate.take(4).batches(1)]
        self._plan = new_plan(original, self.calibrate, seed)
        self._curves: dict[str, Curve] | None = None
        self._scales: dict[str, float] = {}
        self.exact_evidence: Evidence | None = None
        self.exact_plan = self._plan
        self.exact_notes: list[str] = []

    def exact(self) -> Candidate:
        """simplify and reduce: the base of everything else."""
        start = time.perf_counter()
        plan, model = self._plan, self.original
        notes: list[str] = []
        evidence = evidence_for(model, self.calibrate, self.machine, self.seed)
        reductions = [o.decision for o in REDUCE.options(model, evidence)]
        for step in (Step("simplify", ({"tool": "onnxsim"},)), Step("reduce", tuple(reductions))):
            done = take_step(step, evidence_for(model, self.calibrate, self.machine, self.seed), model)
            plan, model, notes = plan.then(step.pass_name, step.decisions), done.model, notes + done.notes
        self.exact_plan, self.exact_notes = plan, notes
        self.exact_evidence = evidence_for(model, self.calibrate, self.machine, self.seed)
        return self._finish("exact", plan, model, notes, start)

    def bare(self) -> Candidate:
        """The base where the exact passes fail: onnx-ir's clean-ups alone."""
        start = time.perf_counter()
        step = Step("simplify", ({"tool": "onnx-ir"},))
        done = take_step(step, evidence_for(self.original, self.calibrate, self.machine, self.seed), self.original)
        self.exact_plan = self._plan.then(step.pass_name, step.decisions)
        self.exact_evidence = evidence_for(done.model, self.calibrate, self.machine, self.seed)
        return self._finish("exact", self.exact_plan, done.model, done.notes, start)

    @property
    def base(self) -> Evidence:
        assert self.exact_evidence is not None
        return self.exact_evidence

    def _finish(self, name: str, plan: Plan, model: ir.Model, notes: list[str], start: float) -> Candidate:
        data = to_bytes(model)
        return Candidate(name, plan, data, self.judge.score(data), notes, None, time.perf_counter() - start)

    def int8_nodes(self, evidence: Evidence | None = None) -> frozenset[str]:
        """All nodes worth an integer kernel, times unknown."""
        where = evidence or self.base
        return quantizable(where)

    def int8(
        self, name: str, chosen: frozenset[str], pruned: Candidate | None = None, evidence: Evidence | None = None
    ) -> Candidate:
        """The chosen nodes in int8, on the exact model or on a pruned one (with its evidence)."""
        start = time.perf_counter()
        where = evidence or self.base
        plan = self.exact_plan if pruned is None else pruned.plan
        known = {n.name for n in where.model.graph if qdq.eligible(n, where.trace) is None}
        decisions = decisions_for(qdq.trim(where.model, frozenset(chosen & known)), where)
        done = take_step(Step("quantize", tuple(decisions)), where, where.model)
        return self._finish(name, plan.then("quantize", decisions), done.model, done.notes, start)

    def fastest_int8(
        self, start: frozenset[str], more_time: Callable[[], bool], evidence: Evidence | None = None
    ) -> tuple[frozenset[str], mixed.Tried]:
        """The subset of int8 nodes that the clock prefers."""
        return mixed.fastest(evidence or self.base, self.feeds, start, more_time)

    def safest_int8(self, start: frozenset[str], allowed: float, more_time: Callable[[], bool]) -> frozenset[str]:
        """The subset of int8 nodes whose drop on the selection samples is allowed."""
        return mixed.safest(self.base, self.judge, start, allowed, more_time)[0]

    @property
    def can_prune(self) -> bool:
        return any(widths(g.size, self.base) for g in self.base.channels.groups)

    def pruned(self, ratio: float, scope: str) -> tuple[Candidate, Evidence] | None:
        """Channels removed and repaired; None where the ratio removes nothing on this CPU's widths."""
        start = time.perf_counter()
        if self._curves is None:
            self._curves = curves(self.base)
        decisions = self._decide(ratio, scope)
        if not decisions:
            return None
        decisions = [*decisions, {"repair": "least-squares"}]
        try:
            done = take_step(Step("prune", tuple(decisions)), self.base, self.base.model)
        except ValueError as error:
            raise InputProblem("pruning failed", "", str(error), "report this model") from error
        evidence = evidence_for(done.model, self.calibrate, self.machine, self.seed)
        candidate = self._finish(
            f"prune {ratio:.0%}", self.exact_plan.then("prune", decisions), done.model, done.notes, start
        )
        return candidate, evidence

    def _decide(self, ratio: float, scope: str) -> Sequence[Decision]:
        assert self._curves is not None
        channels = self.base.channels
        picked = {n: c for n, c in self._curves.items() if scope == "all" or channels.group(n).hidden}
        if not self._scales:
            nothing = dict.fromkeys(self._curves, 0)
            self._scales = sensitivities(self.base, self._curves, nothing)
        return plan_pruning(self.base, Wish(ratio, scope), picked, self._scales)
