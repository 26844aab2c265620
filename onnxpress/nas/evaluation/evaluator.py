"""Looking at candidates: built from a trial's choices, counted, scored by a proxy and by the clock.

What all workers of a search share is here: the space, the task that the samples describe, and a name that differs where any
of it does.  Roles: "both" scores and times, "train" scores and orders the time, "latency" only takes times.
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
from onnxpress.nas.evaluation.candidate_training import School
from onnxpress.nas.evaluation.costs import Costs, costs
from onnxpress.nas.evaluation.latency_predictor import Table
from onnxpress.nas.evaluation.timing_queue import Orders
from onnxpress.nas.request import WORST, Request
from onnxpress.nas.spaces.io_spec import Task, task_for
from onnxpress.nas.spaces.network import BATCH
from onnxpress.nas.spaces.registry import space
from onnxpress.nas.strategies.study import Build, Study, fixed
from onnxpress.runtime.latency import Effort, compare_latency
from onnxpress.runtime.machine import Machine
from onnxpress.runtime.session import open_session
from onnxpress.runtime.session import run as run_once

Wait = Callable[
    [float], tuple[float, bool]
]  # of a candidate's quality: its seconds, and whether they are only foreseen
Clock = Callable[[ir.Model, int], Wait]  # begins to find the seconds of a trial's model, by the trial's number

_BATCH = 32  # samples that proxies see
_SURE = 0.5  # of a time: what is more in doubt is not foreseen
_ANCHOR, _MACHINE = "seconds of the anchor", "machine that times"


class Look:
    """like: a model whose inputs and outputs candidates share; `teach`: it is their teacher, else the labels are."""

    def __init__(self, like: ir.Model, splits: Splits, request: Request, teach: bool, machine: Machine) -> None:
        self.like, self.splits, self.request, self.machine = like, splits, request, machine
        self.build = space(request.space)
        if not teach and not splits.calibrate.labelled:
            raise InputProblem("nothing to learn from", "--data", "no teacher and no labels", "add --teacher or labels")
        judge = Scorer(like, splits.select, "selection samples")
        if not teach and not judge.labelled:
            raise InputProblem("the labels are no class numbers", "--data", "nothing else teaches", "add --teacher")
        self.learn = with_free_batch(splits.calibrate)
        self.school = School(self.learn, judge, like if teach else None, machine, request.seed)
        self.task = task_of(like, splits, machine)
        self.batch = max((b.inputs for b in self.learn.take(_BATCH).batches(_BATCH)), key=_rows)
        self.feeds = [b.inputs for b in splits.calibrate.take(4).batches(1)]

    @property
    def parts(self) -> dict[str, str]:
        """Hashes of what every worker must hold."""
        found = {word: _text_of(getattr(self.request, word)) for word in ("space", "proxy")}
        found["teacher"] = model_hash(self.like)
        return found | {n: getattr(self.splits, n).hash for n in ("calibrate", "select", "validate")}

    @property
    def name(self) -> str:
        """Of the study: another space, other data or another wish is another study."""
        r = self.request
        own = [
            str(v)
            for v in (
                r.proxy,
                r.strategy,
                r.seed,
                r.latency,
                r.size,
                r.peak,
                r.lesson,
                self.school.teacher is None,
                *r.aims,
            )
        ]
        return f"nas {r.space} {cache_key(*self.parts.values(), *own)[:12]}"

    # one candidate

    def model(self, choices: Mapping[str, Any]) -> ir.Model:
        return self.build(fixed(choices), self.task)

    def quality(self, model: ir.Model, counted: Costs) -> float:
        """What stands for quality; WORST where the proxy gives no number."""
        r = self.request
        if r.proxy == proxies.TRAINING:
            try:
                found = -self.school.train(model, r.lesson, lambda stage, share: None)[1].drop
            except EnvironmentProblem:  # it diverged
                found = -math.inf
        else:
            found = proxies.proxy(r.proxy, model, self.batch, counted, r.seed)
        return found if math.isfinite(found) else WORST

    def seconds(self, model: ir.Model, anchor: float) -> float:
        """Of one run: the anchor's, as measured when the study began, by the ratio to it, as measured now."""
        effort = Effort(seconds=0.4, precision=0.02, rebuilds=1, resamples=100)
        seen = compare_latency({"anchor": self.like, "candidate": model}, self.feeds, effort)
        return anchor / seen.ratios[0].speedup

    def anchor(self, study: Study) -> float:
        """Seconds of the anchor, on the kind of machine that times this study.

        Raises EnvironmentProblem on a machine of another kind: its times would say nothing of those taken before.
        """
        own = self.machine.text()
        kind = study.fact(_MACHINE, lambda: own)
        if kind != own:
            raise EnvironmentProblem(
                "this machine is of another kind than the study's times", own, f"they are of: {kind}",
                "join with --role train, or begin another study",
            )  # fmt: skip
        return float(study.fact(_ANCHOR, self._anchor))

    def _anchor(self) -> float:
        return compare_latency({"anchor": self.like}, self.feeds, Effort(seconds=1.0)).timings[0].median

    def builder(self, clock: Clock) -> Build:
        """What a study asks of a trial."""
        request = self.request

        def measured(model: ir.Model, number: int) -> tuple[float, float, float, Mapping[str, Any]]:
            latency = clock(model, number)
            counted = costs(model, self.feeds[0])
            quality = self.quality(model, counted)
            seconds, foreseen = latency(quality)
            beyond = [seconds / request.latency, counted.bytes / request.size, counted.peak / request.peak]
            facts = {
                "macs": counted.macs,
                "parameters": counted.parameters,
                "bytes": counted.bytes,
                "peak": counted.peak,
                "foreseen": foreseen,
            }
            return quality, seconds, sum(max(0.0, share - 1) for share in beyond), facts

        def build(trial: Any) -> tuple[str, Callable[[], tuple[float, float, float, Mapping[str, Any]]]]:
            model = self.build(trial, self.task)
            return structural_hash(model), partial(measured, model, trial.number)

        return build


