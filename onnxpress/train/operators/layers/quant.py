"""Quantization operators as the standard defines them: exact integers, no gradient (see graph/fakequant.py for
training).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch

from onnxpress.train.graph.registry import NodeContext, Run, operator
from onnxpress.train.graph.tensors import Tensor, torch_type
from onnxpress.train.operators.elementwise import convert
from onnxpress.train.operators.layers.conv import convolution

FLOAT_CODES = ("FLOAT8", "FLOAT4")


def code_range(kind: ir.DataType) -> tuple[int, int]:
    """Smallest and largest code of an integer type of 2 to 32 bits."""
    bits = kind.bitwidth
    return (0, 2**bits - 1) if kind.name.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def code_type(context: NodeContext) -> ir.DataType:
    """The type of a QuantizeLinear's codes: its output_dtype, its zero point's type, else uint8."""
    value = context.node.inputs[2] if context.has_input(2) else context.node.outputs[0]
    stated = value.dtype if value is not None else None
    if stated is None and value is not None and value.const_value is not None:
        stated = value.const_value.dtype
    if context.integer("output_dtype"):
        return ir.DataType(context.integer("output_dtype"))
    if stated is None and context.constants.get(2) is not None:
        from onnxpress.train.graph.tensors import ONNX

        return ONNX[context.constants[2].dtype]
    return stated or ir.DataType.UINT8


def broadcast_parameter(parameter: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """A scale or zero point shaped to broadcast over x: per tensor, per axis, or per block."""
    if parameter is None:
        return None
    if block:
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    if parameter.numel() == 1:
        return parameter.reshape(())
    shape = [1] * x.ndim
    shape[axis] = -1
    return parameter.reshape(shape)


@operator("QuantizeLinear", grad_inputs=())
@operator("QuantizeLinear", domain="com.microsoft", grad_inputs=())
def _quantize(context: NodeContext) -> Run:
    axis, block, kind = context.integer("axis", 1), context.integer("block_size"), code_type(context)
    saturate = bool(context.integer("saturate", 1))

    def run(x: Tensor, scale: Tensor, zero: Tensor = None) -> Tensor:
        step, shift = broadcast_parameter(scale, x, axis, block), broadcast_parameter(zero, x, axis, block)
        scaled = x.to(step.dtype) / step
        if kind.name.startswith(FLOAT_CODES):
            return convert(scaled if shift is None else scaled + shift.to(scaled.dtype), kind, saturate)
        codes = torch.round(scaled.float())
        low, high = code_range(kind)
        return (codes if shift is None else codes + shift.float()).clamp(low, high).to(torch_type(kind))

    return run


@operator("DequantizeLinear", grad_inputs=())
@operator("DequantizeLinear", domain="com.microsoft", grad_inputs=())
def _dequantize(context: NodeContext) -> Run:
    axis, block, kind = context.integer("axis", 1), context.integer("block_size"), context.integer("output_dtype")

    def run(x: Tensor, scale: Tensor, zero: Tensor = None) -> Tensor:
        result = dequantized(x, scale, zero, axis, block)
        return result.to(torch_type(kind)) if kind else result

    return run


def dequantized(x: Tensor, scale: Tensor, zero: Tensor, axis: int = 1, block: int = 0) -> Tensor:
    """(x - zero) * scale; the difference is exact (32-bit codes in float64)."""
    wide = torch.float64 if x.dtype == torch.int32 else torch.float32
    codes = x.to(wide)
    if zero is not None:
        codes = codes - broadcast_parameter(zero, x, axis, block).to(wide)
    return codes.to(scale.dtype) * broadcast_parameter(scale, x, axis, block)


@operator("DynamicQuantizeLinear", grad_inputs=())
def _dynamic_quantize(context: NodeContext) -> Run:
    def run(x: Tensor) -> Any:
        low, high = x.min().clamp(max=0.0), x.max().clamp(min=0.0)
        scale = (high - low) / 255
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        zero = torch.round(-low / scale).clamp(0, 255)
        codes = (torch.round(x / scale) + zero).clamp(0, 255)
        return codes.to(torch.uint8), scale, zero.to(torch.uint8)

    return run


def _requantized(real: Tensor, scale: Tensor, zero: Tensor, kind: ir.DataType) -> Tensor:
    """float64 results as codes of the output's scale and zero point."""
    low, high = code_range(kind)
    codes = torch.round((real / scale.double()).float()) + (0 if zero is None else zero.float())
    return codes.clamp(low, high).to(torch_type(kind))


def _per_row(parameter: Tensor, rank: int, axis: int) -> Tensor:
    """A scale or zero point of a matrix: one value, or one per row or column."""
    if parameter is None or parameter.numel() == 1:
        return None if parameter is None else parameter.reshape(()).double()
    if parameter.ndim > 1:
        return parameter.double()
    shape = [1] * rank
    shape[axis] = -1
    return parameter.double().reshape(shape)


def _subtract_zero_point(x: Tensor, zero: Tensor, axis: int) -> Tensor:
    """x - zero in float64."""
    place = _per_row(zero, x.ndim, axis)
    return x.double() if place is None else x.double() - place


@operator("MatMulInteger", grad_inputs=())
def _matmul_integer(context: NodeContext) -> Run:
    def run(a: Tensor, b: Tensor, a_zero: Tensor = None, b_zero: Tensor = None) -> Tensor:
        return torch.matmul(_subtract_zero_point(a, a_zero, -2), _subtract_zero_point(b, b_zero, -1)).to(torch.int32)

    return run


@operator("QLinearMatMul", grad_inputs=())
def _qlinear_matmul(context: NodeContext) -> Run:
    def run(
        a: Tensor,
        a_scale: Tensor,
        a_zero: Tensor,
        b: Tensor,
        b_scale: Tensor,
        b_zero: Tensor,
        scale: Tensor,
        zero: Tensor,
    ) -> Tensor:
        real = torch.matmul(_subtract_zero_point(a, a_zero, -2), _subtract_zero_point(b, b_zero, -1))
        real = real * _per_row(a_scale, a.ndim, -2) * _per_row(b_scale, b.ndim, -1)
        return _requantized(real, scale, zero, _plain_type(zero))

    return run


def _plain_type(zero: Tensor) -> ir.DataType:
    return ir.DataType.INT8 if zero.dtype == torch.int8 else ir.DataType.UINT8


@operator("ConvInteger", grad_inputs=())
def _conv_integer(context: NodeContext) -> Run:
    conv = convolution(context)

    def run(x: Tensor, w: Tensor, x_zero: Tensor = None, w_zero: Tensor = None) -> Tensor:
        return conv(_subtract_zero_point(x, x_zero, 1), _subtract_zero_point(w, w_zero, 0)).to(torch.int32)

    return run


@operator("QLinearConv", grad_inputs=())
def _qlinear_conv(context: NodeContext) -> Run:
    conv: Callable[..., Tensor] = convolution(context, weight=3)

    def run(*inputs: Tensor) -> Tensor:
        x, x_scale, x_zero, w, w_scale, w_zero, scale, zero = inputs[:8]
        b = inputs[8] if len(inputs) > 8 else None
        total = conv(
            _subtract_zero_point(x, x_zero, 1), _subtract_zero_point(w, w_zero, 0), None if b is None else b.double()
        )
        real = total * x_scale.double() * _per_row(w_scale, total.ndim, 1)
        return _requantized(real, scale, zero, _plain_type(zero))

    return run
