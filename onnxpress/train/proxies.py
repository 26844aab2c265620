"""Zero-cost proxies that use gradients on one batch; those that need no torch are in nas/evaluation/proxies.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import torch
from torch.nn import functional

from onnxpress.errors import InputProblem
from onnxpress.model.signature import signature
from onnxpress.train.graph.program import Program
from onnxpress.train.graph.tensors import Tensor, to_torch

_RIDGE = 1e-5  # added to the eigenvalues of a correlation matrix

Arrays = Mapping[str, np.ndarray]


def gradient_proxy(name: str, model: ir.Model, batch: Arrays, seed: int = 0) -> float:
    """One of "synflow", "snip", "grad-norm" and "jacobian"; labels, where needed, are random classes.

    batch: inputs by name, batch axis first.
    Raises InputProblem where the proxy does not apply to the inputs or outputs.
    """
    proxies: dict[str, Callable[[ir.Model, Arrays, int], float]] = {
        "synflow": _synflow,
        "snip": _snip,
        "grad-norm": _grad_norm,
        "jacobian": _jacobian,
    }
    return proxies[name](model, batch, seed)


def _answers(program: Program, feeds: Mapping[str, Tensor]) -> Tensor:
    found = program(feeds)[program.outputs[0]]
    return found.reshape(found.shape[0], -1)


def _feeds(batch: Arrays) -> dict[str, Tensor]:
    return {n: to_torch(np.ascontiguousarray(a)) for n, a in batch.items()}


def _trained(program: Program) -> list[Tensor]:
    """Weights of two or more dimensions."""
    return [p for p in program.parameters() if p.ndim > 1]


def _loss_gradients(model: ir.Model, batch: Arrays, seed: int) -> list[Tensor]:
    """The weights of the network, with gradients of the cross entropy to random labels."""
    program = Program(model, from_scratch=True)
    scores = _answers(program, _feeds(batch))
    if scores.shape[1] < 2:
        raise InputProblem(
            "the proxy does not apply to the output", "snip, grad-norm", "it has one score", "use another proxy"
        )
    labels = torch.from_numpy(np.random.default_rng(seed).integers(scores.shape[1], size=scores.shape[0]))
    functional.cross_entropy(scores, labels).backward()
    return [p for p in _trained(program) if p.grad is not None]


def _snip(model: ir.Model, batch: Arrays, seed: int) -> float:
    """Sum of |gradient * weight| (Lee et al. 2019)."""
    return float(sum((p.grad * p.detach()).abs().sum() for p in _loss_gradients(model, batch, seed)))


def _grad_norm(model: ir.Model, batch: Arrays, seed: int) -> float:
    """Sum of the gradient norms of the weights."""
    return float(sum(p.grad.norm() for p in _loss_gradients(model, batch, seed)))


def _synflow(model: ir.Model, batch: Arrays, seed: int) -> float:
    """log of the sum of |weight * d(sum of outputs)/d weight|, for absolute weights and an input of ones.

    Normalizations use their stored statistics.  Tanaka et al. 2020.
    """
    program = Program(model).to_float64()
    with torch.no_grad():
        for p in program.parameters():
            p.abs_()
    floats = {s.name for s in signature(model).inputs if s.dtype.kind == "f"}
    ones = {n: torch.ones_like(t[:1], dtype=torch.float64) if n in floats else t[:1] for n, t in _feeds(batch).items()}
    _answers(program, ones).sum().backward()
    total = sum((p.grad * p.detach()).abs().sum() for p in _trained(program) if p.grad is not None)
    return float(torch.log(torch.as_tensor(total)))


def _jacobian(model: ir.Model, batch: Arrays, seed: int) -> float:
    """Minus the sum of log(v) + 1/v over the eigenvalues v of the correlation matrix of the samples' Jacobians.

    Mellor et al. 2021, first version.
    """
    program = Program(model, from_scratch=True)
    feeds = _feeds(batch)
    inputs = [t.requires_grad_() for t in feeds.values() if t.dtype.is_floating_point]
    if not inputs or len(inputs[0]) < 2:
        raise InputProblem("the proxy does not apply", "jacobian", "no float input, or one sample", "use another proxy")
    _answers(program, feeds).sum().backward()
    rows = torch.cat([t.grad.reshape(len(t), -1) for t in inputs if t.grad is not None], 1).numpy()
    values = np.linalg.eigvalsh(np.corrcoef(rows)) + _RIDGE
    return float(-np.sum(np.log(values) + 1 / values))
