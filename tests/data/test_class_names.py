"""Files of class names, and labels that are names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxpress.data.class_names import class_names_of, number_names, read_class_names
from onnxpress.data.dataset import open_dataset
from tests.data.helpers import refused, sig

pytestmark = pytest.mark.unit

FORMS = {
    "plain.txt": "cat\ndog\nfrog\n",
    "numbered.txt": "0 cat\n1 dog\n2 frog\n",
    "colons.txt": "0: cat\n1: dog\n2: frog\n",
    "behind.txt": "cat 0\ndog 1\nfrog 2\n",
    "list.json": json.dumps(["cat", "dog", "frog"]),
    "labels.json": json.dumps({"cat": 0, "dog": 1, "frog": 2}),
    "config.json": json.dumps({"id2label": {"0": "cat", "1": "dog", "2": "frog"}}),
}


@pytest.mark.parametrize("name", FORMS)
def test_files(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FORMS[name])
    assert read_class_names(tmp_path / name) == {"cat": 0, "dog": 1, "frog": 2}


def test_every_spelling_of_a_class(tmp_path: Path) -> None:
    path = tmp_path / "synsets.txt"
    path.write_text("n01440764 tench\nn01443537 gold fish\n")
    found = read_class_names(path)
    assert found["n01440764"] == found["tench"] == found["n01440764 tench"] == 0
    assert found["n01443537"] == found["gold fish"] == 1


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ("", "a.txt", "no names"),
        ("cat\ncat\n", "a.txt", "two classes are named 'cat'"),
        ("{", "a.json", "not JSON"),
        ('{"a": [1]}', "a.json", "no list of names"),
    ],
)
def test_wrong_files(text: str, name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    refused(lambda: read_class_names(tmp_path / name), says, name)


def test_names_in_the_model_file() -> None:
    assert class_names_of({"names": "{0: 'person', 1: 'car'}"}) == {"person": 0, "car": 1}
    assert class_names_of({"names": "nothing"}) == class_names_of({}) == {}


def test_numbers_of_names() -> None:
    known = {"ant": 4, "bee": 7}
    assert number_names(["bee", None, "ant"], known)[:2] == ([7, None, 4], ())
    assert number_names(["b", None, "a"], {})[:2] == ([1, None, 0], ("a", "b"))
    assert number_names([3, None], known) == ([3, None], (), [])
    refused(lambda: number_names(["beee"], known, (), "pictures"), "'beee'", "did you mean bee?", "pictures")


def test_folders_of_some_classes(tmp_path: Path) -> None:
    for name in ("dog", "frog"):
        (tmp_path / "pics" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "pics" / name / "0.png")
    (tmp_path / "names.txt").write_text(FORMS["plain.txt"])
    signature = sig("x float32 N 3 4 4")
    plain = open_dataset(tmp_path / "pics", signature)
    assert plain.labels == [0, 1] and plain.reading.numbered == ("dog", "frog")
    named = open_dataset(tmp_path / "pics", signature, classes=tmp_path / "names.txt")
    assert named.labels == [1, 2] and named.reading.numbered == ()
    assert open_dataset(tmp_path / "pics", signature, classes={"dog": 5, "frog": 3}).labels == [5, 3]
    refused(lambda: open_dataset(tmp_path / "pics", signature, classes={"dog": 5}), "'frog'", "pics")
