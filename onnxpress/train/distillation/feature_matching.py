"""Matching of the inner values of a student with those of its teacher.

Candidates are the student's cut points: values through which all computation passes.  Their counterparts in the
teacher are found by name (a file before and after pruning), by order (two exports of one architecture with other
widths), or named by the user.  Where the student is narrower, its channel i is the teacher's channel kept[i], known
from the pruning or from the correlation of channels on samples; otherwise a learned projection maps between them.
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

_MIN_WEIGHT_SIZE = 64  # elements; smaller constants are not weights
_CORRELATION_SAMPLES = 64
_MIN_CORRELATION = 0.7  # mean correlation of matched channels
_MAX_ELEMENTS = 2**22  # of a value and batch, for the correlation

KeptChannels = Callable[[str], "np.ndarray | None"]


@dataclass(frozen=True)
class FeaturePair:
    """A value of the student and its counterpart in the teacher.

    student, teacher: names of the values.
    channel: axis of the channels.
    kept: the teacher's channels in the student's order (None: all, or a learned projection).
    project: whether a learned projection maps between them.
    """

    student: str
    teacher: str
    channel: int
    kept: tuple[int, ...] | None = None
    project: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The pair as JSON values."""
        body: dict[str, Any] = {"student": self.student, "teacher": self.teacher, "channel": self.channel}
        if self.kept is not None:
            body["kept"] = list(self.kept)
        if self.project:
            body["project"] = True
        return body


def pair_from_dict(body: Mapping[str, Any]) -> FeaturePair:
    """A pair from a plan."""
    kept = body.get("kept")
    return FeaturePair(
        str(body["student"]),
        str(body["teacher"]),
        int(body["channel"]),
        None if kept is None else tuple(int(k) for k in kept),
        bool(body.get("project", False)),
    )


def cut_values(model: ir.Model, trace: Trace) -> list[str]:
    """Names of the values through which all computation with weights passes, in order, without the outputs.

    Of several such values between two layers with weights one is returned.  Values computed from the inputs without
    weights (masks, positions) may bypass them.
    """
    nodes = list(model.graph)
    place = {id(n): i for i, n in enumerate(nodes)}
    heavy: set[int] = set()
    last_use: dict[int, int] = {}
    weighted = 0
    found: list[tuple[str, int, int]] = []
    live: dict[int, ir.Value] = {}
    for i, node in enumerate(nodes):
        own = any(_is_weight(v) for v in node.inputs)
        weighted += own
        if own or any(id(v) in heavy for v in node.inputs if v is not None) or _reads_heavy_value(node, heavy, nodes):
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
                _add_cut(found, value.name or "", weighted, int(np.prod(shape)))
    outputs = {v.name for v in model.graph.outputs}
    return [name for name, count, _ in found if count < weighted and name not in outputs]


def _add_cut(found: list[tuple[str, int, int]], name: str, weighted: int, size: int) -> None:
    """Record a cut; of several without a weight between them the last is kept, unless pooling made it smaller."""
    if found and found[-1][1] == weighted:
        if size >= found[-1][2]:
            found[-1] = (name, weighted, size)
        return
    found.append((name, weighted, size))


def _is_weight(value: ir.Value | None) -> bool:
    """Whether a value is a constant of two or more dimensions with at least _MIN_WEIGHT_SIZE elements."""
    array = None if value is None or value.producer() is not None else read.constant(value)
    return array is not None and array.dtype.kind in "fiu" and array.ndim >= 2 and array.size >= _MIN_WEIGHT_SIZE


def _reads_heavy_value(node: ir.Node, heavy: set[int], nodes: Sequence[ir.Node]) -> bool:
    """Whether a subgraph of the node reads a value that depends on weights."""
    if not read.has_subgraph(node):
        return False
    names = read.captured(node)
    return any(v.name in names for n in nodes for v in n.outputs if id(v) in heavy)


