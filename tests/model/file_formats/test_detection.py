"""What files are by their content, whatever they are called; files of frameworks that are installed are real."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxpress.errors import InputProblem
from onnxpress.model.file_formats.detection import file_format
from onnxpress.model.file_formats.names import NAMES
from onnxpress.model.file_formats.pickled_classes import main_class, pickled_classes
from onnxpress.model.files import load, to_bytes
from tests import nets

pytestmark = pytest.mark.unit


def archive(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "/").replace("_DOT_", "."), data)
    return stream.getvalue()


def frozen_graph() -> bytes:
    node = b"\x0a\x01x" + b"\x12\x0bPlaceholder"
    return b"\x0a" + bytes([len(node)]) + node


CONTENTS: dict[str, tuple[str, bytes]] = {
    "onnx": ("onnx", to_bytes(nets.residual())),
    "ort": ("ort", b"\x20\0\0\0ORTM" + bytes(64)),
    "tflite": ("tflite", b"\x1c\0\0\0TFL3" + bytes(64)),
    "torch export": ("torch-export", archive(m__archive_format=b"pt2", m__models__model_DOT_json=b"{}")),
    "torchscript": ("torchscript", archive(m__code__net_DOT_py=b"", m__constants_DOT_pkl=b"", m__data_DOT_pkl=b"")),
    "keras": ("keras", archive(config_DOT_json=b'{"class_name": "Functional"}', metadata_DOT_json=b"{}")),
    "skops": ("skops", archive(schema_DOT_json=b'{"__class__": "LogisticRegression"}')),
    "torchserve": ("torchserve", archive(**{"MAR-INF__MANIFEST_DOT_json": b"{}"})),
    "arrays": ("arrays", archive(x_DOT_npy=b"")),
    "other archive": ("unknown", archive(readme=b"")),
    "safetensors": ("safetensors", struct.pack("<Q", 20) + b'{"__metadata__": {}}'),
    "keras h5": ("keras-h5", b"\x89HDF\r\n\x1a\n" + bytes(50) + b"model_config" + bytes(9)),
    "hdf5": ("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(50)),
    "frozen graph": ("frozen-graph", frozen_graph()),
    "gguf": ("gguf", b"GGUF\x03\0\0\0"),
    "catboost": ("catboost", b"CBM1" + bytes(20)),
    "lightgbm": ("lightgbm", b"tree\nversion=v4\n"),
    "xgboost json": ("xgboost", b'{"learner":{"attributes":{}},"version":[3,0,0]}'),
    "xgboost ubjson": ("xgboost", b"{L\0\0\0\0\0\0\0\x07learner{"),
    "paddle": ("paddle", b'{"base_code":{"magic":"pir","trainable":false}}'),
    "mxnet": ("mxnet", json.dumps({"nodes": [], "arg_nodes": [0]}).encode()),
    "ncnn": ("ncnn", b"7767517\n1 1\n"),
    "pmml": ("pmml", b'<?xml version="1.0"?><PMML version="4.4"/>'),
    "openvino": ("openvino", b'<?xml version="1.0"?><net name="m" version="11"/>'),
    "darknet": ("darknet", b"[net]\nbatch=1\n"),
    "caffe": ("caffe", b'name: "m"\nlayer {\n}\n'),
    "empty": ("empty", b""),
    "text": ("text", b"hello\n"),
    "noise": ("unknown", bytes(range(256))[::-1] * 4),
    "pickled dict": ("pickle", pickle.dumps({"a": np.ones(2)})),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_content_decides(name: str, tmp_path: Path) -> None:
    kind, data = CONTENTS[name]
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    found = file_format(path)
    assert found.kind == kind
    assert found.name == NAMES[kind] and not found.note


@pytest.mark.parametrize("name", CONTENTS)
def test_every_command_says_what_a_file_is(name: str, tmp_path: Path) -> None:
    kind, data = CONTENTS[name]
    if kind == "onnx":
        pytest.skip("it is what is wanted")
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(InputProblem) as caught:
        load(path)
    if kind not in ("unknown", "empty"):
        assert NAMES[kind] in caught.value.line()


def test_an_extension_that_says_otherwise_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(CONTENTS["onnx"][1])
    found = file_format(path)
    assert found.kind == "onnx"
    assert "ends in .tflite" in found.note and "an ONNX model" in found.note


@pytest.mark.parametrize("producer", ["", "pytorch", "tf2onnx"])
@pytest.mark.parametrize("version", [3, 10, 13])
def test_onnx_files_of_any_exporter(producer: str, version: int, tmp_path: Path) -> None:
    proto = onnx.load_from_string(CONTENTS["onnx"][1])
    proto.ir_version, proto.producer_name = version, producer
    (tmp_path / "m").write_bytes(proto.SerializeToString())
    assert file_format(tmp_path / "m").kind == "onnx"


def test_a_model_of_onnxruntime(tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(CONTENTS["onnx"][1], options, providers=["CPUExecutionProvider"])
    assert file_format(tmp_path / "m.ort").kind == "ort"


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        ({"config.json": '{"architectures": ["BertModel"]}'}, "huggingface"),
        ({"config.json": "{}", "modules.json": "[]"}, "sentence-transformers"),
        ({"saved_model.pb": "x"}, "saved-model"),
        ({"MLmodel": "flavors:"}, "mlflow"),
        ({"inference.pdmodel": "x", "inference.pdiparams": "x"}, "paddle"),
        ({"readme": ""}, "unknown"),
    ],
)
def test_folders(members: dict[str, str], kind: str, tmp_path: Path) -> None:
    for name, text in members.items():
        (tmp_path / name).write_text(text)
    assert file_format(tmp_path).kind == kind
    with pytest.raises(InputProblem, match="folder"):
        load(tmp_path)


def test_files_of_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU())
    kinds = {}
    for name, value, old in (
        ("module", net, False), ("module-old", net, True), ("state", net.state_dict(), False),
        ("state-old", net.state_dict(), True), ("checkpoint", {"model": net.state_dict(), "epoch": 3}, False),
    ):  # fmt: skip
        torch.save(value, tmp_path / name, _use_new_zipfile_serialization=not old)
        kinds[name] = file_format(tmp_path / name)
    assert {n: f.kind for n, f in kinds.items()} == {
        "module": "torch-module", "module-old": "torch-module", "state": "torch-state", "state-old": "torch-state",
        "checkpoint": "torch-state",
    }  # fmt: skip
    assert kinds["module"].detail == "torch.nn.modules.container.Sequential"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, its files are there
        torch.jit.save(torch.jit.trace(net, torch.ones(1, 4)), tmp_path / "traced.pt")
    assert file_format(tmp_path / "traced.pt").kind == "torchscript"
    torch.export.save(torch.export.export(net, (torch.ones(1, 4),)), tmp_path / "exported.pt2")
    assert file_format(tmp_path / "exported.pt2").kind == "torch-export"


@pytest.mark.parametrize("packed", ["plain", "gzip", "zlib"])
def test_estimators_are_named_without_being_loaded(packed: str, tmp_path: Path) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    joblib = pytest.importorskip("joblib")
    fitted = linear_model.LogisticRegression().fit(np.eye(4), [0, 1, 0, 1])
    path = tmp_path / "model.pkl"
    joblib.dump(fitted, path, compress={"plain": 0, "gzip": ("gzip", 3), "zlib": ("zlib", 3)}[packed])
    found = file_format(path)
    assert (found.kind, found.detail) == ("sklearn", "sklearn.linear_model._logistic.LogisticRegression")


class Dangerous:
    """Would run a command, if a pickle were loaded."""

    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemExit(9)",))


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_of_a_pickle_is_executed(protocol: int, tmp_path: Path) -> None:
    data = pickle.dumps([Dangerous()], protocol)
    assert any(name.endswith(".exec") for name in pickled_classes(data))
    (tmp_path / "m.pkl").write_bytes(data)
    assert file_format(tmp_path / "m.pkl").kind in ("pickle", "unknown", "text")


@pytest.mark.parametrize("cut", [0, 1, 2, 5, 17, 40])
def test_broken_pickles_end_quietly(cut: int) -> None:
    data = pickle.dumps({"a": io.BytesIO(b"x")})
    assert isinstance(pickled_classes(data[:cut]), list)
    assert isinstance(pickled_classes(gzip.compress(data)[:cut]), list)
    assert main_class([]) == ""


@pytest.mark.parametrize("name", CONTENTS)
def test_damaged_files_are_told_apart_too(name: str, tmp_path: Path) -> None:
    """Bytes changed, cut off in front and behind: an answer, whatever it is, and never an error of its own."""
    rng = np.random.default_rng(len(name))
    path = tmp_path / "model.bin"
    for _ in range(60):
        data = bytearray(CONTENTS[name][1][:20_000])
        for _ in range(int(rng.integers(1, 12))):
            if data:
                data[int(rng.integers(len(data)))] = int(rng.integers(256))
        cut = int(rng.integers(len(data) + 1))
        path.write_bytes([data, data[:cut], data[min(cut, 20) :]][int(rng.integers(3))])
        assert file_format(path).kind in NAMES


def test_an_encrypted_archive_and_an_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(archive(config_DOT_json=b"{}", metadata_DOT_json=b"{}"))
    for magic, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(magic)
        while at >= 0:
            data[at + flags] |= 1
            at = data.find(magic, at + 4)
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(InputProblem, match="damaged zip archive"):
        load(tmp_path / "m.onnx")
    monkeypatch.setattr(Path, "iterdir", lambda self: (_ for _ in ()).throw(PermissionError("no")))
    with pytest.raises(InputProblem, match="folder"):
        load(tmp_path)
