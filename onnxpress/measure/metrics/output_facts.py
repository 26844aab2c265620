"""What is known of outputs when a metric is chosen: names, values on a few samples, and the operators behind them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

_PASSED_ON = frozenset(
    ("Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze", "Cast", "Flatten", "Slice", "DequantizeLinear")
)
_MOST_STEPS = 12
_DECISIVE = 0.45  # gap between the two highest scores, in standard deviations of a row, that noise has not
_NEAR_ONE = 1e-2


@dataclass(frozen=True)
class OutputFacts:
    """One output.

    name: its name
    rows: values of a few samples, without the batch axis
    ops:  the operators that compute it, the last first, without those that only move values
    """

    name: str
    rows: Sequence[np.ndarray]
    ops: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows[0].shape

    @property
    def is_float(self) -> bool:
        return self.rows[0].dtype.kind == "f"

    @property
    def is_numeric(self) -> bool:
        return self.rows[0].dtype.kind in "fiub"

    @property
    def op(self) -> str:
        """The last operator, "" where it is not known."""
        return self.ops[0] if self.ops else ""

    @cached_property
    def words(self) -> frozenset[str]:
        """The words of its name, in lower case."""
        parts = re.sub(r"([a-z])([A-Z])", r"\1 \2", self.name)
        return frozenset(_singular(w) for w in re.split(r"[^a-z]+", parts.lower()) if w)

    def named(self, words: str) -> bool:
        """Whether its name holds one of the words, in the singular or the plural."""
        return any(_singular(w) in self.words for w in words.split())

    @cached_property
    def flat(self) -> np.ndarray:
        """All values, as one vector of floats."""
        found = np.concatenate([r.ravel() for r in self.rows]).astype(np.float64)
        return found[np.isfinite(found)]

    @property
    def within_unit(self) -> bool:
        """Whether all values lie between 0 and 1."""
        return bool(self.flat.size and self.flat.min() >= -1e-6 and self.flat.max() <= 1 + 1e-6)

    @cached_property
    def distribution_axis(self) -> int | None:
        """The axis along which (log) probabilities sum to 1."""
        if not self.is_float:
            return None
        for axis in reversed(range(len(self.shape))):
            if self.shape[axis] > 1 and all(_sums_to_one(r, axis) for r in self.rows):
                return axis
        return None

    def decisive_along(self, axis: int) -> bool:
        """Whether values along an axis look like scores of classes: some far above the rest, which lie on both sides of
        zero, and not always the same one above."""
        if len({r.shape[axis] for r in self.rows}) > 1:
            return False
        rows = np.concatenate([np.moveaxis(r, axis, -1).reshape(-1, r.shape[axis]) for r in self.rows])[:20_000]
        rows = np.nan_to_num(rows.astype(np.float64), posinf=0, neginf=0)
        if rows.shape[1] < 2 or len(rows) < 2:
            return False
        top = np.sort(rows, axis=1)
        spread = rows.std(axis=1)
        gap = (top[:, -1] - top[:, -2]) / np.maximum(spread, 1e-12)
        expected = _DECISIVE * (1.5 if rows.shape[1] < 16 else 1.0)
        answers = rows.argmax(axis=1)
        varied = np.bincount(answers).max() < 0.97 * len(rows)
        return bool(np.median(gap) > expected and (rows.min(axis=1) < 0).mean() > 0.8 and varied)

    @cached_property
    def unit_norm(self) -> bool:
        """Whether the vectors along the last axis have norm 1."""
        if not self.is_float or not self.shape or self.shape[-1] < 8:
            return False
        norms = np.concatenate([np.linalg.norm(r.astype(np.float64), axis=-1).ravel() for r in self.rows])
        return bool(np.abs(norms - 1).max() < 1e-2)


@dataclass(frozen=True)
class InputFacts:
    """One input of the model: its name and the values of a sample, without the batch axis."""

    name: str
    row: np.ndarray

    @property
    def is_image(self) -> bool:
        return self.row.ndim == 3 and self.row.dtype.kind in "fu" and min(self.row.shape) <= 16 and self.sides[0] >= 4

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of an image."""
        axes = sorted(sorted(range(self.row.ndim), key=lambda a: self.row.shape[a])[-2:])
        return self.row.shape[axes[0]], self.row.shape[axes[1]]

    @property
    def channels(self) -> int:
        return int(np.prod(self.row.shape)) // max(self.sides[0] * self.sides[1], 1)


@dataclass(frozen=True)
class LabelFacts:
    """The labels of the samples, None where there are none.

    kind: "none", "class" (whole numbers), "number", "array" (one shape), "sequence" (whole numbers, of differing length
    or padded by -1), "boxes" (rows of five)
    """

    values: Sequence[object] = field(default=(), repr=False)

    @cached_property
    def known(self) -> list[np.ndarray]:
        return [np.asarray(v) for v in self.values if v is not None]

    @cached_property
    def kind(self) -> str:
        if not self.known or any(v.dtype.kind not in "biuf" for v in self.known):
            return "none"
        if all(v.ndim == 0 or (v.size == 1 and v.ndim == 1) for v in self.known):
            whole = all(float(v.ravel()[0]).is_integer() and v.ravel()[0] >= 0 for v in self.known)
            return "class" if whole and all(v.dtype.kind in "biu" for v in self.known) else "number"
        if all(v.ndim == 2 and v.shape[1] == 5 for v in self.known):
            return "boxes"
        whole = all(v.dtype.kind in "biu" or bool((v == np.round(v)).all()) for v in self.known)
        varied = len({v.shape for v in self.known}) > 1
        if (
            whole
            and all(v.ndim == 1 for v in self.known)
            and (varied or any(v.min(initial=0) == -1 for v in self.known))
        ):
            return "sequence"
        return "sequence" if varied else "array"

    @cached_property
    def top(self) -> int:
        """The largest class."""
        return int(max((float(v.max(initial=0)) for v in self.known), default=0))


def last_operators(model: ir.Model) -> dict[str, tuple[str, ...]]:
    """For each output the operators that compute it, the last first, without those that only move values."""
    found = {}
    for value in model.graph.outputs:
        ops: list[str] = []
        node, steps = value.producer(), 0
        while node is not None and steps < _MOST_STEPS and len(ops) < 4:
            if node.op_type not in _PASSED_ON:
                ops.append(node.op_type)
            data = [i for i in node.inputs if i is not None and i.producer() is not None and not i.is_initializer()]
            node, steps = (data[0].producer() if data else None), steps + 1
        found[value.name or ""] = tuple(ops)
    return found


def _singular(word: str) -> str:
    if word.endswith(("sses", "xes")):
        return word[:-2]
    return word if word.endswith("ss") else word.removesuffix("s")


def _sums_to_one(row: np.ndarray, axis: int) -> bool:
    values = row.astype(np.float64)
    if not values.size or not np.isfinite(values).all():
        return False
    if values.min() < 0:
        if values.max() > 1e-6:
            return False
        values = np.exp(values)
    return bool(np.abs(values.sum(axis=axis) - 1).max() < _NEAR_ONE)
