"""Profile of a model, kernel by kernel, from onnxruntime's own profiler.

Runs with and without the profiler alternate, so that the sum of the kernels can be compared with the latency in the
same seconds.  Two corrections make them agree.  The profiler's overhead is part of each kernel's time (2 to 6 us, most
of a tiny kernel's time, more with more operands and on a busy machine): it is measured in the same turns on chains of
trivial kernels, and scaled, by a factor of 0.5 to 2 for the colder caches of a real model, to what profiled runs take
beyond the others.  And the profiler's clock counts whole microseconds, rounded down, so the mean of the middle half of
all runs is used in place of the median.  On a busy machine the kernels add up to less than the latency: an interruption
falls into most runs, but into few runs of any one kernel.

A kernel whose sub-graph runs other kernels (Loop, If) is charged for its own time only, without the profiler's overhead
between them.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxpress.errors import Problem
from onnxpress.model import edit
from onnxpress.model.counts import node_macs
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.model.read import node_label
from onnxpress.runtime.builtin_models import PeakRate, chain_model, measured_peak
from onnxpress.runtime.kernel_to_node import Kernel, nodes_of_kernels, optimized_kernels
from onnxpress.runtime.session import SessionSettings, default_settings, open_session, run, temporary_folder, trace

_SUFFIX = "_kernel_time"
_MAX_EVENTS = 30_000  # about 1 kB each in the profiler's file
_MIN_RUNS = 3
_CHAIN, _CHAIN_SAMPLES = 64, 60
_ONE_OPERAND, _THREE_OPERANDS = 1, 3  # operands of the two chains

Key = tuple[str, int]


@dataclass(frozen=True)
class KernelTime:
    """Time of one kernel.

    name:    onnxruntime's
    nodes:   nodes of the file that it implements; () where unknown
    seconds: per run
    calls:   per run
    share:   of the time of all kernels
    macs:    multiply-accumulates per run; 0 where not counted
    gflops:  2 x macs over the time
    """

    name: str
    op: str
    nodes: tuple[str, ...]
    seconds: float
    calls: float
    share: float
    macs: int
    gflops: float


@dataclass(frozen=True)
class OperatorTime:
    """All kernels of one operator together; fields as in KernelTime."""

    op: str
    kernels: int
    seconds: float
    calls: float
    share: float
    macs: int
    gflops: float


@dataclass(frozen=True)
class Profile:
    """Operators and kernels, the slowest first.

    latency:  median seconds of a run without the profiler, alternating with the profiled runs
    covered:  sum of the kernels as a fraction of the latency; the rest is the call from Python, the executor, and noise
    overhead: seconds that the profiler adds to a kernel with one operand, already subtracted
    runs:     number of profiled runs
    peak:     of the machine
    """

    name: str
    operators: tuple[OperatorTime, ...]
    kernels: tuple[KernelTime, ...]
    latency: float
    covered: float
    overhead: float
    runs: int
    peak: PeakRate


def profile(
    model: ir.Model,
    feeds: Mapping[str, np.ndarray],
    settings: SessionSettings | None = None,
    seconds: float = 3.0,
    name: str = "",
    peak: PeakRate | None = None,
) -> Profile:
    """Profile a model on one input for about `seconds`.

    peak: of the machine; None: measured

    Raises InputProblem where the model does not load or run.
    """
    settings = replace(settings or default_settings(), profile="")
    named = model.clone()
    edit.name_nodes(named)
    with temporary_folder() as folder:
        dump = folder / "optimized.onnx"
        plain = open_session(named, settings, name)
        profiled = open_session(named, replace(settings, profile=str(folder / "profile"), dump=str(dump)), name)
        kernels = _dumped_kernels(dump)
        chains = {k: _OverheadChain(k, settings, folder) for k in (_ONE_OPERAND, _THREE_OPERANDS)}
        times = _interleaved_runs(plain, profiled, feeds, seconds, chains.values(), len(kernels), name)
        parsed = parse_profile(_events(profiled), len(times))
        added = _ProfilerOverhead.of({k: chain.overhead() for k, chain in chains.items()})
    latency = float(np.median(times))
    added = added.fitted(parsed.values(), latency - _call_seconds(settings))
    nodes = nodes_of_kernels(named, [_kernel_by_key(key, events.op, kernels) for key, events in parsed.items()])
    work = _macs_by_label(model, feeds)
    rows = []
    for key, events in parsed.items():
        taken = max(0.0, _midmean(events.seconds - added.to(events)))
        rows.append(
            _row(
                key[0],
                events.op,
                nodes[key],
                taken,
                float(events.calls.mean()),
                sum(work.get(n, 0) for n in nodes[key]),
            )
        )
    total = sum(r.seconds for r in rows)
    shared = sorted((replace(r, share=r.seconds / total if total else 0.0) for r in rows), key=lambda r: -r.seconds)
    return Profile(
        name,
        _by_operator(shared),
        tuple(shared),
        latency,
        total / latency,
        added.base,
        len(times),
        peak or measured_peak(settings),
    )


def _interleaved_runs(
    plain: Any,
    profiled: Any,
    feeds: Mapping[str, np.ndarray],
    seconds: float,
    chains: Iterable[_OverheadChain],
    kernels: int,
    name: str,
) -> list[float]:
    """Times of runs without the profiler; the last profiled runs are as many (those before are the warm-up)."""
    values = {k: np.ascontiguousarray(v) for k, v in feeds.items()}
    run(plain, values, where=name)
    run(profiled, values, where=name)
    started = time.perf_counter()
    plain.run(None, values)
    single = time.perf_counter() - started
    for _ in range(min(20, int(0.05 / single))):
        plain.run(None, values)
        profiled.run(None, values)
    block = int(max(1, min(20, 2e-3 / single)))
    most = max(_MIN_RUNS, _MAX_EVENTS // max(1, kernels))
    chains = list(chains)
    times: list[float] = []
    order = random.Random(0)
    samples, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds or len(times) < _MIN_RUNS:
        if len(times) >= most:
            break
        for session in order.sample((plain, profiled), 2):  # random: the turns must not resonate with periodic load
            for _ in range(block):
                start = time.perf_counter()
                session.run(None, values)
                if session is plain:
                    times.append(time.perf_counter() - start)
        if samples <= _CHAIN_SAMPLES * spent / seconds:
            samples += 1
            for chain in chains:
                chain.sample()
    return times


def _dumped_kernels(path: Path) -> list[Kernel]:
    return optimized_kernels(onnx.load(path, load_external_data=False)) if path.exists() else []


def _events(session: Any) -> list[dict[str, Any]]:
    """End a session's profile and read it."""
    events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    return events


