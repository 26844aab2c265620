"""Latency of models on this machine under given conditions, and optional profiles, cold starts, memory and throughput.

`bench` returns a BenchResult.  With several numbers of threads or batch sizes every combination is a BenchPoint of its
own, measured for the whole time, and the fields of the BenchResult itself are those of the first one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import onnx_ir as ir

from onnxpress.data.any_data import DataSource, as_dataset
from onnxpress.data.dataset import Dataset
from onnxpress.data.layout import batch_layout
from onnxpress.data.synthetic import sample_shapes, synthetic
from onnxpress.errors import InputProblem
from onnxpress.evaluate.pairing import check_inputs, feeds_for, with_types_of
from onnxpress.measure.model_inputs import synthetic_samples
from onnxpress.model.files import to_bytes
from onnxpress.model.index_bounds import index_bounds
from onnxpress.model.signature import Signature, signature
from onnxpress.model.source import ModelSource, open_model, path_of
from onnxpress.result import Result
from onnxpress.runtime.builtin_models import measured_peak, reference_feeds, reference_model
from onnxpress.runtime.latency import Effort, LatencyComparison, Ratio, compare_latency
from onnxpress.runtime.machine import pinned, this_machine
from onnxpress.runtime.profile import Profile, profile
from onnxpress.runtime.session import SessionSettings
from onnxpress.runtime.subprocess_metrics import ColdStart, PeakMemory, cold_starts, peak_memory
from onnxpress.runtime.throughput import Throughput, throughput

SELF_CHECK_SUFFIX = " (again)"  # the name of a model's second session in a self-check
REFERENCE_NAME = "the built-in reference"
REBUILDS = 6  # of sessions: enough for the variance between them to count in the interval
_PROFILE_SECONDS = 4.0
_MAX_THREADS = 512


@dataclass(frozen=True)
class BenchOptions:
    """What to measure besides the latency.

    profile:    time by operator and kernel
    cold:       loading and first run, in fresh processes
    memory:     peak memory, in fresh processes
    callers:    number of concurrent callers for the throughput; 0: none, -1: as many as the cores allow
    self_check: a second session of the first model in the same run, whose ratio to the first should be 1
    reference:  the built-in reference model in the same run
    """

    profile: bool = False
    cold: bool = False
    memory: bool = False
    callers: int = 0
    self_check: bool = False
    reference: bool = False


@dataclass(frozen=True)
class BenchConditions:
    """The conditions of a measurement.

    threads:  intra-op threads; () takes the effort's number
    batch:    batch sizes; every combination with `threads` is measured; () takes the model's own, or 1
    shape:    by input name, shapes of synthetic inputs, batch size included
    pin:      the only CPUs to use; () for all
    settings: of the sessions; `threads` and `profile` in it are ignored
    """

    threads: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()
    shape: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    pin: tuple[int, ...] = ()
    settings: SessionSettings = field(default_factory=SessionSettings)

    def check(self) -> None:
        """Raises InputProblem for numbers out of range."""
        for what, numbers, most in (("threads", self.threads, _MAX_THREADS), ("batch", self.batch, 2**20)):
            wrong = [n for n in numbers if not 1 <= n <= most]
            if wrong:
                raise InputProblem(f"`{what}` is out of range", wrong[0], f"it must be 1 to {most}")


@dataclass(frozen=True)
class BenchPoint(LatencyComparison):
    """Measurements with one number of threads and one batch size.

    reference: the first model's speed in units of the built-in reference model's
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


@dataclass(frozen=True, repr=False)
class BenchResult(Result, BenchPoint):
    """The first point, and all points where there are several."""

    points: tuple[BenchPoint, ...] = ()

    @property
    def all_points(self) -> tuple[BenchPoint, ...]:
        """All points; the first one alone where there is no sweep."""
        return self.points or (self,)

    def facts(self) -> list[tuple[str, str]]:
        rows = [(t.name, f"{1e3 * t.median:.4g} ms (median)") for t in self.timings]
        return rows + [
            (r.name, f"{r.speedup:.3f}x the speed of {r.baseline} [{r.low:.3f}, {r.high:.3f}]") for r in self.ratios
        ]


