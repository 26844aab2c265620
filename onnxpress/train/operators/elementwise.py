"""Elementwise arithmetic, comparison, logic, rounding and casts, with numpy broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch

from onnxpress.train.graph.registry import NodeContext, Run, operator, simple_operator
from onnxpress.train.graph.tensors import Tensor, torch_type

# torch implements few operators for these types; int64 has their arithmetic modulo 2^64.
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def widened(function: Callable[..., Tensor], keep: bool = True) -> Run:
    """The function, computed in int64 for wide unsigned integers.  keep: return the type of the inputs."""

    def run(*inputs: Tensor) -> Tensor:
        kind = inputs[0].dtype
        if kind not in UNSIGNED:
            return function(*inputs)
        result = function(*(t.to(torch.int64) for t in inputs))
        return result.to(kind) if keep else result

    return run


def narrow_floats(function: Callable[..., Tensor]) -> Run:
    """The function, computed in float32 where torch has no kernel for 16-bit floats."""

    def run(x: Tensor) -> Tensor:
        return function(x.float()).to(x.dtype) if x.dtype in (torch.float16, torch.bfloat16) else function(x)

    return run


for _name, _function in {
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tan": torch.tan,
    "Asin": torch.asin,
    "Acos": torch.acos,
    "Atan": torch.atan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Tanh": torch.tanh,
    "Asinh": torch.asinh,
    "Acosh": torch.acosh,
    "Atanh": torch.atanh,
    "Erf": torch.erf,
    "Sigmoid": torch.sigmoid,
    "Abs": widened(torch.abs),
    "Neg": torch.neg,
    "Identity": lambda x: x,
    "Add": widened(torch.add),
    "Sub": widened(torch.sub),
    "Mul": widened(torch.mul),
}.items():
    simple_operator(_name, _function)


def _whole(function: Callable[[Tensor], Tensor]) -> Run:
    return lambda x: function(x) if x.dtype.is_floating_point else x


def _is_inf(context: NodeContext) -> Run:
    down, up = context.integer("detect_negative", 1), context.integer("detect_positive", 1)
    return lambda x: (
        (torch.isposinf(x) if up else torch.zeros_like(x, dtype=torch.bool))
        | (torch.isneginf(x) if down else torch.zeros_like(x, dtype=torch.bool))
    )


for _name, _function in {
    "Sign": torch.sign,
    "Floor": _whole(torch.floor),
    "Ceil": _whole(torch.ceil),
    "Round": _whole(torch.round),
    "IsNaN": torch.isnan,
    "Not": torch.logical_not,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "Equal": widened(torch.eq, keep=False),
    "Greater": widened(torch.gt, keep=False),
    "GreaterOrEqual": widened(torch.ge, keep=False),
    "Less": widened(torch.lt, keep=False),
    "LessOrEqual": widened(torch.le, keep=False),
    "BitwiseAnd": widened(torch.bitwise_and),
    "BitwiseOr": widened(torch.bitwise_or),
    "BitwiseXor": widened(torch.bitwise_xor),
    "BitwiseNot": widened(torch.bitwise_not),
}.items():
    simple_operator(_name, _function, grad_inputs=())
operator("IsInf", grad_inputs=())(_is_inf)


@operator("Div")
def _div(context: NodeContext) -> Run:
    """Integer division truncates."""

    def run(a: Tensor, b: Tensor) -> Tensor:
        if a.dtype.is_floating_point:
            return torch.div(a, b)
        return _trunc(a, b)

    return run


_trunc = widened(lambda a, b: torch.div(a, b, rounding_mode="trunc"))


@operator("Mod", grad_inputs=(0,))
def _mod(context: NodeContext) -> Run:
    return widened(torch.fmod if context.integer("fmod") else torch.remainder)


@operator("Pow")
def _pow(context: NodeContext) -> Run:
    """A constant exponent becomes a Python number: torch then squares instead of calling pow."""
    exponent = context.scalar(1)
    if exponent is None or context.rank(1) != 0:
        return lambda a, b: torch.pow(a, b).to(a.dtype)
    number = int(exponent) if float(exponent).is_integer() else float(exponent)

    def run(a: Tensor, b: Tensor) -> Tensor:
        return torch.pow(a, number) if a.dtype.is_floating_point else torch.pow(a, b).to(a.dtype)

    return run


@operator("BitShift", grad_inputs=())
def _bit_shift(context: NodeContext) -> Run:
    left = context.text("direction") == "LEFT"

    def run(a: Tensor, b: Tensor) -> Tensor:
        wide = a.to(torch.int64), b.to(torch.int64)
        return (torch.bitwise_left_shift(*wide) if left else torch.bitwise_right_shift(*wide)).to(a.dtype)

    return run


def _fold_left(function: Callable[[Tensor, Tensor], Tensor]) -> Run:
    def run(first: Tensor, *rest: Tensor) -> Tensor:
        for other in rest:
            first = function(first, other)
        return first

    return run


_sum = _fold_left(torch.add)
simple_operator("Sum", _sum)
simple_operator("Mean", lambda *inputs: _sum(*inputs) / len(inputs))
simple_operator("Max", widened(_fold_left(torch.maximum)))
simple_operator("Min", widened(_fold_left(torch.minimum)))


def _clip(x: Tensor, low: Any, high: Any) -> Tensor:
    if low is None and high is None:
        return x
    if isinstance(low, torch.Tensor) != isinstance(high, torch.Tensor):  # torch needs both of one kind
        low, high = (None if b is None else torch.as_tensor(b, dtype=x.dtype) for b in (low, high))
    if x.dtype in UNSIGNED:
        return _clip(x.long(), *(b.long() if isinstance(b, torch.Tensor) else b for b in (low, high))).to(x.dtype)
    if isinstance(low, torch.Tensor) and isinstance(high, torch.Tensor):
        return torch.minimum(torch.maximum(x, low), high)  # the upper bound takes precedence, as in the standard
    if low is not None and high is not None and not isinstance(low, torch.Tensor) and low > high:
        return torch.full_like(x, high)
    return torch.clamp(x, low, high)


@operator("Clip", grad_inputs=(0,))
def _clip_attributes(context: NodeContext) -> Run:
    low = context.number("min") if context.has_attribute("min") else None
    high = context.number("max") if context.has_attribute("max") else None
    return lambda x: _clip(x, low, high)


@operator("Clip", since=11, grad_inputs=(0,))
def _clip_inputs(context: NodeContext) -> Run:
    """Constant bounds become Python numbers, so that Relu6 is one kernel."""
    deterministic = [context.scalar(i) for i in (1, 2)]
    if all(f is not None or not context.has_input(i + 1) for i, f in enumerate(deterministic)):
        low, high = deterministic
        return lambda x, *bounds: _clip(x, low, high)
    return lambda x, low=None, high=None: _clip(x, low, high)


def convert(x: Tensor, kind: ir.DataType, saturate: bool = True) -> Tensor:
    """Cast to an ONNX type.  8-bit floats saturate if `saturate`; 4- and 2-bit integers wrap."""
    target = torch_type(kind)
    name = kind.name
    if name.startswith("FLOAT8"):
        return _to_float8(x, target, saturate)
    if kind == ir.DataType.FLOAT4E2M1:
        return _to_float4(x)
    if name in ("INT4", "UINT4", "INT2", "UINT2"):
        span = 2 ** int(name[-1])
        whole = x.to(torch.int64) % span
        return (torch.where(whole >= span // 2, whole - span, whole) if name[0] == "I" else whole).to(target)
    if kind == ir.DataType.BOOL:
        return x != 0
    if x.dtype.is_floating_point and not (target.is_floating_point or target.is_complex):
        x = x.float() if x.element_size() == 1 else x
        return x.to(torch.int64).to(target)
    return x.to(target)


def _to_float8(x: Tensor, target: Any, saturate: bool) -> Tensor:
    wide = x.float()
    if saturate:
        info = torch.finfo(target)
        return wide.clamp(info.min, info.max).to(target)
    if target != torch.float8_e5m2:  # without infinity values that round above the maximum become NaN
        last = torch.tensor(torch.finfo(target).max)
        beyond = last + torch.exp2(torch.floor(torch.log2(last))) * torch.finfo(target).eps / 2
        wide = torch.where(wide.abs() > beyond, torch.full_like(wide, torch.nan), wide)
    return wide.to(target)


_FLOAT4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def _to_float4(x: Tensor) -> Tensor:
    """Nearest value of e2m1; ties go to the even code, values above 6 saturate."""
    codes = torch.tensor(_FLOAT4)
    edges = (codes[1:] + codes[:-1]) / 2
    size = x.float().abs()
    index = torch.bucketize(size, edges)  # a tie goes to the lower code
    at_edge = (index < 7) & (size == edges[index.clamp(max=6)])
    index = torch.where(at_edge & (index % 2 == 1), index + 1, index)
    return torch.copysign(codes[index], x.float())


@operator("Cast")
def _cast(context: NodeContext) -> Run:
    kind, saturate = ir.DataType(context.integer("to")), bool(context.integer("saturate", 1))
    if kind == ir.DataType.STRING:
        raise context.problem("strings are not supported")
    target = torch_type(kind)
    if kind in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        return lambda x: x.to(target)
    return lambda x: convert(x, kind, saturate)


@operator("CastLike", grad_inputs=(0,))
def _cast_like(context: NodeContext) -> Run:
    saturate = bool(context.integer("saturate", 1))
    stated = context.node.inputs[1].dtype if context.node.inputs[1] is not None else None
    if stated is not None and stated != ir.DataType.STRING:
        return lambda x, like: convert(x, stated, saturate)
    from onnxpress.train.graph.tensors import ONNX

    return lambda x, like: convert(x, ONNX[like.dtype], saturate)


@operator("BitCast", grad_inputs=())
def _bit_cast(context: NodeContext) -> Run:
    target = torch_type(context.integer("to"))
    return lambda x: x.contiguous().view(target)


simple_operator("Where", lambda condition, yes, no: torch.where(condition, yes, no), grad_inputs=(1, 2))


@operator("PRelu")
def _prelu(context: NodeContext) -> Run:
    return lambda x, slope: torch.where(x < 0, x * slope, x)


@operator("Dropout", grad_inputs=(0,))
def _dropout(context: NodeContext) -> Run:
    """The identity, unless the graph itself sets training mode."""
    ratio, mask = context.number("ratio", 0.5), len(context.node.outputs) > 1

    def run(x: Tensor, share: Tensor = None, training: Tensor = None) -> Any:
        kept = torch.ones_like(x, dtype=torch.bool)
        if training is not None and bool(training):
            rate = float(share) if share is not None else ratio
            kept = torch.rand(x.shape) >= rate
            x = torch.where(kept, x / (1 - rate) if rate < 1 else x, torch.zeros_like(x))
        return (x, kept) if mask else x

    return run
