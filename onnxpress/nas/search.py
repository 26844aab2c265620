"""A search from space to files: many candidates built, counted and timed; the promising trained; the best written.

First half: a strategy proposes, a proxy and the clock score (each candidate against one anchor, interleaved).  Second half:
the front is trained by successive halving.  What no other trained candidate beats in both score and time is the result.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxpress.data.dataset import Dataset, Splits, open_dataset
from onnxpress.errors import InputProblem
from onnxpress.measure.cache import key_of
from onnxpress.measure.score import Judge, Score
from onnxpress.model.files import model_hash, save, to_bytes
from onnxpress.model.signature import signature
from onnxpress.model.structure import structural_hash
from onnxpress.nas import front, proxies
from onnxpress.nas.costs import costs
from onnxpress.nas.extra import require_optuna
from onnxpress.nas.net import BATCH
from onnxpress.nas.schooling import Pupil, School, finished, halving
from onnxpress.nas.spaces import Space, space
from onnxpress.nas.study import Entry, Study, fixed
from onnxpress.nas.task import Task, task_for
from onnxpress.optimize.run import Run
from onnxpress.runtime.latency import Comparison, Effort, compare_latency
from onnxpress.runtime.machine import Machine, this_machine
from onnxpress.runtime.session import open_session
from onnxpress.runtime.session import run as run_once
from onnxpress.train.torch_extra import require_torch

Tell = Callable[[str, float], None]
_LOOK_SHARE = 0.3  # of the time: proposing and timing
_FINAL_SHARE = 0.05  # of the time: timing the trained ones together
_BATCH = 32  # samples that proxies see
_WORST = -1e9  # in the place of a proxy that is no number


@dataclass(frozen=True)
class Request:
    """space: a ready one's name, FILE.toml or FILE.py:function; proxy: what stands for quality before training.

    trials: candidates to look at; seconds: of everything; latency: seconds a run may take, one thread (inf: no limit);
    size: bytes of weights; pupils: candidates whose training begins; keep: those trained to the end.
    """

    space: str
    strategy: str = "evolution"
    proxy: str = "naswot"
    trials: int = 200
    seconds: float = 1800.0
    latency: float = math.inf
    size: float = math.inf
    pupils: int = 8
    keep: int = 2
    seed: int = 0
    storage: str = ""

    def check(self) -> None:
        """Raises InputProblem for what makes no sense, EnvironmentProblem where torch is missing."""
        proxies.check(self.proxy)
        for name, value in (("--trials", self.trials), ("--pupils", self.pupils), ("--keep", self.keep)):
            if value < 1:
                raise InputProblem("a number is too small", name, f"got {value}", "give at least 1")
        for name, limit in (("--time-budget", self.seconds), ("--latency-ms", self.latency), ("--size-mb", self.size)):
            if not limit > 0:
                raise InputProblem("a limit must be above zero", name, f"got {limit:g}")
        require_torch("nas")
        require_optuna("nas")


@dataclass
class Found:
    """A trained candidate.  score: on the validation samples; ms: of one run beside the anchor's, in the last timing."""

    name: str
    choices: Mapping[str, Any]
    model: ir.Model
    select: Score
    score: Score
    ms: float = 0.0
    macs: int = 0
    parameters: int = 0
    bytes: int = 0
    on_front: bool = False


@dataclass
class Outcome:
    """found: trained candidates, fastest first; entries: everything looked at; final: their timing in one run."""

    found: list[Found]
    entries: list[Entry]
    final: Comparison
    seconds: float
    notes: list[str] = field(default_factory=list)


def search(
    like: ir.Model,
    splits: Splits,
    request: Request,
    folder: str | Path,
    teach: bool = True,
    tell: Tell | None = None,
    machine: Machine | None = None,
) -> Outcome:
    """Search, and write the front into the folder.

    like: a model whose inputs and outputs candidates share; `teach`: it is their teacher, else the labels are.  The folder keeps
    the study, so that the same command goes on looking where it was stopped.  Raises InputProblem on bad input.
    """
    request.check()
    build = space(request.space)
    job = _Job(like, splits, request, build, teach, tell or (lambda stage, share: None), machine or this_machine())
    run = Run(folder, command="nas", request=request.__dict__, machine=job.machine.as_dict())
    try:
        study = Study(request.storage or run.folder / "study.db", job.name, request.strategy, request.seed)
        job.look(study)
        outcome = job.train(study)
        _write(outcome, run)
    finally:
        run.close()
    return outcome