def match_features(student: Evidence, teacher: Evidence, kept: KeptChannels | None = None) -> list[FeaturePair]:
    """The student's cut points with their counterparts; empty where the graphs have nothing in common.

    kept: gives the channels of a value that a pruning left, by value name, where it made the student.
    """
    mine = cut_values(student.model, student.trace)
    others = {v.name for n in teacher.model.graph for v in n.outputs}
    named = [(s, s) for s in mine if s in others and _channel_axis(s, s, student, teacher) is not None]
    if len(named) * 2 >= len(mine):
        return _with_channels(named, student, teacher, kept)
    theirs = cut_values(teacher.model, teacher.trace)
    if len(theirs) != len(mine):
        return _with_channels(named, student, teacher, kept)
    both = [(s, t) for s, t in zip(mine, theirs, strict=True) if _channel_axis(s, t, student, teacher) is not None]
    return _with_channels(both, student, teacher, None)


def match_layers(student: Evidence, teacher: Evidence, kept: KeptChannels | None = None) -> list[FeaturePair]:
    """Counterparts of the outputs of all linear layers and of all sums, for a layer-wise fit.

    By name; where most layers have no namesake, by order, if both models have as many layers.
    """
    known = {v.name for n in teacher.model.graph for v in n.outputs}
    sums = [v.name or "" for n in student.model.graph for v in n.outputs if n.op_type in ("Add", "Reshape")]
    mine, theirs = _layer_outputs(student.model), _layer_outputs(teacher.model)
    named = [(s, s) for s in dict.fromkeys([*mine, *sums]) if s in known]
    if len({s for s, _ in named} & set(mine)) * 2 < len(mine) and len(mine) == len(theirs):
        named, kept = _pairs_by_order(student.model, teacher.model) or list(zip(mine, theirs, strict=True)), None
    return _with_channels([p for p in named if _channel_axis(*p, student, teacher) is not None], student, teacher, kept)


def _pairs_by_order(student: ir.Model, teacher: ir.Model) -> list[tuple[str, str]]:
    """First outputs of corresponding nodes, where both graphs have the same operators in the same order."""
    both = list(zip(student.graph, teacher.graph, strict=False))
    if len(student.graph) != len(teacher.graph) or any(a.op_type != b.op_type for a, b in both):
        return []
    wanted = ("Add", "Reshape", *read.WEIGHTED)
    return [(a.outputs[0].name or "", b.outputs[0].name or "") for a, b in both if a.op_type in wanted]


def _layer_outputs(model: ir.Model) -> list[str]:
    """Outputs of the linear layers."""
    return [layer.output for n in model.graph if (layer := linear(n)) is not None]


def match_by_name(wanted: Sequence[tuple[str, str]], student: Evidence, teacher: Evidence) -> list[FeaturePair]:
    """Pairs of values that the user names as (teacher, student).

    Raises InputProblem for an unknown name or for shapes that cannot be matched.
    """
    both = []
    for t, s in wanted:
        for name, side, where in ((t, "teacher", teacher), (s, "student", student)):
            known = {v.name for n in where.model.graph for v in n.outputs if v.name}
            if name not in known:
                near = sorted(known, key=lambda k, n=name: (n.lower() not in k.lower(), k))[:3]  # type: ignore[misc]
                raise InputProblem(f"no such value in the {side}", name, "", f"it has {', '.join(near)}, …")
        if _channel_axis(s, t, student, teacher) is None:
            raise InputProblem(
                "values cannot be matched",
                f"{t}={s}",
                f"shapes {teacher.trace.shape(t)} and {student.trace.shape(s)}",
                "match values whose shapes differ in the channels only",
            )
        both.append((s, t))
    return _with_channels(both, student, teacher, None)


def parse_match(words: Sequence[str]) -> list[tuple[str, str]]:
    """Parse texts of the form T=S into (teacher value, student value).  Raises InputProblem for another form."""
    found = []
    for word in words:
        left, sign, right = word.partition("=")
        if not sign or not left or not right:
            raise InputProblem("not of the form T=S", f"`match` {word}", "", "name two values: relu3=relu3")
        found.append((left, right))
    return found