def bench(
    *models: ModelSource | Mapping[str, ModelSource],
    data: DataSource | None = None,
    effort: Effort | None = None,
    progress: Callable[[float], None] | None = None,
    options: BenchOptions | None = None,
    conditions: BenchConditions | None = None,
) -> BenchResult:
    """Latency of one model, or of several against the first, on the same inputs in one interleaved run.

    models:     paths, bytes or models; or one mapping from names to them
    data:       samples (a path, arrays by input name, an iterable or a Dataset); None: synthetic inputs
    effort:     default: Effort(rebuilds=REBUILDS)
    progress:   called with the completed fraction
    options:    what to measure besides the latency
    conditions: threads, batch sizes, shapes, CPUs and session settings

    >>> result = onnxpress.bench("model.onnx", "other.onnx", effort=onnxpress.Effort(seconds=0.2, rebuilds=1))

    Raises InputProblem where the models have different inputs, or where the conditions do not fit them.
    """
    effort, options, conditions = (
        effort or Effort(rebuilds=REBUILDS),
        options or BenchOptions(),
        conditions or BenchConditions(),
    )
    conditions.check()
    named = _named(models)
    if not named or effort.seconds <= 0 or effort.precision <= 0:
        raise InputProblem("nothing to measure", "", "there must be a model, a time above 0 and a precision above 0")
    with pinned(conditions.pin):
        opened = {name: open_model(m, "models") for name, m in named.items()}
        paths = {name: path_of(m) for name, m in named.items()}
        sources = {name: to_bytes(m) if paths[name] is None else str(paths[name]) for name, m in opened.items()}
        first = _same_inputs(opened)
        samples = None if data is None else as_dataset(data, next(iter(opened.values())))
        feeds_by_batch = _feeds(opened, first, samples, conditions)
        points: list[BenchPoint] = []
        parts = len(feeds_by_batch) * len(conditions.threads or (1,))
        for threads in conditions.threads or (effort.threads or 1,):
            settings = replace(conditions.settings, threads=threads, profile="", dump="")
            for batch, feeds in feeds_by_batch.items():
                share = _part_progress(progress, len(points), parts)
                points.append(
                    _point(opened, sources, feeds, batch, replace(effort, threads=threads), settings, options, share)
                )
    own = {f.name: getattr(points[0], f.name) for f in fields(BenchPoint)}
    return BenchResult(**own, points=tuple(points) if len(points) > 1 else ())


def _named(models: Sequence[ModelSource | Mapping[str, ModelSource]]) -> dict[str, ModelSource]:
    """Models by name: those of a mapping, or the names of their files, numbered where two are alike."""
    found: dict[str, ModelSource] = {}
    for number, model in enumerate(models, 1):
        if isinstance(model, Mapping):
            found.update(model)
            continue
        path = path_of(model)
        name = path.name if path is not None else f"model {number}"
        found[name if name not in found else f"{name} ({number})"] = model
    return found


def _part_progress(progress: Callable[[float], None] | None, done: int, parts: int) -> Callable[[float], None] | None:
    """Progress of one of several parts."""
    return None if progress is None else lambda fraction: progress((done + fraction) / parts)


