"""Latency of models in interleaved rounds, and their ratio with a confidence interval.

In every round each model runs once untimed and then a block of timed runs, in a random order.  Drifting noise
(frequency, neighbours) affects both models of a round equally, so the log ratio per round is used: its median, with a
moving-block bootstrap for the 95 % interval (rounds are correlated in time).  Sessions are built several times, because
where the allocator places the weights is a random effect of its own; with five builds or more, the variance between
builds is part of the interval.

A slow model must not take minutes: its warm-up is one run, and it gets as many rounds and rebuilds as fit into one and
a half times the given time, but at least three rounds, with an interval for so few.

The stopping rule uses the width of the interval only, not its position: repeated significance tests would inflate false
positives (27 % instead of 5 % in our simulation of ten tests).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxpress.model.files import serialized
from onnxpress.runtime.intervals import MIN_GROUPS, median_interval
from onnxpress.runtime.session import SessionSettings, default_settings, open_session, run

_BLOCK_SECONDS = 2e-3
_RESAMPLES = 800
_QUANTILES = 41
_MIN_ROUNDS, _MIN_ROUNDS_SLOW = 12, 3
_OVERTIME = (
    10.0  # seconds beyond the given time for the minimum number of rounds, or half the given time if that is more
)
_BUILD_FRACTION = 0.3  # fraction of the given time for building sessions, or half the overtime if that is more
_LONG_RUN = 0.25  # seconds of a run from which on it needs no untimed run before it to fill the caches
_SETTLED, _PATIENCE = 0.1, 0.5

FASTER, SLOWER, SAME = "faster", "slower", "no significant difference"


@dataclass(frozen=True)
class Timing:
    """Times of one model, in seconds per run.

    low, high:      95 % interval of the median
    rounds:         number of timed rounds
    runs_per_round: runs in a block
    cpu:            median CPU seconds of the whole process per run, over all threads
    quantiles:      of the rounds' times, from the minimum (0 %) to the maximum (100 %) in equal steps
    """

    name: str
    median: float
    p90: float
    minimum: float
    low: float
    high: float
    rounds: int
    runs_per_round: int
    cpu: float = 0.0
    quantiles: tuple[float, ...] = ()


@dataclass(frozen=True)
class Ratio:
    """The speed of `name` relative to `baseline`: above 1 is faster.  low, high: 95 % interval."""

    name: str
    baseline: str
    speedup: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """FASTER or SLOWER where the interval excludes 1, else SAME."""
        if self.low > 1.0:
            return FASTER
        return SLOWER if self.high < 1.0 else SAME


@dataclass(frozen=True)
class LatencyComparison:
    """Timings of all models, ratios to the first, warnings about the machine, and the seconds it took."""

    timings: tuple[Timing, ...]
    ratios: tuple[Ratio, ...]
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0

    def timing(self, name: str) -> Timing:
        return next(t for t in self.timings if t.name == name)

    def ratio(self, name: str) -> Ratio:
        return next(r for r in self.ratios if r.name == name)


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    seconds:   maximum time of all models together
    precision: relative half-width of the ratios' intervals at which to stop early
    rebuilds:  maximum number of session builds; from 5 on, the variance between them is part of the interval
    threads:   intra-op threads; None: those of `sessions_with`, else 1
    seed:      of the order of the models and of the bootstrap
    resamples: of the bootstrap
    """

    seconds: float = 10.0
    precision: float = 0.01
    rebuilds: int = 3
    threads: int | None = None
    seed: int = 0
    resamples: int = _RESAMPLES