class _Job:
    """One search: what is shared by its parts."""

    def __init__(
        self, like: ir.Model, splits: Splits, request: Request, build: Space, teach: bool, tell: Tell, machine: Machine
    ) -> None:
        self.like, self.splits, self.request, self.build, self.tell = like, splits, request, build, tell
        self.machine, self.begun = machine, time.monotonic()
        if not teach and not splits.calibrate.labelled:
            raise InputProblem("nothing to learn from", "--data", "no teacher and no labels", "add --teacher or labels")
        judge = Judge(like, splits.select, "selection samples")
        if not teach and not judge.labelled:
            raise InputProblem("the labels are no class numbers", "--data", "nothing else teaches", "add --teacher")
        self.learn = with_free_batch(splits.calibrate)
        self.school = School(self.learn, judge, like if teach else None, machine, request.seed)
        self.task = self._task()
        self.batch = max((b.inputs for b in self.learn.take(_BATCH).batches(_BATCH)), key=_rows)
        self.feeds = [b.inputs for b in splits.calibrate.take(4).batches(1)]
        self.anchor_seconds = 0.0

    @property
    def name(self) -> str:
        """Of the study: another space, data, proxy or machine is another study."""
        own = Path(self.request.space.rpartition(":")[0] or self.request.space)
        text = own.read_text() if own.is_file() else self.request.space
        r = self.request
        parts = [text, model_hash(self.like), self.splits.calibrate.hash, r.proxy, r.strategy, r.seed, r.latency, r.size]
        return f"nas {r.space} {key_of(*map(str, parts), repr(self.machine))[:12]}"

    def _task(self) -> Task:
        sig = signature(self.like)
        outputs = [s for s in sig.outputs if s.dtype.kind == "f"]
        if not outputs:
            raise InputProblem("no output of floats to give", "", ", ".join(sig.output_names))
        shape = outputs[0].shape
        if len(sig.outputs) > 1 or shape is None or len(shape) != 2 or not isinstance(shape[1], int):
            raise InputProblem(
                "search spaces give one output [N, classes]", outputs[0].name, outputs[0].text(), "write a space of your own"
            )
        row = run_once(open_session(self.like), self.splits.calibrate[0].inputs)[sig.outputs.index(outputs[0])]
        probable = bool(row.min() >= 0 and abs(float(row.sum()) - 1) < 1e-3) and shape[1] > 1
        parts = (self.splits.calibrate, self.splits.select, self.splits.validate)
        return task_for(parts, shape[1], outputs[0].name, self.machine, probable)

    @property
    def used(self) -> float:
        return (time.monotonic() - self.begun) / self.request.seconds

    # looking

    def look(self, study: Study) -> None:
        """Propose and score, for the first part of the time or until there are enough."""
        wanted = self.request.trials
        self.anchor_seconds = study.fact(f"seconds of the anchor on {self.machine.text()}", self._anchor)

        def more(count: int) -> bool:
            return count < wanted and self.used < _LOOK_SHARE

        def told(entry: Entry) -> None:
            share = min(self.used, _LOOK_SHARE)
            self.tell(f"candidate {entry.number}: {self.request.proxy} {entry.quality:.4g}, {1e3 * entry.latency:.3g} ms", share)

        study.run(self._built, more, told)

    def _built(self, trial: Any) -> tuple[str, Callable[[], tuple[float, float, float, Mapping[str, Any]]]]:
        model = self.build(trial, self.task)
        return structural_hash(model), partial(self._measured, model)

    def _measured(self, model: ir.Model) -> tuple[float, float, float, Mapping[str, Any]]:
        counted = costs(model, self.feeds[0])
        latency = self._latency(model)
        beyond = max(0.0, latency / self.request.latency - 1) + max(0.0, counted.bytes / self.request.size - 1)
        quality = proxies.proxy(self.request.proxy, model, self.batch, counted, self.request.seed)
        facts = {"macs": counted.macs, "parameters": counted.parameters, "bytes": counted.bytes, "peak": counted.peak}
        return (quality if math.isfinite(quality) else _WORST), latency, beyond, facts

    def _latency(self, model: ir.Model) -> float:
        """Seconds of a run: the anchor's, as measured when the study began, by the ratio to it, as measured now."""
        effort = Effort(seconds=0.4, precision=0.02, rebuilds=1, resamples=100)
        seen = compare_latency({"anchor": self.like, "candidate": model}, self.feeds, effort)
        return self.anchor_seconds / seen.ratios[0].speedup

    def _anchor(self) -> float:
        return compare_latency({"anchor": self.like}, self.feeds, Effort(seconds=1.0)).timings[0].median

    # training

    def train(self, study: Study) -> Outcome:
        """Train what the proxy and the clock promise most of, and time the last ones together."""
        request = self.request
        chosen = promising(study.entries(), request.pupils, math.isfinite(request.latency))
        if not chosen:
            raise InputProblem(
                "no candidate keeps the limits", "--latency-ms, --size-mb", f"{len(study.entries())} were built",
                "allow more, or search longer",
            )  # fmt: skip
        pupils = [Pupil(e.number, self.build(fixed(e.choices), self.task), e.latency) for e in chosen]
        start, end = self.used, 1 - _FINAL_SHARE
        left = max(0.2, end - start) * request.seconds

        def tell(stage: str, share: float) -> None:
            self.tell(stage, start + (end - start) * share)

        last = halving(self.school, pupils, left, request.keep, tell, math.isfinite(request.latency))
        by_number = {e.number: e for e in chosen}
        judge = Judge(self.like, self.splits.validate, "validation samples")
        found = [self._finished(p, by_number[p.number], judge) for p in last]
        self.tell("timing the trained candidates", end)
        models: dict[str, ir.Model | bytes | str] = {"anchor": self.like, **{f.name: f.model for f in found}}
        final = compare_latency(models, self.feeds, Effort(seconds=max(3.0, 0.5 * _FINAL_SHARE * request.seconds)))
        for f in found:
            f.ms = 1e3 * final.timings[0].median / final.ratio(f.name).speedup
        kept = [f for f in found if f.ms <= 1e3 * request.latency] or found
        for i in front.front([(f.select.drop, f.ms) for f in kept]):
            kept[i].on_front = True
        return Outcome(sorted(found, key=lambda f: f.ms), study.entries(), final, time.monotonic() - self.begun)

    def _finished(self, pupil: Pupil, entry: Entry, judge: Judge) -> Found:
        model = finished(pupil.model, self.learn.take(1), self.machine)
        assert pupil.score is not None
        facts = entry.facts
        return Found(
            f"candidate-{pupil.number}", entry.choices, model, pupil.score, judge.score(to_bytes(model)),
            macs=int(facts["macs"]), parameters=int(facts["parameters"]), bytes=len(to_bytes(model)),
        )  # fmt: skip


