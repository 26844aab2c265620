"""Learnable fake quantization: QuantizeLinear and DequantizeLinear on floats, with straight-through gradients.

The forward pass gives the results of the integer model.  In the backward pass the gradient of a value inside the
range passes unchanged, and scales are trained by LSQ (Esser et al., "Learned Step Size Quantization", 2020): d out /
d scale = q - x / scale inside the range and q outside, times 1 / sqrt(N Qp) for N elements that share a scale.  Zero
points are fixed.

Integer weights behind a DequantizeLinear are trained as float master weights and converted to rounded integers.
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
from onnxpress.train.graph.registry import Builder, NodeContext, Run
from onnxpress.train.graph.tensors import Tensor, to_torch
from onnxpress.train.operators.layers.quant import broadcast_parameter, code_range, dequantized

_TINY = 1e-30
_BIAS_LIMIT = 2**31 - 1024  # float32 rounding of the scale cannot overflow below this


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
    """LSQ's factor of the gradient of a scale that `count` elements share."""
    return 1.0 / math.sqrt(max(count, 1.0) * max(high, 1))


@dataclass(frozen=True)
class IntegerWeight:
    """An integer initializer behind a DequantizeLinear.

    name, scale, zero: names of the codes, the scale and the zero point.
    axis, block: attributes of the DequantizeLinear.
    kind: type of the codes.
    product: names of the scales whose product is this scale (the bias of an integer Conv or Gemm), else None.
    """

    name: str
    scale: str
    zero: str | None
    axis: int
    block: int
    kind: ir.DataType
    product: tuple[str, str] | None = None


@dataclass
class FakeQuantPlan:
    """The trained parts of a graph's QuantizeLinear and DequantizeLinear nodes.

    overrides: by node id.
    weights: integer weights by name.
    scales: names of the trained scales.
    tied_scales: scales that repeat another scale, by name (a scale that is repeated for each channel).
    """

    overrides: dict[int, Override] = field(default_factory=dict)
    weights: dict[str, IntegerWeight] = field(default_factory=dict)
    scales: list[str] = field(default_factory=list)
    tied_scales: dict[str, str] = field(default_factory=dict)


def is_quantizer(node: ir.Node | None, kind: str) -> bool:
    """Whether a node is the given operator of the standard or of onnxruntime's domain."""
    return node is not None and node.op_type == kind and (read.standard(node) or node.domain == "com.microsoft")


def plan_fake_quantization(
    nodes: Sequence[ir.Node], tensors: Mapping[str, ir.TensorProtocol], outputs: Iterable[str], reach: set[str]
) -> FakeQuantPlan:
    """Plan the training through every QuantizeLinear and DequantizeLinear of the region.

    tensors: stored tensors by name.
    reach: names of the values that carry gradients.
    """
    found, shown, fused = FakeQuantPlan(), set(outputs), set[int]()
    for node in nodes:
        source, scale, result = _input(node, 0), _input(node, 1), node.outputs[0].name or ""
        kind = _code_type(node, tensors)
        if scale not in tensors or kind.name.startswith("FLOAT") or (result not in reach and result not in shown):
            continue
        if is_quantizer(node, "QuantizeLinear") and result not in shown and source in reach:
            found.scales.append(scale)
            fused |= {id(node)} if _read_only_by_dequantizers(node, nodes, tensors) else set()
            found.overrides[id(node)] = Override(_quantize(id(node) in fused, code_range(kind)), _names(node))
        elif is_quantizer(node, "DequantizeLinear") and source in tensors:
            weight = _weight(node, scale, tensors)
            found.weights[weight.name] = weight
            build = _bias if weight.product else _dequantize_master(weight, tensors)
            found.overrides[id(node)] = Override(build, (source, *weight.product) if weight.product else _names(node))
        elif is_quantizer(node, "DequantizeLinear"):
            _add_activation_dequantizer(found, node, fused, tensors)
    for weight in found.weights.values():
        if weight.product is None and weight.kind != ir.DataType.INT32:
            found.scales.append(weight.scale)
    found.scales = list(dict.fromkeys(found.scales))
    return found


