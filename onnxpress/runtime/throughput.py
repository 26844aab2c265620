"""Throughput with several concurrent callers.

Models take turns in slices of a fraction of a second.  In each slice `callers` threads call one session in a loop (a
session may be called from several threads, and its weights are in memory once).  The ratio of two models is taken slice
by slice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from onnxpress.runtime.intervals import median_interval
from onnxpress.runtime.latency import Ratio
from onnxpress.runtime.session import SessionSettings, open_session, run

_SLICE = 0.25
_MIN_SLICES = 3
_RUNS_PER_SLICE = 2
_RESAMPLES = 800


@dataclass(frozen=True)
class Throughput:
    """Samples per second over all callers: median over slices, with 95 % interval.  callers: concurrent threads."""

    name: str
    per_second: float
    low: float
    high: float
    callers: int
    slices: int


def throughput(
    models: Mapping[str, bytes | str],
    feeds: Sequence[Mapping[str, np.ndarray]],
    settings: SessionSettings | None = None,
    seconds: float = 10.0,
    callers: int = 1,
    batch: int = 1,
    seed: int = 0,
) -> tuple[tuple[Throughput, ...], tuple[Ratio, ...]]:
    """Rates of models, and ratios to the first.

    callers: number of concurrent threads
    batch:   samples per run
    """
    settings = settings or SessionSettings()
    rng = np.random.default_rng(seed)
    values = [{k: np.ascontiguousarray(v) for k, v in f.items()} for f in feeds]
    sessions = {name: open_session(model, settings, name) for name, model in models.items()}
    names, longest = list(sessions), 0.0
    for name, session in sessions.items():
        run(session, values[0], where=name)
        start = time.perf_counter()
        session.run(None, values[0])
        longest = max(longest, time.perf_counter() - start)
    span = max(_SLICE, _RUNS_PER_SLICE * longest)
    slices = max(_MIN_SLICES, int(seconds / (span * len(names))))
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(slices):
        for index in rng.permutation(len(names)):
            rates[names[index]].append(batch * _rate(sessions[names[index]], values, span, callers))
    found = []
    for name, seen in rates.items():
        middle, low, high = (float(np.exp(v)) for v in median_interval(np.log(seen), _RESAMPLES, seed))
        found.append(Throughput(name, middle, low, high, callers, slices))
    base = np.array(rates[names[0]])
    ratios = []
    for name in names[1:]:
        middle, low, high = median_interval(np.log(np.array(rates[name]) / base), _RESAMPLES, seed)
        ratios.append(Ratio(name, names[0], *(float(np.exp(v)) for v in (middle, low, high))))
    return tuple(found), tuple(ratios)


def _rate(session: ort.InferenceSession, feeds: Sequence[Mapping[str, np.ndarray]], span: float, callers: int) -> float:
    """Runs per second of all callers together: for each, its runs over the time until the last one ends."""
    together = threading.Barrier(callers)

    def call(position: int) -> float:
        together.wait()
        start = time.perf_counter()
        count = 0
        while (spent := time.perf_counter() - start) < span or not count:
            session.run(None, feeds[(position + count) % len(feeds)])
            count += 1
        return count / spent

    with ThreadPoolExecutor(callers) as pool:
        return sum(pool.map(call, range(callers)))