def promising(entries: list[Entry], count: int, limited: bool = False) -> list[Entry]:
    """Candidates to train: within the limits, each network once; the best by quality where latency is limited anyway, else
    by rank of dominance in (quality, latency)."""
    good = [e for e in entries if e.twin is None and e.violation == 0 and e.quality > _WORST]
    if limited:
        return sorted(good, key=lambda e: (-e.quality, e.latency))[:count]
    order = front.best(np.array([[-e.quality, e.latency] for e in good]).reshape(-1, 2), count)
    return [good[i] for i in order]


def with_free_batch(data: Dataset) -> Dataset:
    """The samples as they are for a model that takes any number of them at once: a teacher may be fixed to one."""
    sig = data.signature
    if not all(s.shape and s.shape[0] == 1 for s in sig.inputs):
        return data
    free = [replace(s, shape=(BATCH, *(s.shape or ())[1:])) for s in sig.inputs]
    return open_dataset(data, replace(sig, inputs=tuple(free)))


def _rows(batch: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(batch.values())))


def _write(outcome: Outcome, run: Run) -> None:
    """The front as files, with the choices that build each."""
    target = run.folder / "front"
    target.mkdir(exist_ok=True)
    for old in target.glob("candidate-*"):
        old.unlink()
    for found in outcome.found:
        if found.on_front:
            save(found.model, target / f"{found.name}.onnx")
            (target / f"{found.name}.json").write_text(json.dumps(dict(found.choices), indent=1) + "\n")
    run.set(outcome=summary(outcome))


def summary(outcome: Outcome) -> dict[str, object]:
    """As JSON."""
    rows = [{k: v for k, v in f.__dict__.items() if k != "model"} for f in outcome.found]
    return {
        "candidates": rows,
        "looked_at": len(outcome.entries),
        "different": sum(e.twin is None for e in outcome.entries),
        "ratios": outcome.final.ratios,
        "seconds": outcome.seconds,
    }
