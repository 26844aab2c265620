"""Latency that can be believed: models timed side by side, and the ratio reported with its interval.

In every round each model runs once untimed and then a block of timed runs, in an order drawn anew each round.  Noise
that drifts (frequency, neighbours) hits both sides of a round alike, so the per-round log ratio is what is averaged:
median, with a moving-block bootstrap for the 95 % interval (rounds are correlated in time).  Sessions are built
several times, because where the allocator puts the weights is a random effect of its own; built five times or more, the spread
between the builds counts in the interval.

A slow model must not take minutes: its warm-up is one run, and of rounds and rebuilds it gets what fits into the wished time
and a half, but three rounds at least, with an interval that knows how few they are.

The stopping rule looks at the interval's width only, never at its position: peeking at significance would inflate
false claims (27 % instead of 5 % in our simulation of ten looks).
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
from onnxpress.runtime.session import SessionSettings, open_session, run

_BLOCK_SECONDS = 2e-3
_RESAMPLES = 800
_QUANTILES = 41
_MIN_ROUNDS, _MIN_ROUNDS_SLOW = 12, 3
_OVERTIME = 10.0  # seconds that the least rounds may take beyond the wished time; or half of that, if it is more
_OPENING = 0.3  # of the wished time may go into building sessions, or half the overtime, if it is more
_LONG = 0.25  # a run of so many seconds finds its caches by itself: no untimed run before it
_SETTLED, _PATIENCE = 0.1, 0.5

FASTER, SLOWER, SAME = "faster", "slower", "no significant difference"


@dataclass(frozen=True)
class Timing:
    """One model's times in seconds a run; low and high bound the median's 95 % interval.

    cpu: median seconds that the whole process computes a run, on all its threads; quantiles: of the rounds' times, from the least
    (0 %) to the greatest (100 %) in equal steps.
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
    """How many times as fast `name` is as `baseline`: above 1 is faster. low, high: 95 % interval."""

    name: str
    baseline: str
    speedup: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        if self.low > 1.0:
            return FASTER
        return SLOWER if self.high < 1.0 else SAME


