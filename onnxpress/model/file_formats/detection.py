"""What a model file or folder is, by its content: formats of frameworks, runtimes and containers.

Nothing is executed, no framework is imported, and only the beginning of a file (of a zip archive its list of names and
a few small members) is read. The extension decides nothing; where it disagrees, that is a note.
"""

from __future__ import annotations

import io
import json
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onnxpress.model.file_formats.names import NAMES, TO_ONNX
from onnxpress.model.file_formats.pickled_classes import main_class, pickled_classes

_HEAD = 2**20  # bytes that are looked at
_MEMBER = 4 * 2**20  # of a member of an archive
# What zipfile raises on archives that are damaged, encrypted, or packed by a method it does not know.
_DAMAGED = (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, zlib.error, struct.error)


@dataclass(frozen=True)
class FileFormat:
    """What a file is.

    kind:    identifier, such as "torchscript"
    name:    in words
    detail:  what it holds, such as the class of a pickled object; "" where nothing is known
    note:    that the extension says otherwise; "" where it does not
    """

    kind: str
    name: str
    detail: str = ""
    note: str = ""

    def text(self) -> str:
        """In words, with the detail."""
        return f"{self.name} ({self.detail})" if self.detail else self.name

    @property
    def to_onnx(self) -> str:
        """How it becomes an ONNX file; "" where it cannot."""
        return TO_ONNX.get(self.kind, "")


_EXTENSIONS = {
    ".onnx": ("onnx",), ".ort": ("ort",), ".pt2": ("torch-export",),
    ".pt": ("torchscript", "torch-module", "torch-state", "ultralytics"),
    ".pth": ("torchscript", "torch-module", "torch-state", "ultralytics"), ".tflite": ("tflite",), ".keras": ("keras",),
    ".h5": ("keras-h5", "hdf5"), ".safetensors": ("safetensors",), ".gguf": ("gguf",), ".npz": ("arrays",),
}  # fmt: skip


def file_format(path: Path) -> FileFormat:
    """The format of a file or folder; kind "unknown" where nothing fits.  Raises OSError where it cannot be read."""
    kind, detail = _of_folder(path) if path.is_dir() else _of_file(path)
    expected = _EXTENSIONS.get(path.suffix.lower(), ())
    note = f"its name ends in {path.suffix}, its content is {NAMES[kind]}" if expected and kind not in expected else ""
    return FileFormat(kind, NAMES[kind], detail, note)


def _of_folder(path: Path) -> tuple[str, str]:
    names = {p.name for p in path.iterdir()}
    if "MLmodel" in names:
        return "mlflow", ""
    if "modules.json" in names:
        return "sentence-transformers", ""
    if "config.json" in names:
        with (path / "config.json").open("rb") as stream:
            config = _json(stream.read(_HEAD))
        if isinstance(config, dict) and config.get("architectures"):
            return "huggingface", ", ".join(map(str, config["architectures"]))
    if names & {"saved_model.pb", "saved_model.pbtxt"}:
        return "saved-model", ""
    if "Manifest.json" in names and path.suffix == ".mlpackage":
        return "coreml", ""
    if any(n.endswith((".pdmodel", ".pdiparams")) for n in names):
        return "paddle", ""
    return "unknown", f"a folder of {len(names)} files"


def _of_file(path: Path) -> tuple[str, str]:
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    if not head:
        return "empty", ""
    if head.startswith(b"PK\x03\x04") and zipfile.is_zipfile(path):
        try:
            return _of_archive(path)
        except _DAMAGED:
            return "unknown", "a damaged zip archive"
    for recognizes in (_by_magic, _by_text, _by_pickle, _by_protobuf):
        found = recognizes(head)
        if found is not None:
            return found
    suffix = path.suffix.lower()
    if suffix in (".mlmodel", ".mnn", ".weights"):  # formats without a mark of their own
        return {".mlmodel": "coreml", ".mnn": "mnn", ".weights": "darknet"}[suffix], ""
    return ("text" if _is_text(head) else "unknown"), ""


def _of_archive(path: Path) -> tuple[str, str]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        inner = {n.split("/", 1)[1] if "/" in n else n for n in names}
        if "archive_format" in inner | set(names) and any(n.endswith("models/model.json") for n in names):
            return "torch-export", ""
        if "serialized_exported_program.json" in inner | set(names):
            return "torch-export", ""
        if any("/code/" in n or n.startswith("code/") for n in names) and "constants.pkl" in inner:
            return "torchscript", ""
        pickled = next((n for n in names if n == "data.pkl" or n.endswith("/data.pkl")), None)
        if pickled is not None:
            return _of_torch_pickle(_member(archive, pickled))
        if {"config.json", "metadata.json"} <= set(names):
            config = _json(_member(archive, "config.json"))
            return "keras", str(config.get("class_name", "")) if isinstance(config, dict) else ""
        if "schema.json" in names:
            schema = _json(_member(archive, "schema.json"))
            return "skops", str(schema.get("__class__", "")) if isinstance(schema, dict) else ""
        if any(n.startswith("MAR-INF/") for n in names):
            return "torchserve", ""
        if names and all(n.endswith(".npy") for n in names):
            return "arrays", ""
    return "unknown", f"a zip archive of {len(names)} files"


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as stream:
        return stream.read(_MEMBER)


