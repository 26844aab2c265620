"""Augmentations of arrays.

All work on model-ready arrays (batch axis first) and draw from the given generator.  Which of them apply to an input is
decided in `augment`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_NOISE = 0.1  # standard deviations
_REPLACED = 0.15  # fraction of the tokens
_STRETCH = 0.2  # maximum relative change of a size
_GAIN, _OFFSET = 0.15, 0.15  # standard deviations of factor and offset, relative to the values'

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class InputField:
    """An input that can be augmented.

    name: of the input.
    kind: "image", "spectrogram", "tokens" or "vector".
    channel: axis of colours or features.
    space: axes of positions; for spectrograms time first.
    deviation: standard deviation of the values.
    blank: token that replaces a removed token (None: unknown).
    mask: name of the attention mask of a token input.
    """

    name: str
    kind: str
    channel: int | None = None
    space: tuple[int, ...] = ()
    deviation: float = 1.0
    blank: int | None = None
    mask: str | None = None


def mix_samples(
    inputs: Arrays, fields: Sequence[InputField], method: str, count: int, rng: np.random.Generator
) -> tuple[Arrays, np.ndarray]:
    """Combine every row with another one; returns the inputs, and the matrix [N, N] of the rows' shares.

    mixup blends both rows; cutmix replaces a box of the row (for spectrograms an interval of time) by the other row's.
    """
    partner = (np.arange(count) + 1 + rng.integers(count - 1)) % count
    share = rng.random(count) if method == "mixup" else np.zeros(count)
    if method == "cutmix":
        field = next(f for f in fields if f.space)
        axes = field.space if field.kind == "image" else field.space[:1]
        values = inputs[field.name]
        new = values.copy()
        for i in range(count):
            box = _box(values.shape, axes, rng, float(rng.random() ** (1 / len(axes))))
            new[i][box] = values[partner[i]][box]
            share[i] = 1 - new[i][box].size / new[i].size
        inputs[field.name] = new
    else:
        for field in fields:
            values = inputs[field.name]
            part = share.reshape(-1, *[1] * (values.ndim - 1)).astype(values.dtype)
            inputs[field.name] = part * values + (1 - part) * values[partner]
    matrix = np.diag(share)
    matrix[np.arange(count), partner] += 1 - share
    return inputs, matrix


def _box(shape: tuple[int, ...], axes: Sequence[int], rng: np.random.Generator, side: float) -> tuple[slice, ...]:
    """A randomly placed box of one sample: `side` of each of the axes, all of the other axes."""
    index = [slice(None)] * (len(shape) - 1)
    for axis in axes:
        size = max(1, round(side * shape[axis]))
        start = int(rng.integers(shape[axis] - size + 1))
        index[axis - 1] = slice(start, start + size)
    return tuple(index)


def _flip(values: np.ndarray, field: InputField, inputs: Arrays, rng: np.random.Generator) -> np.ndarray:
    """Mirror half of the images left to right."""
    turn = rng.random(len(values)) < 0.5
    new = values.copy()
    new[turn] = np.flip(values[turn], field.space[-1])
    return new


def _shift(values: np.ndarray, field: InputField, inputs: Arrays, rng: np.random.Generator) -> np.ndarray:
    """Move by up to an eighth along each axis (spectrograms: along time); the border is filled by reflection."""
    axes = field.space if field.kind == "image" else field.space[:1]
    reach = {axis: max(1, values.shape[axis] // 8) for axis in axes}
    padded = np.pad(values, [(reach.get(a, 0),) * 2 for a in range(values.ndim)], mode="reflect")
    new = np.empty_like(values)
    for i in range(len(values)):
        index = [slice(None)] * (values.ndim - 1)
        for axis, far in reach.items():
            start = int(rng.integers(2 * far + 1))
            index[axis - 1] = slice(start, start + values.shape[axis])
        new[i] = padded[i][tuple(index)]
    return new


def _stretch(values: np.ndarray, field: InputField, inputs: Arrays, rng: np.random.Generator) -> np.ndarray:
    """Stretch or compress images along each axis, or spectrograms along time, around a random point.

    The border is repeated.
    """
    new = values.copy()
    for axis in field.space if field.kind == "image" else field.space[:1]:
        size = values.shape[axis]
        for i, (change, still) in enumerate(zip(rng.uniform(-1, 1, len(new)), rng.random(len(new)), strict=True)):
            fixed = (size - 1) * still
            place = np.clip(fixed + (np.arange(size) - fixed) * (1 + _STRETCH * change), 0, size - 1)
            low = np.minimum(place.astype(np.int64), size - 2)
            part = (place - low).astype(values.dtype).reshape([size if a == axis else 1 for a in range(1, values.ndim)])
            before, after = (new[i].take(low + step, axis - 1) for step in (0, 1))
            new[i] = before + part * (after - before)
    return new


def _tone(values: np.ndarray, field: InputField, inputs: Arrays, rng: np.random.Generator) -> np.ndarray:
    """Change brightness and contrast: one factor per sample, and one offset per colour or frequency band."""
    bands = field.space[1:] if field.kind == "spectrogram" else ()
    apart = [a for a in (field.channel, *bands) if a is not None]
    own = [size if a in (0, *apart) else 1 for a, size in enumerate(values.shape)]
    one = [len(values)] + [1] * (values.ndim - 1)
    positions = tuple(a for a in range(values.ndim) if a not in apart)
    spread = values.std(positions, keepdims=True) if bands else np.float32(field.deviation)
    factor = 1 + np.float32(_GAIN) * rng.standard_normal(one, np.float32)
    offset = np.float32(_OFFSET) * spread * rng.standard_normal(own, np.float32)
    middle = values.reshape(len(values), -1).mean(1).reshape(one)
    return np.asarray(values * factor + (middle * (1 - factor) + offset), values.dtype)


def _cutout(values: np.ndarray, field: InputField, inputs: Arrays, rng: np.random.Generator) -> np.ndarray:
    """Replace a box of a quarter of each axis (spectrograms: an interval of time or frequency) by the sample's mean."""
    new = values.copy()
    for i in range(len(values)):
        axes = field.space
        if field.kind == "spectrogram":
            axes = (field.space[int(rng.integers(len(field.space)))],)
        new[i][_box(values.shape, axes, rng, 0.25)] = values[i].mean()
    return new


