"""Which inner values of a student are compared with which of its teacher.

Candidates are the student's cut points: values that everything computed so far must pass through.  Their twin in the
teacher is found by name (a file before and after pruning), by order (two exports of one architecture in other widths), or
said by the user.  Where a student is narrower, its channel i is the teacher's channel kept[i]: told by the removal that
made it, or by which teacher channel it correlates with on samples; else a learned projection stands between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from scipy.optimize import linear_sum_assignment

from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, stream
from onnxpress.measure.linear import linear
from onnxpress.model import read
from onnxpress.model.trace import Trace

_LIGHT = 64  # a constant of fewer elements is no weight
_SEEN = 64  # samples that channels are compared on
_ALIKE = 0.7  # mean correlation from which channels count as twins
_POINTS = 2**22  # numbers of a value and batch that correlations are taken of

Kept = Callable[[str], "np.ndarray | None"]


@dataclass(frozen=True)
class Pair:
    """channel: axis of features; kept: the teacher's channels in the student's order (None: all, or projected)."""

    student: str
    teacher: str
    channel: int
    kept: tuple[int, ...] | None = None
    project: bool = False

    def plain(self) -> dict[str, Any]:
        body: dict[str, Any] = {"student": self.student, "teacher": self.teacher, "channel": self.channel}
        if self.kept is not None:
            body["kept"] = list(self.kept)
        if self.project:
            body["project"] = True
        return body


def read_pair(body: Mapping[str, Any]) -> Pair:
    """A pair from a plan."""
    kept = body.get("kept")
    return Pair(
        str(body["student"]),
        str(body["teacher"]),
        int(body["channel"]),
        None if kept is None else tuple(int(k) for k in kept),
        bool(body.get("project", False)),
    )


def cuts(model: ir.Model, trace: Trace) -> list[str]:
    """Values that all computing by weights passes through, in order, one between two weighted layers; outputs left out.

    Light values (masks and positions made from the inputs without weights) may pass by: a block gets them anew.
    """
    nodes = list(model.graph)
    place = {id(n): i for i, n in enumerate(nodes)}
    heavy: set[int] = set()
    last_use: dict[int, int] = {}
    weighted = 0
    found: list[tuple[str, int, int]] = []
    live: dict[int, ir.Value] = {}
    for i, node in enumerate(nodes):
        own = any(_weight(v) for v in node.inputs)
        weighted += own
        if own or any(id(v) in heavy for v in node.inputs if v is not None) or _captures(node, heavy, nodes):
            for value in node.outputs:
                heavy.add(id(value))
                uses = [place.get(id(u.node), len(nodes)) for u in value.uses()]
                last_use[id(value)] = len(nodes) if value.is_graph_output() else max(uses, default=-1)
                live[id(value)] = value
        live = {k: v for k, v in live.items() if last_use[k] > i}
        if len(live) == 1:
            (value,) = live.values()
            shape = trace.shape(value.name)
            floating = value.dtype is None or value.dtype.is_floating_point()
            if value.producer() is node and shape and len(shape) > 1 and shape[0] == 1 and floating:
                _note(found, value.name or "", weighted, int(np.prod(shape)))
    outputs = {v.name for v in model.graph.outputs}
    return [name for name, count, _ in found if count < weighted and name not in outputs]


def _note(found: list[tuple[str, int, int]], name: str, weighted: int, size: int) -> None:
    """The last of several cuts without a weight between them stands for all, unless it is a pooled one."""
    if found and found[-1][1] == weighted:
        if size >= found[-1][2]:
            found[-1] = (name, weighted, size)
        return
    found.append((name, weighted, size))


def _weight(value: ir.Value | None) -> bool:
    array = None if value is None or value.producer() is not None else read.constant(value)
    return array is not None and array.dtype.kind in "fiu" and array.ndim >= 2 and array.size >= _LIGHT


def _captures(node: ir.Node, heavy: set[int], nodes: Sequence[ir.Node]) -> bool:
    if not read.has_subgraph(node):
        return False
    names = read.captured(node)
    return any(v.name in names for n in nodes for v in n.outputs if id(v) in heavy)


def pairs(student: Evidence, teacher: Evidence, kept: Kept | None = None) -> list[Pair]:
    """The student's cut points with their twins; empty where the graphs have nothing in common.

    kept: the channels of a value that a removal left (by value name), where the student was made by one.
    """
    mine = cuts(student.model, student.trace)
    others = {v.name for n in teacher.model.graph for v in n.outputs}
    named = [(s, s) for s in mine if s in others and _fits(s, s, student, teacher) is not None]
    if len(named) * 2 >= len(mine):
        return _resolved(named, student, teacher, kept)
    theirs = cuts(teacher.model, teacher.trace)
    if len(theirs) != len(mine):
        return _resolved(named, student, teacher, kept)
    both = [(s, t) for s, t in zip(mine, theirs, strict=True) if _fits(s, t, student, teacher) is not None]
    return _resolved(both, student, teacher, None)


def all_pairs(student: Evidence, teacher: Evidence, kept: Kept | None = None) -> list[Pair]:
    """Twins of every linear layer's output and of every sum, for a layer-wise fit.

    By name; where most layers have no namesake, by order, if both have as many layers.
    """
    known = {v.name for n in teacher.model.graph for v in n.outputs}
    sums = [v.name or "" for n in student.model.graph for v in n.outputs if n.op_type in ("Add", "Reshape")]
    mine, theirs = _layers(student.model), _layers(teacher.model)
    named = [(s, s) for s in dict.fromkeys([*mine, *sums]) if s in known]
    if len({s for s, _ in named} & set(mine)) * 2 < len(mine) and len(mine) == len(theirs):
        named, kept = _in_step(student.model, teacher.model) or list(zip(mine, theirs, strict=True)), None
    return _resolved([p for p in named if _fits(*p, student, teacher) is not None], student, teacher, kept)


def _in_step(student: ir.Model, teacher: ir.Model) -> list[tuple[str, str]]:
    """First outputs of all nodes side by side, where both graphs are the same operators in the same order."""
    both = list(zip(student.graph, teacher.graph, strict=False))
    if len(student.graph) != len(teacher.graph) or any(a.op_type != b.op_type for a, b in both):
        return []
    wanted = ("Add", "Reshape", *read.WEIGHTED)
    return [(a.outputs[0].name or "", b.outputs[0].name or "") for a, b in both if a.op_type in wanted]


def _layers(model: ir.Model) -> list[str]:
    return [layer.output for n in model.graph if (layer := linear(n)) is not None]


def chosen(wanted: Sequence[tuple[str, str]], student: Evidence, teacher: Evidence) -> list[Pair]:
    """The pairs a user names as (teacher, student); raises InputProblem where a name or a shape does not fit."""
    both = []
    for t, s in wanted:
        for name, side, where in ((t, "teacher", teacher), (s, "student", student)):
            known = {v.name for n in where.model.graph for v in n.outputs if v.name}
            if name not in known:
                near = sorted(known, key=lambda k, n=name: (n.lower() not in k.lower(), k))[:3]  # type: ignore[misc]
                raise InputProblem(f"no such value in the {side}", name, "", f"it has {', '.join(near)}, …")
        if _fits(s, t, student, teacher) is None:
            raise InputProblem(
                "these values cannot be matched",
                f"{t}={s}",
                f"shapes {teacher.trace.shape(t)} and {student.trace.shape(s)}",
                "match values that differ in channels only",
            )
        both.append((s, t))
    return _resolved(both, student, teacher, None)


def parse_match(words: Sequence[str]) -> list[tuple[str, str]]:
    """--match T=S."""
    found = []
    for word in words:
        left, sign, right = word.partition("=")
        if not sign or not left or not right:
            raise InputProblem("a match is not of the form T=S", f"--match {word}", "", "name two values: relu3=relu3")
        found.append((left, right))
    return found


def _fits(s: str, t: str, student: Evidence, teacher: Evidence) -> int | None:
    """The axis the shapes may differ in, and do or do not; None where they differ elsewhere."""
    a, b = student.trace.shape(s), teacher.trace.shape(t)
    if a is None or b is None or len(a) != len(b) or len(a) < 2:
        return None
    different = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    if len(different) > 1 or 0 in different:
        return None
    return different[0] if different else (1 if len(a) != 3 else 2)


def _resolved(both: Sequence[tuple[str, str]], student: Evidence, teacher: Evidence, kept: Kept | None) -> list[Pair]:
    """Which channels are which, for every pair that differs in width."""
    found: list[Pair] = []
    unknown: list[tuple[str, str, int]] = []
    for s, t in both:
        axis = _fits(s, t, student, teacher)
        assert axis is not None
        a, b = student.trace.shapes[s][axis], teacher.trace.shapes[t][axis]
        rows = None if kept is None else kept(s)
        if a == b and kept is None:
            found.append(Pair(s, t, axis))
        elif rows is not None and len(rows) == a:
            found.append(Pair(s, t, axis, None if a == b else tuple(int(r) for r in rows)))
        else:
            unknown.append((s, t, axis))
            found.append(Pair(s, t, axis, None, a != b))
    twins = _correlated(unknown, student, teacher) if unknown else {}
    return [
        Pair(p.student, p.teacher, p.channel, twins[p.student]) if p.project and p.student in twins else p
        for p in found
    ]


def _correlated(
    unknown: Sequence[tuple[str, str, int]], student: Evidence, teacher: Evidence
) -> dict[str, tuple[int, ...]]:
    """For narrower values: the teacher's channel each channel correlates with most, where they do."""
    narrow = [(s, t, axis) for s, t, axis in unknown if student.trace.shapes[s][axis] < teacher.trace.shapes[t][axis]]
    if not narrow:
        return {}
    data = student.samples().take(_SEEN)
    sums: dict[str, list[np.ndarray]] = {}
    for now, then in _streams(narrow, student, teacher, data):
        for s, t, axis in narrow:
            x, y = (np.moveaxis(v, axis, -1).reshape(-1, v.shape[axis]) for v in (now[s], then[t]))
            if len(x) != len(y):
                return {}
            step = max(1, x.size // _POINTS)
            x, y = x[::step].astype(np.float64), y[::step].astype(np.float64)
            part = [np.array(float(len(x))), x.sum(0), y.sum(0), (x * x).sum(0), (y * y).sum(0), x.T @ y]
            sums[s] = part if s not in sums else [a + b for a, b in zip(sums[s], part, strict=True)]
    found = {}
    for s, (n, sx, sy, sxx, syy, sxy) in sums.items():
        spread = np.sqrt(np.outer(np.maximum(sxx - sx**2 / n, 1e-12), np.maximum(syy - sy**2 / n, 1e-12)))
        close = (sxy - np.outer(sx, sy) / n) / spread
        mine, theirs = linear_sum_assignment(-close)
        if float(close[mine, theirs].mean()) >= _ALIKE:
            found[s] = tuple(int(k) for k in theirs[np.argsort(mine)])
    return found


def _streams(narrow: Sequence[tuple[str, str, int]], student: Evidence, teacher: Evidence, data: Dataset) -> Any:
    names, others = list(dict.fromkeys(s for s, _, _ in narrow)), list(dict.fromkeys(t for _, t, _ in narrow))
    batch = min(student.batch_for(names), teacher.batch_for(others))
    return zip(stream(student.model, names, data, batch), stream(teacher.model, others, data, batch), strict=True)
