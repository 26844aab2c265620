"""The form of a graph that passes expect."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from onnxpress.model import edit
from onnxpress.model.normal_forms.fused_operators import unfuse
from onnxpress.model.normal_forms.pad_axes import expand_pad_axes
from onnxpress.model.signature import inputs_with_defaults

_MIN_IR_VERSION = 4  # IR version from which on initializers need not be inputs as well
_MIN_WEIGHT_SIZE = 256  # elements from which on a constant of a sub-graph is a weight


def canonical(model: ir.Model) -> ir.Model:
    """A clone in the form that passes expect.

    Functions are inlined, constants are initializers, weights of sub-graphs are initializers of the main graph, there
    is no Identity, and names are unique.  Inputs that only repeat an initializer (IR < 4, or most weights)
    stop being inputs; those that callers may override stay.  Removing Identity nodes also separates biases that
    exporters share through them (onnxruntime leaves such a Conv in float).
    """
    clone = model.clone()
    if clone.functions:
        common.InlinePass()(clone)
    if not inputs_with_defaults(clone):
        common.RemoveInitializersFromInputsPass()(clone)
    if clone.ir_version < _MIN_IR_VERSION:
        clone.ir_version = _MIN_IR_VERSION
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(clone)
    edit.drop_identities(clone)
    expand_pad_axes(clone)
    unfuse(clone)
    _lift_weights(clone)
    edit.name_nodes(clone)
    edit.drop_dead(clone)
    return clone


def _lift_weights(model: ir.Model) -> None:
    """Move weights of sub-graphs to the main graph, so that all weights are found there."""
    for graph in model.graph.subgraphs():
        for name in list(graph.initializers):
            value = graph.initializers[name]
            tensor = value.const_value
            if (
                tensor is None
                or tensor.size < _MIN_WEIGHT_SIZE
                or len(tensor.shape) < 2
                or tensor.dtype != ir.DataType.FLOAT
            ):
                continue
            if not value.is_graph_output() and not value.is_graph_input():
                edit.reroute(model, value, edit.add_constant(model, tensor.numpy(), name))  # the tensor is shared
                del graph.initializers[name]