def _kernel_by_key(key: Key, op: str, kernels: Sequence[Kernel]) -> Kernel:
    """The kernel in the rewritten graph; with its name only where it is not there."""
    return next((k for k in kernels if k.key == key), Kernel(key, op))


@dataclass
class KernelEvents:
    """Events of one kernel.

    operands: number of tensors it reads
    seconds:  [runs] its own time
    calls:    [runs]
    inner:    [runs] number of kernels it ran inside
    """

    op: str
    operands: int
    seconds: np.ndarray
    calls: np.ndarray
    inner: np.ndarray


def parse_profile(events: Sequence[Mapping[str, Any]], runs: int) -> dict[Key, KernelEvents]:
    """The profiler's events of the last `runs` runs, by kernel, in order of first execution."""
    whole = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["cat"] == "Session" and e["name"] == "model_run")[
        -runs:
    ]
    begins = np.array([begin for begin, _ in whole])
    nodes = [e for e in events if e["cat"] == "Node" and e["name"].endswith(_SUFFIX) and e.get("ph") == "X"]
    nodes.sort(key=lambda e: (e["ts"], -e["dur"]))
    own = _own_times([(e["ts"], e["dur"]) for e in nodes])
    keys: dict[tuple[str, str, str], Key] = {}
    counts: dict[str, int] = {}
    found: dict[Key, KernelEvents] = {}
    for event, (spent, inner) in zip(nodes, own, strict=True):
        position = int(np.searchsorted(begins, event["ts"], side="right")) - 1
        if position < 0:
            continue
        name, op = event["name"][: -len(_SUFFIX)], event["args"]["op_name"]
        identity = (name, op, str(event["args"].get("node_index", "")))
        if identity not in keys:
            keys[identity] = (name, counts.get(name, 0))
            counts[name] = counts.get(name, 0) + 1
        kernel = found.setdefault(
            keys[identity], KernelEvents(op, len(event["args"].get("input_type_shape", ())), *np.zeros((3, runs)))
        )
        kernel.seconds[position] += spent * 1e-6
        kernel.calls[position] += 1
        kernel.inner[position] += inner
    return found


