"""Activations whose kernels onnxruntime computes number by number, by operators that it computes in vectors.

before -> after

    x * Tanh(Softplus(x)) (Mish) -> p = s (2 - s) with s = Sigmoid(x);  x * (p / (2 - p))
    Softplus(x)                  -> Relu(x) + Log(1 + Exp(-|x|))
    Elu(x, a)                    -> Relu(x) + a (Exp(Min(x, 0)) - 1)
    Selu, Celu                   -> the same, times gamma; with x / a in the exponential

Why: Softplus and Elu take a call of exp or log for each number; Sigmoid and Exp are vector kernels. tanh(softplus(x)) =
(1 - q^2) / (1 + q^2) with q = Sigmoid(-x) = 1 - s, hence the first line, which loses nothing to cancellation.

Conditions: float32. Infinite inputs give what they gave (Min keeps +infinity out of the exponential); a Sigmoid that is
rounded to 0 makes Mish of -18 and less 0, where it is less than 3e-7.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.trace import Trace
from onnxpress.passes.rewriting.elementwise import scalar_functions as sf
from onnxpress.passes.rewriting.elementwise.activations import FLOAT32, Builder, float_type
from onnxpress.passes.rewriting.elementwise.scalar_regions import regions_ending_at

_SELU = 1.67326319217681884765625, 1.05070102214813232421875  # alpha and gamma of the operator's specification


def vector_kernels(model: ir.Model, node: ir.Node, sizes: Trace) -> bool:
    """Write one activation by vector kernels, in place; whether it is one."""
    if float_type(node.outputs[0], sizes) != FLOAT32:
        return False
    make = Builder(model, node)
    if node.op_type in _EXPONENTIAL and read.standard(node) and node.inputs[0] is not None:
        edit.bypass(model, node, _exponential(make, node.inputs[0], *_EXPONENTIAL[node.op_type](node)))
        return True
    for region in regions_ending_at(node, sizes) if node.op_type in ("Mul", "Mish", "Softplus") else ():
        if region.form == sf.Gate(sf.Curve(sf.TANH_SOFTPLUS, sf.IDENTITY)):
            edit.bypass(model, node, _mish(make, region.anchor))
            return True
        if region.form == sf.Curve(sf.SOFTPLUS, sf.IDENTITY) and not _feeds_mish(node):
            edit.bypass(model, node, _softplus(make, region.anchor))
            return True
    return False


def _feeds_mish(node: ir.Node) -> bool:
    """Whether a Tanh reads a Softplus: the two are one with the product behind them."""
    return any(use.node.op_type == "Tanh" for use in node.outputs[0].uses())


def _mish(make: Builder, x: ir.Value) -> ir.Value:
    two = make.number(2.0, "two")
    sigmoid = make("Sigmoid", [x])
    part = make("Mul", [sigmoid, make("Sub", [two, sigmoid])])
    return make("Mul", [x, make("Div", [part, make("Sub", [two, part])])])


def _softplus(make: Builder, x: ir.Value) -> ir.Value:
    small = make("Exp", [make("Neg", [make("Abs", [x])])])
    return make("Add", [make("Relu", [x]), make("Log", [make("Add", [small, make.number(1.0, "one")])])])


def _exponential(make: Builder, x: ir.Value, alpha: float, gamma: float, inner: float) -> ir.Value:
    """gamma (relu(x) + alpha (exp(min(x, 0) / inner) - 1))."""
    below = make("Min", [x, make.number(0.0, "zero")])
    if inner != 1:
        below = make("Div", [below, make.number(inner, "inner")])
    lower = make("Sub", [make("Exp", [below]), make.number(1.0, "one")])
    upper = make("Relu", [x])
    if gamma != 1:
        upper = make("Mul", [upper, make.number(gamma, "gamma")])
    if alpha * gamma != 1:
        lower = make("Mul", [lower, make.number(alpha * gamma, "alpha")])
    return make("Add", [upper, lower])


def _celu(node: ir.Node) -> tuple[float, float, float]:
    alpha = read.float_attribute(node, "alpha", 1.0)
    return alpha, 1.0, alpha


# alpha, gamma and inner of `_exponential`
_EXPONENTIAL = {
    "Elu": lambda node: (read.float_attribute(node, "alpha", 1.0), 1.0, 1.0),
    "Selu": lambda node: (
        read.float_attribute(node, "alpha", _SELU[0]),
        read.float_attribute(node, "gamma", _SELU[1]),
        1.0,
    ),
    "Celu": _celu,
}
