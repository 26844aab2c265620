"""Measuring models on this machine, as a function: latency side by side under the wished conditions, and what else is asked for.

`bench` returns a Bench; `--json` prints the same dataclass.  Where several numbers of threads or batch sizes are wished, every
combination is a Point of its own, measured for the wished seconds, and the Bench's own fields are those of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxpress.data.dataset import Dataset
from onnxpress.data.layout import layout
from onnxpress.data.synthetic import sample_shapes, synthetic
from onnxpress.errors import InputProblem
from onnxpress.model.files import load, to_bytes
from onnxpress.model.index_bounds import index_bounds
from onnxpress.model.signature import Signature, signature
from onnxpress.runtime.builtin_models import measured_peak, reference_feeds, reference_model
from onnxpress.runtime.latency import Effort, LatencyComparison, Ratio, compare_latency
from onnxpress.runtime.machine import pinned, this_machine
from onnxpress.runtime.profile import Profile, profile
from onnxpress.runtime.session import SessionSettings
from onnxpress.runtime.subprocess_metrics import ColdStart, PeakMemory, cold_starts, peak_memory
from onnxpress.runtime.throughput import Throughput, throughput

ModelLike = str | Path | ir.Model
SELF_CHECK_SUFFIX = " (again)"  # the name of a model's second session in a self-check
REFERENCE_NAME = "the built-in reference"
REBUILDS = 6  # of sessions: enough for the differences between them to count in the interval
_PROFILE_SECONDS = 4.0
_MOST_THREADS = 512


@dataclass(frozen=True)
class BenchOptions:
    """What to look at besides the latency.

    profile: where the time goes; cold: loading and the first run; memory: the peak (both in fresh processes); callers: how many
    threads ask at once for a throughput, 0 for none, -1 for as many as the cores hold; self_check: a second session of the
    first model's bytes in the same run, whose ratio to the first ought to be 1; reference: the built-in model in the same run.
    """

    profile: bool = False
    cold: bool = False
    memory: bool = False
    callers: int = 0
    self_check: bool = False
    reference: bool = False


@dataclass(frozen=True)
class BenchConditions:
    """Under which conditions models run.

    threads, batches: every combination of them is measured; no threads: the effort's number
    shapes:   whole shapes of synthetic inputs; a batch in them is the batch
    pin:      CPUs that alone may be used
    settings: of the sessions; its number of threads and its profile are not looked at
    """

    threads: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    pin: tuple[int, ...] = ()
    settings: SessionSettings = field(default_factory=SessionSettings)

    def check(self) -> None:
        """Raises InputProblem for numbers that cannot be."""
        for what, numbers, most in (("threads", self.threads, _MOST_THREADS), ("batch", self.batches, 2**20)):
            wrong = [n for n in numbers if not 1 <= n <= most]
            if wrong:
                raise InputProblem(f"--{what} is out of range", wrong[0], f"it must be 1 to {most}")


@dataclass(frozen=True)
class BenchPoint(LatencyComparison):
    """What was measured with one number of threads and one batch size.

    reference: the first model's speed in units of the built-in reference model's.
    """

    threads: int = 1
    batch: int = 1
    self_check: Ratio | None = None
    reference: Ratio | None = None
    profiles: tuple[Profile, ...] = ()
    cold: tuple[ColdStart, ...] = ()
    cold_ratios: tuple[Ratio, ...] = ()
    memory: tuple[PeakMemory, ...] = ()
    throughput: tuple[Throughput, ...] = ()
    throughput_ratios: tuple[Ratio, ...] = ()


@dataclass(frozen=True)
class BenchResult(BenchPoint):
    """The first point, and all of them where there are several."""

    points: tuple[BenchPoint, ...] = ()

    @property
    def every(self) -> tuple[BenchPoint, ...]:
        return self.points or (self,)


def bench(
    models: Mapping[str, ModelLike],
    data: Dataset | None = None,
    effort: Effort | None = None,
    progress: Callable[[float], None] | None = None,
    ask: BenchOptions | None = None,
    conditions: BenchConditions | None = None,
) -> BenchResult:
    """Latency of one model, or of several against the first, on the same inputs in one interleaved run.

    Raises InputProblem where the models take different inputs, or what is asked for cannot be.
    """
    effort, ask, conditions = (
        effort or Effort(rebuilds=REBUILDS),
        ask or BenchOptions(),
        conditions or BenchConditions(),
    )
    conditions.check()
    if not models or effort.seconds <= 0 or effort.precision <= 0:
        raise InputProblem("nothing to measure", "", "there must be a model, a time above 0 and a precision above 0")
    with pinned(conditions.pin):
        opened = {name: m if isinstance(m, ir.Model) else load(m) for name, m in models.items()}
        sources = {name: to_bytes(m) if isinstance(m, ir.Model) else str(m) for name, m in models.items()}
        first = _same_inputs(opened)
        wanted = _feeds(opened, first, data, conditions)
        points: list[BenchPoint] = []
        parts = len(wanted) * len(conditions.threads or (1,))
        for threads in conditions.threads or (effort.threads,):
            settings = replace(conditions.settings, threads=threads, profile="", dump="")
            for batch, feeds in wanted.items():
                share = _share(progress, len(points), parts)
                points.append(
                    _point(opened, sources, feeds, batch, replace(effort, threads=threads), settings, ask, share)
                )
    own = {f.name: getattr(points[0], f.name) for f in fields(BenchPoint)}
    return BenchResult(**own, points=tuple(points) if len(points) > 1 else ())


def _share(progress: Callable[[float], None] | None, done: int, parts: int) -> Callable[[float], None] | None:
    """The progress of one part of several."""
    return None if progress is None else lambda fraction: progress((done + fraction) / parts)


def _point(
    opened: Mapping[str, ir.Model],
    sources: Mapping[str, bytes | str],
    feeds: list[dict[str, np.ndarray]],
    batch: int,
    effort: Effort,
    settings: SessionSettings,
    ask: BenchOptions,
    progress: Callable[[float], None] | None,
) -> BenchPoint:
    first = next(iter(sources))
    timed: dict[str, ir.Model | bytes | str] = dict(sources)
    if ask.self_check:
        timed[first + SELF_CHECK_SUFFIX] = sources[first]
    if ask.reference:
        timed[REFERENCE_NAME] = reference_model()
    seen = compare_latency(timed, feeds, effort, settings, progress, {REFERENCE_NAME: [reference_feeds()]})
    found = BenchPoint(**seen.__dict__, threads=settings.threads, batch=batch)
    found = replace(found, ratios=tuple(r for r in seen.ratios if r.name in sources))
    if ask.self_check:
        found = replace(found, self_check=seen.ratio(first + SELF_CHECK_SUFFIX))
    if ask.reference:
        turned = seen.ratio(REFERENCE_NAME)
        speed = Ratio(first, REFERENCE_NAME, 1 / turned.speedup, 1 / turned.high, 1 / turned.low)
        found = replace(found, reference=speed)
    if ask.profile:
        peak, seconds = measured_peak(settings), min(effort.seconds, _PROFILE_SECONDS)
        found = replace(
            found, profiles=tuple(profile(m, feeds[0], settings, seconds, n, peak) for n, m in opened.items())
        )
    if ask.cold:
        starts, ratios = cold_starts(sources, feeds[0], settings, effort.seconds, effort.seed)
        found = replace(found, cold=starts, cold_ratios=ratios)
    if ask.memory:
        found = replace(found, memory=peak_memory(sources, feeds[0], settings))
    if ask.callers:
        callers = ask.callers if ask.callers > 0 else max(1, this_machine().cores // settings.threads)
        rates, ratios = throughput(sources, feeds, settings, effort.seconds, callers, batch, effort.seed)
        found = replace(found, throughput=rates, throughput_ratios=ratios)
    return found


def _same_inputs(opened: Mapping[str, ir.Model]) -> Signature:
    """The first model's signature.  Raises InputProblem where another takes other inputs."""
    signatures = {name: signature(m) for name, m in opened.items()}
    first = next(iter(signatures.values()))
    for name, own in signatures.items():
        if own.inputs != first.inputs and {(s.name, s.dtype) for s in own.inputs} != {
            (s.name, s.dtype) for s in first.inputs
        }:
            raise InputProblem(
                "the models take different inputs",
                name,
                f"{[s.name for s in own.inputs]} and {[s.name for s in first.inputs]}",
                "bench models with the same inputs together",
            )
    return first


