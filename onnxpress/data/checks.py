"""Checks of values against an input of the model: element type, values, rank and sizes; one line where they do not fit.

Only casts that lose nothing but float precision are made.  Everything raised here is an InputProblem that names the
sample, the input, and what was expected and found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from onnxpress.data.layout import BatchLayout, Port
from onnxpress.errors import InputProblem
from onnxpress.model.signature import Dim

_WHAT = "cannot use the data"


def conform(raw: Mapping[str, np.ndarray], layout: BatchLayout, key: str) -> dict[str, np.ndarray]:
    """The feeds of one sample: every input present, with the model's element type and rank, read-only.

    raw: arrays by input name, each with or without its batch axis

    Raises InputProblem.
    """
    missing = [name for name in layout.names if name not in raw]
    if missing:
        raise missing_inputs(missing, raw, layout, key)
    feeds: dict[str, np.ndarray] = {}
    for port in layout.ports:
        where = f"{key}, input {port.name!r}"
        value = cast(np.asarray(raw[port.name]), port.spec.dtype, where)
        value = value.reshape(fitted(value.shape, port, where)).view()
        value.flags.writeable = False  # samples of one dataset may share memory
        feeds[port.name] = value
    return feeds


def missing_inputs(
    missing: Sequence[str], found: Mapping[str, object] | Sequence[str], layout: BatchLayout, where: str
) -> InputProblem:
    """The error for inputs that the data do not contain."""
    names = ", ".join(sorted(found)) or "nothing"
    return InputProblem(
        _WHAT,
        where,
        f"no array for input {', '.join(missing)}; found {names}",
        f"name the arrays as the model's inputs: {', '.join(layout.names)}",
    )


# --- element types
# -------------------------------------------------------------------------------------------------


def is_text(dtype: np.dtype[np.generic]) -> bool:
    """Whether an element type of a model's input represents strings."""
    return dtype.kind in "OUST"


def is_float(dtype: np.dtype[np.generic]) -> bool:
    return dtype.kind == "f" or (dtype.kind == "V" and dtype.name.startswith(("bfloat", "float")))


def is_integer(dtype: np.dtype[np.generic]) -> bool:
    return dtype.kind in "iu" or (dtype.kind == "V" and dtype.name.startswith(("int", "uint")))


def integer_limits(dtype: np.dtype[np.generic]) -> tuple[int, int]:
    """The smallest and the largest value of an integer type, those with fewer than eight bits included."""
    limits: Any = ml_dtypes.iinfo(dtype)
    return int(limits.min), int(limits.max)


def cast_note(found: np.dtype[np.generic], wanted: np.dtype[np.generic], name: str) -> str:
    """What a cast assumes, for a note; "" where it assumes nothing."""
    if is_float(found) and is_integer(wanted):
        return f"whole {found.name} values of {name!r} read as {wanted.name}"
    if found == np.uint8 and is_float(wanted):
        return f"uint8 values of {name!r} fed as {wanted.name} without scaling"
    return ""


def refusal(found: np.dtype[np.generic], wanted: np.dtype[np.generic]) -> str:
    """Why no value of one element type can be cast to another; "" where it depends on the values."""
    if is_text(wanted):
        return "" if is_text(found) else f"expected strings, found {found.name}"
    if found.kind == "O":
        return f"expected {wanted.name}, found Python objects"
    if is_text(found):
        return f"expected {wanted.name}, found strings"
    if found.kind in "mM":
        return f"expected {wanted.name}, found dates or times"
    if found.kind == "c" and wanted.kind != "c":
        return f"expected {wanted.name}, found complex numbers"
    if found.kind == "V" and not (is_float(found) or is_integer(found)):
        return f"expected {wanted.name}, found records"
    return ""


