"""What each output of a student is compared by: class scores by their logits, other outputs by their values.

Scores that end in a Softmax are compared before it, where the temperature applies.  Does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem
from onnxpress.measure.score import Scorer, class_count
from onnxpress.model import read
from onnxpress.model.signature import signature

_MIN_PROBABILITY = 1e-7  # smaller probabilities are raised to this


@dataclass(frozen=True)
class OutputHead:
    """One output.

    output: its name.
    student, teacher: names of the compared values.
    classes: number of classes; 0 for outputs that are no class scores.
    labelled: whether labels refer to this output.
    is_classifier: whether it is certain (by a Softmax, a name or labels, not by the shape alone) to hold class scores.
    student_probabilities, teacher_probabilities: whether the compared value holds probabilities, not logits.
    """

    output: str
    student: str
    teacher: str
    classes: int
    labelled: bool
    is_classifier: bool
    student_probabilities: bool = False
    teacher_probabilities: bool = False


def output_heads(student: ir.Model, teacher: ir.Model, judge: Scorer) -> list[OutputHead]:
    """The outputs of two models with the same signature.  Raises InputProblem where none is a float tensor."""
    first = next(iter(judge.data.batches(1)))
    from onnxpress.runtime.session import open_session, run

    rows = run(open_session(teacher), first.inputs)
    found = []
    for index, (s, t) in enumerate(zip(student.graph.outputs, teacher.graph.outputs, strict=True)):
        row = rows[index]
        if row.dtype.kind != "f":
            continue
        classes = class_count(row) if row.ndim == 2 else 0
        labelled = judge.class_output == index
        s_name, s_probabilities = _logits(s, classes)
        t_name, t_probabilities = _logits(t, classes)
        softmax = bool(classes) and (s_name != s.name or s_probabilities)
        certain = bool(classes) and (softmax or labelled)
        sums_to_one = bool(classes) and bool(row.min() >= 0 and abs(float(row.sum()) - 1) < 1e-3)
        found.append(
            OutputHead(s.name or "", s_name, t_name, classes, labelled, certain or sums_to_one,
                       s_probabilities or (sums_to_one and s_name == s.name),
                       t_probabilities or (sums_to_one and t_name == t.name))
        )  # fmt: skip
    if not found:
        raise InputProblem("no output can be distilled", "", "none is a float tensor", "distill another model")
    return found


def _logits(output: ir.Value, classes: int) -> tuple[str, bool]:
    """The value before a final Softmax over the last axis, else the output; and whether it holds probabilities."""
    node = output.producer()
    name = output.name or ""
    if not classes or node is None or not read.standard(node) or node.op_type not in ("Softmax", "LogSoftmax"):
        return name, False
    axis = read.int_attribute(node, "axis", -1 if read.node_opset(node) >= 13 else 1)
    source = node.inputs[0]
    if axis not in (-1, 1) or source is None or source.name is None:
        return name, node.op_type == "Softmax"
    return source.name, False


def to_logits(values: np.ndarray, probabilities: bool) -> np.ndarray:
    """The logarithm of probabilities; other values unchanged."""
    return np.log(np.maximum(values, _MIN_PROBABILITY)) if probabilities else values


def check_compatible(student: ir.Model, teacher: ir.Model) -> None:
    """Raises InputProblem where the inputs or outputs of the models differ in number, type, rank or fixed sizes."""
    for kind, mine, other in (
        ("inputs", signature(student).inputs, signature(teacher).inputs),
        ("outputs", signature(student).outputs, signature(teacher).outputs),
    ):
        if len(mine) != len(other):
            raise InputProblem(
                f"student and teacher have different {kind}", "", f"{len(mine)} and {len(other)}",
                "distill models with the same inputs and outputs",
            )  # fmt: skip
        for a, b in zip(mine, other, strict=True):
            sizes = [(x, y) for x, y in zip(a.shape or (), b.shape or (), strict=False)
                     if isinstance(x, int) and isinstance(y, int) and x != y]  # fmt: skip
            ranks = a.rank is not None and b.rank is not None and a.rank != b.rank
            if a.dtype != b.dtype or ranks or sizes:
                raise InputProblem(
                    f"student and teacher have different {kind}",
                    a.name if a.name == b.name else f"{a.name} and {b.name}",
                    f"student {a.text()}, teacher {b.text()}",
                    "distill models with the same inputs and outputs",
                )


def one_hot_labels(labels: Sequence[Any], classes: int) -> np.ndarray:
    """Class labels as distributions [N, classes]; a row of zeros where there is no label."""
    rows = np.zeros((len(labels), classes), np.float32)
    for i, label in enumerate(labels):
        if label is not None and np.ndim(label) == 0 and not isinstance(label, str):
            number = int(label)
            if 0 <= number < classes:
                rows[i, number] = 1
    return rows


def example_batch(data: Dataset, count: int = 64) -> dict[str, np.ndarray]:
    """The inputs of up to `count` samples of equal shapes."""
    return next(iter(data.take(count).batches(count))).inputs
