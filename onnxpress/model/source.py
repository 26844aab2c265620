"""Models in any form for the Python functions: a path, the bytes of a file, an onnx.ModelProto or an onnx-ir model."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.model.checker import check_graph, graphs_of
from onnxpress.model.files import load
from onnxpress.model.normal_forms.sparse_initializers import with_dense_initializers

ModelSource = str | Path | bytes | onnx.ModelProto | ir.Model


def open_model(source: ModelSource, argument: str = "model") -> ir.Model:
    """The model as onnx-ir, checked unless it is an onnx-ir model already.

    source:   see ModelSource
    argument: name of the caller's argument, for errors

    Raises InputProblem for a file that cannot be read, bytes that are not an ONNX file, and values of other types.
    """
    if isinstance(source, ir.Model):
        return source
    if isinstance(source, (str, os.PathLike)):
        return load(Path(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        try:
            proto = onnx.load_from_string(bytes(source))
        except Exception as error:  # protobuf raises several kinds
            raise InputProblem("the bytes are not an ONNX file", f"`{argument}`", str(error)) from error
    elif isinstance(source, onnx.ModelProto):
        proto = source
    else:
        raise InputProblem(
            "not a model",
            f"`{argument}`",
            f"got {type(source).__name__}",
            "give a path, the bytes of a file, an onnx.ModelProto or an onnx_ir.Model",
        )
    try:
        check_graph(proto)
    except onnx.checker.ValidationError as error:
        line = str(error).strip().splitlines()[0]
        raise InputProblem(
            "the model does not pass the ONNX checker", f"`{argument}`", line, "export it again"
        ) from error
    if any(graph.sparse_initializer for graph in graphs_of(proto.graph)):
        copy = onnx.ModelProto()  # the caller's stays as it is
        copy.CopyFrom(proto)
        proto = with_dense_initializers(copy, graphs_of(copy.graph))
    made: ir.Model = ir.from_proto(proto)
    return made


def path_of(source: ModelSource) -> Path | None:
    """The path of a model that is given as one, else None."""
    return Path(source) if isinstance(source, (str, os.PathLike)) else None


def source_name(source: ModelSource) -> str:
    """The name of a model in messages: its path, or "in memory"."""
    path = path_of(source)
    return str(path) if path is not None else "in memory"
