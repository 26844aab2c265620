"""What a layer of a changed model is fitted to: the value of the original that it, or the sum behind it, replaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.measure.evidence import Evidence
from onnxpress.model import read

KeptChannels = Callable[[str], np.ndarray | None]


@dataclass(frozen=True)
class RefitTarget:
    """Where the target values of a layer come from.

    Attributes:
        own: name of the value of the original model that corresponds to the layer's own output.
        output: name of the value of the original model that is the target: `own`, or the residual sum behind it.
        shortcut: name of the value of the changed model that is subtracted from `output`; None without a residual Add.
        adder: the Add that holds the bias of a MatMul; None where the layer has its own bias or none.
    """

    own: str
    output: str
    shortcut: str | None
    adder: ir.Node | None = None


def refit_target(node: ir.Node, original: Evidence, kept: KeptChannels, roles: Mapping[str, str]) -> RefitTarget:
    """Determine the target of a layer of a changed model: a residual sum where it ends in one, else its own output.

    A bias Add of a MatMul and a Reshape that keeps the last axis may stand between the layer and the residual Add.

    Args:
        node: the layer in the changed model.
        original: evidence of the original model.
        kept: as in `refit_layers`.
        roles: as in `refit_layers`.
    """
    shapes = original.trace.shapes
    output = node.outputs[0]
    adder = None
    end = output
    while (following := _bias_add_or_reshape(node, end, shapes, adder is None)) is not None:
        if following.op_type == "Add":
            adder = following
        end = following.outputs[0]
    if (kept(end.name or "") is None) != (kept(output.name or "") is None):
        end, adder = output, None  # the remaining channels of the values behind are not known
    own = roles.get(end.name or "", end.name or "")
    use = _single_use(end)
    if use is not None and use[0].op_type == "Add":
        add, other = use[0], use[0].inputs[1 - use[1]]
        total = add.outputs[0].name or ""
        same_shape = shapes.get(end.name or "") == shapes.get(total)  # a broadcast sum cannot be a target
        if same_shape and other is not None and other is not end and read.constant(other) is None:
            return RefitTarget(own, roles.get(total, total), other.name, adder)
    return RefitTarget(own, own, None, adder)


def _single_use(value: ir.Value) -> tuple[ir.Node, int] | None:
    """The only node that reads a value and the index of that input; None for graph outputs and several readers."""
    uses = list(value.uses())
    return (uses[0].node, uses[0].idx) if len(uses) == 1 and not value.is_graph_output() else None


def _bias_add_or_reshape(
    node: ir.Node, value: ir.Value, shapes: Mapping[str, tuple[int, ...]], bias_allowed: bool
) -> ir.Node | None:
    """The bias Add (if `bias_allowed`) or row-regrouping Reshape directly behind the value of a Gemm or MatMul."""
    use = _single_use(value)
    if use is None or node.op_type == "Conv" or not read.standard(use[0]):
        return None
    user, place = use
    before, after = shapes.get(value.name or ""), shapes.get(user.outputs[0].name or "")
    if before is None or after is None or not before or not after or before[-1] != after[-1]:
        return None
    if user.op_type == "Reshape" and place == 0 and np.prod(before) == np.prod(after):
        return user
    if user.op_type == "Add" and node.op_type == "MatMul" and bias_allowed and before == after:
        other = read.constant(user.inputs[1 - place])
        return user if other is not None and other.shape == (before[-1],) else None
    return None
