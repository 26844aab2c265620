"""Learnable fake quantization: float values through QuantizeLinear and DequantizeLinear with straight-through gradients.

The forward has the numbers of the integer file.  In the backward a value inside the range passes as if nothing had been
rounded, and scales learn by LSQ (Esser et al., "Learned Step Size Quantization", 2020): d out / d scale = q - x / scale
inside and q outside, times 1 / sqrt(N Qp) for N elements that share a scale.  Zero points are fixed.

Integer weights behind a DequantizeLinear are trained as float masters and written back as rounded integers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from onnxpress.model import read
from onnxpress.runtime import vpmaddubsw_saturation
from onnxpress.train.graph.compile import Override
from onnxpress.train.graph.registry import Builder, Run, Site
from onnxpress.train.graph.tensors import Tensor, to_torch
from onnxpress.train.operators.quant import dequantized, limits, spread

_TINY = 1e-30
_BIAS_LIMIT = 2**31 - 1024  # what float32 scales cannot push over the end


class _FakeQuantize(torch.autograd.Function):  # type: ignore[misc]
    """(clamp(round(x / scale) + zero, low, high) - zero) * scale; scale and zero broadcast over x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, low: Any, high: Any, gain: float) -> Tensor:
        ratio = x / scale
        codes = torch.round(ratio)
        codes = codes if zero is None else codes + zero
        kept = codes.clamp(low, high)
        inside = kept == codes
        kept = kept if zero is None else kept - zero
        ctx.save_for_backward(inside, torch.where(inside, kept - ratio, kept), scale)
        ctx.gain = gain
        return kept * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        inside, slope, scale = ctx.saved_tensors
        below = (gradient * slope).sum_to_size(scale.shape) * ctx.gain if ctx.needs_input_grad[1] else None
        return gradient * inside, below, None, None, None, None


def _gain(count: float, high: int) -> float:
    return 1.0 / math.sqrt(max(count, 1.0) * max(high, 1))


@dataclass(frozen=True)
class IntegerWeight:
    """An integer initializer behind a DequantizeLinear.

    product: names of the scales whose product is this one's (the bias of an integer Conv or Gemm), else None.
    """

    name: str
    scale: str
    zero: str | None
    axis: int
    block: int
    kind: ir.DataType
    product: tuple[str, str] | None = None


@dataclass
class Plan:
    """What of a graph is learned through its Q and DQ nodes.

    tied: scales that repeat another one, by name (a scale spelled out for each channel).
    """

    overrides: dict[int, Override] = field(default_factory=dict)
    weights: dict[str, IntegerWeight] = field(default_factory=dict)
    scales: list[str] = field(default_factory=list)
    tied: dict[str, str] = field(default_factory=dict)


def is_quantizer(node: ir.Node | None, kind: str) -> bool:
    return node is not None and node.op_type == kind and (read.standard(node) or node.domain == "com.microsoft")


def plan(
    nodes: Sequence[ir.Node], held: Mapping[str, ir.TensorProtocol], outputs: Iterable[str], reach: set[str]
) -> Plan:
    """Look at every Q and DQ of the region.  held: stored tensors by name; reach: values that carry gradients."""
    found, shown, fused = Plan(), set(outputs), set[int]()
    for node in nodes:
        source, scale, result = _input(node, 0), _input(node, 1), node.outputs[0].name or ""
        kind = _kind(node, held)
        if scale not in held or kind.name.startswith("FLOAT") or (result not in reach and result not in shown):
            continue
        if is_quantizer(node, "QuantizeLinear") and result not in shown and source in reach:
            found.scales.append(scale)
            fused |= {id(node)} if _alone(node, nodes, held) else set()
            found.overrides[id(node)] = Override(_quantize(id(node) in fused, limits(kind)), _names(node))
        elif is_quantizer(node, "DequantizeLinear") and source in held:
            weight = _weight(node, scale, held)
            found.weights[weight.name] = weight
            build = _bias if weight.product else _dequantize_master(weight, held)
            found.overrides[id(node)] = Override(build, (source, *weight.product) if weight.product else _names(node))
        elif is_quantizer(node, "DequantizeLinear"):
            _reader(found, node, fused, held)
    for weight in found.weights.values():
        if weight.product is None and weight.kind != ir.DataType.INT32:
            found.scales.append(weight.scale)
    found.scales = list(dict.fromkeys(found.scales))
    return found


