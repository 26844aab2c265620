"""Changes of samples that the teacher is then asked about anew, so that few samples go a long way.

What an input is (picture, spectrum, tokens, vector) is told from its type, its shape and its values.  `auto` takes
the changes that the kind of input allows and under which the teacher mostly keeps its answers: a mirrored digit is
another digit, a mirrored cat is a cat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnxpress.data.dataset import Dataset
from onnxpress.data.layout import batch_layout
from onnxpress.errors import InputProblem
from onnxpress.train.augmentations import ALONE, Arrays, Field, mixed

NAMES = ("flip", "shift", "stretch", "tone", "cutout", "noise", "tokens", "mixup", "cutmix")
MIXING = ("mixup", "cutmix")
_ALLOWED = {
    "picture": ("flip", "shift", "stretch", "tone", "cutout", "noise", "mixup", "cutmix"),
    "spectrum": ("shift", "stretch", "tone", "cutout", "noise", "mixup", "cutmix"),
    "tokens": ("tokens",),
    "vector": ("noise", "mixup"),
}
_AUTO = {
    "picture": ("flip", "shift", "stretch", "tone", "mixup", "cutmix"),
    "spectrum": ("shift", "stretch", "tone", "noise", "mixup", "cutmix"),
    "tokens": ("tokens",),
    "vector": ("noise",),
}
GENTLE = ("flip", "shift", "noise", "tokens")  # what also serves a network that sees a sample a few times in all
_KEEPS = 0.8  # share of answers that must survive a change for `auto` to use it
_MIXED = 0.5  # share of batches that mixup or cutmix touches
_PROBED = 64
_BERT = {101: 103}  # first token of every sentence -> the vocabulary's mask token


def fields(data: Dataset) -> tuple[Field, ...]:
    """What each batched input of a dataset is, from its first samples."""
    ports = {p.name: p for p in batch_layout(data.signature).ports if p.axis == 0}
    if batch_layout(data.signature).alone:
        return ()
    seen = [sample.inputs for sample in data.take(_PROBED)]
    found = []
    for name in ports:
        arrays = [s[name] for s in seen]
        made = _tokens(name, arrays, seen) if arrays[0].dtype.kind in "iu" else _numbers(name, arrays)
        if made is not None:
            found.append(made)
    return tuple(found)


def _numbers(name: str, arrays: list[np.ndarray]) -> Field | None:
    first = arrays[0]
    if first.dtype.kind != "f" or first.size < 2:
        return None
    deviation = float(np.std(np.concatenate([a.reshape(-1)[:4096] for a in arrays])))
    shape = first.shape
    if first.ndim == 4:
        for channel, space in ((1, (2, 3)), (3, (1, 2))):
            high, wide = (shape[s] for s in space)
            if shape[channel] in (1, 3, 4) and min(high, wide) >= 6:
                square = max(high, wide) <= 3 * min(high, wide) and min(high, wide) >= 8
                kind = "picture" if square else "spectrum"
                return Field(name, kind, channel, space if square else _time_first(shape, space), deviation)
    if first.ndim == 3 and min(shape[1:]) >= 6 and max(shape[1:]) > 1.5 * min(shape[1:]):
        return Field(name, "spectrum", None, _time_first(shape, (1, 2)), deviation)
    return Field(name, "vector", None, (), deviation)


def _time_first(shape: tuple[int, ...], space: tuple[int, int]) -> tuple[int, ...]:
    """Time is the longer of a spectrum's two axes."""
    return tuple(sorted(space, key=lambda axis: -shape[axis]))


def _tokens(name: str, arrays: list[np.ndarray], seen: list[Arrays]) -> Field | None:
    """Token numbers [1, L]: integers that are neither a mask nor a segment number."""
    if arrays[0].ndim != 2 or max(int(a.max()) for a in arrays) < 4:
        return None
    mask = None
    for other, value in seen[0].items():
        alike = other != name and all(s[other].shape == s[name].shape for s in seen)
        if alike and value.dtype.kind in "iub" and all(s[other].max() <= 1 and s[other][..., 0].all() for s in seen):
            mask = other
    firsts = {int(a[0, 0]) for a in arrays}
    blank = _BERT.get(next(iter(firsts))) if len(firsts) == 1 else None
    if blank is None and mask is not None:
        padding = [a[s[mask] == 0] for a, s in zip(arrays, seen, strict=True)]
        values = np.unique(np.concatenate(padding))
        blank = int(values[0]) if len(values) == 1 else None
    return Field(name, "tokens", None, (1,), 1.0, blank, mask)


def check(names: Sequence[str]) -> None:
    """Raises InputProblem for a change that does not exist."""
    for name in names:
        if name not in NAMES:
            raise InputProblem("unknown augmentation", name, "", f"auto, none, or some of {', '.join(NAMES)}")


def suitable(names: Sequence[str], found: Sequence[Field]) -> tuple[str, ...]:
    """Those of the wished changes that at least one input can take; raises InputProblem where none can take one."""
    check(names)
    able = {n for f in found for n in _ALLOWED[f.kind]}
    for name in names:
        if name not in able:
            kinds = ", ".join(f"{f.name}: {f.kind}" for f in found) or "no input can be changed"
            raise InputProblem("an augmentation does not fit the inputs", name, kinds, "take it out, or use auto")
    return tuple(n for n in NAMES if n in names)


def automatic(
    found: Sequence[Field], data: Dataset, answers: Callable[[Arrays], np.ndarray], labelled: bool
) -> tuple[str, ...]:
    """The changes that fit the inputs and under which the teacher keeps its answers.

    answers: the teacher's answers [N, K] on a batch of arrays.  labelled: hard labels count too, which a mirrored sample
    may not deserve, so flips are then left to the user.
    """
    wished = [n for n in NAMES if any(n in _AUTO[f.kind] for f in found)]
    part = next(iter(data.take(_PROBED).batches(_PROBED)), None)
    if part is None or part.count < 4:
        return tuple(n for n in wished if n in MIXING)
    before = answers(part.inputs)
    kept = []
    for name in wished:
        if name in MIXING:
            kept.append(name)
        elif not (labelled and name == "flip"):
            rng = np.random.default_rng([len(name), part.count])
            changed, _ = change(part.inputs, found, (name,), rng)
            if _agreement(before, answers(changed)) >= _KEEPS:
                kept.append(name)
    return tuple(kept)


def _agreement(before: np.ndarray, after: np.ndarray) -> float:
    """Share of equal top answers; for single numbers 1 - relative squared error."""
    if before.ndim == 2 and before.shape[1] > 1:
        return float((before.argmax(1) == after.argmax(1)).mean())
    spread = float(((before - before.mean(0)) ** 2).mean())
    return 1 - float(((after - before) ** 2).mean()) / max(spread, 1e-12)


def change(
    inputs: Mapping[str, np.ndarray], found: Sequence[Field], names: Sequence[str], rng: np.random.Generator
) -> tuple[Arrays, np.ndarray | None]:
    """A changed batch, and how its rows are mixed from the given ones ([N, N], rows sum to 1; None: not at all)."""
    made = dict(inputs)
    for field in found:
        for name in names:
            if name in _ALLOWED[field.kind] and name not in MIXING:
                made[field.name] = ALONE[name](made[field.name], field, made, rng)
    mixing = [n for n in names if n in MIXING]
    if not mixing or rng.random() >= _MIXED:
        return made, None
    able = [f for f in found if "mixup" in _ALLOWED[f.kind]]
    count = len(made[able[0].name]) if able else 0
    if count < 2:
        return made, None
    return mixed(made, able, mixing[int(rng.integers(len(mixing)))], count, rng)
