"""What a candidate must take and give, told from samples: kind and shape of the inputs, number and name of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem
from onnxpress.nas.spaces.network import Net, Value
from onnxpress.runtime.machine import Machine
from onnxpress.train.augment import fields
from onnxpress.train.augmentations import Field

KINDS = ("picture", "spectrum", "vector", "tokens")
_ROOM = 1.25  # times the vocabulary and the length that the samples show, for texts to come
_PROBED = 256
_OFF = -1e9  # added to the scores of what the mask hides


@dataclass(frozen=True)
class Task:
    """field: the input that is looked at; shape: its size, without the batch; others: inputs that come along.

    classes: answers; output: their name; probabilities: whether they add up to one; order: the inputs' names;
    grid: channels that kernels of this CPU take at once; vocabulary, length: of tokens.
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
    probabilities: bool = False
    order: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return self.field.kind


def task_for(
    parts: Sequence[Dataset], classes: int, output: str, machine: Machine, probabilities: bool = False
) -> Task:
    """The task that samples describe: the first part's, and of all parts the tokens that occur.

    Raises InputProblem where no input is a picture, a spectrum, a vector or tokens, several are, or sizes differ.
    """
    data = parts[0]
    sig = data.signature
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
        seen = [s.inputs[field.name] for part in parts for s in part]
        vocabulary = int(max(int(a.max()) for a in seen) * _ROOM) + 1
        length = int(max(a.shape[1] for a in seen) * _ROOM) + 1
    elif others:
        raise InputProblem(
            "a search space needs one input", ", ".join(sig.input_names), "", "write a space of your own"
        )
    elif len(sizes := {s.inputs[field.name].shape for s in data.take(_PROBED)}) > 1:
        some = " and ".join(str(list(size)) for size in sorted(sizes)[:2])
        raise InputProblem(
            "samples of several sizes", field.name, some, "bring them to one size, or write a space of your own"
        )
    return Task(
        field, first.shape[1:], spec.dtype, output, classes, machine.conv_block, others, vocabulary, length,
        probabilities, sig.input_names,
    )  # fmt: skip


def begin(net: Net, task: Task, resolution: int = 0) -> tuple[Value, Value | None]:
    """The input in the form that blocks take, and what is added to attention scores (None: nothing is hidden).

    Pictures [C,H,W] (at `resolution`, 0: as they are), spectra [features, time], vectors [D]; tokens [L] as numbers.
    """
    free = ("L",) if task.kind == "tokens" else ()
    types = {task.field.name: task.dtype, **dict(task.others)}
    given = {name: net.input(name, task.shape, types[name], free) for name in task.order or types}
    x = given[task.field.name]
    mask = _hidden(net, given[task.field.mask]) if task.field.mask in given else None
    if task.kind == "picture":
        x = net.transpose(x, (2, 0, 1)) if task.field.channel == 3 else x
        return (net.resized(x, resolution) if resolution else x), mask
    if task.kind == "spectrum":
        return _sequence(net, x, task.field), mask
    if task.kind == "vector" and len(task.shape) > 1:
        x = net.op("Flatten", [x.name], [int(np.prod(task.shape))], axis=1)
    return (net.norm(x) if task.kind == "vector" else x), mask


def ended(net: Net, scores: Value, task: Task) -> Value:
    """Scores as the task wants them: probabilities where it says so."""
    return net.op("Softmax", [scores.name], scores.shape, axis=-1) if task.probabilities else scores


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
