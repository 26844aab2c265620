"""Data augmentation, on which the teacher is evaluated anew, so that few samples suffice.

The kind of an input (image, spectrogram, tokens, vector) is inferred from its type, shape and values.  "auto" selects
the augmentations that apply to the kind of input and under which the teacher's outputs mostly stay the same: a mirrored
digit is another digit, a mirrored cat is a cat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxpress.data.dataset import Dataset
from onnxpress.data.layout import batch_layout
from onnxpress.errors import InputProblem
from onnxpress.train.augmentations import PER_SAMPLE, Arrays, InputField, mix_samples

AUGMENTATIONS = ("flip", "shift", "stretch", "tone", "cutout", "noise", "tokens", "mixup", "cutmix")
MIXING = ("mixup", "cutmix")
_ALLOWED = {
    "image": ("flip", "shift", "stretch", "tone", "cutout", "noise", "mixup", "cutmix"),
    "spectrogram": ("shift", "stretch", "tone", "cutout", "noise", "mixup", "cutmix"),
    "tokens": ("tokens",),
    "vector": ("noise", "mixup"),
}
_AUTO = {
    "image": ("flip", "shift", "stretch", "tone", "mixup", "cutmix"),
    "spectrogram": ("shift", "stretch", "tone", "noise", "mixup", "cutmix"),
    "tokens": ("tokens",),
    "vector": ("noise",),
}
GENTLE = ("flip", "shift", "noise", "tokens")  # for trainings that see each sample a few times only
_MIN_AGREEMENT = 0.8  # of the teacher's outputs before and after an augmentation, for "auto" to use it
_MIX_PROBABILITY = 0.5  # that mixup or cutmix is applied to a batch
_INSPECTED_SAMPLES = 64
_MASK_TOKEN_BY_FIRST_TOKEN = {101: 103}  # BERT: [CLS] -> [MASK]


def input_fields(data: Dataset) -> tuple[InputField, ...]:
    """The kind of each batched input, inferred from the first samples."""
    ports = {p.name: p for p in batch_layout(data.signature).ports if p.axis == 0}
    if batch_layout(data.signature).alone:
        return ()
    seen = [sample.inputs for sample in data.take(_INSPECTED_SAMPLES)]
    fields = []
    for name in ports:
        arrays = [s[name] for s in seen]
        made = _token_field(name, arrays, seen) if arrays[0].dtype.kind in "iu" else _float_field(name, arrays)
        if made is not None:
            fields.append(made)
    return tuple(fields)


def _float_field(name: str, arrays: list[np.ndarray]) -> InputField | None:
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
                kind = "image" if square else "spectrogram"
                return InputField(name, kind, channel, space if square else _time_first(shape, space), deviation)
    if first.ndim == 3 and min(shape[1:]) >= 6 and max(shape[1:]) > 1.5 * min(shape[1:]):
        return InputField(name, "spectrogram", None, _time_first(shape, (1, 2)), deviation)
    return InputField(name, "vector", None, (), deviation)


def _time_first(shape: tuple[int, ...], space: tuple[int, int]) -> tuple[int, ...]:
    """The axes of a spectrogram, time (the longer one) first."""
    return tuple(sorted(space, key=lambda axis: -shape[axis]))


def _token_field(name: str, arrays: list[np.ndarray], seen: list[Arrays]) -> InputField | None:
    """Token ids [1, L]: integers that are neither a mask nor segment ids."""
    if arrays[0].ndim != 2 or max(int(a.max()) for a in arrays) < 4:
        return None
    mask = None
    for other, value in seen[0].items():
        same_shape = other != name and all(s[other].shape == s[name].shape for s in seen)
        if (
            same_shape
            and value.dtype.kind in "iub"
            and all(s[other].max() <= 1 and s[other][..., 0].all() for s in seen)
        ):
            mask = other
    firsts = {int(a[0, 0]) for a in arrays}
    blank = _MASK_TOKEN_BY_FIRST_TOKEN.get(next(iter(firsts))) if len(firsts) == 1 else None
    if blank is None and mask is not None:
        padding = [a[s[mask] == 0] for a, s in zip(arrays, seen, strict=True)]
        values = np.unique(np.concatenate(padding))
        blank = int(values[0]) if len(values) == 1 else None
    return InputField(name, "tokens", None, (1,), 1.0, blank, mask)


@dataclass(frozen=True)
class Augmentation:
    """Augmentations of a dataset's inputs.

    names: of the augmentations.
    fields: the inputs.
    """

    names: tuple[str, ...] = ()
    fields: tuple[InputField, ...] = ()

    def apply(self, inputs: Mapping[str, np.ndarray], rng: np.random.Generator) -> tuple[Arrays, np.ndarray | None]:
        """The augmented batch, and the matrix that mixes its rows (see `augment_batch`)."""
        return augment_batch(inputs, self.fields, self.names, rng)


def check_augmentations(names: Sequence[str]) -> None:
    """Raises InputProblem for an unknown augmentation."""
    for name in names:
        if name not in AUGMENTATIONS:
            raise InputProblem("unknown augmentation", name, "", f"auto, none, or some of {', '.join(AUGMENTATIONS)}")


def select_applicable(names: Sequence[str], fields: Sequence[InputField]) -> tuple[str, ...]:
    """Those of the named augmentations that apply to at least one input, in the order of AUGMENTATIONS.

    Raises InputProblem for a name that applies to none.
    """
    check_augmentations(names)
    able = {n for f in fields for n in _ALLOWED[f.kind]}
    for name in names:
        if name not in able:
            kinds = ", ".join(f"{f.name}: {f.kind}" for f in fields) or "no input supports augmentation"
            raise InputProblem("an augmentation does not apply to the inputs", name, kinds, "remove it, or use auto")
    return tuple(n for n in AUGMENTATIONS if n in names)


def select_automatically(
    fields: Sequence[InputField], data: Dataset, answers: Callable[[Arrays], np.ndarray], labelled: bool
) -> tuple[str, ...]:
    """The augmentations that apply to the inputs and keep the teacher's outputs.

    answers: the teacher's outputs [N, K] on a batch of arrays.
    labelled: whether labels are trained on, too; flips, which may change the label, are then left to the user.
    """
    candidates = [n for n in AUGMENTATIONS if any(n in _AUTO[f.kind] for f in fields)]
    part = next(iter(data.take(_INSPECTED_SAMPLES).batches(_INSPECTED_SAMPLES)), None)
    if part is None or part.count < 4:
        return tuple(n for n in candidates if n in MIXING)
    before = answers(part.inputs)
    kept = []
    for name in candidates:
        if name in MIXING:
            kept.append(name)
        elif not (labelled and name == "flip"):
            rng = np.random.default_rng([len(name), part.count])
            changed, _ = augment_batch(part.inputs, fields, (name,), rng)
            if _agreement(before, answers(changed)) >= _MIN_AGREEMENT:
                kept.append(name)
    return tuple(kept)


def _agreement(before: np.ndarray, after: np.ndarray) -> float:
    """Share of equal top classes; for a single number 1 - relative squared error."""
    if before.ndim == 2 and before.shape[1] > 1:
        return float((before.argmax(1) == after.argmax(1)).mean())
    spread = float(((before - before.mean(0)) ** 2).mean())
    return 1 - float(((after - before) ** 2).mean()) / max(spread, 1e-12)


def augment_batch(
    inputs: Mapping[str, np.ndarray], fields: Sequence[InputField], names: Sequence[str], rng: np.random.Generator
) -> tuple[Arrays, np.ndarray | None]:
    """The augmented batch, and the matrix [N, N] that mixes its rows (rows sum to 1; None: rows are not mixed)."""
    made = dict(inputs)
    for field in fields:
        for name in names:
            if name in _ALLOWED[field.kind] and name not in MIXING:
                made[field.name] = PER_SAMPLE[name](made[field.name], field, made, rng)
    mixing = [n for n in names if n in MIXING]
    if not mixing or rng.random() >= _MIX_PROBABILITY:
        return made, None
    able = [f for f in fields if "mixup" in _ALLOWED[f.kind]]
    count = len(made[able[0].name]) if able else 0
    if count < 2:
        return made, None
    return mix_samples(made, able, mixing[int(rng.integers(len(mixing)))], count, rng)