def _feeds(
    opened: Mapping[str, ir.Model], first: Signature, data: Dataset | None, conditions: BenchConditions
) -> dict[int, list[dict[str, np.ndarray]]]:
    """Inputs by batch size.  Raises InputProblem where the model or the data do not give that batch."""
    where = layout(first)
    if data is not None and conditions.shapes:
        raise InputProblem("--shape belongs to synthetic inputs", "", "--data gives inputs of its own", "leave one out")
    shapes, named = sample_shapes(first, conditions.shapes)
    if named not in (None, 1) and conditions.batches and conditions.batches != (named,):
        raise InputProblem(
            "the batch is said twice", f"{named} in --shape", f"--batch says {conditions.batches}", "say it once"
        )
    batches = conditions.batches or (named or where.batch or 1,)
    for batch in batches:
        if where.batch not in (None, batch) or (where.alone and batch != 1):
            takes = "samples one at a time" if where.alone else f"batches of {where.batch} only"
            raise InputProblem(
                "the model does not take this batch", batch, f"it takes {takes}", "export it with a free batch axis"
            )
    limits: dict[str, int] = {}
    for model in opened.values():
        for name, limit in index_bounds(model).items():
            limits[name] = min(limit, limits.get(name, limit))
    found = {}
    for batch in batches:
        samples = data
        if samples is None:
            samples = synthetic(first, 4 if batch == 1 else 2 * batch, shapes=shapes, limits=limits)
        rows = [b for b in samples.take(8 * batch).batches(batch) if b.count == batch or where.batch is not None]
        if not rows:
            raise InputProblem(
                "the data do not fill this batch",
                batch,
                f"no {batch} samples of equal shapes follow each other",
                "give more samples",
            )
        found[batch] = [b.inputs for b in rows]
    return found
