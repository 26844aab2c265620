"""Evaluation of candidates: building the network of a trial, and measuring costs, proxy and latency.

It holds what all workers of a search share: the space, the inputs and outputs, and a study name that differs where any
of it does.  Roles: "both" scores and times candidates, "train" scores them and requests their latency, "latency" only
times them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxpress.data.dataset import Dataset, Splits, open_dataset
from onnxpress.errors import EnvironmentProblem, InputProblem
from onnxpress.measure.cache import cache_key
from onnxpress.measure.score import Scorer
from onnxpress.model.files import model_hash
from onnxpress.model.signature import signature
from onnxpress.model.structural_hash import structural_hash
from onnxpress.nas.evaluation import proxies
from onnxpress.nas.evaluation.candidate_training import CandidateTrainer
from onnxpress.nas.evaluation.costs import Costs, count_costs
from onnxpress.nas.evaluation.latency_predictor import LatencyPredictor
from onnxpress.nas.evaluation.timing_queue import TimingQueue
from onnxpress.nas.request import WORST_QUALITY, NasRequest
from onnxpress.nas.spaces.io_spec import IoSpec, io_spec_from_samples
from onnxpress.nas.spaces.network import BATCH
from onnxpress.nas.spaces.registry import load_space
from onnxpress.nas.strategies.study import BuildTrial, Measurement, Study, fixed_trial
from onnxpress.progress import no_progress
from onnxpress.runtime.latency import Effort, compare_latency
from onnxpress.runtime.machine import Machine
from onnxpress.runtime.session import open_session
from onnxpress.runtime.session import run as run_once

LatencyResult = Callable[[float], tuple[float, bool]]  # quality -> (seconds, whether they are predicted)
StartTiming = Callable[[ir.Model, int], LatencyResult]  # starts to time the model of a trial, given by its number

JUDGED_BY = ("metric", "decode")  # of the request: names, or files
_PROXY_BATCH = 32  # samples for proxies
_MAX_UNCERTAINTY = 0.5  # of a predicted latency, relative; otherwise it is measured
_ANCHOR, _MACHINE = "anchor_latency", "timing_machine"  # keys of the study


class Evaluator:
    """Evaluates candidates.

    reference: the model whose inputs and outputs candidates have; also the anchor of latencies.
    splits: the samples.
    request: of the search.
    use_teacher: whether the reference is the teacher; otherwise labels are used.
    machine: this machine.
    Raises InputProblem where there is neither a teacher nor usable labels.
    """

    def __init__(
        self, reference: ir.Model, splits: Splits, request: NasRequest, use_teacher: bool, machine: Machine
    ) -> None:
        self.reference, self.splits, self.request, self.machine = reference, splits, request, machine
        self.build = load_space(request.space)
        if not use_teacher and not splits.calibrate.labelled:
            raise InputProblem("no training target", "`data`", "no teacher and no labels", "give `teacher` or labels")
        judge = Scorer(reference, splits.select, "selection samples", request.quality)
        labelled = judge.labelled  # asked first: a metric that does not fit is told before a study is made
        if not use_teacher and request.metric is not None:
            labelled = Scorer(reference, splits.select).labelled
        if not use_teacher and not labelled:
            raise InputProblem("labels are no class indices", "`data`", "there is no teacher", "give `teacher`")
        self.data = with_free_batch(splits.calibrate)
        self.trainer = CandidateTrainer(self.data, judge, reference if use_teacher else None, machine, request.seed)
        self.io_spec = infer_io_spec(reference, splits, machine)
        self.batch = max((b.inputs for b in self.data.take(_PROXY_BATCH).batches(_PROXY_BATCH)), key=_rows)
        self.feeds = [b.inputs for b in splits.calibrate.take(4).batches(1)]

    @property
    def hashes(self) -> dict[str, str]:
        """Hashes of the inputs that all workers must share, by name."""
        given = {name: getattr(self.request, name) for name in ("space", "proxy", *JUDGED_BY)}
        found = {name: _hash_of(value) for name, value in given.items() if value}
        found["teacher"] = model_hash(self.reference)
        return found | {n: getattr(self.splits, n).hash for n in ("calibrate", "select", "validate")}

    @property
    def study_name(self) -> str:
        """Name of the study; it differs where the space, the data or the request do."""
        r = self.request
        values = (r.proxy, r.strategy, r.seed, r.latency, r.size, r.memory, r.proxy_train_time)
        own = [str(v) for v in (*values, self.trainer.teacher is None, *r.aims, *r.outputs)]
        return f"nas {r.space} {cache_key(*self.hashes.values(), *own)[:12]}"

    # one candidate

    def model(self, choices: Mapping[str, Any]) -> ir.Model:
        """The network of a trial's choices."""
        return self.build(fixed_trial(choices), self.io_spec)

    def quality(self, model: ir.Model, costs: Costs) -> float:
        """The proxy of a network; WORST_QUALITY where it is not finite."""
        r = self.request
        if r.proxy == proxies.TRAINING:
            try:
                found = -self.trainer.train(model, r.proxy_train_time, no_progress)[1].drop
            except EnvironmentProblem:  # training diverged
                found = -math.inf
        else:
            found = proxies.compute_proxy(r.proxy, model, self.batch, costs, r.seed)
        return found if math.isfinite(found) else WORST_QUALITY

    def latency(self, model: ir.Model, anchor: float) -> float:
        """Latency in seconds: that of the anchor, measured when the study began, times the measured ratio to it."""
        effort = Effort(seconds=0.4, precision=0.02, rebuilds=1, resamples=100)
        comparison = compare_latency({"anchor": self.reference, "candidate": model}, self.feeds, effort)
        return anchor / comparison.ratios[0].speedup

    def anchor_latency(self, study: Study) -> float:
        """Latency of the anchor in seconds, as stored with the study.

        Raises EnvironmentProblem on a machine of another kind, whose latencies are not comparable with the study's.
        """
        own = self.machine.text()
        kind = study.get_or_compute(_MACHINE, lambda: own)
        if kind != own:
            raise EnvironmentProblem(
                "this machine is of another kind than that of the study's latencies", own, f"they are from: {kind}",
                "join with `role` train, or begin another study",
            )  # fmt: skip
        return float(study.get_or_compute(_ANCHOR, self._measure_anchor))

    def _measure_anchor(self) -> float:
        return compare_latency({"anchor": self.reference}, self.feeds, Effort(seconds=1.0)).timings[0].median

    def builder(self, start_timing: StartTiming) -> BuildTrial:
        """The function by which a study builds and measures a trial."""
        request = self.request

        def measure(model: ir.Model, number: int) -> Measurement:
            latency = start_timing(model, number)
            costs = count_costs(model, self.feeds[0])
            quality = self.quality(model, costs)
            seconds, predicted = latency(quality)
            usage = [seconds / request.latency, costs.bytes / request.size, costs.peak_memory / request.memory]
            facts = {
                "macs": costs.macs,
                "parameters": costs.parameters,
                "bytes": costs.bytes,
                "peak_memory": costs.peak_memory,
                "predicted": predicted,
            }
            return quality, seconds, sum(max(0.0, u - 1) for u in usage), facts

        def build(trial: Any) -> tuple[str, Callable[[], Measurement]]:
            model = self.build(trial, self.io_spec)
            return structural_hash(model), partial(measure, model, trial.number)

        return build