def _own_times(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """For (start, duration) sorted by start: each duration without the spans directly within it, and their number."""
    own = [[duration, 0] for _, duration in spans]
    open_spans: list[int] = []
    for i, (start, duration) in enumerate(spans):
        while open_spans and start >= sum(spans[open_spans[-1]]):
            open_spans.pop()
        if open_spans:
            own[open_spans[-1]][0] -= duration
            own[open_spans[-1]][1] += 1
        open_spans.append(i)
    return [(spent, count) for spent, count in own]


class _OverheadChain:
    """A chain of trivial kernels with and without the profiler: the difference is the profiler's overhead."""

    def __init__(self, operands: int, settings: SessionSettings, folder: Path) -> None:
        bare = replace(settings, level="none")
        chain = chain_model(_CHAIN, operands)
        self._plain = open_session(chain, bare)
        self._profiled = open_session(chain, replace(bare, profile=str(folder / f"chain{operands}")))
        self._feeds = {"x": np.zeros(4, np.float32)}
        self._times: list[tuple[float, float]] = []
        self.sample()
        self._times.clear()

    def sample(self) -> None:
        start = time.perf_counter()
        self._profiled.run(None, self._feeds)
        middle = time.perf_counter()
        self._plain.run(None, self._feeds)
        self._times.append((middle - start, time.perf_counter() - middle))

    def overhead(self) -> tuple[float, float]:
        """Seconds of overhead per kernel within its time, and between it and the next; ends the session's profile."""
        spent = [e["dur"] for e in _events(self._profiled) if e["cat"] == "Node" and e["name"].endswith(_SUFFIX)]
        kernels = np.array(spent).reshape(-1, _CHAIN).sum(axis=1)[-len(self._times) :] * 1e-6
        profiled, plain = np.array(self._times).T
        within = max(0.0, float(np.median(kernels - plain)) / _CHAIN)
        return within, max(0.0, float(np.median(profiled - plain)) / _CHAIN - within)


@dataclass(frozen=True)
class _ProfilerOverhead:
    """The profiler's overhead in seconds per kernel.

    base:        with one operand
    per_operand: for each further operand
    between:     before the next kernel
    """

    base: float
    per_operand: float
    between: float

    @classmethod
    def of(cls, chains: Mapping[int, tuple[float, float]]) -> _ProfilerOverhead:
        base, many = chains[_ONE_OPERAND][0], chains[_THREE_OPERANDS][0]
        return cls(
            base,
            max(0.0, many - base) / (_THREE_OPERANDS - _ONE_OPERAND),
            float(np.mean([after for _, after in chains.values()])),
        )

    def to(self, events: KernelEvents) -> np.ndarray:
        """Seconds of overhead in a kernel's time of each run."""
        each = self.base + self.per_operand * (min(events.operands, _THREE_OPERANDS + 1) - _ONE_OPERAND)
        return np.asarray(each * events.calls + self.between * events.inner)

    def fitted(self, parsed: Collection[KernelEvents], left: float) -> _ProfilerOverhead:
        """The overhead scaled so that the kernels add up to `left`, their time in a run without profiler.

        The factor is between 0.5 and 2.
        """
        beyond = sum(_midmean(events.seconds) for events in parsed) - left
        known = sum(_midmean(self.to(events)) for events in parsed)
        scale = min(2.0, max(0.5, beyond / known)) if known > 0 else 1.0
        return _ProfilerOverhead(self.base * scale, self.per_operand * scale, self.between * scale)


def _call_seconds(settings: SessionSettings) -> float:
    """Seconds of a trivial run: the call from Python and onnxruntime up to the first kernel."""
    session, feeds = open_session(chain_model(1, 1), settings), {"x": np.zeros(4, np.float32)}
    times = []
    for _ in range(200):
        start = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _midmean(values: np.ndarray) -> float:
    """The mean of the middle half: as robust as the median, with a finer resolution than the clock."""
    ordered = np.sort(values)
    quarter = len(ordered) // 4
    return float(ordered[quarter : len(ordered) - quarter].mean())


def _macs_by_label(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Multiply-accumulates by node label; empty where onnxruntime cannot output the intermediate values."""
    named = canonical(model)
    try:
        events = trace(named, feeds)
    except Problem:  # a model that runs but cannot be tapped: its rates stay unknown
        return {}
    return {node_label(n): node_macs(n, events) for n in named.graph}


def _row(name: str, op: str, nodes: tuple[str, ...], seconds: float, calls: float, macs: int) -> KernelTime:
    return KernelTime(name, op, nodes, seconds, calls, 0.0, macs, _gflops(macs, seconds))


def _gflops(macs: int, seconds: float) -> float:
    return 2e-9 * macs / seconds if seconds > 0 else 0.0


def _by_operator(rows: Sequence[KernelTime]) -> tuple[OperatorTime, ...]:
    found = []
    for op in dict.fromkeys(r.op for r in rows):
        own = [r for r in rows if r.op == op]
        seconds, macs = sum(r.seconds for r in own), sum(r.macs for r in own)
        found.append(
            OperatorTime(
                op,
                len(own),
                seconds,
                sum(r.calls for r in own),
                sum(r.share for r in own),
                macs,
                _gflops(macs, seconds),
            )
        )
    return tuple(sorted(found, key=lambda o: -o.seconds))