@dataclass
class _TimedModel:
    """One model of a comparison, with its session and its times."""

    name: str
    source: bytes | str
    feeds: Sequence[Mapping[str, np.ndarray]]
    settings: SessionSettings
    session: ort.InferenceSession | None = None
    repeat: int = 1
    times: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)
    builds: list[int] = field(default_factory=list)
    built: int = 0
    position: int = 0
    single: float = 0.0

    def open(self) -> None:
        """Build a session and warm it up."""
        self.session = open_session(self.source, self.settings, self.name)
        self.built += 1
        start = time.perf_counter()
        count, spent = 0, 0.0
        while count < 1 or (count < 3 and spent < 2 * _LONG_RUN) or (count < 20 and spent < 0.05):
            begin = time.perf_counter()
            run(self.session, self.feeds[count % len(self.feeds)], where=self.name)
            self.single = max(time.perf_counter() - begin, 1e-7)
            count, spent = count + 1, time.perf_counter() - start
        self.repeat = int(max(1, min(200, _BLOCK_SECONDS / self.single)))

    def cost(self) -> float:
        """Approximate seconds of a block."""
        return self.single * (self.repeat + (self.single < _LONG_RUN))

    def block(self) -> None:
        """Time one block, after one untimed run where that matters."""
        session = self.session
        assert session is not None
        feeds = self.feeds[self.position % len(self.feeds)]
        self.position += 1
        if self.single < _LONG_RUN:
            session.run(None, feeds)
        busy, start = time.process_time(), time.perf_counter()
        for _ in range(self.repeat):
            session.run(None, feeds)
        self.times.append((time.perf_counter() - start) / self.repeat)
        self.cpus.append((time.process_time() - busy) / self.repeat)
        self.builds.append(self.built)


def compare_latency(
    models: Mapping[str, ir.Model | bytes | str],
    feeds: Sequence[Mapping[str, np.ndarray]],
    effort: Effort | None = None,
    settings: SessionSettings | None = None,
    progress: Callable[[float], None] | None = None,
    own_feeds: Mapping[str, Sequence[Mapping[str, np.ndarray]]] | None = None,
) -> LatencyComparison:
    """Time models in interleaved rounds, and compare them with the first one.

    models:    by name
    feeds:     inputs, cycled round by round, the same for every model
    effort:    default: Effort()
    settings:  of the sessions; default: those of `sessions_with`, with the effort's threads
    progress:  called with the completed fraction
    own_feeds: by model, inputs in place of `feeds`

    Raises InputProblem where a model does not load or run.
    """
    effort = effort or Effort()
    if settings is None:
        settings = replace(default_settings(), threads=effort.threads or default_settings().threads)
    rng = np.random.default_rng(effort.seed)
    plain, own = _contiguous(feeds), {name: _contiguous(some) for name, some in (own_feeds or {}).items()}
    reference, start = _MachineMonitor(), time.perf_counter()

    def on_round() -> None:
        reference.sample()
        if progress:
            progress(min(1.0, (time.perf_counter() - start) / effort.seconds))

    with ExitStack() as files:
        timed = [
            _TimedModel(name, _source(model, files), own.get(name, plain), settings) for name, model in models.items()
        ]
        _measure(timed, effort, settings, rng, on_round)
    return LatencyComparison(
        tuple(_timing(a, effort) for a in timed),
        tuple(_ratio(timed[0], a, effort) for a in timed[1:]),
        reference.warnings(),
        time.perf_counter() - start,
    )


def _source(model: ir.Model | bytes | str, files: ExitStack) -> bytes | str:
    """What sessions are built from; for a large model in memory a temporary file that exists as long as `files`."""
    if not isinstance(model, ir.Model):
        return model
    found = files.enter_context(serialized(model))
    return found if isinstance(found, bytes) else str(found)


