""".npz, .npy, folders of them, and arrays in memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from onnxpress.data.dataset import Dataset, open_dataset
from onnxpress.data.readers import npfiles
from onnxpress.errors import EnvironmentProblem
from tests.data.helpers import floats, refused, sig, values

pytestmark = pytest.mark.unit

IMAGE = sig("x float32 N 3 8 9")
PAIR = sig("ids int64 N L", "mask int64 N L")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save: object) -> None:
    x = floats(5, 3, 8, 9)
    save(tmp_path / "train.npz", x=x, labels=[4, 3, -1, 1, 0])  # type: ignore[operator]
    data = open_dataset(tmp_path / "train.npz", IMAGE)
    np.testing.assert_array_equal(values(data), x)
    assert data.labels == [4, 3, None, 1, 0]
    assert data[3].key == "train.npz[3]"
    assert data.name == "train.npz"
    assert "1 labels of -1 read as unlabelled" in data.assumed


def test_npz_reads_only_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=floats(2, 3, 8, 9), large=floats(1000))
    seen: list[list[str]] = []
    load = npfiles.load_npz
    monkeypatch.setattr(
        npfiles, "load_npz", lambda path, keys, lazy=False: seen.append(list(keys)) or load(path, keys, lazy)
    )
    data = open_dataset(tmp_path / "a.npz", IMAGE)
    assert seen == [["x"]]
    assert "not used: large" in data.assumed


def test_stored_npz_and_npy_are_mapped(tmp_path: Path) -> None:
    x = np.asfortranarray(floats(4, 3, 8, 9))
    np.savez(tmp_path / "a.npz", x=x)
    np.save(tmp_path / "a.npy", x)
    for name in ("a.npz", "a.npy"):
        data = open_dataset(tmp_path / name, IMAGE)
        array = data._store.source._columns[0].array  # type: ignore[attr-defined]
        assert isinstance(array.base, np.memmap) or isinstance(array, np.memmap), name
        np.testing.assert_array_equal(values(data), x)


@pytest.mark.parametrize("key", ["label", "y", "labels"])
def test_usual_label_keys(tmp_path: Path, key: str) -> None:
    np.savez(tmp_path / "a.npz", **{"x": floats(3, 3, 8, 9), key: [1, 2, 3]})
    assert open_dataset(tmp_path / "a.npz", IMAGE).labels == [1, 2, 3]


def test_label_key_that_is_an_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", y=floats(3, 4), target=[5, 6, 7])
    model = sig("y float32 N 4")
    assert not open_dataset(tmp_path / "a.npz", model).labelled
    assert open_dataset(tmp_path / "a.npz", model, labels="target").labels == [5, 6, 7]


def test_another_name_for_a_single_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", picture=floats(3, 3, 8, 9), id=np.array(["a", "b", "c"]), y=[0, 1, 2])
    data = open_dataset(tmp_path / "a.npz", IMAGE)
    assert "array 'picture' is input 'x'" in data.assumed
    assert data.labels == [0, 1, 2]


def test_two_inputs(tmp_path: Path) -> None:
    ids = np.arange(12).reshape(3, 4)
    np.savez(tmp_path / "a.npz", ids=ids.astype(np.uint16), mask=np.ones((3, 4), bool))
    batch = next(open_dataset(tmp_path / "a.npz", PAIR).batches(3))
    assert batch.inputs["ids"].dtype == batch.inputs["mask"].dtype == np.int64
    np.testing.assert_array_equal(batch.inputs["ids"], ids)


def test_array_with_a_batch_axis_of_one_or_without_samples_axis(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", floats(3, 1, 3, 8, 9))
    assert len(open_dataset(tmp_path / "a.npy", IMAGE)) == 3
    np.save(tmp_path / "b.npy", floats(3, 8, 9))
    one = open_dataset(tmp_path / "b.npy", IMAGE)
    assert len(one) == 1
    assert "the arrays are one sample without a batch axis" in one.assumed


def test_labels_from_files(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", floats(3, 3, 8, 9))
    np.save(tmp_path / "l.npy", [2, 1, 0])
    np.savez(tmp_path / "l.npz", any=[2, 1, 0])
    (tmp_path / "l.csv").write_text("label\n2\n1\n0\n")
    (tmp_path / "l.txt").write_text("2\n1\n0\n")
    (tmp_path / "names.txt").write_text("dog\ncat\nant\n")
    for name in ("l.npy", "l.npz", "l.csv", "l.txt", "names.txt"):
        data = open_dataset(tmp_path / "x.npy", IMAGE, labels=str(tmp_path / name))
        assert data.labels == [2, 1, 0], name
        assert f"labels from {name}" in data.assumed
    assert "3 class names numbered in sorted order (ant=0, cat=1, dog=2)" in data.assumed


def test_forms_of_labels() -> None:
    def labels(values: object, model: object = IMAGE) -> list:
        return Dataset.from_arrays({"x": floats(3, 3, 8, 9)}, model, labels=values).labels  # type: ignore[arg-type]

    assert labels(np.array([[1], [2], [0]])) == [1, 2, 0]
    assert labels([1.5, float("nan"), 2.0]) == [1.5, None, 2.0]
    assert labels([True, False, True]) == [1, 0, 1]
    assert labels([None, 3, 4]) == [None, 3, 4]
    assert labels([-1, 3, 4], sig("x float32 N 3 8 9", outputs=("y float32 N 1",))) == [-1, 3, 4]
    boxes = labels(floats(3, 2, 4))
    assert boxes[0].shape == (2, 4)
    assert isinstance(labels(np.array([1, 2, 3], np.int8))[0], int)


def test_folder_of_files(tmp_path: Path) -> None:
    x = floats(6, 3, 8, 9)
    np.savez(tmp_path / "a.npz", x=x[0], label=3)
    np.savez(tmp_path / "b.npz", x=x[1:2], label=[4])
    np.savez(tmp_path / "c.npz", x=x[2:5], label=[5, 6, 7])
    np.save(tmp_path / "d.npy", x[5])
    (tmp_path / "readme.md").write_text("about")
    data = open_dataset(tmp_path, IMAGE)
    assert [s.key for s in data] == ["a.npz", "b.npz", "c.npz[0]", "c.npz[1]", "c.npz[2]", "d.npy"]
    assert data.labels == [3, 4, 5, 6, 7, None]
    np.testing.assert_array_equal(values(data), x)
    np.testing.assert_array_equal(data[3].inputs["x"][0], x[3])


def test_folder_is_read_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(4):
        np.savez(tmp_path / f"{i}.npz", x=floats(3, 8, 9, seed=i))
    opened: list[str] = []
    load = npfiles.load_npz
    monkeypatch.setattr(
        npfiles, "load_npz", lambda path, keys, lazy=False: opened.append(path.name) or load(path, keys, lazy)
    )
    data = open_dataset(tmp_path, IMAGE)
    assert opened == ["0.npz"]
    assert data[3].key == "3.npz"
    assert opened == ["0.npz", "3.npz"]


def test_folder_with_labels_by_name(tmp_path: Path) -> None:
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", floats(3, 8, 9, seed=i))
    (tmp_path / "marks.csv").write_text("file,label\n2.npy,7\n0.npy,5\n")
    data = open_dataset(tmp_path, IMAGE, labels=str(tmp_path / "marks.csv"))
    assert data.labels == [5, None, 7]
    np.save(tmp_path / "marks.npy", [1, 2, 3])
    assert open_dataset(tmp_path, IMAGE, labels=str(tmp_path / "marks.npy")).labels == [1, 2, 3]


def test_mapping_is_a_source() -> None:
    data = open_dataset({"x": floats(3, 3, 8, 9), "label": [1, 2, 3]}, IMAGE)
    assert data.labels == [1, 2, 3]


def test_whole_floats_as_ids() -> None:
    data = open_dataset({"ids": np.ones((2, 3)), "mask": np.ones((2, 3))}, PAIR)
    assert "whole float64 values of 'ids' read as int64" in data.assumed


def test_strings() -> None:
    model = sig("text string N 1")
    data = open_dataset({"text": np.array([["a"], ["b"]])}, model)
    assert data[1].inputs["text"].tolist() == [["b"]]
    assert data.hash != data.select([0, 0]).hash


def test_misuse_of_arrays() -> None:
    x = floats(3, 3, 8, 9)
    bad = x.copy()
    bad[2, 0, 1, 1] = np.nan

    cases = [
        ({"x": bad}, IMAGE, None, ["arrays[2], input 'x'", "NaN"]),
        ({"a": x, "b": x}, IMAGE, None, ["no array for input x", "found a, b"]),
        ({"x": x.transpose(0, 2, 3, 1)}, IMAGE, None, ["input 'x'", "NHWC", "NCHW"]),
        ({"x": x[:0]}, IMAGE, None, ["no samples"]),
        ({"x": x, "labels": [1, 2]}, IMAGE, None, ["2 labels for 3 samples"]),
        ({"x": x, "labels": [1, 2, 3]}, IMAGE, "mark", ["no 'mark'", "found x, labels"]),
        ({"x": x.astype(complex)}, IMAGE, None, ["complex"]),
        ({"x": np.array([None, 1], object)}, IMAGE, None, ["Python objects"]),
        ({"x": np.float32(3)}, IMAGE, None, ["single number"]),
        ({"x": [[1, 2], [3]]}, IMAGE, None, ["cannot be converted to an array"]),
        ({"ids": np.ones((3, 4), int), "mask": np.ones((2, 4), int)}, PAIR, None, ["ids has 3, mask has 2"]),
        ({"ids": np.ones((3, 4), int)}, PAIR, None, ["no array for input mask"]),
        (
            {"x": x, "labels": [1j, 1, 2]},
            IMAGE,
            None,
            ["a label is complex128"],
        ),
        ({"x": x, "labels": ["cat", "dog", "7"]}, IMAGE, None, []),
    ]
    for given, model, labels, says in cases:
        if says:
            refused(lambda g=given, m=model, k=labels: open_dataset(g, m, labels=k), *says)
        else:
            assert open_dataset(given, model).labels == [1, 2, 0]
    refused(lambda: Dataset.from_arrays({"x": x}, IMAGE, labels=["cat", 1, 2]), "names ('cat') and numbers (1)")


def test_misuse_of_files(tmp_path: Path) -> None:
    def at(name: str) -> Path:
        return tmp_path / name

    np.savez(at("good.npz"), x=floats(3, 3, 8, 9))
    whole = at("good.npz").read_bytes()
    at("cut.npz").write_bytes(whole[: len(whole) // 2])
    at("noise.npz").write_bytes(b"PK\x03\x04" + b"z" * 400)
    np.save(at("good.npy"), floats(3, 3, 8, 9))
    at("cut.npy").write_bytes(at("good.npy").read_bytes()[:-100])
    at("noise.npy").write_bytes(b"nothing of this kind" * 10)
    at("empty.npy").write_bytes(b"")
    np.save(at("none.npy"), floats(0, 3, 8, 9))
    np.save(at("pickle.npy"), np.array([{}], object))
    np.savez(at("pickle.npz"), x=np.array([{}], object))
    at("strange.xyz").write_text("1")
    at("bare").write_text("1")
    at("l.npy").write_bytes(b"")
    huge = bytearray(at("good.npy").read_bytes())
    place = huge.index(b"(3, 3, 8, 9)")
    huge[place : place + 12] = b"(9999999999)"
    at("huge.npy").write_bytes(bytes(huge))

    cases = [
        ("goood.npz", ["it does not exist", "did you mean", "good.npz"]),
        ("qqqq/wwww.npz", ["it does not exist"]),
        ("cut.npz", ["cut.npz", "not a zip file"]),
        ("noise.npz", ["not a zip file"]),
        ("cut.npy", ["the file is truncated", "bytes expected"]),
        ("noise.npy", ["noise.npy", "magic"]),
        ("huge.npy", ["huge.npy"]),
        ("empty.npy", ["the file is empty"]),
        ("none.npy", ["the array is empty"]),
        ("pickle.npy", ["pickled Python objects", "never loaded"]),
        ("pickle.npz", ["array 'x'", "pickled Python objects"]),
        ("strange.xyz", ["unknown file type '.xyz'", ".npz, .npy, .csv", "module:function"]),
        ("bare", ["no suffix"]),
    ]
    for name, says in cases:
        refused(lambda n=name: open_dataset(at(n), IMAGE), *says)
    refused(lambda: open_dataset(at("good.npy"), PAIR), "feeds one input, the model has 2: ids, mask")
    refused(lambda: open_dataset(at("good.npy"), IMAGE, labels="mark"), "has no key 'mark'")
    refused(
        lambda: open_dataset(at("good.npy"), IMAGE, labels=str(at("no.csv"))),
        "cannot read the labels",
        "does not exist",
    )
    refused(
        lambda: open_dataset(at("good.npz"), sig("x float32 N 3 8 8")),
        "expected one sample of shape [1,3,8,8]",
        "[3,8,9]",
    )


def test_truncated_member_of_an_npz(tmp_path: Path) -> None:
    import zipfile

    np.save(tmp_path / "x.npy", floats(3, 3, 8, 9))
    data = (tmp_path / "x.npy").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", data[:-40])
    refused(lambda: open_dataset(tmp_path / "a.npz", IMAGE), "array 'x'", "truncated")


def test_impossible_compression_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((3, 3, 8, 9), np.float32))
    monkeypatch.setattr(npfiles, "_RATIO", 2)
    refused(lambda: open_dataset(tmp_path / "a.npz", IMAGE), "impossible compression")
    assert len(open_dataset(tmp_path / "a.npz", IMAGE, trust=True)) == 3


def test_lack_of_memory_is_an_environment_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=floats(3, 3, 8, 9))

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np.lib.format, "read_array", full)
    with pytest.raises(EnvironmentProblem, match="not enough memory"):
        open_dataset(tmp_path / "a.npz", IMAGE)


def test_mapped_values_are_checked_when_read(tmp_path: Path) -> None:
    x = floats(3, 3, 8, 9)
    x[2] = np.inf
    np.save(tmp_path / "a.npy", x)
    data = open_dataset(tmp_path / "a.npy", IMAGE)
    refused(lambda: list(data), "a.npy[2], input 'x'", "infinity")


def test_misuse_of_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(lambda: open_dataset(tmp_path / "empty", IMAGE), "the folder is empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.md").write_text("x")
    refused(lambda: open_dataset(tmp_path / "other", IMAGE), "no file in it can be read", "1 .md")
    (tmp_path / "bad").mkdir()
    np.savez(tmp_path / "bad" / "a.npz", x=floats(3, 8, 9))
    np.savez(tmp_path / "bad" / "b.npz", x=floats(8, 9, 3))
    refused(lambda: open_dataset(tmp_path / "bad", IMAGE), "b.npz, input 'x'", "NHWC")
    (tmp_path / "bad" / "c.wav").write_bytes(b"1")
    refused(lambda: open_dataset(tmp_path / "bad", IMAGE), "2 arrays and 1 sound files", "one kind")


def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    array = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.float32, (400, 3, 100, 100))
    array.flush()
    del array
    data = open_dataset(tmp_path / "a.npy", sig("x float32 N 3 100 100"))
    tracemalloc.start()
    try:
        assert sum(b.count for b in data.batches(4)) == 400
        assert len(data.hash) == 64
        assert sum(map(len, (data.take(3), data.select([1])))) == 4
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2**20 < 400 * 3 * 100 * 100 * 4
