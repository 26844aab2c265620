"""Functions of one number, in normal forms: what two spellings of an activation have in common.

Exporters write one activation in many ways (`x * Clip(x + 3, 0, 6) / 6`, `x * HardSigmoid(x)`, `Min(Max(x + 3, 0), 6) *
(x / 6)`). Composed by the algebra below, all of them become the same normal form, which proves that they are the same
function up to the rounding of constants; `activations.py` knows the operator for a form.

Polynomial       c0 + c1 x + c2 x^2 + c3 x^3
PiecewiseLinear  straight lines between knots: Relu, Clip, LeakyRelu, HardSigmoid, Abs and all that is made of them
Curve            scale * f(p(x)) + shift, where f is exp, sigmoid, erf, softplus or tanh(softplus), p a polynomial;
                 tanh is written as a sigmoid
Gate             x times a PiecewiseLinear or a Curve: HardSwish, SiLU, GELU, Mish

Every operation returns None where its result has none of these forms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

_DEGREE = 3
_INFINITE = 3e38  # the largest float32 stands for infinity, as exporters and onnxruntime write it
_SAME = 1e-9  # relative distance of two knots or slopes that are one, of numbers computed here
EXP, SIGMOID, ERF, SOFTPLUS, TANH, TANH_SOFTPLUS = "exp", "sigmoid", "erf", "softplus", "tanh", "tanh(softplus)"


@dataclass(frozen=True)
class Polynomial:
    """coefficients: of x^0, x^1, ... without zeros at the end."""

    coefficients: tuple[float, ...]

    def __call__(self, x: float) -> float:
        return sum(c * x**power for power, c in enumerate(self.coefficients))

    @property
    def degree(self) -> int:
        return max(len(self.coefficients) - 1, 0)

    def coefficient(self, power: int) -> float:
        return self.coefficients[power] if power < len(self.coefficients) else 0.0

    @property
    def proportional(self) -> bool:
        """Whether it is c x, c not 0."""
        return self.degree == 1 and self.coefficients[0] == 0


@dataclass(frozen=True)
class PiecewiseLinear:
    """points: (x, y) of the knots, by x, at least one; left, right: slopes outside of them."""

    points: tuple[tuple[float, float], ...]
    left: float
    right: float

    def __call__(self, x: float) -> float:
        (x0, y0), (xn, yn) = self.points[0], self.points[-1]
        if x <= x0:
            return y0 + self.left * (x - x0) if self.left else y0
        if x >= xn:
            return yn + self.right * (x - xn) if self.right else yn
        for (a, ya), (b, yb) in zip(self.points, self.points[1:], strict=False):
            if x <= b:
                return ya + (yb - ya) * (x - a) / (b - a)
        raise AssertionError("x lies between the knots")


@dataclass(frozen=True)
class Curve:
    """scale * kind(inner(x)) + shift."""

    kind: str
    inner: Polynomial
    scale: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True)
class Gate:
    """x * factor(x)."""

    factor: PiecewiseLinear | Curve


Form = Polynomial | PiecewiseLinear | Curve | Gate
IDENTITY = Polynomial((0.0, 1.0))


def constant_form(value: float) -> Polynomial:
    return polynomial([value])


def polynomial(coefficients: list[float]) -> Polynomial:
    kept = list(coefficients)
    while kept and kept[-1] == 0:
        kept.pop()
    return Polynomial(tuple(kept) or (0.0,))


def add(first: Form, second: Form) -> Form | None:
    """The sum of two forms."""
    if isinstance(first, Polynomial) and isinstance(second, Polynomial):
        size = max(len(first.coefficients), len(second.coefficients))
        return polynomial([first.coefficient(k) + second.coefficient(k) for k in range(size)])
    if isinstance(first, Polynomial):
        first, second = second, first
    if isinstance(second, Polynomial):
        if second.degree == 0 and isinstance(first, Curve):
            return replace(first, shift=first.shift + second.coefficients[0])
        if isinstance(first, Gate) and (second.proportional or second.coefficients == (0.0,)):
            factor = add(first.factor, constant_form(second.coefficient(1)))
            return Gate(factor) if isinstance(factor, PiecewiseLinear | Curve) else None
    if isinstance(first, Gate) and isinstance(second, Gate):
        factor = add(first.factor, second.factor)
        return Gate(factor) if isinstance(factor, PiecewiseLinear | Curve) else None
    lines = piecewise(first), piecewise(second)
    if lines[0] is None or lines[1] is None:
        return None
    return _pointwise(lambda a, b: a + b, lines[0], lines[1])


def multiply(first: Form, second: Form) -> Form | None:
    """The product of two forms."""
    if not isinstance(first, Polynomial):
        first, second = second, first
    if not isinstance(first, Polynomial):
        return None
    if isinstance(second, Polynomial):
        if first.degree + second.degree > _DEGREE:
            return None
        product = [0.0] * (first.degree + second.degree + 1)
        for i, a in enumerate(first.coefficients):
            for j, b in enumerate(second.coefficients):
                product[i + j] += a * b
        return polynomial(product)
    if first.degree == 0:
        return scaled(second, first.coefficients[0])
    if first.proportional and isinstance(second, PiecewiseLinear | Curve):
        factor = scaled(second, first.coefficients[1])
        return Gate(factor) if isinstance(factor, PiecewiseLinear | Curve) else None
    return None


def scaled(form: Form, by: float) -> Form | None:
    """A form times a number; None for 0, which would hide infinite values."""
    if by == 0 or not math.isfinite(by):
        return None
    if isinstance(form, Polynomial):
        return polynomial([c * by for c in form.coefficients])
    if isinstance(form, PiecewiseLinear):
        return PiecewiseLinear(tuple((x, y * by) for x, y in form.points), form.left * by, form.right * by)
    if isinstance(form, Curve):
        return replace(form, scale=form.scale * by, shift=form.shift * by)
    factor = scaled(form.factor, by)
    return Gate(factor) if isinstance(factor, PiecewiseLinear | Curve) else None


def divide(first: Form, second: Form) -> Form | None:
    """A quotient: by a number, or of a number or c x by a sum of a number and an exponential (a sigmoid)."""
    if isinstance(second, Polynomial) and second.degree == 0 and second.coefficients[0] != 0:
        return scaled(first, 1 / second.coefficients[0])
    if isinstance(second, Curve) and second.kind == EXP and second.shift * second.scale > 0:
        offset = math.log(second.scale / second.shift)
        inner = add(scaled(second.inner, -1.0) or second.inner, constant_form(-offset))
        if isinstance(inner, Polynomial):
            return multiply(first, Curve(SIGMOID, inner, 1 / second.shift))
    return None


def apply_curve(kind: str, form: Form) -> Form | None:
    """exp, sigmoid, tanh, erf or softplus of a form."""
    if kind == TANH and isinstance(form, Curve) and form == Curve(SOFTPLUS, form.inner):
        return Curve(TANH_SOFTPLUS, form.inner)
    if not isinstance(form, Polynomial) or form.degree == 0:
        return None
    if kind == TANH:
        twice = scaled(form, 2.0)
        return Curve(SIGMOID, twice, 2.0, -1.0) if isinstance(twice, Polynomial) else None
    return Curve(kind, form)


def logarithm(form: Form) -> Form | None:
    """log of a sum of a number and an exponential: a softplus."""
    if not isinstance(form, Curve) or form.kind != EXP or form.scale <= 0 or form.shift <= 0:
        return None
    inner = add(form.inner, constant_form(math.log(form.scale / form.shift)))
    return Curve(SOFTPLUS, inner, 1.0, math.log(form.shift)) if isinstance(inner, Polynomial) else None


def power(form: Form, exponent: float) -> Form | None:
    """A form to the power of 1, 2 or 3."""
    if exponent not in (1, 2, 3):
        return None
    result: Form | None = form
    for _ in range(int(exponent) - 1):
        result = None if result is None else multiply(result, form)
    return result


def larger(first: Form, second: Form) -> Form | None:
    """The maximum of two piecewise linear forms."""
    if isinstance(second, Polynomial) and second.degree == 0 and second.coefficients[0] < -_INFINITE:
        return first
    lines = piecewise(first), piecewise(second)
    return None if lines[0] is None or lines[1] is None else _pointwise(max, lines[0], lines[1])


def smaller(first: Form, second: Form) -> Form | None:
    """The minimum of two piecewise linear forms."""
    if isinstance(second, Polynomial) and second.degree == 0 and second.coefficients[0] > _INFINITE:
        return first
    lines = piecewise(first), piecewise(second)
    return None if lines[0] is None or lines[1] is None else _pointwise(min, lines[0], lines[1])


def limited(form: Form, low: float, high: float) -> Form | None:
    """A form limited to [low, high], which may be infinite."""
    above = larger(form, constant_form(low))
    return None if above is None else smaller(above, constant_form(high))


def piecewise(form: Form) -> PiecewiseLinear | None:
    """The piecewise linear form of a form, None where it has none."""
    if isinstance(form, PiecewiseLinear):
        return form
    if isinstance(form, Polynomial) and form.degree <= 1:
        slope = form.coefficient(1)
        return PiecewiseLinear(((0.0, form.coefficients[0]),), slope, slope)
    return None


def _pointwise(
    combine: Callable[[float, float], float], first: PiecewiseLinear, second: PiecewiseLinear
) -> Form | None:
    """Two piecewise linear forms combined value by value: by +, max or min."""
    knots = sorted({x for x, _ in (*first.points, *second.points)})
    knots = sorted({*knots, *_crossings(first, second, knots)})
    ends = knots[0] - max(1.0, abs(knots[0])), knots[-1] + max(1.0, abs(knots[-1]))
    values = [(x, combine(first(x), second(x))) for x in (ends[0], *knots, ends[1])]
    return _simplified(values)


def _crossings(first: PiecewiseLinear, second: PiecewiseLinear, knots: list[float]) -> list[float]:
    """Where two piecewise linear forms are equal, between and outside of the knots of both."""

    def gap(x: float) -> float:
        return first(x) - second(x)

    found = []
    for a, b in itertools.pairwise(knots):
        if gap(a) * gap(b) < 0:
            found.append(a + (b - a) * gap(a) / (gap(a) - gap(b)))
    for end, slope in ((knots[0], first.left - second.left), (knots[-1], first.right - second.right)):
        if slope and not knots[0] <= (root := end - gap(end) / slope) <= knots[-1]:
            found.append(root)
    return found


def _simplified(values: list[tuple[float, float]]) -> Form:
    """The form through points, of which the first and the last lie outside of all knots."""
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(values)]
    scale = max(*map(abs, slopes), 1e-30)
    turns = zip(values[1:-1], slopes[:-1], slopes[1:], strict=True)
    kept = [point for point, before, after in turns if abs(after - before) > _SAME * scale]
    if not kept:
        (x, y), slope = values[0], slopes[0]
        return polynomial([y - slope * x, slope])
    return PiecewiseLinear(tuple(kept), slopes[0], slopes[-1])
