"""Images as arrays: which image an input takes, normalization of values, order of axes.

Arrays here are [H,W,C]; the result is one sample without its batch axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxpress.data.checks import fits
from onnxpress.data.layout import Port
from onnxpress.data.preprocessing import Preprocessing
from onnxpress.errors import InputProblem
from onnxpress.model.signature import Dim

_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class ImageSpec:
    """The image that an input takes.

    order:         "NCHW", "NHWC", or "NHW" (gray without a channel axis)
    channels:      1, 3 or 4
    height, width: None where dynamic
    origin:        how the order was determined
    """

    port: Port
    order: str
    channels: int
    height: int | None
    width: int | None
    origin: str = "from the model's input"

    @property
    def note(self) -> str:
        return f"layout {self.order} {self.origin}"


def image_spec(port: Port, preprocessing: Preprocessing) -> ImageSpec | None:
    """The image that an input takes; None where its rank or number of channels is not that of an image."""
    inner = port.inner
    if inner is None:
        return None
    if len(inner) == 2 and port.axis is not None:
        return ImageSpec(port, "NHW", 1, _size(inner[0]), _size(inner[1]))
    if len(inner) != 3:
        return None
    first, last = _channel(inner[0]), _channel(inner[2])
    order = preprocessing.layout.upper() if preprocessing.layout != "auto" else ""
    origin = "from the preprocessing"
    if not order:
        known = bool(first) != bool(last)
        origin = "from the model's input" if known else "assumed: the model's shape is ambiguous"
        order = "NCHW" if first or not last else "NHWC"
        if not first and not last and not (isinstance(inner[0], str) or isinstance(inner[2], str)):
            return None
        if not first and not last and isinstance(inner[2], str) and not isinstance(inner[0], str):
            order = "NHWC"
    channel, height, width = (inner[0], inner[1], inner[2]) if order == "NCHW" else (inner[2], inner[0], inner[1])
    count = _channel(channel) or (3 if isinstance(channel, str) else 0)
    if not count:
        return None
    if isinstance(channel, str) and preprocessing.mode == "gray":
        count = 1
    return ImageSpec(port, order, count, _size(height), _size(width), origin)


def _channel(dim: Dim) -> int:
    return dim if isinstance(dim, int) and dim in _CHANNELS else 0


def _size(dim: Dim) -> int | None:
    return dim if isinstance(dim, int) else None


def normalize(values: np.ndarray, preprocessing: Preprocessing, where: str = "", axis: int = -1) -> np.ndarray:
    """(value * scale - mean) / std, as float32; mean and std of several numbers lie along the axis.

    Raises InputProblem where their number differs from that of the channels.
    """
    if preprocessing.plain:
        return values
    out = values.astype(np.float32)
    if preprocessing.mode == "bgr" and out.ndim >= 3 and out.shape[axis] == 3:
        out = np.flip(out, axis)
    if preprocessing.scale != 1:
        out = out * np.float32(preprocessing.scale)
    for numbers, subtract in ((preprocessing.mean, True), (preprocessing.std, False)):
        if set(numbers) == {0.0 if subtract else 1.0}:
            continue
        factor = np.asarray(numbers, np.float32)
        if len(factor) > 1:
            if out.ndim == 0 or out.shape[axis] != len(factor):
                found = out.shape[axis] if out.ndim else 0
                raise InputProblem(
                    "cannot use the preprocessing",
                    where,
                    f"preprocessing {preprocessing.name!r} has {len(factor)} channels, the data {found}",
                    "use a preprocessing with one number",
                )
            shape = [1] * out.ndim
            shape[axis] = len(factor)
            factor = factor.reshape(shape)
        out = out - factor if subtract else out / factor
    return out


def to_input_layout(values: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """[H,W,C] in the axes of the input, without batch axis."""
    if spec.order == "NCHW":
        return np.ascontiguousarray(values.transpose(2, 0, 1))
    return values[:, :, 0] if spec.order == "NHW" else values


def relayout(values: np.ndarray, spec: ImageSpec) -> np.ndarray | None:
    """A sample array in the other layout converted to the input's; None where the layout is right or not the reason.

    values: with or without a batch axis of 1
    """
    inner = spec.port.inner or ()
    if spec.order == "NHW" or values.ndim not in (3, 4):
        return None
    body = values[0] if values.ndim == 4 and values.shape[0] == 1 else values
    if body.ndim != 3 or (fits(body.shape, inner) and not _looks_like_other_layout(body.shape, spec)):
        return None
    other = body.transpose(2, 0, 1) if spec.order == "NCHW" else body.transpose(1, 2, 0)
    return other if fits(other.shape, inner) else None


def _looks_like_other_layout(shape: tuple[int, ...], spec: ImageSpec) -> bool:
    """Whether a shape that fits (dynamic sizes fit all) has its channels at the wrong end."""
    right, wrong = (shape[0], shape[2]) if spec.order == "NCHW" else (shape[2], shape[0])
    return right != spec.channels and wrong == spec.channels


def not_an_image_input(port: Port, where: object) -> InputProblem:
    """The error for images given to an input that takes none."""
    return InputProblem(
        "cannot use the data",
        where,
        f"input {port.name!r} takes {port.spec.text()}, which is not an image of 1, 3 or 4 channels",
        "compute the arrays and give an .npz or module:function",
    )
