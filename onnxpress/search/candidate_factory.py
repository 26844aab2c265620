"""Makes candidates: each a plan, the model it gives, and its score on the selection samples.

The factory keeps the evidence of the exact-reduced model, from which int8 and pruned models are built, so that every
candidate costs its own work only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxpress.api.distillation_session import (
    DistillationOptions,
    TeacherStudentPair,
    available_cores,
    has_checkpoint,
    run_distillation,
)
from onnxpress.data.dataset import Dataset
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.measure.score import Scorer
from onnxpress.model.counts import macs
from onnxpress.model.files import to_bytes
from onnxpress.passes.core.contract import Action
from onnxpress.passes.core.refit_option import LEAST_SQUARES
from onnxpress.passes.distillation.distill import Source, teacher_evidence
from onnxpress.passes.exact.simplify import EXACT
from onnxpress.passes.int8 import node_selection
from onnxpress.passes.int8.embedding_tables import quantizable_lookups
from onnxpress.passes.int8.qdq import placement
from onnxpress.passes.int8.quantization_recipe import RecipeOptions
from onnxpress.passes.int8.static_int8 import quantizable, quantize_actions, recipe_for
from onnxpress.passes.pruning.options import PruneOptions
from onnxpress.passes.registry import find_pass
from onnxpress.passes.rewriting.rewrite import fastest_rewrites
from onnxpress.passes.structure.depth import LOCAL, DepthOptions, plan_depth
from onnxpress.passes.weights.share import ShareOptions
from onnxpress.passes.weights.weights import WeightsOptions
from onnxpress.plan.candidate_store import Candidate, CandidateStore, Stage, candidate_id, model_of
from onnxpress.plan.exact_base import FALLBACK, exact_base
from onnxpress.plan.plan import Plan, PlanStep, as_stored, new_plan, take_step
from onnxpress.progress import Progress
from onnxpress.runtime.latency import Effort, compare_latency
from onnxpress.runtime.machine import Machine
from onnxpress.search.pruning_base import PruningBase
from onnxpress.search.sample_counts import samples_within
from onnxpress.train.distillation.feature_matching import KeptChannels
from onnxpress.train.distillation.teacher_batches import TeacherCache
from onnxpress.train.settings import TrainingSettings

_UNHURRIED = 120.0  # seconds of a search, from which on blocks are taken out with a refit of everything behind
SHALLOWEST = 0.3  # share of the removable blocks' work that always stays
_EVALUATED, _EVALUATIONS = 0.15, 30  # share of a training's time for evaluations; of those at most
_TEACHER_BYTES = 256 * 2**20  # of the original's values that trainings share
_BATCH, _SMALLEST_BATCH = 64, 4  # samples of a training step
_TRAINING_BYTES = 2**30  # of the values of a step; their gradients take as much again
_LATE = 1.2  # times its time, after which a training ends as it is
_QUICK = RecipeOptions("mse", False, "nearest")
_REWRITES = "kernel rewrites"  # among the facts of a run, as is
_RECIPE = "recipe of int8"  # among the facts of a run
Made = tuple[Plan, ir.Model, list[str]]  # a plan, the model it gives, notes


class CandidateFactory:
    """original: as the user gave it; calibrate: is trained on, and a part of it feeds statistics; judge: scores on the
    selection samples."""

    def __init__(
        self,
        original: ir.Model,
        calibrate: Dataset,
        scorer: Scorer,
        machine: Machine,
        seed: int = 0,
        store: CandidateStore | None = None,
        time_budget: float = math.inf,
        by_latency: bool = False,
    ) -> None:
        """time_budget: seconds of the search; where one pass over the samples would take much of it, fewer are read.
        by_latency: see PruningBase."""
        self.original, self.scorer, self.machine, self.seed = original, scorer, machine, seed
        self.store = store or CandidateStore()
        self.learn, self._by_latency, self._time_budget = calibrate, by_latency, time_budget
        self.samples = samples_within(original, calibrate, time_budget, self.store)
        self.calibrate = calibrate.take(self.samples)
        self.feeds: list[Mapping[str, np.ndarray]] = [b.inputs for b in self.calibrate.take(4).batches(1)]
        self._plan = new_plan(original, calibrate, seed)
        self._grounds: dict[int, PruningBase] = {}
        self._pruned: dict[str, str] = {}  # names by what was removed
        self._score_seconds = 0.0  # that scoring the last candidate took
        self._teacher_values = TeacherCache(_TEACHER_BYTES)  # shared by all trainings
        self.prepared = 0.0  # seconds of work that later candidates do not need again
        self.exact_evidence: Evidence | None = None
        self.exact_plan = self._plan

    def exact(self) -> Candidate:
        """The model after the exact rewrites: the base of everything else."""
        return self._as_base(self._candidate("exact", Stage.EXACT, lambda: self._exact(EXACT)))

    def rewritten(self, seconds: float) -> Candidate | None:
        """The base in the kernels that are faster here, as the new base; None where none are.  seconds: of timing."""
        known = self.store.get_meta(_REWRITES)
        if known is None:
            actions, notes = fastest_rewrites(self.base, seconds)
            known = {"actions": actions, "notes": notes}
            self.store.set_meta(_REWRITES, known)
        if not known["actions"]:
            return None
        step = PlanStep("rewrite", tuple(known["actions"]))
        return self._as_base(self.changed("rewritten", [step], known["notes"], Stage.EXACT))

    def bare(self) -> Candidate:
        """The base where the exact rewrites fail: onnx-ir's passes alone."""
        return self._as_base(self._candidate("exact", Stage.EXACT, lambda: self._exact(FALLBACK)))

    def _as_base(self, candidate: Candidate) -> Candidate:
        self.exact_plan, self.exact_evidence = candidate.plan, self.evidence(candidate)
        return candidate

    def _exact(self, actions: tuple[Action, ...]) -> Made:
        base = exact_base(self.original, self.calibrate, self.machine, self.seed, samples=self.samples, actions=actions)
        return replace(self._plan, steps=base.plan.steps), base.model, base.notes

    def changed(
        self, name: str, steps: Sequence[PlanStep], notes_before: Sequence[str] = (), stage: Stage = Stage.PASS
    ) -> Candidate:
        """The exact model after some steps, each on the result of the one before. said: notes to begin with."""

        def make() -> Made:
            plan, evidence = self.exact_plan, self.base
            model, notes = evidence.model, [*notes_before]
            for step in steps:
                done = take_step(step, evidence)
                plan, model = plan.then(step.pass_name, step.actions, self.samples), done.model
                evidence = self._evidence(model)
                notes += done.notes
            return plan, model, notes

        return self._candidate(name, stage, make)

    @property
    def base(self) -> Evidence:
        assert self.exact_evidence is not None
        return self.exact_evidence

    @property
    def recipe(self) -> RecipeOptions:
        """How int8 is made: the simplest way, until a better one was looked for."""
        known = self.store.get_meta(_RECIPE)
        if known is None:
            return _QUICK
        some = known["equalize"]
        return RecipeOptions(**{**known, "equalize": tuple(some) if isinstance(some, list) else some})

    def settle_recipe(self, more_time: Callable[[], bool]) -> bool:
        """Look for a better recipe on the exact model, for all that is made from now on; whether there is one.

        more_time: whether another recipe may be tried.
        """
        if self.store.get_meta(_RECIPE) is None:
            found = recipe_for(self.base, quantizable(self.base), RecipeOptions(), more_time)[0]
            known = {"ranges": found.ranges, "equalize": found.equalize, "rounding": found.rounding}
            self.store.set_meta(_RECIPE, known)
        return self.recipe != _QUICK

    @contextmanager
    def _preparing(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.prepared += time.perf_counter() - start

    def evidence(self, candidate: Candidate) -> Evidence:
        """What is known of a candidate's model from the calibration samples."""
        return self._evidence(model_of(candidate))

    def _evidence(self, model: ir.Model) -> Evidence:
        return evidence_for(model, self.calibrate, self.machine, self.seed, self.original)

    def _candidate(
        self, name: str, stage: Stage, make: Callable[[], Made], parent: Candidate | None = None
    ) -> Candidate:
        """The candidate from the store, where an earlier run finished it; else made, scored and stored."""
        identifier = candidate_id(name)
        known = self.store.get(identifier)
        if known is not None:
            return known
        start = time.perf_counter()
        plan, model, notes = make()
        data = to_bytes(model)
        scoring = time.perf_counter()
        score = self.scorer.score(data, intervals=False)
        self._score_seconds = time.perf_counter() - scoring
        made = Candidate(identifier, name, stage, plan, data, score, notes)
        made.parent = parent.id if parent is not None else ""
        made.seconds = time.perf_counter() - start
        self.store.keep(made)
        return made

    def int8_nodes(self, evidence: Evidence | None = None) -> frozenset[str]:
        """All nodes worth an integer kernel, times unknown."""
        where = evidence or self.base
        return quantizable(where)

    def int8(
        self, name: str, chosen: frozenset[str], pruned: Candidate | None = None, evidence: Evidence | None = None
    ) -> Candidate:
        """The chosen nodes in int8, on the exact model or on a pruned one (with its evidence)."""
        where = evidence or self.base
        plan = self.exact_plan if pruned is None else pruned.plan

        def make() -> Made:
            step = _to_int8(where, chosen, self.recipe)
            done = take_step(step, where)
            return plan.then(step.pass_name, step.actions, self.samples), done.model, done.notes

        return self._candidate(name, Stage.INT8, make, pruned)

    def fewer_bits(self, bits: int) -> Candidate:
        """The exact model with its weights as codebooks of 16 values (4), or as integers (8): smaller, not faster."""

        def make() -> Made:
            name = "share" if bits == 4 else "weights"
            options = ShareOptions() if bits == 4 else WeightsOptions(bits)
            actions = find_pass(name).plan(self.base, options).actions
            done = take_step(PlanStep(name, tuple(actions)), self.base)
            return self.exact_plan.then(name, actions, self.samples), done.model, done.notes

        return self._candidate(f"weights in {bits} bits", Stage.LOW_BIT, make)

    def select_int8_by_latency(
        self, start: frozenset[str], more_time: Callable[[], bool], candidate: Candidate | None = None
    ) -> tuple[frozenset[str], str]:
        """The subset of int8 nodes that the clock prefers, and how it was found; of the exact model or of a
        candidate."""
        get_meta = "fastest int8" + (f" of {candidate.name}" if candidate is not None else "")
        known = self.store.get_meta(get_meta)
        if known is None:
            where = self.base if candidate is None else self.evidence(candidate)
            nodes = placement.drop_unprofitable(where.model, _able(where, start))
            recipe = recipe_for(where, nodes, self.recipe)[1]
            found, tried = node_selection.select_int8_by_latency(where, self.feeds, nodes, more_time, recipe)
            how = f"{tried.tried} windows timed, {tried.reverted} moved back to float"
            known = {"nodes": sorted(found), "how": how}
            self.store.set_meta(get_meta, known)
        return frozenset(known["nodes"]), known["how"]

    def select_int8_by_accuracy(
        self, start: frozenset[str], allowed: float, more_time: Callable[[], bool]
    ) -> frozenset[str]:
        """The subset of int8 nodes whose drop on the selection samples is allowed."""
        known = self.store.get_meta("safest int8")
        if known is None:
            recipe = recipe_for(self.base, start, self.recipe)[1]
            known = sorted(
                node_selection.select_int8_by_accuracy(self.base, self.scorer, start, allowed, more_time, recipe)[0]
            )
            self.store.set_meta("safest int8", known)
        return frozenset(known)

    def removal_order(self, more_time: Callable[[], bool] | None = None) -> list[Action]:
        """Blocks that can go, the least harmful for its work first: as far as was found when it was last asked, unless
        there is `more_time` and some may be missing."""
        known = self.store.get_meta("order of blocks")
        if known is None or (more_time is not None and not known["whole"]):
            more_time = more_time or (lambda: True)
            with self._preparing():
                order = plan_depth(self.base, DepthOptions(keep=SHALLOWEST, units="layers"), more_time)
            if known is None or len(order) > len(known["order"]):
                known = {"order": order, "whole": more_time()}
                self.store.set_meta("order of blocks", known)
        found: list[Action] = known["order"]
        return found

    def known_removal_order(self) -> list[Action]:
        """The order as far as it was found; empty where it was never asked for."""
        return self.removal_order() if self.store.get_meta("order of blocks") is not None else []

    @property
    def cores(self) -> int:
        """Number of cores that training uses."""
        return available_cores()

    def shallower(self, count: int) -> Candidate:
        """The first `count` blocks of the order taken out, and the rest refitted: where there is little time, of what
        lies behind them the first layers."""

        def make() -> Made:
            refit = LEAST_SQUARES if self._time_budget >= _UNHURRIED else LOCAL
            steps = [*self.removal_order()[:count], {"refit": refit}]
            done = take_step(PlanStep("depth", tuple(steps)), self.base)
            return self.exact_plan.then("depth", steps, self.samples), done.model, done.notes

        return self._candidate(blocks_name(count), Stage.BLOCKS, make)

    def ground(self, count: int = 0) -> PruningBase:
        """What is pruned: the exact model, or the one with so many blocks out."""
        if count not in self._grounds:
            cut = self.shallower(count) if count else None
            where = (self.exact_plan, self.base) if cut is None else (cut.plan, self.evidence(cut))
            self._grounds[count] = PruningBase(*where, self._by_latency, self._grounds.get(0) if count else None)
        return self._grounds[count]

    def pruned(
        self, name: str, options: PruneOptions, more_time: Callable[[], bool] = lambda: True, count: int = 0
    ) -> Candidate | None:
        """Channels removed and refitted, behind `count` blocks taken out; None where the options remove nothing on this
        CPU's widths, or what others under another name did."""
        ground = self.ground(count)
        with self._preparing():
            actions = ground.actions(options, more_time)
        if not actions or self._pruned.setdefault(f"{count} {actions}", name) != name:
            return None

        def make() -> Made:
            steps = [*actions, {"refit": "least-squares"}]
            done = take_step(PlanStep("prune", tuple(steps)), ground.evidence)
            return ground.plan.then("prune", steps, self.samples), done.model, done.notes

        return self._candidate(name, Stage.PRUNING, make)

    def macs(self, candidate: Candidate) -> int:
        """Multiply-accumulates for one sample."""
        return _cost(self.evidence(candidate))

    def relative_latency(self, name: str, model: ir.Model, seconds: float = 0.8) -> float:
        """The share of the original's time that a model takes.  seconds: of timing."""
        known = self.store.get_meta(f"pace of {name}")
        if known is None:
            models: dict[str, ir.Model | bytes | str] = {"original": self.original, "other": model}
            effort = Effort(seconds=seconds, precision=0.01, rebuilds=1, resamples=100)
            known = 1 / compare_latency(models, self.feeds, effort).ratios[0].speedup
            self.store.set_meta(f"pace of {name}", known)
        return float(known)

    def trained(self, name: str, student: Candidate, seconds: float, report: Progress) -> Candidate:
        """A candidate trained towards the original's answers for so long, its best weights on the selection samples."""

        def make() -> Made:
            now = evidence_for(model_of(student), self.learn, self.machine, self.seed)
            teacher = teacher_evidence(self.original, now)
            pair = TeacherStudentPair(now, teacher, Source(), self._kept(student), self._teacher_values)
            each = self._score_seconds
            count = int(min(max(_EVALUATED * seconds / max(each, 1e-3), 1), _EVALUATIONS))
            batch = int(min(max(_TRAINING_BYTES // _value_bytes(now), _SMALLEST_BATCH), _BATCH))
            settings = TrainingSettings(
                batch=batch, threads=self.cores, seed=self.seed, features="auto", evaluations=count
            )
            learning = max(seconds - count * each, 0.5 * seconds)
            folder = self.store.workdir(candidate_id(name))
            resume = folder is not None and has_checkpoint(folder)
            options = DistillationOptions(settings, time_budget=learning, resume=resume, limit=_LATE * seconds)
            done = run_distillation(pair, options, self.scorer, student.score.equivalent_drop, folder, report)
            as_stored(done.model, self.original)
            plan = student.plan.then("distill", done.actions)
            curve = done.history.curve if done.history is not None else []
            notes = [f"step {p.step}: {self.scorer.metric} {p.value:.4f} on the selection samples" for p in curve]
            return plan, done.model, student.notes + done.notes + notes

        return self._candidate(name, Stage.TRAINING, make, student)

    def _kept(self, student: Candidate) -> KeptChannels:
        """For a value of the original the channels that a pruned student has left."""
        own = student.plan.steps[len(self.exact_plan.steps) :]
        evidence, removal = self.base, dict[str, list[int]]()
        for step in own:
            if step.pass_name == "prune":
                removal = {d["group"]: list(d["remove"]) for d in step.actions if "group" in d}
                break
            if step.pass_name != "distill":  # what stands before it decides what its groups are called
                bare = PlanStep(step.pass_name, (*(d for d in step.actions if "refit" not in d), {"refit": "none"}))
                evidence = self._evidence(take_step(bare, evidence).model)
        channels = evidence.channels
        return lambda value: channels.kept(value, removal)


def blocks_name(count: int) -> str:
    """A candidate's name with so many blocks out."""
    return f"{count} block{'s' * (count > 1)} out"


def _to_int8(evidence: Evidence, chosen: frozenset[str], options: RecipeOptions) -> PlanStep:
    """The chosen nodes, as far as the model has them and they can be, in int8."""
    nodes = placement.drop_unprofitable(evidence.model, _able(evidence, chosen))
    return PlanStep(
        "quantize", tuple(quantize_actions(nodes, evidence, options, looked_up=quantizable_lookups(evidence.model)))
    )


def _value_bytes(evidence: Evidence) -> int:
    """Bytes of all values of a run on one sample, which training keeps, in float32."""
    trace = evidence.trace
    own = {v.name for n in evidence.model.graph for v in n.outputs if v.name}
    return max(4 * sum(math.prod(trace.shapes[name]) for name in own if name in trace.shapes), 1)


def _able(evidence: Evidence, chosen: frozenset[str]) -> frozenset[str]:
    """Those of the chosen nodes that the model has and that can be in int8."""
    return chosen & {
        n.name for n in evidence.model.graph if n.name and placement.refusal_reason(n, evidence.trace) is None
    }


def _cost(evidence: Evidence) -> int:
    return sum(macs(evidence.model, evidence.trace).values())