def _channel_axis(s: str, t: str, student: Evidence, teacher: Evidence) -> int | None:
    """The only axis in which the shapes may differ; None where they differ elsewhere."""
    a, b = student.trace.shape(s), teacher.trace.shape(t)
    if a is None or b is None or len(a) != len(b) or len(a) < 2:
        return None
    different = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    if len(different) > 1 or 0 in different:
        return None
    return different[0] if different else (1 if len(a) != 3 else 2)


def _with_channels(
    both: Sequence[tuple[str, str]], student: Evidence, teacher: Evidence, kept: KeptChannels | None
) -> list[FeaturePair]:
    """Pairs with the channels of the teacher, where widths differ."""
    found: list[FeaturePair] = []
    unknown: list[tuple[str, str, int]] = []
    for s, t in both:
        axis = _channel_axis(s, t, student, teacher)
        assert axis is not None
        a, b = student.trace.shapes[s][axis], teacher.trace.shapes[t][axis]
        rows = None if kept is None else kept(s)
        if a == b and kept is None:
            found.append(FeaturePair(s, t, axis))
        elif rows is not None and len(rows) == a:
            found.append(FeaturePair(s, t, axis, None if a == b else tuple(int(r) for r in rows)))
        else:
            unknown.append((s, t, axis))
            found.append(FeaturePair(s, t, axis, None, a != b))
    channels = _match_channels(unknown, student, teacher) if unknown else {}
    return [
        FeaturePair(p.student, p.teacher, p.channel, channels[p.student]) if p.project and p.student in channels else p
        for p in found
    ]


def _match_channels(
    unknown: Sequence[tuple[str, str, int]], student: Evidence, teacher: Evidence
) -> dict[str, tuple[int, ...]]:
    """By student value: the teacher's channels with the highest correlation, for narrower values that correlate."""
    narrow = [(s, t, axis) for s, t, axis in unknown if student.trace.shapes[s][axis] < teacher.trace.shapes[t][axis]]
    if not narrow:
        return {}
    data = student.samples().take(_CORRELATION_SAMPLES)
    sums: dict[str, list[np.ndarray]] = {}
    for now, then in _paired_values(narrow, student, teacher, data):
        for s, t, axis in narrow:
            x, y = (np.moveaxis(v, axis, -1).reshape(-1, v.shape[axis]) for v in (now[s], then[t]))
            if len(x) != len(y):
                return {}
            step = max(1, x.size // _MAX_ELEMENTS)
            x, y = x[::step].astype(np.float64), y[::step].astype(np.float64)
            part = [np.array(float(len(x))), x.sum(0), y.sum(0), (x * x).sum(0), (y * y).sum(0), x.T @ y]
            sums[s] = part if s not in sums else [a + b for a, b in zip(sums[s], part, strict=True)]
    found = {}
    for s, (n, sx, sy, sxx, syy, sxy) in sums.items():
        spread = np.sqrt(np.outer(np.maximum(sxx - sx**2 / n, 1e-12), np.maximum(syy - sy**2 / n, 1e-12)))
        close = (sxy - np.outer(sx, sy) / n) / spread
        mine, theirs = linear_sum_assignment(-close)
        if float(close[mine, theirs].mean()) >= _MIN_CORRELATION:
            found[s] = tuple(int(k) for k in theirs[np.argsort(mine)])
    return found


def _paired_values(narrow: Sequence[tuple[str, str, int]], student: Evidence, teacher: Evidence, data: Dataset) -> Any:
    """The named values of both models on the same samples."""
    names, others = list(dict.fromkeys(s for s, _, _ in narrow)), list(dict.fromkeys(t for _, t, _ in narrow))
    batch = min(student.batch_for(names), teacher.batch_for(others))
    return zip(stream(student.model, names, data, batch), stream(teacher.model, others, data, batch), strict=True)
