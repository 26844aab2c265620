"""Normal forms of functions of one number: the algebra against the functions themselves."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpress.passes.rewriting.elementwise import scalar_functions as sf

pytestmark = pytest.mark.unit
X = np.linspace(-9, 9, 181).tolist()
numbers = st.floats(-8, 8).map(lambda v: round(v, 2))
Function = Callable[[float], float]
Line = tuple[sf.Form, Function]
factors = numbers.filter(lambda v: abs(v) > 0.05)


def value(form: sf.Form | None, x: float) -> float:
    """A form at a place, by its definition."""
    assert form is not None
    if isinstance(form, sf.Polynomial | sf.PiecewiseLinear):
        return form(x)
    if isinstance(form, sf.Gate):
        return x * value(form.factor, x)
    inner = form.inner(x)
    kinds: dict[str, Function] = {
        sf.EXP: lambda u: math.exp(u),
        sf.SIGMOID: lambda u: 1 / (1 + math.exp(-u)),
        sf.ERF: math.erf,
        sf.SOFTPLUS: lambda u: math.log1p(math.exp(u)),
        sf.TANH_SOFTPLUS: lambda u: math.tanh(math.log1p(math.exp(u))),
    }
    return form.scale * kinds[form.kind](inner) + form.shift


@st.composite
def lines(draw: st.DrawFn) -> Line:
    """A piecewise linear form, made step by step, and the same as a Python function."""
    form: sf.Form | None = sf.IDENTITY
    function: Function = float
    for _ in range(draw(st.integers(1, 5))):
        form, function = _step(
            draw(st.sampled_from(["add", "scale", "max", "min", "line"])), draw(factors), form, function
        )
    assert form is not None
    return form, function


def _step(kind: str, c: float, form: sf.Form | None, function: Function) -> tuple[sf.Form | None, Function]:
    line = sf.scaled(sf.IDENTITY, c)
    assert form is not None and line is not None
    number = sf.constant_form(c)
    if kind == "add":
        return sf.add(form, number), lambda x: function(x) + c
    if kind == "scale":
        return sf.scaled(form, c), lambda x: function(x) * c
    if kind == "max":
        return sf.larger(form, number), lambda x: max(function(x), c)
    if kind == "min":
        return sf.smaller(form, number), lambda x: min(function(x), c)
    return sf.larger(form, line), lambda x: max(function(x), c * x)


@given(lines())
def test_piecewise_linear_forms_are_the_function(pair: Line) -> None:
    form, function = pair
    found = [value(form, x) for x in X]
    wanted = [function(x) for x in X]
    np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-7 * max(map(abs, wanted)))


@given(lines(), lines())
def test_sums_of_piecewise_linear_forms(first: Line, second: Line) -> None:
    total = sf.add(first[0], second[0])
    wanted = [value(first[0], x) + value(second[0], x) for x in X]
    np.testing.assert_allclose([value(total, x) for x in X], wanted, rtol=1e-6, atol=1e-6 * max(map(abs, wanted)))


@given(factors, factors, factors)
def test_quotients_by_exponentials_are_sigmoids(slope: float, offset: float, numerator: float) -> None:
    inner = sf.add(sf.scaled(sf.IDENTITY, slope / 4) or sf.IDENTITY, sf.constant_form(offset / 4))
    assert inner is not None
    exponential = sf.apply_curve(sf.EXP, inner)
    assert exponential is not None
    below = sf.add(exponential, sf.constant_form(2.0))
    form = sf.divide(sf.constant_form(numerator), below or exponential)
    for x in X:
        assert value(form, x) == pytest.approx(numerator / (2 + math.exp(slope / 4 * x + offset / 4)), rel=1e-9)


def test_tanh_is_a_sigmoid_and_of_a_softplus_a_form_of_its_own() -> None:
    assert sf.apply_curve(sf.TANH, sf.IDENTITY) == sf.Curve(sf.SIGMOID, sf.Polynomial((0.0, 2.0)), 2.0, -1.0)
    softplus = sf.apply_curve(sf.SOFTPLUS, sf.IDENTITY)
    assert softplus is not None
    assert sf.apply_curve(sf.TANH, softplus) == sf.Curve(sf.TANH_SOFTPLUS, sf.IDENTITY)
    twice = sf.scaled(softplus, 2.0)
    assert twice is not None and sf.apply_curve(sf.TANH, twice) is None


def test_what_has_no_form_is_none() -> None:
    gate = sf.multiply(sf.IDENTITY, sf.limited(sf.IDENTITY, 0, 6) or sf.IDENTITY)
    assert isinstance(gate, sf.Gate)
    assert sf.multiply(gate, gate) is None
    assert sf.add(gate, sf.constant_form(1.0)) is None
    assert sf.scaled(gate, 0.0) is None
    assert sf.divide(sf.IDENTITY, gate) is None
    assert sf.power(sf.IDENTITY, 0.5) is None
    assert sf.power(sf.IDENTITY, 3) == sf.Polynomial((0.0, 0.0, 0.0, 1.0))
    assert sf.logarithm(sf.IDENTITY) is None


def test_a_largest_number_is_no_bound() -> None:
    relu = sf.limited(sf.IDENTITY, 0.0, math.inf)
    assert sf.limited(sf.IDENTITY, 0.0, float(np.finfo(np.float32).max)) == relu
    assert relu == sf.PiecewiseLinear(((0.0, 0.0),), 0.0, 1.0)