def cast(value: np.ndarray, dtype: np.dtype[np.generic], where: str) -> np.ndarray:
    """The value in the input's element type.

    Integers fit any integer type that holds all of them, and any float type that represents them exactly (up to 2^24
    for float32); floats fit floats without overflow, and integers where all are whole numbers; bool and 0/1 are the
    same.  NaN and infinity are rejected.  Raises InputProblem.
    """
    reason = refusal(value.dtype, dtype)
    if reason:
        hint = (
            "convert it and save it again"
            if value.dtype.kind != "O"
            else "save arrays of numbers, without pickled objects"
        )
        raise InputProblem(_WHAT, where, reason, hint)
    if is_text(dtype):
        return _strings(value, where)
    if is_float(value.dtype):
        _finite(value, where)
    if value.dtype == dtype:
        return value
    if dtype == np.bool_:
        if not np.isin(value, (0, 1)).all():
            raise InputProblem(_WHAT, where, f"expected bool, found values other than 0 and 1 ({_range(value)})")
        return value.astype(np.bool_)
    if is_integer(dtype):
        return _to_integer(value, dtype, where)
    if is_float(dtype):
        return _to_float(value, dtype, where)
    return value.astype(dtype)


def _strings(value: np.ndarray, where: str) -> np.ndarray:
    flat: list[str] = []
    for item in value.reshape(-1).tolist():
        if isinstance(item, bytes):
            try:
                item = item.decode()
            except UnicodeDecodeError:
                raise InputProblem(_WHAT, where, "expected strings, found bytes that are not UTF-8") from None
        if not isinstance(item, str):
            raise InputProblem(_WHAT, where, f"expected strings, found {type(item).__name__}")
        flat.append(item)
    out = np.empty(len(flat), dtype=object)
    out[:] = flat
    return out.reshape(value.shape)


def _finite(value: np.ndarray, where: str) -> None:
    probe = value if value.dtype.kind == "f" else value.astype(np.float32)
    good = np.isfinite(probe)
    if not good.all():
        count, first = int((~good).sum()), np.argwhere(~good)[0].tolist()
        kind = "NaN" if np.isnan(probe).any() else "infinity"
        raise InputProblem(
            _WHAT,
            where,
            f"{count} of {value.size} values are not finite ({kind} at {first})",
            "remove the sample or correct its values",
        )


def _range(value: np.ndarray) -> str:
    return f"{value.min()} to {value.max()}"


def _to_integer(value: np.ndarray, dtype: np.dtype[np.generic], where: str) -> np.ndarray:
    if value.dtype == np.bool_ or value.size == 0:
        return value.astype(dtype)
    if is_float(value.dtype):
        wide = value.astype(np.float64)
        if not (wide == np.floor(wide)).all():
            raise InputProblem(
                _WHAT,
                where,
                f"expected {dtype.name}, found {value.dtype.name} with fractions",
                f"save the array as {dtype.name}",
            )
        value = wide
    limits = integer_limits(dtype)
    low, high = int(value.min()), int(value.max())
    if low < limits[0] or high > limits[1]:
        raise InputProblem(
            _WHAT,
            where,
            f"expected {dtype.name}, found {value.dtype.name} values {low} to {high} that it cannot hold",
        )
    return value.astype(dtype)


def _to_float(value: np.ndarray, dtype: np.dtype[np.generic], where: str) -> np.ndarray:
    limits: Any = ml_dtypes.finfo(dtype)
    if is_integer(value.dtype) and value.size:
        exact = 2 ** (int(limits.nmant) + 1)
        low, high = int(value.min()), int(value.max())
        if max(-low, high) > exact:
            raise InputProblem(
                _WHAT,
                where,
                f"expected {dtype.name}, which holds integers exactly to {exact}; found {low} to {high}",
                "scale the values, or save them as floats if the loss of precision is acceptable",
            )
    elif is_float(value.dtype) and value.size and limits.bits < 8 * value.dtype.itemsize:
        peak, top = float(np.abs(value).max()), float(limits.max)
        if peak > top:
            raise InputProblem(
                _WHAT,
                where,
                f"expected {dtype.name}, found values up to {peak:g} that overflow it (largest {top:g})",
            )
    return value.astype(dtype)


