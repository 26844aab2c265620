"""Training throughput: measured seconds per sample of a forward and backward pass in the fastest execution mode."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch

from onnxpress.train.distillation.runner import torch_threads
from onnxpress.train.exec_mode import ExecMode, exec_modes, to_float32
from onnxpress.train.graph.program import Program

_STEPS = 2
_MAX_SLOWDOWN = 2.0  # a mode whose first step takes this many times that of the default mode is not timed further
_MIN_SPEEDUP = 1.1  # over the default mode, for another mode to be selected


def fastest_exec_mode(model: ir.Model, batch: Mapping[str, np.ndarray], cores: int) -> tuple[ExecMode, float]:
    """The fastest execution mode, and its seconds per sample.

    batch: inputs of some dozens of samples, batch axis first.
    cores: number of torch threads.
    Raises InputProblem for operators that cannot be trained.
    """
    program = Program(model, from_scratch=True)
    inputs = {n: torch.from_numpy(v) for n, v in batch.items()}
    count = len(next(iter(batch.values())))
    default, *others = exec_modes()
    with torch_threads(cores):
        first = _step_seconds(program, inputs, default)
        seconds = {default: min([first, *(_step_seconds(program, inputs, default) for _ in range(_STEPS))]) / count}
        for mode in others:
            warmup = _step_seconds(program, inputs, mode)
            repeats = _STEPS if warmup < _MAX_SLOWDOWN * first else 0
            seconds[mode] = min([warmup, *(_step_seconds(program, inputs, mode) for _ in range(repeats))]) / count
    best = min(seconds, key=lambda mode: seconds[mode] * (1.0 if mode == default else _MIN_SPEEDUP))
    return best, seconds[best]


def _step_seconds(program: Program, inputs: Mapping[str, torch.Tensor], mode: ExecMode) -> float:
    """Seconds of one forward and backward pass."""
    start = time.perf_counter()
    with mode.autocast():
        outputs = program(mode.to_layout(inputs))
    sum(v.square().mean() for v in to_float32(outputs).values()).backward()
    return time.perf_counter() - start