def _text_of(name: str) -> str:
    """Hash of a file that FILE or FILE.py:function names, or of the name itself."""
    file = Path(name.rpartition(":")[0] or name)
    return cache_key(file.read_text() if file.is_file() else name)


def clocked(look: Look, study: Study, orders: Orders | None, in_time: Callable[[], bool]) -> Build:
    """Candidates timed here, or elsewhere where there are orders to place."""
    if orders is None:
        here = Here(look, look.anchor(study))
        return look.builder(lambda model, number: partial(here.time, model))

    def ordered(model: ir.Model, number: int) -> Wait:
        orders.place(number)
        return lambda quality: (orders.wait(number, in_time), False)

    return look.builder(ordered)


class Here:
    """Takes times on this machine.  Where the table of units is sure that a network is too slow to matter (beyond the limit;
    without one, slower than a network of more quality), what the table says is enough."""

    def __init__(self, look: Look, anchor: float) -> None:
        self._look, self._anchor, self._table = look, anchor, Table()
        self._timed: list[tuple[float, float]] = []  # quality, seconds

    def time(self, model: ir.Model, quality: float) -> tuple[float, bool]:
        """Seconds of a run, and whether they are only foreseen."""
        look = self._look
        sums = self._table.sums(model, look.feeds[0])
        seconds, doubt = self._table.predict(sums)
        least = seconds * (1 - doubt)
        if math.isfinite(look.request.latency):
            late = least > look.request.latency
        else:
            late = any(least > t and quality < q for q, t in self._timed)
        if doubt < _SURE and late and not look.request.aims:
            return seconds, True
        seconds = look.seconds(model, self._anchor)
        self._table.learn(sums, seconds)
        self._timed.append((quality, seconds))
        return seconds, False


def task_of(like: ir.Model, splits: Splits, machine: Machine) -> Task:
    """What candidates must take and give.  Raises InputProblem where ready spaces cannot give it."""
    sig = signature(like)
    outputs = [s for s in sig.outputs if s.dtype.kind == "f"]
    if not outputs:
        raise InputProblem("no output of floats to give", "", ", ".join(sig.output_names))
    shape = outputs[0].shape
    if len(sig.outputs) > 1 or shape is None or len(shape) != 2 or not isinstance(shape[1], int):
        raise InputProblem(
            "search spaces give one output [N, classes]",
            outputs[0].name,
            outputs[0].text(),
            "write a space of your own",
        )
    row = run_once(open_session(like), splits.calibrate[0].inputs)[sig.outputs.index(outputs[0])]
    probable = bool(row.min() >= 0 and abs(float(row.sum()) - 1) < 1e-3) and shape[1] > 1
    parts = (splits.calibrate, splits.select, splits.validate)
    return task_for(parts, shape[1], outputs[0].name, machine, probable)


def with_free_batch(data: Dataset) -> Dataset:
    """The samples as they are for a model that takes any number of them at once: a teacher may be fixed to one."""
    sig = data.signature
    if not all(s.shape and s.shape[0] == 1 for s in sig.inputs):
        return data
    free = [replace(s, shape=(BATCH, *(s.shape or ())[1:])) for s in sig.inputs]
    return open_dataset(data, replace(sig, inputs=tuple(free)))


def _rows(batch: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(batch.values())))
