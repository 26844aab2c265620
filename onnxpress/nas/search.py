"""Architecture search: many candidates are evaluated by a proxy and by latency, the best are trained and written.

In the first part a strategy proposes candidates, which are scored by a proxy and timed against an anchor.  In the
second part promising candidates are trained by successive halving.  The result is the Pareto front of score and
latency.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.score import Score, Scorer
from onnxpress.model.files import save, to_bytes
from onnxpress.nas import worker
from onnxpress.nas.evaluation.candidate_training import SCHEDULERS, Trainee, fold_for_inference, round_fractions
from onnxpress.nas.evaluation.evaluator import Evaluator
from onnxpress.nas.evaluation.proxies import TRAINING
from onnxpress.nas.rebuild import load_front_choices, write_record
from onnxpress.nas.request import WORST_QUALITY, NasRequest
from onnxpress.nas.strategies.storage import HEARTBEAT
from onnxpress.nas.strategies.study import Study, TrialResult
from onnxpress.passes.core.contract import Action
from onnxpress.plan.run_record import RunRecord
from onnxpress.progress import Progress, no_progress
from onnxpress.runtime.latency import Effort, LatencyComparison, compare_latency
from onnxpress.search import pareto

CategoricalChoices = tuple[tuple[str, str], ...]
_EVALUATION_FRACTION = 0.3  # of the time budget, for proposing and evaluating candidates
_THROUGHPUT_FRACTION = 0.05  # of the time budget, for measuring the training throughput of promising candidates
_FINAL_TIMING_FRACTION = 0.05  # of the time budget, for timing the trained candidates
_MIN_TRAIN_SECONDS = 6.0  # below, a training mostly consists of its preparation (trials, timing of steps)
_THROUGHPUT_CANDIDATES = 4  # candidates whose throughput is measured, per trainee
LEVEL_RATIO = 0.7  # of the latency of a level to that of the one above, where latency is limited


@dataclass
class FoundNetwork:
    """A trained candidate.

    name: of the file.
    choices: made in the search space.
    model: the trained network.
    select: score on the selection samples.
    score: score on the validation samples.
    trainings: decisions that repeat its trainings.
    seconds: of its trainings.
    ms: latency in milliseconds, from the final timing.
    macs, parameters, bytes, peak_memory: its costs.
    on_front: whether it is on the Pareto front.
    """

    name: str
    choices: Mapping[str, Any]
    model: ir.Model
    select: Score
    score: Score
    trainings: list[Action]
    seconds: float = 0.0
    ms: float = 0.0
    macs: int = 0
    parameters: int = 0
    bytes: int = 0
    peak_memory: int = 0
    on_front: bool = False


@dataclass
class NasResult:
    """Result of a search.

    networks: trained candidates, the fastest first.
    trials: all evaluated candidates.
    timing: final timing of the trained candidates against the anchor.
    seconds: of the search.
    met: whether a trained candidate meets the latency limit in the final timing.
    notes: for the user.
    """

    networks: list[FoundNetwork]
    trials: list[TrialResult]
    timing: LatencyComparison
    seconds: float
    met: bool = True
    notes: list[str] = field(default_factory=list)


def search(
    evaluator: Evaluator,
    folder: str | Path,
    progress: Progress | None = None,
    role: str = "both",
    heartbeat: float = HEARTBEAT,
) -> NasResult:
    """Search, and write the networks of the Pareto front into a folder.

    The study is kept in the folder (or in the request's storage); the same call continues an interrupted search.

    evaluator: of the candidates.
    folder: of the results.
    progress: callback.
    role: "train" leaves timing to other workers.
    heartbeat: seconds between heartbeats.
    Raises InputProblem for invalid input.
    """
    request = evaluator.request
    request.check()
    initial = [choices for earlier in request.warm for choices in load_front_choices(earlier)]
    run = RunRecord(folder, command="nas", request=request.as_dict(), machine=evaluator.machine.as_dict())
    job = _SearchRun(evaluator, request, progress or no_progress)
    storage = request.storage or run.folder / "study.db"
    try:
        with worker.open_study(evaluator, storage, request.seed, heartbeat) as study:
            study.begin_with(initial)
            try:
                worker.evaluate_candidates(
                    evaluator, study, storage, role, lambda: job.may_evaluate(study), job.on_result, heartbeat
                )
            finally:
                worker.end_evaluation(study)
            result = job.train(study)
        _write_front(result, evaluator, run)
    finally:
        run.close()
    return result


class _SearchRun:
    """One search in its time budget."""

    def __init__(self, evaluator: Evaluator, request: NasRequest, progress: Progress) -> None:
        self.evaluator, self.request, self.progress = evaluator, request, progress
        self.begin = time.monotonic()

    @property
    def used(self) -> float:
        """Used fraction of the time budget."""
        return (time.monotonic() - self.begin) / self.request.time_budget

    def may_evaluate(self, study: Study) -> bool:
        """Whether there is time to evaluate another candidate; the first may take longer than planned."""
        return self.used < _EVALUATION_FRACTION or (self.used < 1 and not study.results())

    def on_result(self, result: TrialResult) -> None:
        """Report a finished trial."""
        text = f"{self.request.proxy} {result.quality:.4g}, {1e3 * result.latency:.3g} ms"
        self.progress(f"candidate {result.number}: {text}", min(self.used, _EVALUATION_FRACTION))

    def train(self, study: Study) -> NasResult:
        """Train the promising candidates, and time the trained ones."""
        request = self.request
        limited = limit_trainees(request, (1 - _EVALUATION_FRACTION - _THROUGHPUT_FRACTION) * request.time_budget)
        selected = select_promising(self._penalize_slow_training(study.results(), limited), limited)
        if not selected:
            raise InputProblem(
                "no candidate meets the limits", "`latency_ms`, `size_mb`, `memory_mb`",
                f"{len(study.results())} were built", "increase the limits, or search longer",
            )  # fmt: skip
        networks = self._train_selected(selected, limited)
        self.progress("timing the trained candidates", 1 - _FINAL_TIMING_FRACTION)
        timing, met = self._time(networks)
        result = NasResult(
            sorted(networks, key=lambda n: n.ms), study.results(), timing, time.monotonic() - self.begin, met
        )
        if not met:
            result.notes.append("no candidate meets `latency_ms` in the final timing: increase it")
        if limited.trainees < request.trainees:
            text = f"the time suffices for {limited.trainees} of {request.trainees} trainings only"
            result.notes.append(f"{text}: increase `time_budget`")
        whose = "the teacher" if self.evaluator.trainer.teacher is not None else "the model they are like"
        result.notes += [*slower_notes(networks, timing, whose), *timing.warnings]
        return result

    def _train_selected(self, selected: Sequence[tuple[int, TrialResult]], request: NasRequest) -> list[FoundNetwork]:
        """Train the selected trials.  request: with the trainees that there is time for."""
        evaluator = self.evaluator
        trainees = [
            Trainee(r.number, evaluator.model(r.choices), cost_vector(r, request.minimized_facts), level)
            for level, r in selected
        ]
        begin, end = self.used, 1 - _FINAL_TIMING_FRACTION
        seconds = max(0.2, end - begin) * request.time_budget

        def progress(stage: str, fraction: float) -> None:
            self.progress(stage, begin + (end - begin) * fraction)

        schedule = SCHEDULERS[request.schedule]
        last = schedule(evaluator.trainer, trainees, seconds, request.keep, progress, request.maximizes_quality_only)
        by_number = {r.number: r for _, r in selected}
        judged_by = evaluator.trainer.judge.judge  # as in the selection
        judge = Scorer(evaluator.reference, evaluator.splits.validate, "validation samples", judged_by)
        return [self._network(t, by_number[t.number], judge) for t in last]

    def _time(self, networks: list[FoundNetwork]) -> tuple[LatencyComparison, bool]:
        """Time the networks against the anchor, set their latency and the front; whether one meets the latency
        limit.
        """
        request, evaluator = self.request, self.evaluator
        models: dict[str, ir.Model | bytes | str] = {
            "anchor": evaluator.reference,
            **{n.name: n.model for n in networks},
        }
        effort = Effort(seconds=max(3.0, 0.5 * _FINAL_TIMING_FRACTION * request.time_budget))
        timing = compare_latency(models, evaluator.feeds, effort)
        for network in networks:
            network.ms = 1e3 * timing.timings[0].median / timing.ratio(network.name).speedup
        within = [n for n in networks if n.ms <= 1e3 * request.latency]
        candidates = within or networks
        costs = [(n.select.drop, n.ms, *(getattr(n, f) for f in request.minimized_facts)) for n in candidates]
        for i in pareto.pareto_front(costs):
            candidates[i].on_front = True
        return timing, bool(within)

    def _penalize_slow_training(self, results: list[TrialResult], request: NasRequest) -> list[TrialResult]:
        """The promising results, with the quality reduced by the log of the seconds per training sample.

        For the proxy "capacity" only: a network that takes twice as long per sample is trained on half as many samples.
        """
        if self.request.proxy != "capacity":
            return results
        promising = select_promising(results, replace(request, trainees=_THROUGHPUT_CANDIDATES * request.trainees))
        self.progress("measuring the training throughput", min(self.used, _EVALUATION_FRACTION))
        found: list[TrialResult] = []
        for _, result in promising:
            if len(found) >= request.trainees and self.used > _EVALUATION_FRACTION + _THROUGHPUT_FRACTION:
                break
            model = self.evaluator.model(result.choices)
            seconds = self.evaluator.trainer.fastest_exec_mode(model)[1]
            found.append(replace(result, quality=result.quality - float(np.log(seconds))))
        return found

    def _network(self, trainee: Trainee, result: TrialResult, judge: Scorer) -> FoundNetwork:
        """The trained network, folded for inference and scored on the validation samples."""
        model = fold_for_inference(trainee.model, self.evaluator.data.take(1), self.evaluator.machine)
        assert trainee.score is not None
        facts, data = result.facts, to_bytes(model)
        return FoundNetwork(
            f"candidate-{trainee.number}", result.choices, model, trainee.score, judge.score(data),
            trainee.trainings, trainee.seconds, macs=int(facts["macs"]), parameters=int(facts["parameters"]),
            bytes=len(data), peak_memory=int(facts["peak_memory"]),
        )  # fmt: skip


def slower_notes(networks: Sequence[FoundNetwork], timing: LatencyComparison, whose: str) -> list[str]:
    """Names the networks of the front that are measurably slower than the model that they are compared with."""
    slow = [n.name for n in networks if n.on_front and timing.ratio(n.name).high < 1]
    return [f"slower than {whose}: {', '.join(slow)}"] if slow else []


def limit_trainees(request: NasRequest, seconds: float) -> NasRequest:
    """The request with no more trainees than can be trained for _MIN_TRAIN_SECONDS each in the first round."""
    trainees = next(
        n
        for n in range(request.trainees, 0, -1)
        if n == 1 or round_fractions(n, request.keep)[0] * seconds / n >= _MIN_TRAIN_SECONDS
    )
    return replace(request, trainees=trainees, keep=min(request.keep, trainees))


def cost_vector(result: TrialResult, facts: Sequence[str]) -> tuple[float, ...]:
    """Latency in seconds, and the named facts."""
    return result.latency, *(float(result.facts[fact]) for fact in facts)


def select_promising(results: list[TrialResult], request: NasRequest) -> list[tuple[int, TrialResult]]:
    """Candidates to train with their latency levels: within the limits, each network once, the most promising first.

    Where only quality is maximized, within a latency limit, there are as many levels as candidates are kept: the limit,
    and each below the one before by LEVEL_RATIO; the best candidates of each level are taken in turn, one of each
    combination of categorical choices before a second one of any.  Otherwise there is one level, and candidates are
    ordered by the rank of dominance in quality, latency and the aims.
    """
    valid = [r for r in results if r.duplicate_of is None and r.violation == 0 and r.quality > WORST_QUALITY]
    if request.maximizes_quality_only:
        return _select_by_level(valid, request)
    points = [[-r.quality, *cost_vector(r, request.minimized_facts)] for r in valid]
    array = np.array(points).reshape(len(valid), 2 + len(request.minimized_facts))
    return [(0, valid[i]) for i in pareto.select_best(array, request.trainees)]


def _select_by_level(results: list[TrialResult], request: NasRequest) -> list[tuple[int, TrialResult]]:
    remaining = sorted(results, key=lambda r: (-r.quality, r.latency))
    selected: list[tuple[int, TrialResult]] = []
    limits = [request.latency * LEVEL_RATIO**n for n in range(request.keep)]
    while len(selected) < request.trainees:
        before = len(selected)
        for level, limit in enumerate(limits):
            within = [r for r in remaining if r.latency <= limit]
            if within and len(selected) < request.trainees:
                seen = {categorical_choices(r) for at, r in selected if at == level}
                result = _next_candidate(within, seen, request)
                selected.append((level, result))
                remaining.remove(result)
        if len(selected) == before:
            break
    return selected


def _next_candidate(results: list[TrialResult], seen: set[CategoricalChoices], request: NasRequest) -> TrialResult:
    """The best candidate with categorical choices that are not selected yet, else the best.

    Proxies other than training compare networks of the same categorical choices only.

    results: the best first.
    """
    if request.proxy == TRAINING:
        return results[0]
    return next((r for r in results if categorical_choices(r) not in seen), results[0])


def categorical_choices(result: TrialResult) -> CategoricalChoices:
    """The choices that are words, not numbers: the kinds of blocks of a candidate."""
    return tuple(sorted((name, value) for name, value in result.choices.items() if isinstance(value, str)))


def _write_front(result: NasResult, evaluator: Evaluator, run: RunRecord) -> None:
    """Write the networks of the front and their records."""
    target = run.folder / "front"
    target.mkdir(exist_ok=True)
    for old in target.glob("candidate-*"):
        old.unlink()
    for network in result.networks:
        if network.on_front:
            save(network.model, target / f"{network.name}.onnx")
            write_record(target / f"{network.name}.json", evaluator, network.choices, network.trainings, network.model)
    run.set(outcome=summary(result))


def summary(result: NasResult) -> dict[str, object]:
    """The result as JSON values."""
    rows = [{k: v for k, v in n.__dict__.items() if k not in ("model", "trainings")} for n in result.networks]
    return {
        "candidates": rows,
        "evaluated": len(result.trials),
        "distinct": sum(t.duplicate_of is None for t in result.trials),
        "ratios": result.timing.ratios,
        "seconds": result.seconds,
        "met": result.met,
        "notes": result.notes,
    }
