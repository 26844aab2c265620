"""One- and few-node ONNX graphs for the tests of the operators; element types follow the arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

_rng = np.random.default_rng(7)


def away(*shape: int) -> np.ndarray:
    """Numbers of both signs, all different and none near 0, where many operators have a kink."""
    size = int(np.prod(shape))
    spaced = 0.25 + (np.arange(size) + _rng.uniform(0.2, 0.8, size)) / max(size, 1)
    return np.asarray((_rng.permutation(spaced) * _rng.choice([-1.0, 1.0], size)).reshape(shape))


def positive(*shape: int) -> np.ndarray:
    """Different numbers between 0.25 and 1.25."""
    return np.abs(away(*shape))


def unit(*shape: int) -> np.ndarray:
    """Different numbers between -0.8 and 0.8, none near 0."""
    return away(*shape) * 0.64


def whole(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


@dataclass(frozen=True)
class Few:
    """Nodes, the arrays that feed them by name, and the values to read."""

    nodes: Sequence[onnx.NodeProto]
    feeds: dict[str, np.ndarray]
    outputs: Sequence[str]
    opset: int = 23

    def model(self) -> ir.Model:
        inputs = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in self.feeds.items()
        ]
        results = [
            helper.make_value_info(n, helper.make_tensor_type_proto(TensorProto.DOUBLE, None)) for n in self.outputs
        ]
        graph = helper.make_graph(list(self.nodes), "few", inputs, results)
        sets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return ir.from_proto(helper.make_model(graph, opset_imports=sets, ir_version=10))


def one(
    op: str, *inputs: np.ndarray | None, opset: int = 23, domain: str = "", outputs: int = 1, **attributes: Any
) -> Few:
    """A single node; its inputs are called i0, i1, ... (None: absent), its outputs o0, o1, ..."""
    names = ["" if a is None else f"i{i}" for i, a in enumerate(inputs)]
    results = [f"o{i}" for i in range(outputs)]
    node = helper.make_node(op, names, results, domain=domain, **attributes)
    return Few([node], {n: np.asarray(a) for n, a in zip(names, inputs, strict=True) if a is not None}, results, opset)


def chain(feeds: dict[str, np.ndarray], *nodes: tuple[str, str, str, dict[str, Any]], opset: int = 23) -> Few:
    """Nodes as (operator, inputs, outputs, attributes), names separated by blanks; the last output is read."""
    made = [helper.make_node(op, i.split(), o.split(), **a) for op, i, o, a in nodes]
    return Few(made, feeds, [made[-1].output[0]], opset)


def body(inputs: Sequence[str], outputs: Sequence[str], *nodes: tuple[str, str, str]) -> onnx.GraphProto:
    """A sub-graph of doubles; nodes as in `chain`, without attributes."""
    kinds = {"going": TensorProto.BOOL, "step": TensorProto.INT64, "still": TensorProto.BOOL}

    def info(name: str) -> onnx.ValueInfoProto:
        return helper.make_value_info(name, helper.make_tensor_type_proto(kinds.get(name, TensorProto.DOUBLE), None))

    made = [helper.make_node(op, i.split(), o.split()) for op, i, o in nodes]
    return helper.make_graph(made, "body", [info(n) for n in inputs], [info(n) for n in outputs])