def _input(node: ir.Node, index: int) -> str:
    """The name at an input, empty where there is none."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return (value.name or "") if value is not None else ""


def _kind(node: ir.Node, held: Mapping[str, ir.TensorProtocol]) -> ir.DataType:
    """The type of the codes a Q writes or a DQ reads."""
    source, zero = _input(node, 0), _input(node, 2)
    if node.op_type == "DequantizeLinear" and source in held:
        return ir.DataType(held[source].dtype)
    if zero in held:
        return ir.DataType(held[zero].dtype)
    return ir.DataType(read.int_attribute(node, "output_dtype", 0) or ir.DataType.UINT8)


def _names(node: ir.Node) -> tuple[str | None, ...]:
    return tuple(v.name if v is not None else None for v in node.inputs)


def _alone(node: ir.Node, nodes: Sequence[ir.Node], held: Mapping[str, ir.TensorProtocol]) -> bool:
    """Whether only DQs of the same scale read a Q, so that they are one step.  Else the codes travel as floats."""
    inside = {id(n) for n in nodes}
    uses = [u.node for u in node.outputs[0].uses() if id(u.node) in inside or u.node.graph is not node.graph]
    return all(is_quantizer(n, "DequantizeLinear") and _follows(_input(n, 1), _input(node, 1), held) for n in uses)


def _follows(name: str, scale: str, held: Mapping[str, ir.TensorProtocol]) -> bool:
    """Whether a scale is another one, or a single one spelled out."""
    if name == scale:
        return True
    return (
        name in held and held[scale].size == 1 and bool(np.all(held[name].numpy() == held[scale].numpy().reshape(())))
    )


def _reader(found: Plan, node: ir.Node, fused: set[int], held: Mapping[str, ir.TensorProtocol]) -> None:
    """A DQ of codes that a Q wrote, perhaps with operators on codes between them (Reshape, MaxPool)."""
    origin: ir.Node | None = node
    while origin is not None and not is_quantizer(origin, "QuantizeLinear"):
        value = origin.inputs[0] if origin.inputs else None
        origin = value.producer() if value is not None else None
    if origin is None or id(origin) not in found.overrides:
        return
    names, scale = _names(node), _input(origin, 1)
    if id(origin) in fused:
        found.overrides[id(node)] = Override(lambda site: lambda x: x, names[:1])
    elif _follows(_input(node, 1), scale, held):
        high = limits(_kind(origin, held))[1]
        found.overrides[id(node)] = Override(_dequantize_codes(high), (*names[:1], *_names(origin)[1:]))
    if _input(node, 1) != scale and _follows(_input(node, 1), scale, held):
        found.tied[_input(node, 1)] = scale


def _weight(node: ir.Node, scale: str, held: Mapping[str, ir.TensorProtocol]) -> IntegerWeight:
    name, zero = _input(node, 0), _input(node, 2) or None
    kind = ir.DataType(held[name].dtype)
    product = _product(node, held) if kind == ir.DataType.INT32 else None
    axis, block = read.int_attribute(node, "axis", 1), read.int_attribute(node, "block_size", 0)
    return IntegerWeight(name, scale, zero, axis, block, kind, product)


def _product(node: ir.Node, held: Mapping[str, ir.TensorProtocol]) -> tuple[str, str] | None:
    """Scales of the input and weight of the one node that reads this bias, where the bias's scale is their product."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].idx != 2:
        return None
    names = []
    for value in uses[0].node.inputs[:2]:
        source = value.producer() if value is not None else None
        if source is None or not is_quantizer(source, "DequantizeLinear"):
            return None
        names.append(_input(source, 1))
    if any(n not in held for n in names) or held[names[0]].size != 1:
        return None
    expected = held[names[0]].numpy().reshape(()) * held[names[1]].numpy().reshape(-1)
    given = held[_input(node, 1)].numpy().reshape(-1)
    same = given.shape == expected.shape and np.allclose(given, np.maximum(expected, _TINY), rtol=1e-4, atol=0)
    return (names[0], names[1]) if same else None


def _quantize(fused: bool, bounds: tuple[int, int]) -> Builder:
    """fused: straight to the dequantized value.  Otherwise the codes, as floats whose gradients pass."""
    low, high = bounds

    def build(site: Site) -> Run:
        axis, block = site.integer("axis", 1), site.integer("block_size")

        def run(x: Tensor, scale: Tensor, zero: Tensor = None) -> Tensor:
            gain = _gain(_sharing(x, scale), high)
            step, shift = spread(scale, x, axis, block), spread(zero, x, axis, block)
            if fused:
                return _FakeQuantize.apply(x, step, None if shift is None else shift.to(x.dtype), low, high, gain)
            ratio = x / _slowed(step, gain)
            codes = ratio + (torch.round(ratio) - ratio).detach()
            return (codes if shift is None else codes + shift.to(x.dtype)).clamp(low, high)

        return run

    return build


def _slowed(scale: Tensor, gain: float) -> Tensor:
    """The same numbers with the gradient times gain."""
    return scale.detach() + (scale - scale.detach()) * gain


def _dequantize_codes(high: int) -> Builder:
    """high: the largest code of the Q that wrote them."""

    def build(site: Site) -> Run:
        axis, block = site.integer("axis", 1), site.integer("block_size")

        def run(x: Tensor, scale: Tensor, zero: Tensor = None) -> Tensor:
            if not x.dtype.is_floating_point:
                return dequantized(x, scale, zero, axis, block)
            shift = spread(zero, x, axis, block)
            step = spread(_slowed(scale, _gain(_sharing(x, scale), high)), x, axis, block)
            return (x if shift is None else x - shift.to(x.dtype)) * step

        return run

    return build


