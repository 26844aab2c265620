"""Whether samples are what a model expects: doubts in words, found before anything is optimized for them.

Wrong pictures give a model that is fast and as good on wrong pictures. What is looked at: class names that were
numbered by their order though the model has another number of classes; other preprocessings with which the model
answers the labels better; and, where a model normalizes its inputs itself, values that are nothing it would normalize.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxpress.data.checks import is_float
from onnxpress.data.dataset import Dataset
from onnxpress.data.layout import batch_layout
from onnxpress.data.preprocessing import names as preprocessing_names
from onnxpress.errors import Problem
from onnxpress.measure.quality import QualityOptions
from onnxpress.measure.score import Scorer
from onnxpress.model import read
from onnxpress.runtime.session import open_session, run

_MOST, _FEWEST = 64, 12  # labelled samples on which preprocessings are compared
_SECONDS = 4.0  # for all of them, where the fewest samples do not take longer
_SLOW = 1.0  # seconds of a run, from which on nothing is tried; from a tenth of it on the usual ones only
_USUAL = ["imagenet", "raw", "symmetric"]
_BETTER = 0.08  # by how much another preprocessing must be better, and by two standard deviations
_SPREAD = (0.03, 30.0)  # of values behind a model's own normalization
_LOOKED_AT = 8
_FAILURES = (Problem, ValueError, ArithmeticError, LookupError)
_SHOWN = 4


def sample_doubts(model: ir.Model, data: Dataset) -> list[str]:
    """Why samples may not be what the model expects, each in one sentence that says what to do; [] where nothing is
    wrong."""
    doubts = [*_class_count(model, data), *_input_values(model, data)]
    if data.labelled:
        with contextlib.suppress(*_FAILURES):  # labels of another form, or a model that does not run: said elsewhere
            each = _seconds(model, data)
            doubts += _preprocessing(model, data, each)
            if not doubts and each < _SLOW:
                doubts += Scorer(model, data.take(_count(each, 1))).judge.warnings[:1]
    return doubts


def first_doubts(model: ir.Model, data: Dataset) -> list[str]:
    """`sample_doubts` as notes, where nobody looked at this dataset before."""
    if data.doubts is not None:
        return []
    data.doubts = tuple(sample_doubts(model, data))
    return [f"warning: {doubt}" for doubt in data.doubts]


def _class_count(model: ir.Model, data: Dataset) -> list[str]:
    """Names that were numbered by their order, while the model has another number of classes."""
    names = data.reading.numbered
    sizes = [_classes(v) for v in model.graph.outputs]
    known = [size for size in sizes if size]
    if not names or not known or len(names) in known or (len(names) == 2 and 1 in known):
        return []
    shown = ", ".join(f"{name} = {i}" for i, name in enumerate(names[:_SHOWN])) + (", …" if len(names) > _SHOWN else "")
    return [
        f"{len(names)} classes are named, and the model has {known[0]}: they were numbered by their order ({shown}). "
        "TRY: `classes` with the file of the model's class names"
    ]


def _classes(value: ir.Value) -> int:
    """The number of scores of an output that may be class scores, 0 where it is not known."""
    sizes = [d for d in value.shape.dims if isinstance(d, int)] if value.shape is not None else []
    return sizes[-1] if sizes and value.shape is not None and len(value.shape.dims) == 2 else 0


def _seconds(model: ir.Model, data: Dataset) -> float:
    """Of one run of the model, with reading its sample."""
    session = open_session(model)
    start = time.perf_counter()
    run(session, data[0].inputs)
    return max(time.perf_counter() - start, 1e-4)


def _count(each: float, times: int) -> int:
    """How many samples a few seconds suffice for, where each is run so many times."""
    return int(np.clip(_SECONDS / each / times, _FEWEST, _MOST))


def _preprocessing(model: ir.Model, data: Dataset, each: float) -> list[str]:
    """Another preprocessing with which the model answers the labels of some samples better."""
    again = data.reading.again
    pictures = [p.name for p in batch_layout(data.signature).ports if _is_picture(p.dims, p.spec.dtype)]
    if again is None or not pictures or not (data.reading.files or _as_stored(data, pictures[0])):
        return []
    names = preprocessing_names() if each < _SLOW / 10 else _USUAL
    if each > _SLOW:
        return []
    labelled = [i for i, label in enumerate(data.labels) if label is not None]
    count = _count(each, len(names) + 1)
    chosen = [labelled[int(i)] for i in np.linspace(0, len(labelled) - 1, min(count, len(labelled)))]
    if len(chosen) < _FEWEST:
        return []
    own = _value(model, data.select(chosen))
    if own is None:
        return []
    found = {}
    for name in names:
        try:
            other = again(name)
        except Problem:
            continue
        value = _value(model, other.select([data.position(i) for i in chosen]))
        if value is not None and value[0] == own[0]:
            found[name] = value[1]
    if not found:
        return []
    best = max(found, key=lambda name: found[name])
    noise = 2 * np.sqrt(2 * 0.25 / len(chosen))
    if found[best] - own[1] <= max(_BETTER, noise * np.sqrt(4 * max(own[1], 0.02) * (1 - min(own[1], 0.98)))):
        return []
    return [
        f"with `preprocess` {best} the model scores {found[best]:.3f} {own[0]} instead of {own[1]:.3f}, on "
        f"{len(chosen)} labelled samples. TRY: `preprocess` {best}, or a TOML file with what the model was trained on"
    ]


def _value(model: ir.Model, data: Dataset) -> tuple[str, float] | None:
    """The metric that the labels are for and the model's value, both on a scale up to 1; None for other metrics."""
    try:
        scorer = Scorer(model, data)
        judge = scorer.judge_for(QualityOptions())
        (first, *_) = judge.metrics
        if not first.by_label or first.metric.name not in ("top-1", "iou", "map50", "map"):
            return None
        return first.metric.name, float(scorer.score(model, judge=judge).parts[0].reference)
    except Problem:
        return None


