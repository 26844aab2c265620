"""Casts and shapes: accepted values, and the one-line errors of others."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from onnxpress.data.checks import cast, conform
from onnxpress.data.layout import batch_layout
from onnxpress.errors import InputProblem
from tests.data.helpers import floats, refused, sig

pytestmark = pytest.mark.unit

GOOD = [
    (np.array([0, 255], np.uint8), "float32"),
    (np.array([0, 255], np.uint8), "int8", "it cannot hold"),
    (np.array([-5, 5], np.int64), "int32"),
    (np.array([2**40], np.int64), "int32", "it cannot hold"),
    (np.array([-1], np.int64), "uint8", "it cannot hold"),
    (np.array([2**24], np.int64), "float32"),
    (np.array([2**24 + 1], np.int64), "float32", "holds integers exactly to 16777216"),
    (np.array([2**24 + 1], np.int64), "float64"),
    (np.array([2048], np.int16), "float16"),
    (np.array([2049], np.int16), "float16", "exactly to 2048"),
    (np.array([0.1], np.float64), "float32"),
    (np.array([1e39], np.float64), "float32", "overflow"),
    (np.array([7e4], np.float32), "float16", "overflow"),
    (np.array([1.0, 2.0]), "int64"),
    (np.array([1.5]), "int64", "with fractions"),
    (np.array([300.0]), "uint8", "it cannot hold"),
    (np.array([True, False]), "int64"),
    (np.array([True, False]), "float32"),
    (np.array([0, 1]), "bool"),
    (np.array([0.0, 1.0]), "bool"),
    (np.array([0, 2]), "bool", "other than 0 and 1"),
    (np.array([np.nan], np.float32), "float32", "not finite (NaN at [0])"),
    (np.array([1, np.inf], np.float32), "float32", "1 of 2 values", "infinity at [1]"),
    (np.array([np.nan]), "int64", "not finite"),
    (np.array([1j]), "float32", "found complex numbers"),
    (np.array([{}], object), "float32", "Python objects", "without pickled objects"),
    (np.array(["a"]), "float32", "found strings"),
    (np.array(["2020-01-01"], "datetime64[D]"), "float32", "dates or times"),
    (np.array([1.0], ml_dtypes.bfloat16), "float32"),
    (np.array([1.0, 3e38], np.float32), "bfloat16"),
    (np.array([257], np.int32), "bfloat16", "exactly to 256"),
    (np.array([7], np.int64), "int4"),
    (np.array([8], np.int64), "int4", "it cannot hold"),
    (np.array([1], np.int64), "string", "expected strings"),
]


@pytest.mark.parametrize("case", GOOD, ids=lambda c: f"{c[0].dtype}->{c[1]}{'!' if len(c) > 2 else ''}")
def test_casts(case: tuple) -> None:
    value, kind, *says = case
    dtype = np.dtype(object) if kind == "string" else np.dtype(getattr(ml_dtypes, kind, kind))
    if says:
        refused(lambda: cast(value, dtype, "set[3], input 'x'"), "set[3], input 'x'", *says)
    else:
        result = cast(value, dtype, "here")
        assert result.dtype == dtype
        np.testing.assert_allclose(result.astype(np.float64), value.astype(np.float64), rtol=1e-2)


def test_strings_become_python_strings() -> None:
    for value in (np.array([["a"]]), np.array([[b"a"]]), np.array([["a"]], object)):
        result = cast(value, np.dtype(object), "here")
        assert result.tolist() == [["a"]]
        assert result.dtype == object
    refused(lambda: cast(np.array([b"\xff"]), np.dtype(object), "here"), "not UTF-8")
    refused(lambda: cast(np.array(["a", 3], object), np.dtype(object), "here"), "found int")


SHAPES = [
    ("x float32 N 3 8 8", (3, 8, 8), (1, 3, 8, 8)),
    ("x float32 N 3 8 8", (1, 3, 8, 8), (1, 3, 8, 8)),
    ("x float32 N 3 H W", (3, 5, 6), (1, 3, 5, 6)),
    ("x float32 1 3 8 8", (3, 8, 8), (1, 3, 8, 8)),
    ("x float32 3 8 8", (3, 8, 8), (3, 8, 8)),
    ("x float32", (), ()),
    ("x float32", (1,), ()),
    ("x float32 1", (), (1,)),
    ("x float32 N 1", (), (1, 1)),
    ("x float32 N 1", (1,), (1, 1)),
    ("x float32 N", (), (1,)),
    ("x float32 N", (7,), (7,)),
    ("x float32 ...", (1, 7), (1, 7)),
    ("x float32 L batch 4", (5, 4), (5, 1, 4)),
]


@pytest.mark.parametrize(("model", "given", "full"), SHAPES)
def test_shapes(model: str, given: tuple[int, ...], full: tuple[int, ...]) -> None:
    where = batch_layout(sig(model, outputs=("y float32 1 5",)))
    assert conform({"x": np.ones(given, np.float32)}, where, "k")["x"].shape == full


MISFITS = [
    (
        "x float32 N 3 8 9",
        (8, 9, 3),
        [
            "[1,3,8,9] or [3,8,9]",
            "found [8,9,3]",
            "look like NHWC and the model expects NCHW",
            "x.transpose(0, 3, 1, 2)",
        ],
    ),
    ("x float32 N 8 9 3", (1, 3, 8, 9), ["look like NCHW and the model expects NHWC", "x.transpose(0, 2, 3, 1)"]),
    ("x float32 N 3 8 8", (2, 3, 8, 8), ["one sample at a time", "has 2 along the batch axis"]),
    ("x float32 N 3 8 8", (192,), ["reshape each sample to [3,8,8]"]),
    ("x float32 N 3 8 8", (3, 9, 9), ["resize or crop"]),
    ("x float32 N 40 T", (9, 40), ["last two axes look swapped"]),
    ("x float32 N 3 8 8", (0, 8, 8), ["the array is empty"]),
    ("x float32 N 5", (4,), ["expected one sample of shape [1,5] or [5]", "found [4]"]),
    ("x float32", (2,), ["expected one sample of shape []"]),
]


@pytest.mark.parametrize(("model", "given", "says"), MISFITS)
def test_misfits(model: str, given: tuple[int, ...], says: list[str]) -> None:
    refused(
        lambda: conform({"x": np.ones(given, np.float32)}, batch_layout(sig(model)), "set[5]"),
        "set[5], input 'x'",
        *says,
    )


def test_missing_input() -> None:
    where = batch_layout(sig("ids int64 N L", "mask int64 N L"))
    refused(
        lambda: conform({"ids": np.ones(3), "b": floats(3)}, where, "k"),
        "no array for input mask",
        "found b, ids",
        "ids, mask",
    )


def test_a_dynamic_first_axis_of_time_is_no_batch() -> None:
    """[T, 1, F] -> [1, C]: samples were cut into single steps."""
    layout = batch_layout(sig("x float32 T 1 24", outputs=("y float32 1 6",)))
    assert layout.ports[0].axis is None and layout.alone
    assert conform({"x": np.ones((20, 1, 24), np.float32)}, layout, "a")["x"].shape == (20, 1, 24)
    for outputs in (("y float32 N 6",), ("y float32 1 6", "z float32 N 6")):
        assert batch_layout(sig("x float32 T 1 24", outputs=outputs)).ports[0].axis == 0
    assert batch_layout(sig("x float32 batch 1 24", outputs=("y float32 1 6",))).ports[0].axis == 0


def test_dynamic_axes_may_be_empty_but_not_the_batch() -> None:
    """The cache of a decoder's first step has length 0."""
    layout = batch_layout(sig("past float32 N 4 L 8", outputs=("y float32 N 6",)))
    assert conform({"past": np.zeros((1, 4, 0, 8), np.float32)}, layout, "a")["past"].shape == (1, 4, 0, 8)
    for shape in ((0, 4, 3, 8), (1, 4, 3, 0)):
        with pytest.raises(InputProblem):
            conform({"past": np.zeros(shape, np.float32)}, layout, "a")
