"""Signature of a model: names, element types and shapes of its inputs and outputs.

A dimension is an int where the model fixes it, else a string: the name of the symbol, or "" without one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

Dim = int | str
_LARGEST_DEFAULT = 64  # numbers; larger matrices are weights
_DEFAULTS_SINCE = 4  # IR version; before, every initializer had to be an input


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.  shape: None where the model does not state the rank."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[Dim, ...] | None

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    @property
    def batch_is_free(self) -> bool:
        """Whether the first axis is dynamic."""
        return self.shape is not None and len(self.shape) > 0 and isinstance(self.shape[0], str)

    def text(self) -> str:
        """Type and shape in one line: float32[N,3,224,224]."""
        dims = "?" if self.shape is None else ",".join(str(d) if d != "" else "?" for d in self.shape)
        return f"{self.dtype.name}[{dims}]"


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a model. defaults: inputs that callers may leave out, as an initializer has their value."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    defaults: tuple[TensorSpec, ...] = ()

    def input(self, name: str) -> TensorSpec:
        return next(spec for spec in self.inputs if spec.name == name)

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.outputs)


def _spec(value: ir.Value) -> TensorSpec:
    dims: tuple[Dim, ...] | None = None
    if value.shape is not None:
        dims = tuple(d if isinstance(d, int) else (d.value or "") for d in value.shape.dims)
    dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
    return TensorSpec(value.name or "", np.dtype(dtype), dims)


def signature(model: ir.Model) -> Signature:
    """The signature of a model.  Initializers listed among the inputs (IR < 4) are not inputs.

    >>> names = onnxpress.signature(onnxpress.load("model.onnx")).input_names
    """
    given = set(model.graph.initializers)
    return Signature(
        tuple(_spec(v) for v in model.graph.inputs if v.name not in given),
        tuple(_spec(v) for v in model.graph.outputs),
        tuple(_spec(v) for v in inputs_with_defaults(model)),
    )


def inputs_with_defaults(model: ir.Model) -> list[ir.Value]:
    """Inputs with an initializer of their name, which callers may override (IR 4 and later).

    None where weights are among them: older exporters list all initializers as inputs, and mean none of them.
    """
    graph = model.graph
    found = [v for v in graph.inputs if v.name in graph.initializers]
    tensors = [graph.initializers[v.name or ""].const_value for v in found]
    weights = any(t is not None and len(t.shape) >= 2 and t.size > _LARGEST_DEFAULT for t in tensors)
    return [] if weights or model.ir_version < _DEFAULTS_SINCE else found
