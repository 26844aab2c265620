"""Sparse initializers as dense ones: onnx-ir has no sparse tensors, and onnxruntime makes them dense when it loads."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import numpy_helper


def with_dense_initializers(proto: onnx.ModelProto, graphs: Iterable[onnx.GraphProto]) -> onnx.ModelProto:
    """The model with the sparse initializers of the given graphs of it made dense, in place."""
    for graph in graphs:
        for sparse in graph.sparse_initializer:
            graph.initializer.append(numpy_helper.from_array(_dense(sparse), sparse.values.name))
        graph.ClearField("sparse_initializer")
    return proto


def _dense(sparse: onnx.SparseTensorProto) -> np.ndarray:
    """Indices are positions in the flat tensor, [NNZ], or coordinates, [NNZ, rank] (IR specification)."""
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), dense.shape)
    dense.reshape(-1)[flat] = values
    return dense
