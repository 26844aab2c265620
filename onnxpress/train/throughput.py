"""How fast a network trains: seconds a sample takes forwards and backwards, measured, in the way that is fastest for it."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch

from onnxpress.train.distillation.runner import threads
from onnxpress.train.exec_mode import Way, full, ways
from onnxpress.train.graph.program import Program

_STEPS = 2
_SLOWER = 2.0  # times the plain way in its first step, from which on a way is not timed further
_GAIN = 1.1  # times as fast as the plain way, from which on another is worth it


def fastest(model: ir.Model, batch: Mapping[str, np.ndarray], cores: int) -> tuple[Way, float]:
    """The way, and seconds a sample.  batch: inputs of some dozens of samples, batch axis first.

    Raises InputProblem for operators that cannot be trained."""
    program = Program(model, from_scratch=True)
    inputs = {n: torch.from_numpy(v) for n, v in batch.items()}
    count = len(next(iter(batch.values())))
    plain, *others = ways()
    with threads(cores):
        first = _step(program, inputs, plain)
        seconds = {plain: min([first, *(_step(program, inputs, plain) for _ in range(_STEPS))]) / count}
        for way in others:
            warm = _step(program, inputs, way)
            again = (_step(program, inputs, way) for _ in range(_STEPS if warm < _SLOWER * first else 0))
            seconds[way] = min([warm, *again]) / count
    best = min(seconds, key=lambda way: seconds[way] * (1.0 if way == plain else _GAIN))
    return best, seconds[best]


def _step(program: Program, inputs: Mapping[str, torch.Tensor], way: Way) -> float:
    start = time.perf_counter()
    with way():
        answers = program(way.laid(inputs))
    sum(v.square().mean() for v in full(answers).values()).backward()
    return time.perf_counter() - start
