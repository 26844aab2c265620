"""Batch axis of each input, and the shape of one sample.

All code that reads, checks or stacks samples uses this module, so that the answer is the same everywhere.  An input is
*batched* (samples are stacked along one of its axes) or *whole* (a scalar such as a sampling rate, a recurrent state:
every run needs all of it).
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxpress.model.signature import Dim, Signature, TensorSpec


@dataclass(frozen=True)
class Port:
    """One input as seen by a sample.

    axis:  the batch axis; None for a whole input
    loose: a rank-1 input of dynamic size without batched companions: its only axis may be the batch or a sequence, and
           both are accepted
    """

    spec: TensorSpec
    axis: int | None
    loose: bool = False

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def dims(self) -> tuple[Dim, ...] | None:
        """The shape of one sample with its batch axis (1); None where the model does not state the rank."""
        if self.spec.shape is None:
            return None
        return tuple(1 if i == self.axis and not self.loose else d for i, d in enumerate(self.spec.shape))

    @property
    def inner(self) -> tuple[Dim, ...] | None:
        """The shape of one sample without its batch axis."""
        dims = self.dims
        return None if dims is None else tuple(d for i, d in enumerate(dims) if i != self.axis)


@dataclass(frozen=True)
class BatchLayout:
    """The batch axes of a model's inputs.

    ports: one per input
    batch: the batch size that the model fixes; None where it is dynamic
    alone: whether samples of this model cannot be stacked
    """

    ports: tuple[Port, ...]
    batch: int | None
    alone: bool

    def port(self, name: str) -> Port:
        return next(port for port in self.ports if port.name == name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(port.name for port in self.ports)


def batch_layout(signature: Signature) -> BatchLayout:
    """The batch layout of a model.

    A dynamic first axis is the batch, unless another axis is named as one ("batch") or has the same symbol (recurrent
    states: [layers, batch, width]).  Where no input has a dynamic batch, the common fixed first size is the batch size,
    provided that the outputs agree: a time-major [49,1,10] -> [1,12] has no batch of 49, nor has [T,1,10] -> [1,12] a
    dynamic one.
    """
    wide = [s for s in signature.inputs if s.shape is not None and len(s.shape) >= 2]
    if _is_time_major(wide, signature.outputs):
        return BatchLayout(tuple(Port(s, None) for s in signature.inputs), None, True)
    symbols = {s.shape[0] for s in wide if s.shape and s.batch_is_free and s.shape[0] and _named_axis(s) in (0, None)}
    free = [s for s in wide if s.batch_is_free or _named_axis(s) is not None]
    batch = None if free else _fixed(wide, signature.outputs)
    ports = tuple(_port(s, bool(free), symbols, batch, bool(wide)) for s in signature.inputs)
    alone = any(p.axis is None and len(p.spec.shape or ()) >= 2 for p in ports)
    return BatchLayout(ports, None if alone else batch, alone)


def _is_time_major(wide: list[TensorSpec], outputs: tuple[TensorSpec, ...]) -> bool:
    """Whether a dynamic first axis is time: the second one is 1, and so is the first of every output."""
    free = [s for s in wide if s.batch_is_free]
    ones = all(s.shape is not None and len(s.shape) == 3 and s.shape[1] == 1 for s in free)
    named = any(_named_axis(s) is not None for s in wide)
    answers = all(s.shape is not None and len(s.shape) >= 1 and s.shape[0] == 1 for s in outputs)
    return bool(free) and ones and answers and not named


def _named_axis(spec: TensorSpec) -> int | None:
    """The axis whose symbol names it as the batch."""
    return next((i for i, d in enumerate(spec.shape or ()) if isinstance(d, str) and "batch" in d.lower()), None)


def _fixed(wide: list[TensorSpec], outputs: tuple[TensorSpec, ...]) -> int | None:
    sizes = {s.shape[0] for s in wide if s.shape and isinstance(s.shape[0], int)}
    if 1 in sizes:
        return 1
    if len(sizes) != 1:
        return None
    size = int(sizes.pop())
    first = [s.shape[0] for s in outputs if s.shape]
    return size if all(isinstance(d, str) or d == size for d in first) else None


def _port(spec: TensorSpec, free: bool, symbols: set[Dim], batch: int | None, wide: bool) -> Port:
    shape = spec.shape
    if shape is None:
        return Port(spec, 0)
    if len(shape) == 0:
        return Port(spec, None)
    if len(shape) == 1:
        batched = isinstance(shape[0], str) or (batch is not None and batch > 1 and shape[0] == batch)
        return Port(spec, 0 if batched else None, loose=isinstance(shape[0], str) and not wide)
    if free:
        named = _named_axis(spec)
        if named is not None:
            return Port(spec, named)
        if isinstance(shape[0], str):
            return Port(spec, 0)
        return Port(spec, next((i for i, d in enumerate(shape) if d in symbols), None))
    return Port(spec, 0 if batch is not None and shape[0] == batch else None)