@dataclass(frozen=True)
class LatencyComparison:
    """Timings of all models, ratios against the first, and what made the measurement less certain."""

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

    precision: relative half-width of the ratios' interval at which to stop early
    rebuilds:  how often sessions are built anew, at most; from 5 on, the differences between them count in the interval
    """

    seconds: float = 10.0
    precision: float = 0.01
    rebuilds: int = 3
    threads: int = 1
    seed: int = 0
    resamples: int = _RESAMPLES


@dataclass
class _TimedModel:
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
        self.session = open_session(self.source, self.settings, self.name)
        self.built += 1
        start = time.perf_counter()
        count, spent = 0, 0.0
        while count < 1 or (count < 3 and spent < 2 * _LONG) or (count < 20 and spent < 0.05):
            begin = time.perf_counter()
            run(self.session, self.feeds[count % len(self.feeds)], where=self.name)
            self.single = max(time.perf_counter() - begin, 1e-7)
            count, spent = count + 1, time.perf_counter() - start
        self.repeat = int(max(1, min(200, _BLOCK_SECONDS / self.single)))

    def cost(self) -> float:
        """Seconds that a block takes, about."""
        return self.single * (self.repeat + (self.single < _LONG))

    def block(self) -> None:
        """Time one block, after one untimed run where that matters."""
        session = self.session
        assert session is not None
        feeds = self.feeds[self.position % len(self.feeds)]
        self.position += 1
        if self.single < _LONG:
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
    """Time the models against the first one.  feeds: cycled round by round, the same for every model without own_feeds.

    Raises InputProblem where a model does not load or run.
    """
    effort = effort or Effort()
    settings = settings or SessionSettings(threads=effort.threads)
    rng = np.random.default_rng(effort.seed)
    plain, own = _contiguous(feeds), {name: _contiguous(some) for name, some in (own_feeds or {}).items()}
    reference, start = _MachineMonitor(), time.perf_counter()

    def on_round() -> None:
        reference.sample()
        if progress:
            progress(min(1.0, (time.perf_counter() - start) / effort.seconds))

    with ExitStack() as files:
        arms = [
            _TimedModel(name, _source(model, files), own.get(name, plain), settings) for name, model in models.items()
        ]
        _measure(arms, effort, settings, rng, on_round)
    return LatencyComparison(
        tuple(_timing(a, effort) for a in arms),
        tuple(_ratio(arms[0], a, effort) for a in arms[1:]),
        reference.warnings(),
        time.perf_counter() - start,
    )


def _source(model: ir.Model | bytes | str, files: ExitStack) -> bytes | str:
    """What a session is made of, again and again; of a large model in memory a file that lasts as long as `files`."""
    if not isinstance(model, ir.Model):
        return model
    found = files.enter_context(serialized(model))
    return found if isinstance(found, bytes) else str(found)


def _measure(
    arms: list[_TimedModel],
    effort: Effort,
    settings: SessionSettings,
    rng: np.random.Generator,
    on_round: Callable[[], None],
) -> None:
    """Build the sessions again and again, and time rounds with each; tell is called after every round."""
    calm = settings.spinning and settings.threads > 1 and len(arms) > 1
    start = time.perf_counter()
    builds, least, enough = effort.rebuilds, 0, 0
    build = 0
    while build < builds:
        opening = time.perf_counter()
        for index in rng.permutation(len(arms)):
            arms[index].open()
        if build == 0:
            allowed = max(_OPENING * effort.seconds, 0.5 * _OVERTIME)
            builds = max(1, min(builds, int(allowed / (time.perf_counter() - opening))))
            least = -(-_least_rounds(arms, effort.seconds, time.perf_counter() - start) // builds)
        deadline = start + effort.seconds * (build + 1) / builds
        rounds = 0
        while rounds < least or time.perf_counter() < deadline:
            for index in rng.permutation(len(arms)):
                if calm:
                    _wait_until_idle()
                arms[index].block()
            on_round()
            rounds += 1
            total = len(arms[0].times)
            due = rounds % max(8, total // 64 * 8) == 0 and rounds * (build + 1) >= 40 // builds
            if due and rounds >= enough and _precise_enough(arms, effort):
                break
        if builds >= MIN_GROUPS and build == 0:
            enough = rounds  # builds are compared with each other, so that each gets as many rounds as the first
        build += 1


def _contiguous(feeds: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    return [{k: np.ascontiguousarray(v) for k, v in f.items()} for f in feeds]


def _least_rounds(arms: list[_TimedModel], seconds: float, spent: float) -> int:
    """How many rounds there must be: 12, but of slow models what fits into the wished time and overtime, and 3."""
    left = seconds + max(_OVERTIME, 0.5 * seconds) - spent
    return max(_MIN_ROUNDS_SLOW, min(_MIN_ROUNDS, int(left / sum(arm.cost() for arm in arms))))


def _wait_until_idle() -> None:
    """Wait until no thread of this process computes: the pool of the session that ran last spins on for a while."""
    start = time.perf_counter()
    while time.perf_counter() - start < _PATIENCE:
        busy, begin = time.process_time(), time.perf_counter()
        time.sleep(5e-3)
        if time.process_time() - busy < _SETTLED * (time.perf_counter() - begin):
            return


def quick_seconds(model: ir.Model, feeds: Mapping[str, np.ndarray], seconds: float = 0.015) -> float:
    """The median of a run, timed alone for so long: an estimate for tables, no basis of a claim.

    Raises InputProblem where the model does not load or run.
    """
    session = open_session(model)
    run(session, feeds)
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _precise_enough(arms: list[_TimedModel], effort: Effort) -> bool:
    if len(arms[0].times) < 40:
        return False
    quick = replace(effort, resamples=200)
    if len(arms) == 1:
        timing = _timing(arms[0], quick)
        return (timing.high - timing.low) / 2 <= effort.precision * timing.median
    return all(
        (r.high - r.low) / 2 <= effort.precision * r.speedup for r in (_ratio(arms[0], a, quick) for a in arms[1:])
    )


def _timing(arm: _TimedModel, effort: Effort) -> Timing:
    values = np.array(arm.times)
    median, low, high = _log_interval(np.log(values), arm, effort)
    p90, least, cpu = float(np.quantile(values, 0.9)), float(values.min()), float(np.median(arm.cpus))
    quantiles = tuple(float(v) for v in np.quantile(values, np.linspace(0.0, 1.0, _QUANTILES)))
    return Timing(arm.name, median, p90, least, low, high, len(values), arm.repeat, cpu, quantiles)


def _ratio(base: _TimedModel, arm: _TimedModel, effort: Effort) -> Ratio:
    logs = np.log(np.array(base.times) / np.array(arm.times))
    median, low, high = _log_interval(logs, arm, effort)
    return Ratio(arm.name, base.name, median, low, high)


def _log_interval(logs: np.ndarray, arm: _TimedModel, effort: Effort) -> tuple[float, float, float]:
    """Median and 95 % interval of a positive quantity from its logarithms, round by round."""
    found = median_interval(logs, effort.resamples, effort.seed, np.array(arm.builds))
    median, low, high = (float(np.exp(min(v, 700.0))) for v in found)
    return median, low, high


class _MachineMonitor:
    """A fixed piece of work timed every round: what it shows is the machine, not the models."""

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
        if self._load > cores:  # our own work counts for one
            found.append(f"the machine was busy: load average {self._load:.1f} on {cores} cores")
        times = np.array(self._times)
        if len(times) >= 20:
            halves = np.median(times[: len(times) // 2]), np.median(times[len(times) // 2 :])
            if max(halves) / min(halves) > 1.15:
                found.append(
                    f"the machine's speed drifted by {max(halves) / min(halves) - 1:.0%} during the measurement"
                )
        return tuple(found)
