"""Inputs and outputs of candidates, inferred from samples: kind and shape of the inputs, number of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem
from onnxpress.nas.spaces.network import NetworkBuilder, Value
from onnxpress.runtime.machine import Machine
from onnxpress.train.augment import input_fields
from onnxpress.train.augmentations import InputField

KINDS = ("image", "spectrogram", "vector", "tokens")
_MARGIN = 1.25  # of vocabulary and length over those of the samples
_INSPECTED_SAMPLES = 256
_MASKED = -1e9  # added to the scores of masked positions


@dataclass(frozen=True)
class IoSpec:
    """Inputs and outputs of a network.

    field: the main input.
    shape: of the main input, without the batch axis.
    dtype: of the main input.
    output: name of the output.
    classes: number of classes.
    channel_multiple: number of channels that kernels of this CPU process at once.
    other_inputs: names and types of further inputs.
    vocabulary, length: of tokens.
    probabilities: whether the output holds probabilities.
    input_names: of all inputs, in order.
    """

    field: InputField
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    output: str
    classes: int
    channel_multiple: int
    other_inputs: tuple[tuple[str, np.dtype[np.generic]], ...] = ()
    vocabulary: int = 0
    length: int = 0
    probabilities: bool = False
    input_names: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Kind of the main input: one of KINDS."""
        return self.field.kind


def io_spec_from_samples(
    parts: Sequence[Dataset], classes: int, output: str, machine: Machine, probabilities: bool = False
) -> IoSpec:
    """The specification that samples define: by the first part, and for tokens by all parts.

    parts: samples.
    classes, output, probabilities: see IoSpec.
    machine: this machine. Raises InputProblem where there is not exactly one image, spectrogram, vector or token
        input, or where sizes differ.
    """
    data = parts[0]
    sig = data.signature
    found = [f for f in input_fields(data) if f.kind in KINDS]
    tokens = [f for f in found if f.kind == "tokens"]
    candidates = tokens or found
    if len(candidates) != 1:
        names = ", ".join(f"{f.name}: {f.kind}" for f in found) or ", ".join(sig.input_names)
        raise InputProblem(
            "a search space needs one main input", names, f"found {len(candidates)}", "write a space of your own"
        )
    field = candidates[0]
    first = data[0].inputs[field.name]
    spec = sig.input(field.name)
    other_inputs = tuple((s.name, s.dtype) for s in sig.inputs if s.name != field.name)
    vocabulary = length = 0
    if field.kind == "tokens":
        seen = [s.inputs[field.name] for part in parts for s in part]
        vocabulary = int(max(int(a.max()) for a in seen) * _MARGIN) + 1
        length = int(max(a.shape[1] for a in seen) * _MARGIN) + 1
    elif other_inputs:
        raise InputProblem(
            "a search space needs a single input", ", ".join(sig.input_names), "", "write a space of your own"
        )
    elif len(sizes := {s.inputs[field.name].shape for s in data.take(_INSPECTED_SAMPLES)}) > 1:
        some = " and ".join(str(list(size)) for size in sorted(sizes)[:2])
        raise InputProblem(
            "samples differ in size", field.name, some, "resize them, or write a search space of your own"
        )
    return IoSpec(
        field, first.shape[1:], spec.dtype, output, classes, machine.conv_block, other_inputs, vocabulary, length,
        probabilities, sig.input_names,
    )  # fmt: skip


def network_input(net: NetworkBuilder, io_spec: IoSpec, resolution: int = 0) -> tuple[Value, Value | None]:
    """The main input in the form that blocks accept, and the attention mask (None: no mask).

    Images [C,H,W] (resized to `resolution`, 0: unchanged), spectrograms [features, time], vectors [D], token ids
    [L].
    """
    free = ("L",) if io_spec.kind == "tokens" else ()
    types = {io_spec.field.name: io_spec.dtype, **dict(io_spec.other_inputs)}
    given = {name: net.input(name, io_spec.shape, types[name], free) for name in io_spec.input_names or types}
    x = given[io_spec.field.name]
    mask = _attention_mask(net, given[io_spec.field.mask]) if io_spec.field.mask in given else None
    if io_spec.kind == "image":
        x = net.transpose(x, (2, 0, 1)) if io_spec.field.channel == 3 else x
        return (net.resized(x, resolution) if resolution else x), mask
    if io_spec.kind == "spectrogram":
        return _sequence(net, x, io_spec.field), mask
    if io_spec.kind == "vector" and len(io_spec.shape) > 1:
        x = net.op("Flatten", [x.name], [int(np.prod(io_spec.shape))], axis=1)
    return (net.norm(x) if io_spec.kind == "vector" else x), mask


def network_output(net: NetworkBuilder, scores: Value, io_spec: IoSpec) -> Value:
    """The output: scores, or their softmax where probabilities are specified."""
    return net.op("Softmax", [scores.name], scores.shape, axis=-1) if io_spec.probabilities else scores


def _attention_mask(net: NetworkBuilder, mask: Value) -> Value:
    """[N,L] of 1 and 0 -> [N,1,1,L] of 0 and a large negative number."""
    seen = net.op("Cast", [mask.name], mask.shape, to=1)
    away = net.op("Sub", [net.constant(np.array(1, np.float32)), seen.name], mask.shape)
    scaled = net.op("Mul", [away.name, net.constant(np.array(_MASKED, np.float32))], mask.shape)
    axes = net.constant(np.array([1, 2], np.int64))
    return net.op("Unsqueeze", [scaled.name, axes], (1, 1, *mask.shape))


def _sequence(net: NetworkBuilder, x: Value, field: InputField) -> Value:
    """A spectrogram [.., time, .., features ..] -> [features, time]."""
    if len(x.shape) == 2:
        return net.transpose(x, (1, 0)) if field.space[0] == 1 else x
    time = field.space[0] - 1
    rest = [i for i in range(3) if i != time]
    moved = net.transpose(x, (*rest, time))
    return net.reshape(moved, [moved.shape[0] * moved.shape[1], moved.shape[2]])