def _sharing(x: Tensor, scale: Tensor) -> float:
    """Elements of one sample that share a scale."""
    return float(x.numel() / max(x.shape[0] if x.ndim else 1, 1) / scale.numel())


def _bounds(weight: IntegerWeight, held: Mapping[str, ir.TensorProtocol]) -> tuple[Tensor, Tensor]:
    """Smallest and largest code; of symmetric int8 with a scale an output each one's own: what is small since pairs of products must
    fit 16 bits stays so."""
    low, high = limits(weight.kind)
    codes, zero = held[weight.name].numpy(), _stored(held, weight.zero)
    symmetric = weight.kind == ir.DataType.INT8 and (zero is None or not bool(zero.any())) and not weight.block
    if symmetric and np.abs(codes.astype(np.int64)).max(initial=0) <= vpmaddubsw_saturation.MAX_SAFE_WEIGHT:
        return torch.tensor(-float(vpmaddubsw_saturation.MAX_SAFE_WEIGHT)), torch.tensor(
            float(vpmaddubsw_saturation.MAX_SAFE_WEIGHT)
        )
    if not symmetric or codes.ndim < 2 or held[weight.scale].size != codes.shape[weight.axis]:
        return torch.tensor(float(low)), torch.tensor(float(high))
    moved = np.moveaxis(codes, weight.axis, 0)
    order, ends = vpmaddubsw_saturation.kernel_order(moved.shape), np.zeros((2, len(moved), moved[0].size), np.float32)
    ends[:, :, order] = vpmaddubsw_saturation.weight_headroom(moved.reshape(len(moved), -1)[:, order])
    least, most = (
        torch.from_numpy(np.ascontiguousarray(np.moveaxis(e.reshape(moved.shape), 0, weight.axis))) for e in ends
    )
    return least, most


def _stored(held: Mapping[str, ir.TensorProtocol], name: str | None) -> Tensor:
    return None if name is None or name not in held else to_torch(held[name].numpy())


def _bias(site: Site) -> Run:
    """A 32-bit bias at the scale of its products: rounded in the forward, its gradient passes."""

    def run(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        step = (first * second).detach().clamp(min=_TINY)
        if not x.dtype.is_floating_point:
            return x.to(step.dtype) * step
        return x + (torch.round(x.detach() / step) * step - x.detach())

    return run


def _dequantize_master(weight: IntegerWeight, held: Mapping[str, ir.TensorProtocol]) -> Builder:
    """A master instead of the integers; 32 bits at a scale of their own are so fine that they pass as they are."""
    low, high = _bounds(weight, held)

    def build(site: Site) -> Run:
        top = limits(weight.kind)[1]

        def run(x: Tensor, scale: Tensor, zero: Tensor = None) -> Tensor:
            if not x.dtype.is_floating_point:
                return dequantized(x, scale, zero, weight.axis, weight.block)
            if weight.kind == ir.DataType.INT32:
                return x
            shift = spread(zero, x, weight.axis, weight.block)
            step = spread(scale, x, weight.axis, weight.block)
            gain = _gain(x.numel() / scale.numel(), top)
            return _FakeQuantize.apply(x, step, None if shift is None else shift.to(x.dtype), low, high, gain)

        return run

    return build


def master(weight: IntegerWeight, held: Mapping[str, ir.TensorProtocol]) -> Tensor:
    """(code - zero) * scale: the numbers training starts from."""
    codes, scale, zero = (_stored(held, n) for n in (weight.name, weight.scale, weight.zero))
    return dequantized(codes, scale, zero, weight.axis, weight.block)


def codes_of(
    weight: IntegerWeight, values: np.ndarray, scale: np.ndarray, held: Mapping[str, ir.TensorProtocol]
) -> np.ndarray:
    """A master as integers of the stored type, at the given scale."""
    x, step, zero = torch.from_numpy(values), torch.from_numpy(np.asarray(scale)), _stored(held, weight.zero)
    spaced = spread(step, x, weight.axis, weight.block)
    if weight.kind == ir.DataType.INT32:
        codes = torch.round(x.double() / spaced.double()).clamp(-_BIAS_LIMIT, _BIAS_LIMIT)
    else:
        low, high = _bounds(weight, held)
        shift = 0 if zero is None else spread(zero, x, weight.axis, weight.block)
        codes = (torch.round(x / spaced) + shift).clamp(low, high)
    return np.asarray(codes.to(torch.int64).numpy().astype(weight.kind.numpy()))


def product_scale(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The scale of a bias: input scale times weight scales, as float32."""
    scale = np.float64(first.reshape(())) * second.astype(np.float64)
    return np.maximum(scale.astype(np.float32), np.float32(_TINY))