def _hash_of(name: str) -> str:
    """Hash of the file in FILE or FILE.py:function, or of the name itself."""
    file = Path(name.rpartition(":")[0] or name)
    return cache_key(file.read_text() if file.is_file() else name)


def trial_builder(
    evaluator: Evaluator, study: Study, queue: TimingQueue | None, in_time: Callable[[], bool]
) -> BuildTrial:
    """Trials that are timed on this machine, or by other workers where a queue is given."""
    if queue is None:
        timer = LocalTimer(evaluator, evaluator.anchor_latency(study))
        return evaluator.builder(lambda model, number: partial(timer.time, model))

    def start_timing(model: ir.Model, number: int) -> LatencyResult:
        queue.put(number)
        return lambda quality: (queue.wait(number, in_time), False)

    return evaluator.builder(start_timing)


class LocalTimer:
    """Measures latency on this machine.

    A network whose predicted latency is certainly too high is not measured: above the limit, or, without a limit, above
    that of a network of higher quality.
    """

    def __init__(self, evaluator: Evaluator, anchor: float) -> None:
        self._evaluator, self._anchor, self._predictor = evaluator, anchor, LatencyPredictor()
        self._measured: list[tuple[float, float]] = []  # quality, seconds

    def time(self, model: ir.Model, quality: float) -> tuple[float, bool]:
        """Latency in seconds, and whether it is predicted."""
        evaluator = self._evaluator
        sums = self._predictor.sums(model, evaluator.feeds[0])
        seconds, uncertainty = self._predictor.predict(sums)
        least = seconds * (1 - uncertainty)
        if math.isfinite(evaluator.request.latency):
            too_slow = least > evaluator.request.latency
        else:
            too_slow = any(least > t and quality < q for q, t in self._measured)
        if uncertainty < _MAX_UNCERTAINTY and too_slow and not evaluator.request.aims:
            return seconds, True
        seconds = evaluator.latency(model, self._anchor)
        self._predictor.add(sums, seconds)
        self._measured.append((quality, seconds))
        return seconds, False


def infer_io_spec(reference: ir.Model, splits: Splits, machine: Machine) -> IoSpec:
    """The inputs and outputs of candidates.  Raises InputProblem where the built-in spaces do not support them."""
    sig = signature(reference)
    outputs = [s for s in sig.outputs if s.dtype.kind == "f"]
    if not outputs:
        raise InputProblem("no float output", "", ", ".join(sig.output_names))
    shape = outputs[0].shape
    if len(sig.outputs) > 1 or shape is None or len(shape) != 2 or not isinstance(shape[1], int):
        raise InputProblem(
            "search spaces have one output [N, classes]",
            outputs[0].name,
            outputs[0].text(),
            "write a search space of your own",
        )
    row = run_once(open_session(reference), splits.calibrate[0].inputs)[sig.outputs.index(outputs[0])]
    probabilities = bool(row.min() >= 0 and abs(float(row.sum()) - 1) < 1e-3) and shape[1] > 1
    parts = (splits.calibrate, splits.select, splits.validate)
    return io_spec_from_samples(parts, shape[1], outputs[0].name, machine, probabilities)


def with_free_batch(data: Dataset) -> Dataset:
    """The samples with a free batch axis: a teacher may have a fixed one of size 1."""
    sig = data.signature
    if not all(s.shape and s.shape[0] == 1 for s in sig.inputs):
        return data
    free = [replace(s, shape=(BATCH, *(s.shape or ())[1:])) for s in sig.inputs]
    return open_dataset(data, replace(sig, inputs=tuple(free)))


def _rows(batch: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(batch.values())))
