"""The changes of samples themselves: arrays in, arrays out.

All work on model-ready arrays (batch axis first) and draw from a generator given by the caller; which of them fit an
input, and which of those a teacher stands, is told by `augment`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_NOISE = 0.1  # standard deviations
_REPLACED = 0.15  # share of tokens
_STRETCH = 0.2  # a size changes by up to this share
_GAIN, _OFFSET = 0.15, 0.15  # standard deviations of a factor (around 1), and of an offset (in the values' own)

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Field:
    """An input that can be changed.  channel: axis of colours or features; space: the axes that positions lie on.

    For tokens: `blank` stands for a removed token (None: none known), `mask` names the attention mask beside it.
    """

    name: str
    kind: str
    channel: int | None = None
    space: tuple[int, ...] = ()
    deviation: float = 1.0
    blank: int | None = None
    mask: str | None = None


def mixed(
    made: Arrays, able: Sequence[Field], way: str, count: int, rng: np.random.Generator
) -> tuple[Arrays, np.ndarray]:
    """Every row with a partner: mixup blends them, cutmix sets a part of the partner (a box; of a spectrum a stretch of time)
    in its place.  With the matrix of shares."""
    partner = (np.arange(count) + 1 + rng.integers(count - 1)) % count
    share = rng.random(count) if way == "mixup" else np.zeros(count)
    if way == "cutmix":
        field = next(f for f in able if f.space)
        axes = field.space if field.kind == "picture" else field.space[:1]
        values = made[field.name]
        new = values.copy()
        for i in range(count):
            box = _box(values.shape, axes, rng, float(rng.random() ** (1 / len(axes))))
            new[i][box] = values[partner[i]][box]
            share[i] = 1 - new[i][box].size / new[i].size
        made[field.name] = new
    else:
        for field in able:
            values = made[field.name]
            part = share.reshape(-1, *[1] * (values.ndim - 1)).astype(values.dtype)
            made[field.name] = part * values + (1 - part) * values[partner]
    matrix = np.diag(share)
    matrix[np.arange(count), partner] += 1 - share
    return made, matrix


def _box(shape: tuple[int, ...], axes: Sequence[int], rng: np.random.Generator, side: float) -> tuple[slice, ...]:
    """A box of one sample: `side` of each of the axes, anywhere, over all of the others."""
    index = [slice(None)] * (len(shape) - 1)
    for axis in axes:
        size = max(1, round(side * shape[axis]))
        start = int(rng.integers(shape[axis] - size + 1))
        index[axis - 1] = slice(start, start + size)
    return tuple(index)


def _flip(values: np.ndarray, field: Field, made: Arrays, rng: np.random.Generator) -> np.ndarray:
    """Half of the pictures mirrored left to right."""
    turn = rng.random(len(values)) < 0.5
    new = values.copy()
    new[turn] = np.flip(values[turn], field.space[-1])
    return new


def _shift(values: np.ndarray, field: Field, made: Arrays, rng: np.random.Generator) -> np.ndarray:
    """Moved by up to an eighth along each axis (a spectrum: along time), the border filled by reflection."""
    axes = field.space if field.kind == "picture" else field.space[:1]
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


def _stretch(values: np.ndarray, field: Field, made: Arrays, rng: np.random.Generator) -> np.ndarray:
    """Every axis of a picture, or the time of a spectrum, longer or shorter around some point; what is missing repeats the
    border."""
    new = values.copy()
    for axis in field.space if field.kind == "picture" else field.space[:1]:
        size = values.shape[axis]
        for i, (change, still) in enumerate(zip(rng.uniform(-1, 1, len(new)), rng.random(len(new)), strict=True)):
            fixed = (size - 1) * still
            place = np.clip(fixed + (np.arange(size) - fixed) * (1 + _STRETCH * change), 0, size - 1)
            low = np.minimum(place.astype(np.int64), size - 2)
            part = (place - low).astype(values.dtype).reshape([size if a == axis else 1 for a in range(1, values.ndim)])
            before, after = (new[i].take(low + step, axis - 1) for step in (0, 1))
            new[i] = before + part * (after - before)
    return new


def _tone(values: np.ndarray, field: Field, made: Arrays, rng: np.random.Generator) -> np.ndarray:
    """Other light, another microphone: a factor for a sample, and an offset for every colour or band of it, the same at all
    positions."""
    bands = field.space[1:] if field.kind == "spectrum" else ()
    apart = [a for a in (field.channel, *bands) if a is not None]
    own = [size if a in (0, *apart) else 1 for a, size in enumerate(values.shape)]
    one = [len(values)] + [1] * (values.ndim - 1)
    positions = tuple(a for a in range(values.ndim) if a not in apart)
    spread = values.std(positions, keepdims=True) if bands else np.float32(field.deviation)
    factor = 1 + np.float32(_GAIN) * rng.standard_normal(one, np.float32)
    offset = np.float32(_OFFSET) * spread * rng.standard_normal(own, np.float32)
    middle = values.reshape(len(values), -1).mean(1).reshape(one)
    return np.asarray(values * factor + (middle * (1 - factor) + offset), values.dtype)


def _cutout(values: np.ndarray, field: Field, made: Arrays, rng: np.random.Generator) -> np.ndarray:
    """A box of a quarter of each axis replaced by the sample's mean; in a spectrum a stretch of time or of frequency."""
    new = values.copy()
    for i in range(len(values)):
        axes = field.space
        if field.kind == "spectrum":
            axes = (field.space[int(rng.integers(len(field.space)))],)
        new[i][_box(values.shape, axes, rng, 0.25)] = values[i].mean()
    return new


def _noise(values: np.ndarray, field: Field, made: Arrays, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(values.shape, dtype=np.float32) * np.float32(_NOISE * field.deviation)
    return np.asarray(values + noise, values.dtype)


def _replace(values: np.ndarray, field: Field, made: Arrays, rng: np.random.Generator) -> np.ndarray:
    """Some tokens removed (a blank where one is known) or exchanged for others of the batch.

    The first and the last token of every sentence, and the padding behind it, stay.
    """
    rows, width = values.shape
    open_ = np.ones(values.shape, bool) if field.mask is None else made[field.mask].astype(bool)
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


ALONE: dict[str, Callable[[np.ndarray, Field, Arrays, np.random.Generator], np.ndarray]] = {
    "flip": _flip,
    "shift": _shift,
    "stretch": _stretch,
    "tone": _tone,
    "cutout": _cutout,
    "noise": _noise,
    "tokens": _replace,
}
