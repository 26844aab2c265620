"""Reading and writing model files: checked before use, written completely or not at all.

An untrusted file is checked before memory is allocated for it: the protobuf parses, the data of every tensor are in the
file, and external data stay inside the model's folder. A file is written under a temporary name next to its target and
renamed, so an interrupted run leaves no partial model.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from onnxpress.errors import EnvironmentProblem, InputProblem
from onnxpress.model.checker import check_graph, graphs_of
from onnxpress.model.file_formats.detection import FileFormat, file_format
from onnxpress.model.normal_forms.sparse_initializers import with_dense_initializers
from onnxpress.model.read import element_bytes

_INLINE_LIMIT = 1_800_000_000  # protobuf ends at 2 GB; some of it is for the graph itself
_STANDARD_DOMAINS = {
    "",
    "ai.onnx",
    "ai.onnx.ml",
    "com.microsoft",
    "com.microsoft.nchwc",
    "ai.onnx.preview.training",
    "com.ms.internal.nhwc",
    "org.pytorch.aten",
    "com.microsoft.experimental",
}


def load(path: str | Path) -> ir.Model:
    """Read and check an ONNX file.  Raises InputProblem on anything that is wrong with it.

    >>> model = onnxpress.load("model.onnx")
    """
    model = load_lazy(path)
    _check_weights(model, Path(path))
    if weight_bytes(model) <= _INLINE_LIMIT:
        ir.external_data.load_to_model(model)
    return model


def load_lazy(path: str | Path) -> ir.Model:
    """Open and check a file of any size; external weights stay on disk and are not checked.

    Raises InputProblem as `load` does.
    """
    path = Path(path)
    proto = _parse(path)
    _check_graph(proto, path)
    for graph in graphs_of(proto.graph):
        for tensor in graph.initializer:
            _check_tensor(tensor, path)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    _check_tensor(attribute.t, path)
    try:
        check_graph(path)
    except onnx.checker.ValidationError as error:
        raise InputProblem(
            "the model does not pass the ONNX checker",
            path,
            _first_line(error),
            "export it again, or repair it with the exporter's own checker",
        ) from error
    try:
        model = ir.from_proto(with_dense_initializers(proto, graphs_of(proto.graph)))  # the file is not read again
        ir.external_data.set_base_dir(model.graph, path.parent)
    except Exception as error:
        raise InputProblem("cannot read the model's graph", path, _first_line(error), "export it again") from error
    return model


def _parse(path: Path) -> onnx.ModelProto:
    if not path.exists():
        near = sorted(p.name for p in path.parent.glob("*.onnx"))[:3] if path.parent.is_dir() else []
        hint = f"did you mean {', '.join(near)}" if near else "check the path"
        raise InputProblem("no such model file", path, "", hint)
    if path.is_dir():
        found = _format(path)
        if found is not None and found.to_onnx:
            raise InputProblem("the model is a folder, not an ONNX file", path, f"it is {found.text()}", found.to_onnx)
        raise InputProblem(
            "the model is a folder, not a file", path, "", f"name the file, such as {path / 'model.onnx'}"
        )
    if path.stat().st_size == 0:
        raise InputProblem("the model file is empty", path, "0 bytes", "export it again")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except OSError as error:
        raise InputProblem("cannot read the model file", path, str(error), "check its permissions") from error
    except Exception as error:  # protobuf's DecodeError has no stable public home
        raise _no_onnx(path, "its bytes do not parse as an ONNX model", "check that the copy is complete") from error
    if not proto.HasField("graph") or proto.ir_version == 0:
        raise _no_onnx(path, "it parses but holds no graph", "check that it is an ONNX model and no other protobuf")
    return proto


def _format(path: Path) -> FileFormat | None:
    """What a file or folder is; None where it cannot be read."""
    try:
        return file_format(path)
    except OSError:
        return None


def _no_onnx(path: Path, why: str, hint: str) -> InputProblem:
    """The error for a file that is no ONNX model: what it is instead, and how it becomes one."""
    found = _format(path)
    if found is None or (found.kind in ("onnx", "unknown") and not found.detail):
        return InputProblem("not an ONNX file, or a truncated one", path, why, hint)
    return InputProblem("not an ONNX file", path, f"it is {found.text()}", found.to_onnx or hint)


def _check_graph(proto: onnx.ModelProto, path: Path) -> None:
    if not proto.graph.node:
        raise InputProblem("the model is empty", path, "its graph has no nodes", "export it again")
    if not proto.graph.output:
        raise InputProblem("the model has no outputs", path, "", "export it again")
    for value in proto.graph.output:
        kind = value.type.WhichOneof("value")
        inner = value.type.sequence_type.elem_type.WhichOneof("value") if kind == "sequence_type" else kind
        if "map_type" in (kind, inner):
            raise InputProblem(
                "an output is no tensor",
                f"{path}, output {value.name}",
                "it is a map from classes to scores (ZipMap)",
                "export without it: convert_sklearn(…, options={'zipmap': False})",
            )
    known = {f.domain for f in proto.functions}
    for node in proto.graph.node:
        if node.domain not in _STANDARD_DOMAINS and node.domain not in known:
            raise InputProblem(
                f"unknown operator domain {node.domain!r}",
                f"{path}, node {node.name or node.output[0]}",
                f"operator {node.op_type} is not one onnxruntime ships",
                "export without custom operators",
            )


def _check_tensor(tensor: onnx.TensorProto, path: Path) -> None:
    where = f"{path}, tensor {tensor.name or '?'}"
    if any(d < 0 for d in tensor.dims):
        raise InputProblem("a tensor has a negative dimension", where, str(list(tensor.dims)), "export the model again")
    width = element_bytes(tensor.data_type)
    if width is None:  # strings and unknown types are left to the checker
        return
    need = int(np.prod([int(d) for d in tensor.dims], dtype=object) * width) if tensor.dims else int(max(width, 1))
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _check_external(tensor, need, path, where)
        return
    if tensor.HasField("raw_data") and len(tensor.raw_data) < need:
        raise InputProblem(
            "a tensor claims more data than the file holds",
            where,
            f"shape {list(tensor.dims)} needs {need:,} bytes, found {len(tensor.raw_data):,}",
            "the file is damaged: export or copy it again",
        )
    if not tensor.HasField("raw_data"):
        held = max(
            len(tensor.float_data),
            len(tensor.int32_data),
            len(tensor.int64_data),
            len(tensor.double_data),
            len(tensor.uint64_data),
        )
        if need > 0 and held * 16 < need:
            raise InputProblem(
                "a tensor claims more data than the file holds",
                where,
                f"shape {list(tensor.dims)} needs {need:,} bytes, found {held} elements",
                "the file is damaged: export or copy it again",
            )


def _check_external(tensor: onnx.TensorProto, need: int, path: Path, where: str) -> None:
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    folder = path.resolve().parent
    target = folder / location
    if not location or Path(location).is_absolute() or not target.resolve().is_relative_to(folder):
        raise InputProblem(
            "external data outside the model's folder",
            where,
            f"location {location!r}",
            "put the data file in the folder of the model",
        )
    if not target.is_file():
        raise InputProblem(
            "external data file is missing",
            where,
            f"{location} is not in the folder of the model",
            "copy the data file together with the .onnx file",
        )
    try:
        offset = int(fields.get("offset", "0"))
        length = int(fields.get("length", str(need)))
    except ValueError as error:
        raise InputProblem("external data with a broken offset", where, str(error), "export the model again") from error
    size = target.stat().st_size
    if offset < 0 or length < need or offset + need > size:
        raise InputProblem(
            "a tensor claims more data than the file holds",
            where,
            f"bytes {offset}..{offset + need} of {location}, which has {size:,}",
            "copy the data file again, or export the model again",
        )


def _check_weights(model: ir.Model, path: Path) -> None:
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point() or tensor.size == 0:
            continue
        if np.isnan(np.asarray(tensor.numpy(), dtype=np.float32)).any():
            raise InputProblem(
                "weights hold NaN",
                f"{path}, tensor {name}",
                "a model with NaN weights cannot be verified",
                "export a checkpoint from before training diverged",
            )


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def is_large(model: ir.Model) -> bool:
    """Whether the model exceeds protobuf's limit of 2 GB, so that its weights need a file of their own."""
    return weight_bytes(model) > _INLINE_LIMIT