def _input(node: ir.Node, index: int) -> str:
    """The name of an input; "" where it is absent."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return (value.name or "") if value is not None else ""


def _code_type(node: ir.Node, tensors: Mapping[str, ir.TensorProtocol]) -> ir.DataType:
    """The type of the codes that a QuantizeLinear writes or a DequantizeLinear reads."""
    source, zero = _input(node, 0), _input(node, 2)
    if node.op_type == "DequantizeLinear" and source in tensors:
        return ir.DataType(tensors[source].dtype)
    if zero in tensors:
        return ir.DataType(tensors[zero].dtype)
    return ir.DataType(read.int_attribute(node, "output_dtype", 0) or ir.DataType.UINT8)


def _names(node: ir.Node) -> tuple[str | None, ...]:
    return tuple(v.name if v is not None else None for v in node.inputs)


def _read_only_by_dequantizers(
    node: ir.Node, nodes: Sequence[ir.Node], tensors: Mapping[str, ir.TensorProtocol]
) -> bool:
    """Whether a QuantizeLinear is read by DequantizeLinear nodes of the same scale only, so that both are one
    operation.
    """
    inside = {id(n) for n in nodes}
    uses = [u.node for u in node.outputs[0].uses() if id(u.node) in inside or u.node.graph is not node.graph]
    return all(
        is_quantizer(n, "DequantizeLinear") and _same_scale(_input(n, 1), _input(node, 1), tensors) for n in uses
    )


def _same_scale(name: str, scale: str, tensors: Mapping[str, ir.TensorProtocol]) -> bool:
    """Whether a scale is another one, or repeats its single value."""
    if name == scale:
        return True
    return (
        name in tensors
        and tensors[scale].size == 1
        and bool(np.all(tensors[name].numpy() == tensors[scale].numpy().reshape(())))
    )


def _add_activation_dequantizer(
    found: FakeQuantPlan, node: ir.Node, fused: set[int], tensors: Mapping[str, ir.TensorProtocol]
) -> None:
    """Plan a DequantizeLinear of activations, perhaps with operators on codes before it (Reshape, MaxPool)."""
    origin: ir.Node | None = node
    while origin is not None and not is_quantizer(origin, "QuantizeLinear"):
        value = origin.inputs[0] if origin.inputs else None
        origin = value.producer() if value is not None else None
    if origin is None or id(origin) not in found.overrides:
        return
    names, scale = _names(node), _input(origin, 1)
    if id(origin) in fused:
        found.overrides[id(node)] = Override(lambda context: lambda x: x, names[:1])
    elif _same_scale(_input(node, 1), scale, tensors):
        high = code_range(_code_type(origin, tensors))[1]
        found.overrides[id(node)] = Override(_dequantize_codes(high), (*names[:1], *_names(origin)[1:]))
    if _input(node, 1) != scale and _same_scale(_input(node, 1), scale, tensors):
        found.tied_scales[_input(node, 1)] = scale


def _weight(node: ir.Node, scale: str, tensors: Mapping[str, ir.TensorProtocol]) -> IntegerWeight:
    """The integer weight that a DequantizeLinear reads."""
    name, zero = _input(node, 0), _input(node, 2) or None
    kind = ir.DataType(tensors[name].dtype)
    product = _product(node, tensors) if kind == ir.DataType.INT32 else None
    axis, block = read.int_attribute(node, "axis", 1), read.int_attribute(node, "block_size", 0)
    return IntegerWeight(name, scale, zero, axis, block, kind, product)


def _product(node: ir.Node, tensors: Mapping[str, ir.TensorProtocol]) -> tuple[str, str] | None:
    """Scales of the input and the weight of the node that reads a bias, where the bias scale is their product."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].idx != 2:
        return None
    names = []
    for value in uses[0].node.inputs[:2]:
        source = value.producer() if value is not None else None
        if source is None or not is_quantizer(source, "DequantizeLinear"):
            return None
        names.append(_input(source, 1))
    if any(n not in tensors for n in names) or tensors[names[0]].size != 1:
        return None
    expected = tensors[names[0]].numpy().reshape(()) * tensors[names[1]].numpy().reshape(-1)
    given = tensors[_input(node, 1)].numpy().reshape(-1)
    same = given.shape == expected.shape and np.allclose(given, np.maximum(expected, _TINY), rtol=1e-4, atol=0)
    return (names[0], names[1]) if same else None


def _quantize(fused: bool, bounds: tuple[int, int]) -> Builder:
    """fused: return the dequantized value; otherwise the codes, as floats with straight-through gradients."""
    low, high = bounds

    def build(context: NodeContext) -> Run:
        axis, block = context.integer("axis", 1), context.integer("block_size")

        def run(x: Tensor, scale: Tensor, zero: Tensor = None) -> Tensor:
            gain = _gain(_elements_per_scale(x, scale), high)
            step, shift = broadcast_parameter(scale, x, axis, block), broadcast_parameter(zero, x, axis, block)
            if fused:
                return _FakeQuantize.apply(x, step, None if shift is None else shift.to(x.dtype), low, high, gain)
            ratio = x / _scale_gradient(step, gain)
            codes = ratio + (torch.round(ratio) - ratio).detach()
            return (codes if shift is None else codes + shift.to(x.dtype)).clamp(low, high)

        return run

    return build


def _scale_gradient(scale: Tensor, gain: float) -> Tensor:
    """The same values, with the gradient times `gain`."""
    return scale.detach() + (scale - scale.detach()) * gain


def _dequantize_codes(high: int) -> Builder:
    """high: the largest code of the QuantizeLinear that wrote the codes."""

    def build(context: NodeContext) -> Run:
        axis, block = context.integer("axis", 1), context.integer("block_size")

        def run(x: Tensor, scale: Tensor, zero: Tensor = None) -> Tensor:
            if not x.dtype.is_floating_point:
                return dequantized(x, scale, zero, axis, block)
            shift = broadcast_parameter(zero, x, axis, block)
            step = broadcast_parameter(
                _scale_gradient(scale, _gain(_elements_per_scale(x, scale), high)), x, axis, block
            )
            return (x if shift is None else x - shift.to(x.dtype)) * step

        return run

    return build


