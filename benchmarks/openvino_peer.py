"""A file in OpenVINO's own runtime beside the original in onnxruntime, in interleaved blocks, both with one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnxpress.runtime.session import SessionSettings, open_session

_BLOCK = 0.02  # seconds of a block of runs


def openvino_speedup(original: bytes, model: bytes, feeds: Sequence[Mapping[str, np.ndarray]], seconds: float) -> float:
    """Speed of a model in OpenVINO over that of the original in onnxruntime: the median over rounds of one block each.

    Raises ImportError where OpenVINO is not installed.
    """
    import openvino

    session = open_session(original, SessionSettings())
    compiled = openvino.Core().compile_model(
        openvino.Core().read_model(model), "CPU", {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    )
    request = compiled.create_infer_request()
    runs: list[Callable[[Mapping[str, np.ndarray]], object]] = [
        lambda feed: session.run(None, dict(feed)),
        lambda feed: request.infer(dict(feed), share_inputs=True, share_outputs=True),
    ]
    ratios = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(ratios) < 5:
        first, second = (_block(run, feeds) for run in runs)
        ratios.append(first / second)
    return float(np.median(ratios))


def _block(run: Callable[[Mapping[str, np.ndarray]], object], feeds: Sequence[Mapping[str, np.ndarray]]) -> float:
    """Seconds of a run, after one untimed."""
    run(feeds[0])
    count, start = 0, time.perf_counter()
    while (used := time.perf_counter() - start) < _BLOCK or not count:
        run(feeds[count % len(feeds)])
        count += 1
    return used / count
