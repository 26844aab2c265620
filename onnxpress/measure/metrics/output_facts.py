"""What is known of outputs when a metric is chosen: names, values on a few samples, and the operators behind them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np
import onnx_ir as ir

_PASSED_ON = frozenset(
    ("Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze", "Cast", "Flatten", "Slice", "DequantizeLinear")
)
_MOST_STEPS = 12
_LEAST_CLASSES = 5  # among fewer numbers one always stands out
_MOST_VALUES = 2_000_000  # of an output that are looked at
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

    @cached_property
    def full_rows(self) -> list[np.ndarray]:
        """The values of the samples that have some: behind a suppression of boxes a sample may have none."""
        return [r for r in self.rows if r.size]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return self.full_rows[0].shape if self.full_rows else self.rows[0].shape

    @property
    def size(self) -> int:
        """Number of values of a sample that has some."""
        return int(np.prod(self.shape))

    @cached_property
    def one_shape(self) -> bool:
        """Whether all samples have the same shape."""
        return len({r.shape for r in self.rows}) == 1

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
        found = np.concatenate([_some(r.ravel(), _MOST_VALUES) for r in self.rows]).astype(np.float64)
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
        ranks = {r.ndim for r in self.full_rows}
        for axis in reversed(range(len(self.shape) if len(ranks) == 1 else 0)):
            if self.shape[axis] > 1 and all(_sums_to_one(r, axis) for r in self.full_rows):
                return axis
        return None

    def decisive_along(self, axis: int) -> bool:
        """Whether values along an axis look like scores of classes: some far above the rest, which lie on both sides of
        zero, and not always the same one above."""
        if len({(r.ndim, r.shape[axis]) if r.ndim > axis else () for r in self.full_rows}) != 1:
            return False
        each = max(_MOST_VALUES // len(self.full_rows) // max(self.shape[axis], 1), 1)
        rows = np.concatenate(
            [_some(np.moveaxis(r, axis, -1).reshape(-1, r.shape[axis]), each) for r in self.full_rows]
        )
        rows = np.nan_to_num(rows.astype(np.float64), posinf=0, neginf=0)
        if rows.shape[1] < _LEAST_CLASSES or len(rows) < 2:
            return False
        answers = rows.argmax(axis=1)
        varied = np.bincount(answers).max() < 0.97 * len(rows)
        decisive = np.median(_gaps(rows)) > _gap_of_noise(rows.shape[1])
        return bool(decisive and (rows.min(axis=1) < 0).mean() > 0.8 and varied)

    @cached_property
    def commonest_answer(self) -> float:
        """The share of the samples that the commonest answer has: of 1 the answers say nothing."""
        if not self.is_float or self.size < 2:
            flat = [float(r.ravel()[0]) for r in self.full_rows]
            threshold = 0.5 if self.within_unit else 0.0
            answers = [float(v > threshold) for v in flat] if self.is_float else flat
        else:
            answers = [float(np.nan_to_num(r.ravel(), nan=-np.inf).argmax()) for r in self.full_rows]
        return max(answers.count(a) for a in set(answers)) / max(len(answers), 1)

    def one_class_along(self, axis: int) -> float:
        """The share of the commonest answer over all positions."""
        answers = np.concatenate([np.nan_to_num(r, nan=-np.inf).argmax(axis).ravel() for r in self.full_rows])
        return float(np.bincount(answers).max() / len(answers))

    @cached_property
    def unit_norm(self) -> bool:
        """Whether the vectors along the last axis have norm 1."""
        if not self.is_float or not self.shape or self.shape[-1] < 8 or len({r.ndim for r in self.full_rows}) > 1:
            return False
        norms = np.concatenate([np.linalg.norm(r.astype(np.float64), axis=-1).ravel() for r in self.full_rows])
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
            return "class" if self.whole and all(v.dtype.kind in "biu" for v in self.known) else "number"
        full = [v for v in self.known if v.size]
        if full and all(v.ndim == 2 and v.shape[1] == 5 for v in full):
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
    def whole(self) -> bool:
        """Whether all labels are whole numbers from 0 on."""
        return all(bool((v >= 0).all() and (v == np.round(v)).all()) for v in self.known)

    @cached_property
    def one_hot(self) -> bool:
        """Whether every label is a row of zeros with one 1."""
        return all(v.ndim == 1 and v.size > 1 and bool(np.isin(v, (0, 1)).all()) and v.sum() == 1 for v in self.known)

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


def _some(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many rows, evenly spaced."""
    return rows[:: -(-len(rows) // most)] if len(rows) > most else rows


def _gaps(rows: np.ndarray) -> np.ndarray:
    """How far the largest number of each row is above the second, in standard deviations of the row."""
    top = np.partition(rows, -2, axis=1)
    return np.asarray((top[:, -1] - top[:, -2]) / np.maximum(rows.std(axis=1), 1e-12))


@cache
def _gap_of_noise(size: int) -> float:
    """The gap that only a tenth of normally distributed rows exceed."""
    rows = np.random.default_rng(0).standard_normal((max(100, min(2000, 1_000_000 // size)), size))
    return float(np.quantile(_gaps(rows), 0.9))


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
