"""Reductions (axes as attribute or input), ArgMax and ArgMin, cumulative sums and products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from onnxpress.train.graph.registry import NodeContext, Run, operator
from onnxpress.train.graph.tensors import Tensor

Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _extreme(largest: bool) -> Reduce:
    """Maximum or minimum; an empty axis gives the limit of the type."""

    def run(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        if not axes:
            return x
        if any(x.shape[a] == 0 for a in axes):
            shape = [1 if i in {a % x.ndim for a in axes} else s for i, s in enumerate(x.shape)]
            filled = x.new_full(shape, _limit(x.dtype, not largest))
            return (
                filled
                if keep
                else filled.reshape([s for i, s in enumerate(shape) if i not in {a % x.ndim for a in axes}])
            )
        if x.dtype == torch.bool:
            return (torch.any if largest else torch.all)(x, axes, keep)
        return (torch.amax if largest else torch.amin)(x, axes, keep)

    return run


def _limit(kind: Any, highest: bool) -> float | int | bool:
    if kind == torch.bool:
        return highest
    if kind.is_floating_point:
        return float("inf") if highest else float("-inf")
    return int(torch.iinfo(kind).max if highest else torch.iinfo(kind).min)


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.sum(x, axes, keep, dtype=x.dtype)


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.dtype.is_floating_point:
        return torch.mean(x, axes, keep)
    return torch.mean(x.double(), axes, keep).to(x.dtype)


def _root(x: Tensor) -> Tensor:
    return torch.sqrt(x) if x.dtype.is_floating_point else torch.sqrt(x.double()).to(x.dtype)


def _log(x: Tensor) -> Tensor:
    return torch.log(x) if x.dtype.is_floating_point else torch.log(x.double()).to(x.dtype)


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.dtype.is_floating_point:
        return torch.logsumexp(x, axes, keep)
    return torch.logsumexp(x.double(), axes, keep).to(x.dtype)


REDUCTIONS: dict[str, Reduce] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceMax": _extreme(True),
    "ReduceMin": _extreme(False),
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: _sum(x.abs(), axes, keep),
    "ReduceL2": lambda x, axes, keep: _root(_sum(x * x, axes, keep)),
    "ReduceSumSquare": lambda x, axes, keep: _sum(x * x, axes, keep),
    "ReduceLogSum": lambda x, axes, keep: _log(_sum(x, axes, keep)),
    "ReduceLogSumExp": _log_sum_exp,
}


def _reduction(function: Reduce) -> Callable[[NodeContext], Run]:
    def build(context: NodeContext) -> Run:
        keep, still = bool(context.integer("keepdims", 1)), bool(context.integer("noop_with_empty_axes"))
        stated, read = context.integers("axes"), context.list_reader(1)

        def run(x: Tensor, given: Tensor = None) -> Tensor:
            axes: Sequence[int] = stated if stated is not None else read(given) or []
            if not axes:
                axes = [] if still else range(x.ndim)
            if x.ndim == 0 or not axes:  # torch reduces all axes if none are given; apply the elementwise part only
                return function(x.unsqueeze(0), [0], False)
            return function(x, list(axes), keep)

        return run

    return build


for _name, _function in REDUCTIONS.items():
    operator(_name, grad_inputs=(0,))(_reduction(_function))


def _arg(largest: bool) -> Callable[[NodeContext], Run]:
    def build(context: NodeContext) -> Run:
        axis, keep = context.integer("axis"), bool(context.integer("keepdims", 1))
        last = bool(context.integer("select_last_index"))
        function = torch.argmax if largest else torch.argmin

        def run(x: Tensor) -> Tensor:
            if not last:
                return function(x, axis, keep)
            return x.shape[axis] - 1 - function(torch.flip(x, [axis]), axis, keep)

        return run

    return build


operator("ArgMax", grad_inputs=())(_arg(True))
operator("ArgMin", grad_inputs=())(_arg(False))


def _running(function: Callable[..., Tensor], start: int) -> Callable[[NodeContext], Run]:
    """Cumulative sums or products.  exclusive: without the element itself.  start: value of an empty sum or product."""

    def build(context: NodeContext) -> Run:
        exclusive, backwards = bool(context.integer("exclusive")), bool(context.integer("reverse"))

        def run(x: Tensor, where: Tensor) -> Tensor:
            axis = int(where)
            x = torch.flip(x, [axis]) if backwards else x
            if exclusive:
                first = torch.full_like(x.narrow(axis, 0, 1), start)
                x = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
            result = function(x, axis, dtype=x.dtype)
            return torch.flip(result, [axis]) if backwards else result

        return run

    return build


operator("CumSum", grad_inputs=(0,))(_running(torch.cumsum, 0))
operator("CumProd", grad_inputs=(0,))(_running(torch.cumprod, 1))
