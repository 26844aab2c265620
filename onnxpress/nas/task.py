"""What a candidate must take and give, told from samples: kind and shape of the inputs, number and name of the answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem
from onnxpress.model.signature import Signature
from onnxpress.nas.net import Net, Value
from onnxpress.runtime.machine import Machine
from onnxpress.train.augment import Field, fields

KINDS = ("picture", "spectrum", "vector", "tokens")
_ROOM = 1.25  # of the vocabulary and the length that the samples show, for those that they do not
_PROBED = 256
_OFF = -1e9  # added to the scores of what the mask hides


@dataclass(frozen=True)
class Task:
    """field: the input that is looked at; shape: its size, without the batch; others: inputs that come along.

    classes: answers; output: their name; grid: channels that kernels of this CPU take at once; vocabulary, length: of tokens.
    """

    field: Field
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    output: str
    classes: int
    grid: int
    others: tuple[tuple[str, np.dtype[np.generic]], ...] = ()
    vocabulary: int = 0
    length: int = 0

    @property
    def kind(self) -> str:
        return self.field.kind


def task_for(data: Dataset, classes: int, output: str, machine: Machine, wish: Signature | None = None) -> Task:
    """The task that samples describe.

    wish: of a teacher, whose names and free axes candidates share.  Raises InputProblem where no input is a picture, a
    spectrum, a vector or tokens, or several are.
    """
    sig = wish or data.signature
    found = [f for f in fields(data) if f.kind in KINDS]
    tokens = [f for f in found if f.kind == "tokens"]
    chosen = tokens or found
    if len(chosen) != 1:
        names = ", ".join(f"{f.name}: {f.kind}" for f in found) or ", ".join(sig.input_names)
        raise InputProblem(
            "a search space needs one input to look at", names, f"{len(chosen)} could be", "write a space of your own"
        )
    field = chosen[0]
    first = data[0].inputs[field.name]
    spec = sig.input(field.name)
    others = tuple((s.name, s.dtype) for s in sig.inputs if s.name != field.name)
    vocabulary = length = 0
    if field.kind == "tokens":
        seen = [s.inputs[field.name] for s in data.take(_PROBED)]
        vocabulary = int(max(int(a.max()) for a in seen) * _ROOM) + 1
        length = int(max(a.shape[1] for a in seen) * _ROOM) + 1
    elif others:
        raise InputProblem("a search space needs one input", ", ".join(sig.input_names), "", "write a space of your own")
    return Task(
        field, first.shape[1:], spec.dtype, output, classes, machine.conv_block, others, vocabulary, length
    )


def begin(net: Net, task: Task, resolution: int = 0) -> tuple[Value, Value | None]:
    """The input in the form that blocks take, and what is added to attention scores (None: nothing is hidden).

    Pictures [C,H,W] (at `resolution`, 0: as they are), spectra [features, time], vectors [D]; tokens [L] as numbers.
    """
    free = ("L",) if task.kind == "tokens" else ()
    x = net.input(task.field.name, task.shape, task.dtype, free)
    mask = None
    for name, dtype in task.others:
        other = net.input(name, task.shape, dtype, free)
        if name == task.field.mask:
            mask = _hidden(net, other)
    if task.kind == "picture":
        x = net.transpose(x, (2, 0, 1)) if task.field.channel == 3 else x
        return (net.resized(x, resolution) if resolution else x), mask
    if task.kind == "spectrum":
        return _sequence(net, x, task.field), mask
    if task.kind == "vector" and len(task.shape) > 1:
        x = net.op("Flatten", [x.name], [int(np.prod(task.shape))], axis=1)
    return x, mask


def _hidden(net: Net, mask: Value) -> Value:
    """[N,L] of 1 and 0 -> [N,1,1,L] of 0 and a large negative number."""
    seen = net.op("Cast", [mask.name], mask.shape, to=1)
    away = net.op("Sub", [net.constant(np.array(1, np.float32)), seen.name], mask.shape)
    scaled = net.op("Mul", [away.name, net.constant(np.array(_OFF, np.float32))], mask.shape)
    axes = net.constant(np.array([1, 2], np.int64))
    return net.op("Unsqueeze", [scaled.name, axes], (1, 1, *mask.shape))


def _sequence(net: Net, x: Value, field: Field) -> Value:
    """A spectrum [.., time, .., features ..] -> [features, time]."""
    if len(x.shape) == 2:
        return net.transpose(x, (1, 0)) if field.space[0] == 1 else x
    time = field.space[0] - 1
    rest = [i for i in range(3) if i != time]
    moved = net.transpose(x, (*rest, time))
    return net.reshape(moved, [moved.shape[0] * moved.shape[1], moved.shape[2]])
