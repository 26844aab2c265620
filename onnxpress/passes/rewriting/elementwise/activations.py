"""Activations that are spelled out, as the operators that onnxruntime has for them.

before -> after, in any spelling (normal forms of `scalar_functions.py` prove that the two are the same):

    clip(x + 3, 0, 6) * x / 6                      -> HardSwish (from operator set 14), else HardSigmoid, Mul
    clip(a x + b, 0, 1)                            -> HardSigmoid
    max(x, a x); relu(x) - a relu(-x)              -> LeakyRelu
    min(max(x, l), h)                              -> Clip, Relu
    1 / (1 + exp(-x)); (1 + tanh(x / 2)) / 2       -> Sigmoid
    x / (1 + exp(-a x))                            -> Mul, Sigmoid, Mul
    log(1 + exp(x))                                -> Softplus
    x (1 + erf(x / sqrt 2)) / 2                    -> Gelu (from operator set 20), else Div, Erf, Add, Mul, Mul
    x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 -> Gelu (20), else the spelling with Pow

Why: onnxruntime fuses Relu, Clip, LeakyRelu, Sigmoid, Tanh, HardSigmoid and HardSwish into the convolution in front,
and keeps them in its blocked layout; x * Sigmoid(a x) becomes QuickGelu; the two spellings of GELU above become one
kernel. An Add or a Div by a number in between takes the tensor out of the blocked layout and back, and reads and writes
it once more each.

Conditions: all other operands are single numbers, nothing else reads what lies between, the constants agree with those
of the operator to their own precision, and there are fewer operators than before. What overflowed in a spelled-out form
(exp of 89 and more) no longer does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.trace import Trace
from onnxpress.passes.rewriting.elementwise import scalar_functions as sf
from onnxpress.passes.rewriting.elementwise.scalar_regions import Region, regions_ending_at

FLOAT32 = np.dtype(np.float32)
_HARD_SWISH, _GELU, _CLIP_WITH_INPUTS = 14, 20, 11  # operator sets from which on
_PRECISION = {np.dtype(np.float16): 2e-3, FLOAT32: 3e-6, np.dtype(np.float64): 1e-6}
_SPELLED = 3  # operators, from more than which on an activation has no operator of its own
_ROOT = math.sqrt(2 / math.pi)
_CUBIC = 0.044715
_TRUNCATED = 1e-5  # relative error of the constants of GELU, which are often cut

Build = Callable[["Builder", ir.Value], ir.Value]


@dataclass
class Builder:
    """Makes nodes in front of another, with numbers in the type of a value.

    model: that is changed. before: the node in front of which they are put. dtype: of its result, and of the numbers.
    """

    model: ir.Model
    before: ir.Node
    dtype: np.dtype = FLOAT32

    def __call__(self, op: str, inputs: Sequence[ir.Value | None], **attributes: object) -> ir.Value:
        """The output of a new node."""
        stem = f"{read.node_label(self.before)}_{op}"
        value = edit.insert_before(self.model, self.before, op, inputs, stem, attributes)
        value.type = ir.TensorType(ir.DataType.from_numpy(self.dtype))
        return value

    def number(self, value: float, stem: str) -> ir.Value:
        """A constant without axes."""
        return edit.add_constant(self.model, np.array(value, self.dtype), stem)

    def clip(self, x: ir.Value, low: float, high: float) -> ir.Value:
        """Clip, with infinite bounds left out; Relu where it is one."""
        if low == 0 and math.isinf(high):
            return self("Relu", [x])
        bounds = {"min": low, "max": high}
        if read.opset(self.model) < _CLIP_WITH_INPUTS:
            return self("Clip", [x], **{k: v for k, v in bounds.items() if math.isfinite(v)})
        given = [self.number(v, k) if math.isfinite(v) else None for k, v in bounds.items()]
        return self("Clip", [x, *given] if given[1] is not None else [x, given[0]])


def _same_operators(region: Region, ops: tuple[str, ...]) -> bool:
    return sorted(n.op_type for n in region.nodes) == sorted(ops)


@dataclass(frozen=True)
class Activation:
    """An operator, or a few, for a form.

    ops: the operators, in order. build: makes them. written: whether a region of as many operators is that already.
    """

    ops: tuple[str, ...]
    build: Build
    written: Callable[[Region, tuple[str, ...]], bool] = _same_operators


def name_activation(model: ir.Model, node: ir.Node, sizes: Trace) -> bool:
    """Replace the largest region that ends at a node and has an operator, in place; whether there is one."""
    dtype = float_type(node.outputs[0], sizes)
    for region in regions_ending_at(node, sizes) if dtype is not None else ():
        assert dtype is not None
        found = activation(region.form, read.opset(model), _PRECISION[dtype])
        if found is None or not _better(found, region):
            continue
        edit.bypass(model, node, found.build(Builder(model, node, dtype), region.anchor))
        return True
    return False


def float_type(value: ir.Value, sizes: Trace) -> np.dtype | None:
    """The float type of a value; None where it has another, or it is not known."""
    kind = value.dtype
    if kind is None:
        return FLOAT32 if value.name in sizes.floats else None
    dtype = np.dtype(kind.numpy())
    return dtype if dtype in _PRECISION else None


def _better(found: Activation, region: Region) -> bool:
    """Whether there are fewer operators than before, or as many in a spelling that onnxruntime knows."""
    if len(found.ops) == len(region.nodes):
        return len(found.ops) > _SPELLED and not found.written(region, found.ops)
    return len(found.ops) < len(region.nodes)


def activation(form: sf.Form, opset: int, precision: float) -> Activation | None:
    """The operators for a form; None where there are none. precision: relative error of its constants."""
    if isinstance(form, sf.PiecewiseLinear):
        return _lines(form, precision)
    if isinstance(form, sf.Curve):
        return _curve(form, precision)
    if isinstance(form, sf.Gate):
        if isinstance(form.factor, sf.Curve):
            return _smooth_gate(form.factor, opset, precision)
        return _hard_gate(form.factor, opset, precision)
    return None


def _lines(form: sf.PiecewiseLinear, precision: float) -> Activation | None:
    close = _closeness(precision)
    if form.points == ((0.0, 0.0),) and not (form.left == 0 and close(form.right, 1)):
        if close(form.right, 1) and close(form.left, -1):
            return Activation(("Abs",), lambda make, x: make("Abs", [x]))
        alpha = form.left
        return Activation(("LeakyRelu",), lambda make, x: make("LeakyRelu", [x], alpha=alpha)) if (
            close(form.right, 1)) else None  # fmt: skip
    hard = _hard_sigmoid(form)
    if hard is not None and close(hard[2], 1) and not close(hard[0], 1):
        alpha, beta, _ = hard
        return Activation(("HardSigmoid",), lambda make, x: make("HardSigmoid", [x], alpha=alpha, beta=beta))
    bounds = _bounds(form, close)
    if bounds is None:
        return None
    low, high = bounds
    return Activation(("Clip" if low or math.isfinite(high) else "Relu",), lambda make, x: make.clip(x, low, high))


def _bounds(form: sf.PiecewiseLinear, close: Callable[[float, float], bool]) -> tuple[float, float] | None:
    """The bounds where a form is a Clip."""
    if not all(close(x, y) for x, y in form.points) or len(form.points) > 2:
        return None
    if len(form.points) == 2:
        return (form.points[0][1], form.points[1][1]) if form.left == form.right == 0 else None
    if form.left == 0 and close(form.right, 1):
        return form.points[0][1], math.inf
    return (-math.inf, form.points[0][1]) if form.right == 0 and close(form.left, 1) else None


def _hard_sigmoid(form: sf.PiecewiseLinear) -> tuple[float, float, float] | None:
    """alpha, beta, height where a form is height * clip(alpha x + beta, 0, 1)."""
    if len(form.points) != 2 or form.left or form.right:
        return None
    (x0, y0), (x1, y1) = form.points
    if y0 != 0 or y1 <= 0:
        return None
    return 1 / (x1 - x0), -x0 / (x1 - x0), y1


def _curve(form: sf.Curve, precision: float) -> Activation | None:
    close = _closeness(precision)
    slope = form.inner.coefficient(1)
    if not form.inner.proportional:
        return None
    if form.kind == sf.SIGMOID and close(form.scale, 1) and form.shift == 0 and close(slope, 1):
        return Activation(("Sigmoid",), lambda make, x: make("Sigmoid", [x]))
    if form.kind == sf.SIGMOID and close(form.scale, 2) and close(form.shift, -1) and close(slope, 2):
        return Activation(("Tanh",), lambda make, x: make("Tanh", [x]))
    if form.kind == sf.SOFTPLUS and close(form.scale, 1) and form.shift == 0 and close(slope, 1):
        return Activation(("Softplus",), lambda make, x: make("Softplus", [x]))
    return None


def _hard_gate(factor: sf.PiecewiseLinear, opset: int, precision: float) -> Activation | None:
    close = _closeness(precision)
    hard = _hard_sigmoid(factor)
    if hard is None or not close(hard[2], 1):
        return None
    alpha, beta, _ = hard
    if opset >= _HARD_SWISH and close(alpha, 1 / 6) and close(beta, 0.5):
        return Activation(("HardSwish",), lambda make, x: make("HardSwish", [x]))
    return Activation(
        ("HardSigmoid", "Mul"),
        lambda make, x: make("Mul", [x, make("HardSigmoid", [x], alpha=alpha, beta=beta)]),
    )


def _smooth_gate(factor: sf.Curve, opset: int, precision: float) -> Activation | None:
    close = _closeness(precision)
    inner = factor.inner.coefficients
    if factor.kind == sf.SIGMOID and close(factor.scale, 1) and abs(factor.shift) < precision:
        if factor.inner.proportional:
            return _swish(inner[1], precision)
        if len(inner) == 4 and inner[0] == inner[2] == 0 and _gelu_cubic(inner[1], inner[3], precision):
            return _gelu("tanh", opset)
    if (
        factor.kind == sf.ERF
        and close(factor.scale, 0.5)
        and close(factor.shift, 0.5)
        and factor.inner.proportional
        and _closeness(max(precision, _TRUNCATED))(inner[1], math.sqrt(0.5))
    ):
        return _gelu("none", opset)
    return None


def _gelu_cubic(linear: float, cubic: float, precision: float) -> bool:
    close = _closeness(max(precision, _TRUNCATED))
    return close(linear, 2 * _ROOT) and close(cubic, 2 * _ROOT * _CUBIC)


def _swish(beta: float, precision: float) -> Activation:
    if _closeness(precision)(beta, 1):
        return Activation(("Sigmoid", "Mul"), lambda make, x: make("Mul", [x, make("Sigmoid", [x])]))

    def build(make: Builder, x: ir.Value) -> ir.Value:
        steep = make("Mul", [x, make.number(beta, "beta")])
        return make("Mul", [x, make("Sigmoid", [steep])])

    return Activation(("Mul", "Sigmoid", "Mul"), build)


def _gelu(approximate: str, opset: int) -> Activation:
    if opset >= _GELU:
        return Activation(("Gelu",), lambda make, x: make("Gelu", [x], approximate=approximate))
    if approximate == "none":
        return Activation(("Div", "Erf", "Add", "Mul", "Mul"), _spelled_erf, _sum_times_input)
    ops = ("Pow", "Mul", "Add", "Mul", "Tanh", "Add", "Mul", "Mul")
    return Activation(ops, _spelled_tanh, _half_is_early)


def _sum_times_input(region: Region, ops: tuple[str, ...]) -> bool:
    """Whether the sum of 1 and the error function is multiplied by the input first, and not by 1/2."""
    raised = next((n.outputs[0] for n in region.nodes if n.op_type == "Add"), None)
    readers = [use.node for use in raised.uses()] if raised is not None else []
    plain = all(read.constant(v) is None for n in readers for v in n.inputs)
    return _same_operators(region, ops) and plain


def _half_is_early(region: Region, ops: tuple[str, ...]) -> bool:
    """Whether the last product is that of the two halves, and not that with 1/2."""
    return _same_operators(region, ops) and all(read.constant(v) is None for v in region.exit.inputs)


def _spelled_erf(make: Builder, x: ir.Value) -> ir.Value:
    """GELU as onnxruntime's GeluFusion expects it."""
    erf = make("Erf", [make("Div", [x, make.number(math.sqrt(2), "root")])])
    raised = make("Add", [erf, make.number(1.0, "one")])
    return make("Mul", [make("Mul", [x, raised]), make.number(0.5, "half")])


def _spelled_tanh(make: Builder, x: ir.Value) -> ir.Value:
    """GELU as onnxruntime's FastGeluFusion expects it."""
    cube = make("Mul", [make("Pow", [x, make.number(3.0, "three")]), make.number(_CUBIC, "cubic")])
    inner = make("Mul", [make("Add", [x, cube]), make.number(_ROOT, "root")])
    raised = make("Add", [make("Tanh", [inner]), make.number(1.0, "one")])
    return make("Mul", [make("Mul", [x, make.number(0.5, "half")]), raised])


def _closeness(precision: float) -> Callable[[float, float], bool]:
    return lambda a, b: abs(a - b) <= precision * max(abs(b), 1e-30)
