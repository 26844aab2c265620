"""Latency that can be believed: models timed side by side, and the ratio reported with its interval.

In every round each model runs once untimed and then a block of timed runs, in an order drawn anew each round.  Noise
that drifts (frequency, neighbours) hits both sides of a round alike, so the per-round log ratio is what is averaged:
median, with a moving-block bootstrap for the 95 % interval (rounds are correlated in time).  Sessions are built
several times, because where the allocator puts the weights is a random effect of its own.

The stopping rule looks at the interval's width only, never at its position: peeking at significance would inflate
false claims (27 % instead of 5 % in our simulation of ten looks).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxpress.model.files import to_bytes
from onnxpress.runtime.session import Settings, open_session, run

_BLOCK_SECONDS = 2e-3
_RESAMPLES = 800
_MIN_ROUNDS = 12

FASTER, SLOWER, SAME = "faster", "slower", "no significant difference"


@dataclass(frozen=True)
class Timing:
    """One model's times in seconds a run; low and high bound the median's 95 % interval."""

    name: str
    median: float
    p90: float
    minimum: float
    low: float
    high: float
    rounds: int
    runs_per_round: int


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
class Comparison:
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
    """How long to measure. precision: relative half-width of the ratios' interval at which to stop early."""

    seconds: float = 10.0
    precision: float = 0.01
    rebuilds: int = 3
    threads: int = 1
    seed: int = 0
    resamples: int = _RESAMPLES


@dataclass
class _Arm:
    name: str
    source: bytes | str
    feeds: Sequence[Mapping[str, np.ndarray]]
    settings: Settings
    session: ort.InferenceSession | None = None
    repeat: int = 1
    times: list[float] = field(default_factory=list)
    position: int = 0

    def open(self) -> None:
        self.session = open_session(self.source, self.settings, self.name)
        start = time.perf_counter()
        count = 0
        while count < 3 or (time.perf_counter() - start < 0.05 and count < 20):
            run(self.session, self.feeds[count % len(self.feeds)], where=self.name)
            count += 1
        begin = time.perf_counter()
        run(self.session, self.feeds[0])
        single = max(time.perf_counter() - begin, 1e-7)
        self.repeat = int(max(1, min(200, _BLOCK_SECONDS / single)))

    def block(self) -> float:
        """Mean seconds a run over one block, after one untimed run."""
        session = self.session
        assert session is not None
        feeds = self.feeds[self.position % len(self.feeds)]
        self.position += 1
        session.run(None, feeds)
        start = time.perf_counter()
        for _ in range(self.repeat):
            session.run(None, feeds)
        return (time.perf_counter() - start) / self.repeat


def compare_latency(
    models: Mapping[str, ir.Model | bytes | str],
    feeds: Sequence[Mapping[str, np.ndarray]],
    effort: Effort | None = None,
    settings: Settings | None = None,
    progress: Callable[[float], None] | None = None,
) -> Comparison:
    """Time the models against the first one.  feeds: cycled round by round, the same for every model.

    Raises InputProblem where a model does not load or run.
    """
    effort = effort or Effort()
    settings = settings or Settings(threads=effort.threads)
    rng = np.random.default_rng(effort.seed)
    plain = [{k: np.ascontiguousarray(v) for k, v in f.items()} for f in feeds]
    arms = [
        _Arm(name, to_bytes(model) if isinstance(model, ir.Model) else model, plain, settings)
        for name, model in models.items()
    ]
    reference = _Reference()
    start = time.perf_counter()
    for epoch in range(effort.rebuilds):
        for arm in arms:
            arm.open()
        deadline = start + effort.seconds * (epoch + 1) / effort.rebuilds
        rounds = 0
        while rounds < _MIN_ROUNDS // effort.rebuilds + 1 or time.perf_counter() < deadline:
            for index in rng.permutation(len(arms)):
                arms[index].times.append(arms[index].block())
            reference.look()
            rounds += 1
            if progress:
                progress(min(1.0, (time.perf_counter() - start) / effort.seconds))
            if rounds % 8 == 0 and rounds * (epoch + 1) >= 40 // effort.rebuilds and _narrow(arms, effort):
                break
    seconds = time.perf_counter() - start
    return Comparison(
        tuple(_timing(a, effort) for a in arms),
        tuple(_ratio(arms[0], a, effort) for a in arms[1:]),
        reference.warnings(),
        seconds,
    )


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


def _narrow(arms: list[_Arm], effort: Effort) -> bool:
    if len(arms[0].times) < 40:
        return False
    quick = Effort(effort.seconds, effort.precision, effort.rebuilds, effort.threads, effort.seed, 200)
    if len(arms) == 1:
        timing = _timing(arms[0], quick)
        return (timing.high - timing.low) / 2 <= effort.precision * timing.median
    return all(
        (r.high - r.low) / 2 <= effort.precision * r.speedup for r in (_ratio(arms[0], a, quick) for a in arms[1:])
    )


def block_bootstrap(values: np.ndarray, resamples: int, seed: int, block: int = 10) -> tuple[float, float, float]:
    """(median, 2.5 %, 97.5 %) of a serially correlated sequence, by the moving-block bootstrap."""
    size = len(values)
    block = max(1, min(block, size // 4))
    rng = np.random.default_rng(seed)
    count = -(-size // block)
    starts = rng.integers(0, size - block + 1, (resamples, count))
    index = (starts[:, :, None] + np.arange(block)).reshape(resamples, -1)[:, :size]
    medians = np.median(values[index], axis=1)
    return float(np.median(values)), float(np.quantile(medians, 0.025)), float(np.quantile(medians, 0.975))


def _timing(arm: _Arm, effort: Effort) -> Timing:
    values = np.array(arm.times)
    median, low, high = block_bootstrap(values, effort.resamples, effort.seed)
    return Timing(
        arm.name, median, float(np.quantile(values, 0.9)), float(values.min()), low, high, len(values), arm.repeat
    )


def _ratio(base: _Arm, arm: _Arm, effort: Effort) -> Ratio:
    logs = np.log(np.array(base.times) / np.array(arm.times))
    median, low, high = (float(np.exp(v)) for v in block_bootstrap(logs, effort.resamples, effort.seed))
    return Ratio(arm.name, base.name, median, low, high)


class _Reference:
    """A fixed piece of work timed every round: what it shows is the machine, not the models."""

    def __init__(self) -> None:
        self._matrix = np.random.default_rng(0).standard_normal((48, 48)).astype(np.float32)
        self._times: list[float] = []
        self._load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0

    def look(self) -> None:
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