def _of_torch_pickle(data: bytes) -> tuple[str, str]:
    """A file of torch.save, by the classes that it names."""
    names = pickled_classes(data)
    own = main_class(names)
    if any(n.startswith(("ultralytics.", "models.yolo.")) for n in names):
        return "ultralytics", own
    modules = [n for n in names if not n.startswith(("torch._utils", "collections", "torch.serialization"))]
    modules = [n for n in modules if not n.rpartition(".")[2].endswith(("Storage", "Tensor", "OrderedDict"))]
    modules = [n for n in modules if not n.startswith(("builtins", "__builtin__", "numpy", "_codecs"))]
    plain = [n for n in modules if n.startswith("torch.") and not n.startswith("torch.nn.")]  # dtypes, devices, sizes
    modules = [n for n in modules if n not in plain]
    return ("torch-module", modules[0]) if modules else ("torch-state", "")


def _by_magic(head: bytes) -> tuple[str, str] | None:
    at_four = {b"TFL3": "tflite", b"ORTM": "ort"}
    if head[4:8] in at_four:
        return at_four[head[4:8]], ""
    if head.startswith(bytes.fromhex("80028a0a6cfc9c46f9")):
        return _of_legacy_torch(head)
    starts: dict[bytes, str] = {b"GGUF": "gguf", b"CBM1": "catboost", b"\x89HDF\r\n\x1a\n": "hdf5"}
    for magic, kind in starts.items():
        if head.startswith(magic):
            return ("keras-h5" if kind == "hdf5" and b"model_config" in head else kind), ""
    length = int.from_bytes(head[:8], "little")
    if head[8:10] == b'{"' and 2 <= length < 2**32:
        return "safetensors", ""
    if head[:1] == b"{" and head[1:2] in b"iIlLU" and b"learner" in head[:64]:
        return "xgboost", "UBJSON"
    return None


def _of_legacy_torch(head: bytes) -> tuple[str, str]:
    """torch.save before version 1.6: several pickles in a row, of which the fourth is the object."""
    stream = io.BytesIO(head)
    try:
        for _ in range(3):
            for operation, _argument, _position in pickletools.genops(stream):
                if operation.name == "STOP":
                    break
    except ValueError:
        return "torch-state", ""
    return _of_torch_pickle(head[stream.tell() :])


def _by_text(head: bytes) -> tuple[str, str] | None:
    start = head[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    marks: tuple[tuple[Callable[[bytes], bool], str], ...] = (
        (lambda t: t.startswith((b"tree\nversion=", b"tree\r\nversion=")), "lightgbm"),
        (lambda t: t.startswith(b"7767517"), "ncnn"),
        (lambda t: t.startswith((b"<?xml", b"<PMML")) and b"<PMML" in t, "pmml"),
        (lambda t: t.startswith((b"<?xml", b"<net")) and b"<net" in t, "openvino"),
        (lambda t: t.startswith((b"[net]", b"[network]")), "darknet"),
        (lambda t: b"layer {" in t or b"layers {" in t, "caffe"),
    )
    for recognizes, kind in marks:
        if recognizes(start):
            return kind, ""
    if start[:1] != b"{":
        return None
    flat = start.replace(b" ", b"").replace(b"\n", b"")
    if flat.startswith(b'{"base_code":{"magic":"pir"'):
        return "paddle", "PIR"
    if b'"learner"' in head and b'"version"' in head[-4096:] + start:
        return "xgboost", "JSON"
    if flat.startswith(b'{"learner"'):
        return "xgboost", "JSON"
    if b'"arg_nodes"' in head and b'"nodes"' in head:
        return "mxnet", ""
    if b'"oblivious_trees"' in head or b'"features_info"' in head:
        return "catboost", "JSON"
    return None


def _by_pickle(head: bytes) -> tuple[str, str] | None:
    packed = head[:1] == b"x" or head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x5d\x00\x00"))
    if not packed and not (head[:1] == b"\x80" and head[1:2] <= b"\x05") and not head.startswith((b"c", b"(", b"]")):
        return None
    names = pickled_classes(head)
    if not names:
        return None
    own = main_class(names)
    if own.startswith(("sklearn.", "imblearn.")) or any(n.startswith("sklearn.pipeline") for n in names):
        return "sklearn", own
    for package in ("xgboost", "lightgbm", "catboost"):
        if own.startswith(f"{package}."):
            return "sklearn", own
    return "pickle", own


def _by_protobuf(head: bytes) -> tuple[str, str] | None:
    """ONNX begins with its version (field 1, a number), a frozen graph with nodes (field 1, a message with a name)."""
    if head[0] == 0x08 and len(head) > 2:
        position = 1
        while position < min(len(head), 11) and head[position] & 0x80:
            position += 1
        following = head[position + 1] if position + 1 < len(head) else 0
        version = head[1] if head[1] < 0x80 else 0
        if 1 <= version <= 30 and following & 7 == 2 and following >> 3 in (2, 3, 4, 6, 7, 8, 20):
            return "onnx", ""
        if following & 7 == 2 and following >> 3 in (2, 3):
            return "coreml", ""
    if head[0] == 0x0A:
        size, position = _varint(head, 1)
        if position < len(head) and head[position] == 0x0A:
            length, at = _varint(head, position + 1)
            name, behind = head[at : at + length], head[at + length : at + length + 1]
            if 0 < length < 1024 and length < size and name.isascii() and behind == b"\x12":
                return "frozen-graph", ""
            if 0 < length < 1024 and behind in (b"\x08", b"\x10", b"\x18", b"\x1a"):
                return "paddle", "ProgramDesc"
    return None


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number of a protobuf, and the position behind it."""
    value = shift = 0
    while position < len(data) and shift < 64:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            break
    return value, position


def _json(data: bytes) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _is_text(head: bytes) -> bool:
    return b"\0" not in head and all(byte >= 32 or byte in (9, 10, 13) for byte in head[:4096])