def _elements_per_scale(x: Tensor, scale: Tensor) -> float:
    """Elements of one sample that share a scale."""
    return float(x.numel() / max(x.shape[0] if x.ndim else 1, 1) / scale.numel())


def _bounds(weight: IntegerWeight, tensors: Mapping[str, ir.TensorProtocol]) -> tuple[Tensor, Tensor]:
    """Smallest and largest code of a weight.

    Symmetric int8 weights with one scale per output channel have bounds of their own for each code: codes that were
    limited so that sums of two products fit into 16 bits stay limited.
    """
    low, high = code_range(weight.kind)
    codes, zero = tensors[weight.name].numpy(), _stored_tensor(tensors, weight.zero)
    symmetric = weight.kind == ir.DataType.INT8 and (zero is None or not bool(zero.any())) and not weight.block
    if symmetric and np.abs(codes.astype(np.int64)).max(initial=0) <= vpmaddubsw_saturation.MAX_SAFE_WEIGHT:
        return torch.tensor(-float(vpmaddubsw_saturation.MAX_SAFE_WEIGHT)), torch.tensor(
            float(vpmaddubsw_saturation.MAX_SAFE_WEIGHT)
        )
    if not symmetric or codes.ndim < 2 or tensors[weight.scale].size != codes.shape[weight.axis]:
        return torch.tensor(float(low)), torch.tensor(float(high))
    moved = np.moveaxis(codes, weight.axis, 0)
    order, ends = vpmaddubsw_saturation.kernel_order(moved.shape), np.zeros((2, len(moved), moved[0].size), np.float32)
    ends[:, :, order] = vpmaddubsw_saturation.weight_headroom(moved.reshape(len(moved), -1)[:, order])
    least, most = (
        torch.from_numpy(np.ascontiguousarray(np.moveaxis(e.reshape(moved.shape), 0, weight.axis))) for e in ends
    )
    return least, most


def _stored_tensor(tensors: Mapping[str, ir.TensorProtocol], name: str | None) -> Tensor:
    return None if name is None or name not in tensors else to_torch(tensors[name].numpy())


def _bias(context: NodeContext) -> Run:
    """A 32-bit bias at the product of two scales, rounded in the forward pass with straight-through gradient."""

    def run(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        step = (first * second).detach().clamp(min=_TINY)
        if not x.dtype.is_floating_point:
            return x.to(step.dtype) * step
        return x + (torch.round(x.detach() / step) * step - x.detach())

    return run


def _dequantize_master(weight: IntegerWeight, tensors: Mapping[str, ir.TensorProtocol]) -> Builder:
    """A float master weight in place of the codes; 32-bit codes with a scale of their own need no rounding."""
    low, high = _bounds(weight, tensors)

    def build(context: NodeContext) -> Run:
        top = code_range(weight.kind)[1]

        def run(x: Tensor, scale: Tensor, zero: Tensor = None) -> Tensor:
            if not x.dtype.is_floating_point:
                return dequantized(x, scale, zero, weight.axis, weight.block)
            if weight.kind == ir.DataType.INT32:
                return x
            shift = broadcast_parameter(zero, x, weight.axis, weight.block)
            step = broadcast_parameter(scale, x, weight.axis, weight.block)
            gain = _gain(x.numel() / scale.numel(), top)
            return _FakeQuantize.apply(x, step, None if shift is None else shift.to(x.dtype), low, high, gain)

        return run

    return build


def master_weight(weight: IntegerWeight, tensors: Mapping[str, ir.TensorProtocol]) -> Tensor:
    """(code - zero) * scale: the initial master weight."""
    codes, scale, zero = (_stored_tensor(tensors, n) for n in (weight.name, weight.scale, weight.zero))
    return dequantized(codes, scale, zero, weight.axis, weight.block)


def quantize_master(
    weight: IntegerWeight, values: np.ndarray, scale: np.ndarray, tensors: Mapping[str, ir.TensorProtocol]
) -> np.ndarray:
    """A master weight as integers of the stored type, at the given scale."""
    x, step, zero = torch.from_numpy(values), torch.from_numpy(np.asarray(scale)), _stored_tensor(tensors, weight.zero)
    spaced = broadcast_parameter(step, x, weight.axis, weight.block)
    if weight.kind == ir.DataType.INT32:
        codes = torch.round(x.double() / spaced.double()).clamp(-_BIAS_LIMIT, _BIAS_LIMIT)
    else:
        low, high = _bounds(weight, tensors)
        shift = 0 if zero is None else broadcast_parameter(zero, x, weight.axis, weight.block)
        codes = (torch.round(x / spaced) + shift).clamp(low, high)
    return np.asarray(codes.to(torch.int64).numpy().astype(weight.kind.numpy()))


def bias_scale(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The scale of a bias: input scale times weight scales, as float32."""
    scale = np.float64(first.reshape(())) * second.astype(np.float64)
    return np.maximum(scale.astype(np.float32), np.float32(_TINY))
