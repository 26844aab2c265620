"""Label files, and labels in their common form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxpress.data.labels import find_key, normalize_labels, read_file, scores_classes
from tests.data.helpers import refused, sig

pytestmark = pytest.mark.unit

NAMES = ["a/1.png", "b/1.png", "b/2.png"]
FILES = [
    ("l.csv", "name,label\na/1.png,3\nb/1.png,4\nb/2.png,5\n", NAMES, [3, 4, 5]),
    ("l.csv", "label,file\n3,./a/1.png\n5,b\\2.png\n", NAMES, [3, None, 5]),
    ("l.csv", "2.png,5\n", NAMES, [None, None, 5]),
    ("l.csv", "1.png,5\n2,6\n", NAMES, [None, None, 6]),
    ("l.csv", "key,label\nx,1.5\ny,\n", None, [1.5, None]),
    ("l.tsv", "label\tother\ncat\t1\n", None, ["cat"]),
    ("l.txt", "\ufeff1\n2\n\n3\n", None, [1, 2, 3]),
]


@pytest.mark.parametrize(("name", "text", "keys", "labels"), FILES)
def test_text_files(tmp_path: Path, name: str, text: str, keys: list[str] | None, labels: list[object]) -> None:
    (tmp_path / name).write_text(text)
    assert read_file(tmp_path / name, keys)[0] == labels


MISUSE = [
    ("l.csv", b"a,b\n1,2\n", None, ["found 2 columns and none named"]),
    ("l.csv", b"name,label\n", NAMES, ["no rows below the header"]),
    ("l.csv", b"name,label\nx\n", NAMES, ["row 1 has 1 columns, expected 2"]),
    ("l.csv", b"name,label\nq,1\n", NAMES, ["none of its 1 names", "'q'", "'a/1.png'"]),
    ("l.csv", b"\xff\xfe\n", NAMES, ["utf-8"]),
    ("l.txt", b"", NAMES, ["the file is empty"]),
    ("l.doc", b"1", NAMES, ["unknown kind of file '.doc'"]),
    ("l.npy", b"1", NAMES, ["l.npy"]),
]


@pytest.mark.parametrize(("name", "text", "keys", "says"), MISUSE)
def test_misuse_of_files(tmp_path: Path, name: str, text: bytes, keys: list[str] | None, says: list[str]) -> None:
    (tmp_path / name).write_bytes(text)
    refused(lambda: read_file(tmp_path / name, keys), "l.", *says)


def test_array_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "l.npz", a=[1], b=[2])
    refused(lambda: read_file(tmp_path / "l.npz"), "several arrays: a, b")
    np.savez(tmp_path / "l.npz", a=[1], y=[2, 3])
    assert read_file(tmp_path / "l.npz")[0] == [2, 3]
    np.save(tmp_path / "l.npy", np.ones((2, 3)))
    assert [v.shape for v in read_file(tmp_path / "l.npy")[0]] == [(3,), (3,)]
    np.save(tmp_path / "l.npy", 7)
    assert read_file(tmp_path / "l.npy")[0] == [7]


def test_common_form() -> None:
    model = sig("x float32 N 2")
    assert normalize_labels([b"cat", "ant", ""], model)[0] == ["cat", "ant", None]
    assert normalize_labels([-1, 0, 2], model)[0] == [None, 0, 2]
    assert normalize_labels([-1.0, 0.5], model)[0] == [-1.0, 0.5]
    assert normalize_labels(np.array([1, 2], np.float16), model)[0] == [1.0, 2.0]
    refused(lambda: normalize_labels([{"a": 1}], model, "set"), "set", "a label is dict")
    refused(lambda: normalize_labels([["a", "b"]], model), "a label is list")
    refused(lambda: normalize_labels([np.datetime64("2020-01-01")], model), "datetime64")


def test_classifiers_are_recognized_by_their_output() -> None:
    for output, expected in [
        ("y float32 N 5", True),
        ("y float32 N 1", False),
        ("y float32 N", False),
        ("y int64 N 5", False),
        ("y float32 N C", True),
        ("y float32 ...", False),
    ]:
        assert scores_classes(sig("x float32 N 2", outputs=(output,))) is expected, output
    assert not scores_classes(sig("x float32 N 2", outputs=()))


def test_keys() -> None:
    assert find_key(["x", "y"], ["x"], None, "") == "y"
    assert find_key(["x", "y"], ["y"], None, "") is None
    assert find_key(["x", "label", "y"], ["x"], None, "") == "label"
    assert find_key(["x", "z"], ["x"], "z", "") == "z"
    refused(lambda: find_key([], [], "z", "set"), "set", "there is no 'z'; found nothing")