def _measure(
    timed: list[_TimedModel],
    effort: Effort,
    settings: SessionSettings,
    rng: np.random.Generator,
    on_round: Callable[[], None],
) -> None:
    """Build the sessions repeatedly, and time rounds with each build.  on_round: called after every round."""
    wait_between_models = settings.spinning and settings.threads > 1 and len(timed) > 1
    start = time.perf_counter()
    builds, least, enough = effort.rebuilds, 0, 0
    build = 0
    while build < builds:
        opening = time.perf_counter()
        for index in rng.permutation(len(timed)):
            timed[index].open()
        if build == 0:
            allowed = max(_BUILD_FRACTION * effort.seconds, 0.5 * _OVERTIME)
            builds = max(1, min(builds, int(allowed / (time.perf_counter() - opening))))
            least = -(-_least_rounds(timed, effort.seconds, time.perf_counter() - start) // builds)
        deadline = start + effort.seconds * (build + 1) / builds
        rounds = 0
        while rounds < least or time.perf_counter() < deadline:
            for index in rng.permutation(len(timed)):
                if wait_between_models:
                    _wait_until_idle()
                timed[index].block()
            on_round()
            rounds += 1
            total = len(timed[0].times)
            due = rounds % max(8, total // 64 * 8) == 0 and rounds * (build + 1) >= 40 // builds
            if due and rounds >= enough and _precise_enough(timed, effort):
                break
        if builds >= MIN_GROUPS and build == 0:
            enough = rounds  # builds are compared with each other, so each gets as many rounds as the first
        build += 1


def _contiguous(feeds: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    return [{k: np.ascontiguousarray(v) for k, v in f.items()} for f in feeds]


def _least_rounds(timed: list[_TimedModel], seconds: float, spent: float) -> int:
    """Minimum number of rounds: 12, but for slow models as many as fit into the time and overtime, and at least 3."""
    left = seconds + max(_OVERTIME, 0.5 * seconds) - spent
    return max(_MIN_ROUNDS_SLOW, min(_MIN_ROUNDS, int(left / sum(model.cost() for model in timed))))


def _wait_until_idle() -> None:
    """Wait until no thread of this process computes: the thread pool of the previous session spins for a while."""
    start = time.perf_counter()
    while time.perf_counter() - start < _PATIENCE:
        busy, begin = time.process_time(), time.perf_counter()
        time.sleep(5e-3)
        if time.process_time() - busy < _SETTLED * (time.perf_counter() - begin):
            return


def quick_seconds(model: ir.Model, feeds: Mapping[str, np.ndarray], seconds: float = 0.015) -> float:
    """Median seconds of a run, timed alone for `seconds`: an estimate for tables, not for comparisons.

    Raises InputProblem where the model does not load or run.
    """
    session = open_session(model)
    run(session, feeds)
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - started < seconds:
        start = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _precise_enough(timed: list[_TimedModel], effort: Effort) -> bool:
    """Whether all intervals are as narrow as the effort's precision."""
    if len(timed[0].times) < 40:
        return False
    quick = replace(effort, resamples=200)
    if len(timed) == 1:
        timing = _timing(timed[0], quick)
        return (timing.high - timing.low) / 2 <= effort.precision * timing.median
    return all(
        (r.high - r.low) / 2 <= effort.precision * r.speedup for r in (_ratio(timed[0], a, quick) for a in timed[1:])
    )


def _timing(model: _TimedModel, effort: Effort) -> Timing:
    values = np.array(model.times)
    median, low, high = _log_interval(np.log(values), model, effort)
    p90, least, cpu = float(np.quantile(values, 0.9)), float(values.min()), float(np.median(model.cpus))
    quantiles = tuple(float(v) for v in np.quantile(values, np.linspace(0.0, 1.0, _QUANTILES)))
    return Timing(model.name, median, p90, least, low, high, len(values), model.repeat, cpu, quantiles)


def _ratio(base: _TimedModel, model: _TimedModel, effort: Effort) -> Ratio:
    logs = np.log(np.array(base.times) / np.array(model.times))
    median, low, high = _log_interval(logs, model, effort)
    return Ratio(model.name, base.name, median, low, high)


def _log_interval(logs: np.ndarray, model: _TimedModel, effort: Effort) -> tuple[float, float, float]:
    """Median and 95 % interval of a positive quantity from its logarithms, round by round."""
    found = median_interval(logs, effort.resamples, effort.seed, np.array(model.builds))
    median, low, high = (float(np.exp(min(v, 700.0))) for v in found)
    return median, low, high


class _MachineMonitor:
    """A fixed computation timed in every round: its changes are those of the machine, not of the models."""

    def __init__(self) -> None:
        self._matrix = np.random.default_rng(0).standard_normal((48, 48)).astype(np.float32)
        self._times: list[float] = []
        self._load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0

    def sample(self) -> None:
        start = time.perf_counter()
        value = self._matrix
        for _ in range(8):
            value = np.tanh(value @ self._matrix * 0.01)
        self._times.append(time.perf_counter() - start)

    def warnings(self) -> tuple[str, ...]:
        found = []
        cores = os.cpu_count() or 1
        if self._load > cores:  # our own process counts for one
            found.append(f"the machine was busy: load average {self._load:.1f} on {cores} cores")
        times = np.array(self._times)
        if len(times) >= 20:
            halves = np.median(times[: len(times) // 2]), np.median(times[len(times) // 2 :])
            if max(halves) / min(halves) > 1.15:
                found.append(
                    f"the machine's speed drifted by {max(halves) / min(halves) - 1:.0%} during the measurement"
                )
        return tuple(found)