def _point(
    opened: Mapping[str, ir.Model],
    sources: Mapping[str, bytes | str],
    feeds: list[dict[str, np.ndarray]],
    batch: int,
    effort: Effort,
    settings: SessionSettings,
    options: BenchOptions,
    progress: Callable[[float], None] | None,
) -> BenchPoint:
    first = next(iter(sources))
    timed: dict[str, ir.Model | bytes | str] = dict(sources)
    if options.self_check:
        timed[first + SELF_CHECK_SUFFIX] = sources[first]
    if options.reference:
        timed[REFERENCE_NAME] = reference_model()
    own_feeds = {name: feeds_for(m, feeds) for name, m in opened.items() if m is not opened[first]}
    own_feeds[REFERENCE_NAME] = [reference_feeds()]
    timed_result = compare_latency(timed, feeds, effort, settings, progress, own_feeds)
    sources = _with_same_types(opened, sources)
    result = BenchPoint(**timed_result.__dict__, threads=settings.threads, batch=batch)
    result = replace(result, ratios=tuple(r for r in timed_result.ratios if r.name in sources))
    if options.self_check:
        result = replace(result, self_check=timed_result.ratio(first + SELF_CHECK_SUFFIX))
    if options.reference:
        inverse = timed_result.ratio(REFERENCE_NAME)
        speed = Ratio(first, REFERENCE_NAME, 1 / inverse.speedup, 1 / inverse.high, 1 / inverse.low)
        result = replace(result, reference=speed)
    if options.profile:
        peak, seconds = measured_peak(settings), min(effort.seconds, _PROFILE_SECONDS)
        result = replace(
            result,
            profiles=tuple(profile(m, feeds_for(m, feeds)[0], settings, seconds, n, peak) for n, m in opened.items()),
        )
    if options.cold:
        starts, ratios = cold_starts(sources, feeds[0], settings, effort.seconds, effort.seed)
        result = replace(result, cold=starts, cold_ratios=ratios)
    if options.memory:
        result = replace(result, memory=peak_memory(sources, feeds[0], settings))
    if options.callers:
        callers = options.callers if options.callers > 0 else max(1, this_machine().cores // settings.threads)
        rates, ratios = throughput(sources, feeds, settings, effort.seconds, callers, batch, effort.seed)
        result = replace(result, throughput=rates, throughput_ratios=ratios)
    return result


def _with_same_types(opened: Mapping[str, ir.Model], sources: Mapping[str, bytes | str]) -> dict[str, bytes | str]:
    """The sources, with a Cast in those that take other float types than the first model: one set of feeds fits all."""
    wanted = signature(next(iter(opened.values())))
    same = {name: with_types_of(model, wanted) for name, model in opened.items()}
    return {name: sources[name] if same[name] is model else to_bytes(same[name]) for name, model in opened.items()}


def _same_inputs(opened: Mapping[str, ir.Model]) -> Signature:
    """The first model's signature.  Raises InputProblem where another model has other inputs, but for float types."""
    signatures = {name: signature(m) for name, m in opened.items()}
    first = next(iter(signatures.values()))
    for name, own in signatures.items():
        check_inputs(first, own, name)
    return first


def _feeds(
    opened: Mapping[str, ir.Model], first: Signature, data: Dataset | None, conditions: BenchConditions
) -> dict[int, list[dict[str, np.ndarray]]]:
    """Feeds by batch size.  Raises InputProblem where the model or the data do not allow a batch size."""
    layout = batch_layout(first)
    if data is not None and conditions.shape:
        raise InputProblem(
            "`shape` applies to synthetic inputs only", "", "`data` gives the inputs", "leave out one of the two"
        )
    shapes, named = sample_shapes(first, conditions.shape)
    if data is None and not shapes:
        made = next(iter(synthetic_samples(next(iter(opened.values())), 1).batches(1)))
        shapes = {name: value.shape for name, value in made.inputs.items()}
    if named not in (None, 1) and conditions.batch and conditions.batch != (named,):
        raise InputProblem(
            "the batch size is given twice", f"{named} in `shape`", f"`batch` is {conditions.batch}", "give it once"
        )
    batches = conditions.batch or (named or layout.batch or 1,)
    for batch in batches:
        if layout.batch not in (None, batch) or (layout.alone and batch != 1):
            takes = "samples one at a time" if layout.alone else f"batches of {layout.batch} only"
            raise InputProblem(
                "the model does not take this batch", batch, f"it takes {takes}", "export it with a free batch axis"
            )
    limits: dict[str, int] = {}
    for model in opened.values():
        for name, limit in index_bounds(model).items():
            limits[name] = min(limit, limits.get(name, limit))
    result = {}
    for batch in batches:
        samples = data
        if samples is None:
            samples = synthetic(first, 4 if batch == 1 else 2 * batch, shapes=shapes, limits=limits)
        rows = [b for b in samples.take(8 * batch).batches(batch) if b.count == batch or layout.batch is not None]
        if not rows:
            raise InputProblem(
                "the data do not fill this batch",
                batch,
                f"no {batch} samples of equal shapes follow each other",
                "give more samples",
            )
        result[batch] = [b.inputs for b in rows]
    return result