def check_size(model: ir.Model) -> None:
    """Raises InputProblem where the model is large, for operations that need it in one protobuf."""
    if is_large(model):
        size, able = f"{weight_bytes(model) / 1e9:.1f} GB of weights", "bench, compare, and every pass but distill"
        raise InputProblem("the model is too large for this", "", size, f"models above 1.8 GB work with {able}")


def to_bytes(model: ir.Model) -> bytes:
    """Deterministic serialization of the model with all weights inline.  Raises InputProblem where it exceeds 2 GB."""
    check_size(model)
    if any(isinstance(v.const_value, ir.ExternalTensor) for v in model.graph.initializers.values()):
        model = model.clone()  # a part of a large model, with its data still in the file
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.tensor(np.array(value.const_value.numpy()), name=value.name)
    return serialize_graph(model)


def serialize_graph(model: ir.Model) -> bytes:
    """Deterministic serialization of the model; external data stay where they are."""
    proto = ir.to_proto(model)
    known = {tensor.name for tensor in proto.graph.initializer}  # they state type and shape themselves
    kept = [value for value in proto.graph.value_info if value.name not in known or value.metadata_props]
    if len(kept) < len(proto.graph.value_info):
        del proto.graph.value_info[:]
        proto.graph.value_info.extend(kept)
    return bytes(proto.SerializeToString(deterministic=True))