def _noise(values: np.ndarray, field: InputField, inputs: Arrays, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise."""
    noise = rng.standard_normal(values.shape, dtype=np.float32) * np.float32(_NOISE * field.deviation)
    return np.asarray(values + noise, values.dtype)


def _replace_tokens(values: np.ndarray, field: InputField, inputs: Arrays, rng: np.random.Generator) -> np.ndarray:
    """Replace some tokens by the blank token, where it is known, or by other tokens of the batch.

    The first and last token of every sequence and the padding are kept.
    """
    rows, width = values.shape
    open_ = np.ones(values.shape, bool) if field.mask is None else inputs[field.mask].astype(bool)
    last = width - 1 - np.argmax(open_[:, ::-1], axis=1)
    inner = open_.copy()
    inner[:, 0] = False
    inner[np.arange(rows), last] = False
    if not inner.any():
        return values
    hit = inner & (rng.random(values.shape) < _REPLACED)
    others = rng.choice(values[inner], values.shape)
    if field.blank is not None:
        others = np.where(rng.random(values.shape) < 0.5, values.dtype.type(field.blank), others)
    new = values.copy()
    new[hit] = others[hit]
    return new


PER_SAMPLE: dict[str, Callable[[np.ndarray, InputField, Arrays, np.random.Generator], np.ndarray]] = {
    "flip": _flip,
    "shift": _shift,
    "stretch": _stretch,
    "tone": _tone,
    "cutout": _cutout,
    "noise": _noise,
    "tokens": _replace_tokens,
}
