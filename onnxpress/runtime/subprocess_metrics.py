"""Measurements in fresh processes: the time of a cold start, and the peak memory of a model.

Every measurement is a child process of its own.  Cold start: building the session and the first run, after the imports
of Python and onnxruntime (the file is in the system's cache from the second child on).  Memory: the kernel's mark of
the peak resident memory (VmHWM), reset just before the model is loaded; the ru_maxrss of a child would include its
parent's peak.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxpress.errors import EnvironmentProblem
from onnxpress.runtime import isolate
from onnxpress.runtime.intervals import order_statistic_interval
from onnxpress.runtime.latency import Ratio
from onnxpress.runtime.session import SessionSettings, open_session, run, temporary_folder

_MIN_CHILDREN_SLOW, _MIN_CHILDREN, _MAX_CHILDREN = (
    3,
    6,
    40,
)  # six values are the fewest whose extremes bound a median at 95 %
_MEMORY_CHILDREN = 3
_RUNS = 3
_LIMIT = 600.0  # seconds for one child


@dataclass(frozen=True)
class ColdStart:
    """Median seconds from the file to the first output, with 95 % interval, and its parts.

    load:      building the session
    first_run: the first run
    children:  number of processes
    """

    name: str
    median: float
    low: float
    high: float
    load: float
    first_run: float
    children: int


@dataclass(frozen=True)
class PeakMemory:
    """Memory that a model adds to a process, in MB (10^6 bytes): medians over child processes.

    peak:      while loading and running
    low, high: the smallest and the largest peak
    loaded:    after loading
    settled:   after some runs
    process:   the whole process at its peak
    children:  number of processes
    """

    name: str
    peak: float
    low: float
    high: float
    loaded: float
    settled: float
    process: float
    children: int


def cold_starts(
    models: Mapping[str, bytes | str],
    feeds: Mapping[str, np.ndarray],
    settings: SessionSettings | None = None,
    seconds: float = 10.0,
    seed: int = 0,
) -> tuple[tuple[ColdStart, ...], tuple[Ratio, ...]]:
    """Cold starts of models in alternating child processes, and ratios to the first model.

    At least six processes per model, or three where these take twice the given seconds.
    """
    rng = np.random.default_rng(seed)
    with temporary_folder() as folder:
        calls = _child_calls(folder, models, feeds, settings or SessionSettings(), 1)
        names = list(models)
        seen: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        started, rounds = time.perf_counter(), 0
        while rounds < _MAX_CHILDREN:
            spent = time.perf_counter() - started
            if spent > (seconds if rounds >= _MIN_CHILDREN else 2 * seconds) and rounds >= _MIN_CHILDREN_SLOW:
                break
            for index in rng.permutation(len(names)):
                seen[names[index]].append(calls[names[index]]())
            rounds += 1
    totals = {name: np.array([a["load"] + a["first"] for a in answers]) for name, answers in seen.items()}
    found = []
    for name, answers in seen.items():
        middle, low, high = order_statistic_interval(totals[name])
        load, first = (float(np.median([a[key] for a in answers])) for key in ("load", "first"))
        found.append(ColdStart(name, middle, max(0.0, low), high, load, first, len(answers)))
    ratios = [
        Ratio(
            name,
            names[0],
            *(float(np.exp(v)) for v in order_statistic_interval(np.log(totals[names[0]] / totals[name]))),
        )
        for name in names[1:]
    ]
    return tuple(found), tuple(ratios)


def peak_memory(
    models: Mapping[str, bytes | str], feeds: Mapping[str, np.ndarray], settings: SessionSettings | None = None
) -> tuple[PeakMemory, ...]:
    """Memory that each model adds to a fresh process.  Raises EnvironmentProblem where the system has no record."""
    if "VmHWM" not in _status():
        raise EnvironmentProblem("cannot measure peak memory", "", "/proc/self/status has no VmHWM", "run it on Linux")
    found = []
    with temporary_folder() as folder:
        for name, ask in _child_calls(folder, models, feeds, settings or SessionSettings(), _RUNS).items():
            answers = [ask() for _ in range(_MEMORY_CHILDREN)]
            peaks = [a["peak"] - a["base"] for a in answers]
            loaded, settled = (float(np.median([a[key] - a["base"] for a in answers])) for key in ("loaded", "settled"))
            whole = float(np.median([a["peak"] for a in answers]))
            found.append(
                PeakMemory(name, float(np.median(peaks)), min(peaks), max(peaks), loaded, settled, whole, len(peaks))
            )
    return tuple(found)


def _child_calls(
    folder: Path,
    models: Mapping[str, bytes | str],
    feeds: Mapping[str, np.ndarray],
    settings: SessionSettings,
    runs: int,
) -> dict[str, Callable[[], dict[str, float]]]:
    """By model, a call that starts a child process and returns its result."""
    texts = [name for name, array in feeds.items() if np.asarray(array).dtype == object]
    for index, (name, array) in enumerate(feeds.items()):
        np.save(folder / f"input{index}.npy", np.asarray(array).astype(str) if name in texts else array)
    calls = {}
    for index, (name, model) in enumerate(models.items()):
        path = folder / f"{index}.onnx"
        if isinstance(model, bytes):
            path.write_bytes(model)
        request = {
            "model": str(path) if isinstance(model, bytes) else model,
            "feeds": {feed: str(folder / f"input{i}.npy") for i, feed in enumerate(feeds)},
            "texts": texts,
            "settings": asdict(settings),
            "runs": runs,
        }
        (folder / f"{index}.json").write_text(json.dumps(request))
        calls[name] = _ChildCall(name, folder / f"{index}.json", folder / f"{index}.answer.json")
    return dict(calls)


@dataclass(frozen=True)
class _ChildCall:
    """Starts a child process with a request file, and reads its result file."""

    name: str
    request: Path
    answer: Path

    def __call__(self) -> dict[str, float]:
        done = isolate.call(
            "onnxpress.runtime.subprocess_metrics:child", str(self.request), str(self.answer), seconds=_LIMIT
        )
        if not done.ok:
            raise EnvironmentProblem(
                "a fresh process with the model failed", self.name, f"{done.reason}: {done.detail}"
            )
        answer: dict[str, float] = json.loads(self.answer.read_text())
        return answer


def child(request: str, answer: str) -> None:
    """In the child process: load and run a model, and write times (seconds) and memory (MB) to the result file."""
    options: dict[str, Any] = json.loads(Path(request).read_text())
    feeds = {name: np.load(path) for name, path in options["feeds"].items()}
    feeds = {name: a.astype(object) if name in options["texts"] else a for name, a in feeds.items()}
    settings = SessionSettings(
        **{**options["settings"], "config": tuple((k, v) for k, v in options["settings"]["config"])}
    )
    _reset_peak()
    base = _status().get("VmRSS", 0.0)
    start = time.perf_counter()
    session = open_session(options["model"], settings)
    built = time.perf_counter()
    loaded = _status().get("VmRSS", 0.0)
    ready = time.perf_counter()
    run(session, feeds)
    done = time.perf_counter()
    for _ in range(options["runs"] - 1):
        run(session, feeds)
    now = _status()
    values = {"load": built - start, "first": done - ready, "base": base, "loaded": loaded}
    values |= {"settled": now.get("VmRSS", 0.0), "peak": now.get("VmHWM", 0.0)}
    Path(answer).write_text(json.dumps(values))


def _reset_peak() -> None:
    """Reset the mark of the peak resident memory to what is resident now, where the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # the mark then includes the peak of the imports, which is hardly above what stays resident
        return


def _status() -> dict[str, float]:
    """The memory lines of /proc/self/status in MB; empty where there is none."""
    path = Path("/proc/self/status")
    if not path.exists():
        return {}
    rows = (line.split() for line in path.read_text().splitlines() if line.endswith(" kB"))
    return {row[0].rstrip(":"): int(row[1]) * 1024e-6 for row in rows}