@contextmanager
def serialized(model: ir.Model) -> Iterator[bytes | Path]:
    """The model as its bytes, or, for a large one, as the path of a temporary file with external data."""
    if not is_large(model):
        yield to_bytes(model)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="model.data")
        yield path


def model_hash(model: ir.Model) -> str:
    """SHA-256 (hex) of the serialized model; of a large one, of the graph without weights and then of the weights."""
    if not is_large(model):
        return hashlib.sha256(to_bytes(model)).hexdigest()
    state = hashlib.sha256(to_bytes(_skeleton(model)))
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            state.update(name.encode() + np.ascontiguousarray(value.const_value.numpy()).tobytes())
    return state.hexdigest()


def file_size(path: Path) -> int:
    """Bytes of a file, with those of its weights in other files."""
    proto = onnx.load(path, load_external_data=False)
    outside = 0
    for graph in graphs_of(proto.graph):
        for tensor in graph.initializer:
            facts = {entry.key: entry.value for entry in tensor.external_data}
            if tensor.data_location == onnx.TensorProto.EXTERNAL and "location" in facts:
                outside += int(facts.get("length") or 0)
    return path.stat().st_size + outside


def model_size(model: ir.Model) -> int:
    """Bytes of the model, weights included."""
    return len(to_bytes(model)) if not is_large(model) else len(to_bytes(_skeleton(model))) + weight_bytes(model)


def compressed_size(model: ir.Model) -> int:
    """Bytes of the model, weights included, after gzip."""
    press, total = zlib.compressobj(6, wbits=31), 0
    large = is_large(model)
    total += len(press.compress(to_bytes(_skeleton(model) if large else model)))
    for value in model.graph.initializers.values() if large else ():
        if value.const_value is not None:
            total += len(press.compress(np.ascontiguousarray(value.const_value.numpy()).tobytes()))
    return total + len(press.flush())


def _skeleton(model: ir.Model) -> ir.Model:
    """A copy with empty weights."""
    work = model.clone()
    for value in work.graph.initializers.values():
        if value.const_value is not None:
            value.const_value = ir.tensor(np.zeros(0, np.uint8), name=value.name)
    return work


def check_target(target: str | Path, *sources: str | Path) -> Path:
    """The output path, checked: its folder exists and is writable, and it is not a source.  Raises InputProblem."""
    target = Path(target)
    if not target.parent.is_dir():
        raise InputProblem("the output folder does not exist", target.parent, "", f"mkdir -p {target.parent}")
    if target.is_dir():
        raise InputProblem("the output is a folder", target, "", f"name a file, such as {target / 'fast.onnx'}")
    for source in sources:
        if target.exists() and Path(source).exists() and target.samefile(source):
            raise InputProblem("the output would overwrite the input", target, "", "name another output file")
    if not os.access(target.parent, os.W_OK):
        raise InputProblem("the output folder cannot be written", target.parent, "", "choose another folder")
    return target


def write_atomic(target: str | Path, data: bytes) -> None:
    """Write a file atomically: temporary file in the same folder, fsync, rename.  Raises EnvironmentProblem."""
    target = Path(target)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(target)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise EnvironmentProblem("cannot write the file", target, str(error), "check space and permissions") from error
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def save(model: ir.Model, target: str | Path) -> bytes:
    """Check the model and write it atomically; returns the bytes written.

    Above 2 GB the weights go to `<name>.data` next to the file, which is written first.

    >>> data = onnxpress.save(onnxpress.load("model.onnx"), "copy.onnx")
    """
    target = Path(target)
    if is_large(model):
        return _save_external(model, target)
    data = to_bytes(model)
    check_graph(data)
    write_atomic(target, data)
    return data


def _save_external(model: ir.Model, target: Path) -> bytes:
    with staging_files(target) as (part, data_part):
        ir.save(model, part, external_data=data_part.name)
        return commit_staged(target, part, data_part)


@contextmanager
def staging_files(target: Path) -> Iterator[tuple[Path, Path]]:
    """Paths for a file and its external data in a temporary hidden folder next to the target."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        yield Path(folder) / target.name, Path(folder) / f"{target.name}.data"


def commit_staged(target: Path, part: Path, data_part: Path) -> bytes:
    """Check the staged model and move it to its target, the data first; returns the bytes of the model file."""
    check_graph(part)
    data_part.replace(target.parent / data_part.name)
    data = part.read_bytes()
    part.replace(target)
    return data


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:240]
