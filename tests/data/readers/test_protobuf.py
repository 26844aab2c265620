"""ONNX's test data folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxpress.data.dataset import open_dataset
from onnxpress.data.readers import protobuf
from tests.data.helpers import floats, refused, sig

pytestmark = pytest.mark.unit

TWO = sig("x float32 N 3", "n int64 N 1")


def write(folder: Path, *arrays: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, array in enumerate(arrays):
        (folder / f"input_{i}.pb").write_bytes(numpy_helper.from_array(array, f"any{i}").SerializeToString())
    (folder / "output_0.pb").write_bytes(b"never read")


def test_sets_in_order_of_their_numbers(tmp_path: Path) -> None:
    for i in (0, 2, 10):
        write(tmp_path / f"test_data_set_{i}", np.full((1, 3), i, np.float32), np.array([[i]]))
    data = open_dataset(tmp_path, TWO)
    assert [s.key for s in data] == ["test_data_set_0", "test_data_set_2", "test_data_set_10"]
    assert [s.inputs["n"].item() for s in data] == [0, 2, 10]
    assert not data.labelled
    one = open_dataset(tmp_path / "test_data_set_2", TWO)
    assert len(one) == 1


def test_rows_of_a_set_are_samples(tmp_path: Path) -> None:
    x = floats(4, 3)
    write(tmp_path / "test_data_set_0", x, np.arange(4)[:, None])
    data = open_dataset(tmp_path, TWO)
    assert [s.key for s in data] == [f"test_data_set_0[{i}]" for i in range(4)]
    np.testing.assert_array_equal(next(data.batches(4)).inputs["x"], x)
    fixed = open_dataset(tmp_path, sig("x float32 4 3", "n int64 4 1", outputs=("y float32 4 2",)))
    batch = next(fixed.batches(1))
    assert batch.count == 4
    np.testing.assert_array_equal(batch.inputs["x"], x)


def test_sets_are_read_on_demand(tmp_path: Path, monkeypatch: object) -> None:
    for i in range(3):
        write(tmp_path / f"test_data_set_{i}", floats(1, 3), np.array([[i]]))
    data = open_dataset(tmp_path, TWO)
    seen: list[str] = []
    load = protobuf.load
    monkeypatch.setattr(protobuf, "load", lambda folder, where: seen.append(folder.name) or load(folder, where))  # type: ignore[attr-defined]
    assert data[2].inputs["n"].item() == 2
    assert seen == ["test_data_set_2"]


def test_labels_by_file(tmp_path: Path) -> None:
    write(tmp_path / "test_data_set_0", floats(2, 3), np.ones((2, 1), np.int64))
    np.save(tmp_path / "l.npy", [3, 4])
    assert open_dataset(tmp_path, TWO, labels=str(tmp_path / "l.npy")).labels == [3, 4]


def test_misuse(tmp_path: Path) -> None:
    first = tmp_path / "test_data_set_0"
    write(first, floats(1, 3))
    refused(lambda: open_dataset(tmp_path, TWO), "no input_1.pb for input 'n'", "found input_0.pb")
    write(first, floats(1, 3), np.ones((1, 1), np.int64), floats(1))
    refused(lambda: open_dataset(tmp_path, TWO), "input_2.pb", "more files than the model's 2 inputs")
    (first / "input_2.pb").unlink()
    refused(lambda: open_dataset(tmp_path, TWO, labels="key"), "no keys or columns")
    write(first, floats(2, 3), np.ones((3, 1), np.int64))
    refused(lambda: open_dataset(tmp_path, TWO), "differ along the batch axis: x 2, n 3")
    write(first, floats(1, 4), np.ones((1, 1), np.int64))
    refused(lambda: open_dataset(tmp_path, TWO), "test_data_set_0, input 'x'", "found [1,4]")
    (first / "input_0.pb").write_bytes(b"\xff\xff\xff\xff")
    refused(lambda: open_dataset(tmp_path, TWO), "input_0.pb", "TensorProto")
    (first / "input_0.pb").write_bytes(b"")
    refused(lambda: open_dataset(tmp_path, TWO), "it is not a tensor")
    tensor = numpy_helper.from_array(floats(1, 3))
    tensor.data_location = onnx.TensorProto.EXTERNAL
    (first / "input_0.pb").write_bytes(tensor.SerializeToString())
    refused(lambda: open_dataset(tmp_path, TWO), "is not read")
    refused(lambda: open_dataset(first / "input_0.pb", TWO), "give its folder")
