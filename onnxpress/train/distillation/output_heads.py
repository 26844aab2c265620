"""What each output of a student is compared by: class scores by their logits, everything else by its values.

Scores that end in a Softmax are compared before it, where temperature means something; no torch here.
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

_LOG = 1e-7  # probabilities below count as this


@dataclass(frozen=True)
class Head:
    """One output.  student, teacher: names of the values compared; log: which of them are probabilities.

    classes: 0 for values that are no class scores; answer: whether labels speak of this output; sure: that they are
    class scores is known from a Softmax, from a name or from labels, and not only possible by shape.
    """

    output: str
    student: str
    teacher: str
    classes: int
    answer: bool
    sure: bool
    student_log: bool = False
    teacher_log: bool = False


def heads(student: ir.Model, teacher: ir.Model, judge: Scorer) -> list[Head]:
    """The outputs of two models with the same signature; raises InputProblem where none is a float."""
    first = next(iter(judge.data.batches(1)))
    from onnxpress.runtime.session import open_session, run

    rows = run(open_session(teacher), first.inputs)
    found = []
    for index, (s, t) in enumerate(zip(student.graph.outputs, teacher.graph.outputs, strict=True)):
        if rows[index].dtype.kind != "f":
            continue
        classes = class_count(rows[index]) if rows[index].ndim == 2 else 0
        answer = judge.class_output == index
        s_name, s_log = _logits(s, classes)
        t_name, t_log = _logits(t, classes)
        soft = bool(classes) and (s_name != s.name or s_log)
        sure = bool(classes) and (soft or (answer and (judge.labelled or not judge.ambiguous)))
        row = rows[index]
        probable = bool(classes) and bool(row.min() >= 0 and abs(float(row.sum()) - 1) < 1e-3)
        found.append(
            Head(s.name or "", s_name, t_name, classes, answer, sure or probable,
                 s_log or (probable and s_name == s.name), t_log or (probable and t_name == t.name))
        )  # fmt: skip
    if not found:
        raise InputProblem("no output can be distilled", "", "none is a float tensor", "distill another model")
    return found


def _logits(output: ir.Value, classes: int) -> tuple[str, bool]:
    """The value before a final Softmax over the last axis, and whether what is left holds probabilities."""
    node = output.producer()
    name = output.name or ""
    if not classes or node is None or not read.standard(node) or node.op_type not in ("Softmax", "LogSoftmax"):
        return name, False
    axis = read.int_attribute(node, "axis", -1 if read.node_opset(node) >= 13 else 1)
    source = node.inputs[0]
    if axis not in (-1, 1) or source is None or source.name is None:
        return name, node.op_type == "Softmax"
    return source.name, False


def answers(values: np.ndarray, log: bool) -> np.ndarray:
    """Logits of an output that may hold probabilities."""
    return np.log(np.maximum(values, _LOG)) if log else values


def compatible(student: ir.Model, teacher: ir.Model) -> None:
    """Raises InputProblem where the two do not take and give the same (by number, type and rank)."""
    for kind, mine, other in (
        ("inputs", signature(student).inputs, signature(teacher).inputs),
        ("outputs", signature(student).outputs, signature(teacher).outputs),
    ):
        if len(mine) != len(other):
            raise InputProblem(
                f"student and teacher have different {kind}", "", f"{len(mine)} and {len(other)}",
                "distill models that take and give the same",
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
                    "distill models that take and give the same",
                )


def labels_as_rows(labels: Sequence[Any], classes: int) -> np.ndarray:
    """Class labels as distributions [N, classes]; rows of zeros where there is none."""
    rows = np.zeros((len(labels), classes), np.float32)
    for i, label in enumerate(labels):
        if label is not None and np.ndim(label) == 0 and not isinstance(label, str):
            number = int(label)
            if 0 <= number < classes:
                rows[i, number] = 1
    return rows


def probe(data: Dataset, count: int = 64) -> dict[str, np.ndarray]:
    """The feeds of up to `count` alike samples."""
    return next(iter(data.take(count).batches(count))).inputs
