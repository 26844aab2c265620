"""How fast a network trains: seconds a sample takes forwards and backwards, measured."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch

from onnxpress.train.distillation import threads
from onnxpress.train.program import Program

_STEPS = 3


def sample_seconds(model: ir.Model, batch: Mapping[str, np.ndarray], cores: int) -> float:
    """batch: inputs of some dozens of samples, batch axis first.  Raises InputProblem for operators that cannot be trained."""
    program = Program(model, from_scratch=True)
    inputs = {n: torch.from_numpy(v) for n, v in batch.items()}
    times = []
    with threads(cores):
        for _ in range(_STEPS + 1):
            start = time.perf_counter()
            sum(v.square().mean() for v in program(inputs).values()).backward()
            times.append(time.perf_counter() - start)
    return min(times[1:]) / len(next(iter(batch.values())))
