"""One operator on given arrays, by the onnx reference implementation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir

from onnxpress.model import read


def evaluate(model: ir.Model, node: ir.Node, given: Mapping[str, np.ndarray]) -> np.ndarray:
    """The first result of a node.

    model: whose operator set applies. given: arrays by value name, of all inputs that are not constants.
    """
    values = {v.name or "": v for v in node.inputs if v is not None}
    arrays = {n: a for n, v in values.items() if (a := read.constant(v)) is not None} | dict(given)
    types = {n: onnx.helper.np_dtype_to_tensor_dtype(a.dtype) for n, a in arrays.items()}
    inputs = [onnx.helper.make_tensor_value_info(n, types[n], a.shape) for n, a in arrays.items()]
    output = onnx.ValueInfoProto(name=node.outputs[0].name or "")
    graph = onnx.helper.make_graph([ir.to_proto(node)], "one", inputs, [output])
    small = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", read.opset(model))])
    return np.asarray(next(iter(onnx.reference.ReferenceEvaluator(small).run(None, arrays))))