# --- shapes
# --------------------------------------------------------------------------------------------------------


def fitted(shape: tuple[int, ...], port: Port, where: str) -> tuple[int, ...]:
    """The full-rank shape of one sample given with or without its batch axis.  Raises InputProblem."""
    dims = port.dims
    if dims is None:
        if 0 in shape:
            raise InputProblem(_WHAT, where, f"the array is empty: shape {text(shape)}")
        return shape
    full = shape
    if port.axis is not None and not port.loose and len(shape) == len(dims) - 1:
        full = (*shape[: port.axis], 1, *shape[port.axis :])
    elif len(shape) < len(dims) and math.prod(shape) == 1 and all(d in (1, "") or isinstance(d, str) for d in dims):
        full = (1,) * len(dims)
    elif len(dims) == 0 and math.prod(shape) == 1:
        full = ()
    elif port.loose and shape == ():
        full = (1,)
    able = len(full) == len(dims) and all(n or (isinstance(d, str) and i != port.axis)
                                          for i, (n, d) in enumerate(zip(full, dims, strict=True)))  # fmt: skip
    if not able and 0 in shape:  # a dynamic axis may be empty, as the past of a decoder's first step is
        raise InputProblem(_WHAT, where, f"the array is empty: shape {text(shape)}")
    if not fits(full, dims):
        raise _misfit(shape, full, port, where)
    return full


def fits(shape: Sequence[int], dims: Sequence[Dim]) -> bool:
    """Whether a shape agrees with the fixed sizes of the model's shape."""
    return len(shape) == len(dims) and all(isinstance(d, str) or d == n for n, d in zip(shape, dims, strict=True))


def text(shape: Sequence[Dim]) -> str:
    """A shape for error messages: [1,3,?,?]."""
    return "[" + ",".join("?" if d == "" else str(d) for d in shape) + "]"


def _misfit(shape: tuple[int, ...], full: tuple[int, ...], port: Port, where: str) -> InputProblem:
    dims = port.dims or ()
    expected = text(dims)
    if port.axis is not None and not port.loose:
        expected += f" or {text(port.inner or ())} without the batch axis"
    return InputProblem(
        _WHAT,
        where,
        f"expected one sample of shape {expected}, found {text(shape)}",
        _hint(shape, full, port),
    )


def _hint(shape: tuple[int, ...], full: tuple[int, ...], port: Port) -> str:
    dims = port.dims or ()
    if len(full) == 4 and len(dims) == 4:
        for order, found, wanted in (((0, 3, 1, 2), "NHWC", "NCHW"), ((0, 2, 3, 1), "NCHW", "NHWC")):
            if fits([full[i] for i in order], dims):
                fix = f"transpose the arrays with x.transpose{order}"
                return f"the data look like {found} and the model expects {wanted}: {fix}"
    if len(full) == 3 and len(dims) == 3 and fits((full[0], full[2], full[1]), dims):
        return "the last two axes look swapped: transpose the arrays with x.transpose(0, 2, 1)"
    if (
        len(full) == len(dims)
        and port.axis is not None
        and full[port.axis] != 1
        and fits([1 if i == port.axis else n for i, n in enumerate(full)], dims)
    ):
        return f"give one sample at a time: this one has {full[port.axis]} along the batch axis"
    inner = port.inner or ()
    if (
        inner
        and all(isinstance(d, int) for d in inner)
        and math.prod(shape) == math.prod(d for d in inner if isinstance(d, int))
    ):
        return f"the number of values is right: reshape each sample to {text(inner)}"
    if len(full) == len(dims) == 4 and any(
        n != d for n, d in zip(full[1:], dims[1:], strict=True) if isinstance(d, int)
    ):
        return "resize or crop the samples to the size of the model's input"
    return "check that the data are for this model"