def _as_stored(data: Dataset, name: str) -> bool:
    """Whether values are those of 8 bits, 0 to 255."""
    some = [data[int(i)].inputs[name] for i in np.linspace(0, len(data) - 1, min(len(data), _LOOKED_AT))]
    whole = all(pixels.min(initial=0) >= 0 and (pixels == np.rint(pixels)).all() for pixels in some)
    return whole and max(float(pixels.max(initial=0)) for pixels in some) > 16


def _is_picture(dims: tuple[int | str, ...] | None, dtype: np.dtype[np.generic]) -> bool:
    return dims is not None and len(dims) == 4 and is_float(dtype)


def _input_values(model: ir.Model, data: Dataset) -> list[str]:
    """Inputs whose values are far from what the model's own normalization expects."""
    found = []
    samples = [data[int(i)].inputs for i in np.linspace(0, len(data) - 1, min(len(data), _LOOKED_AT))]
    for value in model.graph.inputs:
        if value.name not in samples[0] or not is_float(samples[0][value.name].dtype):
            continue
        chain = list(_normalization(value))
        if not chain:
            continue
        given = np.concatenate([s[value.name].ravel()[:100_000] for s in samples]).astype(np.float64)
        spread = [_spread(chain, s[value.name].astype(np.float64)) for s in samples]
        middle = float(np.median([one for one in spread if one is not None] or [1.0]))
        if _SPREAD[0] <= middle <= _SPREAD[1] or not given.std():
            continue
        found.append(
            f"the model normalizes input {value.name} itself ({', '.join(n.op_type for n in chain)}): behind that the "
            f"samples' values ({given.min():.3g} to {given.max():.3g}) vary by {middle:.2g}, where about 1 is usual. "
            "TRY: another `preprocess` (raw: values 0 to 255 as stored)"
        )
    return found


def _normalization(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes by which a model normalizes an input: arithmetic with constants and BatchNormalization."""
    node = read.only_user(value)
    while node is not None and read.standard(node):
        if (
            node.op_type in ("Sub", "Add", "Mul", "Div")
            and len([v for v in node.inputs if read.constant(v) is None]) == 1
        ):
            yield node
        elif node.op_type == "BatchNormalization":
            yield node
            return
        elif node.op_type not in ("Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze"):
            return
        node = read.only_user(node.outputs[0])


def _spread(chain: list[ir.Node], x: np.ndarray) -> float | None:
    """The deviation of values behind the chain, as if its constants were one number each; None where it is not one."""
    for node in chain:
        if node.op_type == "BatchNormalization":
            variance = read.constant(node.inputs[4])
            return None if variance is None else float(x.std() / np.sqrt(max(float(np.mean(variance)), 1e-12)))
        first, second = (read.constant(v) for v in node.inputs[:2])
        number = float(np.mean(second if second is not None else first if first is not None else 0.0))
        if node.op_type == "Mul":
            x = x * number
        elif node.op_type == "Div" and second is not None:
            x = x / (number or 1.0)
        elif node.op_type == "Div":
            return None
    return float(x.std())
