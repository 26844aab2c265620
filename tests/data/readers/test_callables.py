"""Samples from Python functions and iterables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from onnxpress.data.dataset import open_dataset
from tests.data.helpers import refused, sig, values

pytestmark = pytest.mark.unit

ROW = sig("x float32 N 2")
PAIR = sig("a float32 N 2", "b int64 N 1")
CODE = """
import numpy as np
calls = []
def dicts():
    calls.append(1)
    for i in range(4):
        yield {"x": np.full(2, i, np.float32), "label": i % 3}
def arrays():
    return [np.full((1, 2), i) for i in range(3)]
def pairs():
    return [(np.full(2, i), i) for i in range(3)]
def nested():
    return arrays
ready = [np.zeros(2), np.ones(2)]
once = iter([np.zeros(2)])
def same_iterator():
    return once
def raises():
    yield np.zeros(2)
    raise KeyError("gone")
def wrong_shape():
    yield np.zeros(2)
    yield np.zeros(3)
def batches():
    yield np.zeros((8, 2))
def nothing():
    return []
def number():
    return 3
def none():
    yield None
def triple():
    yield (1, 2, 3)
def needs(argument):
    return []
number_value = 3
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path / "mine.py"


def test_functions(code: Path) -> None:
    data = open_dataset(f"{code}:dicts", ROW)
    assert len(data) == 4
    assert data.labels == [0, 1, 2, 0]
    assert values(data).tolist() == [[i, i] for i in range(4)] == values(data).tolist()
    assert data[2].key == f"{code}:dicts[2]"
    assert [s.inputs["x"][0, 0] for s in data.select([3, 0, 2])] == [3, 0, 2]
    for name, labels in [
        ("arrays", [None] * 3),
        ("pairs", [0, 1, 2]),
        ("nested", [None] * 3),
        ("ready", [None] * 2),
    ]:
        assert open_dataset(f"{code}:{name}", ROW).labels == labels, name


def test_functions_are_called_for_every_pass_and_samples_are_not_kept(code: Path) -> None:
    data = open_dataset(f"{code}:dicts", ROW)
    calls = data._store.source._begin.__closure__[0].cell_contents.__globals__["calls"]  # type: ignore[attr-defined]
    before = len(calls)
    list(data.batches(2))
    list(data)
    assert len(calls) == before + 2


def test_module_in_the_current_folder(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(code.parent)
    code.rename(code.with_name("samples_of_this_test.py"))
    assert len(open_dataset("samples_of_this_test:arrays", ROW)) == 3
    refused(lambda: open_dataset("samples_of_this_test:array", ROW), "has no 'array'", "it has dicts, arrays")


def test_iterables() -> None:
    items = [{"a": np.ones(2), "b": 1, "y": 0.5}, {"a": np.zeros(2), "b": 2, "y": 1.5}]
    data = open_dataset(items, PAIR)
    assert data.labels == [0.5, 1.5]
    assert data[1].inputs["b"].tolist() == [[2]]
    assert open_dataset([({"a": np.ones(2), "b": 1}, "cat")], PAIR).labels == [0]
    assert open_dataset([{"a": np.ones(2), "b": 1, "mark": 9}], PAIR, labels="mark").labels == [9]

    def once() -> Iterator[np.ndarray]:
        yield np.zeros(2)

    held = open_dataset(once(), ROW)
    assert len(list(held)) == len(list(held)) == 1
    assert "held in memory: the iterable can be read only once" in held.assumed


class Loader:
    """Restarts at each pass, as a torch DataLoader does."""

    passes = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        Loader.passes += 1
        return iter([np.zeros(2), np.ones(2)])


def test_re_iterable_objects_are_not_kept_in_memory() -> None:
    data = open_dataset(Loader(), ROW)
    assert not data.assumed
    before = Loader.passes
    list(data)
    assert Loader.passes == before + 1


MISUSE = [
    ("same_iterator", ["gave 1 samples at first and 0 at a later pass"]),
    ("raises", ["raised KeyError: 'gone'"]),
    ("wrong_shape", ["wrong_shape[1], input 'x'", "found [3]"]),
    ("batches", ["one sample at a time: this one has 8"]),
    ("nothing", ["no samples"]),
    ("number", ["it returned a int"]),
    ("none", ["found NoneType"]),
    ("triple", ["a tuple of 3"]),
    ("needs", ["TypeError", "argument"]),
    ("number_value", ["it is a int"]),
    ("gone", ["has no 'gone'"]),
]


@pytest.mark.parametrize(("name", "says"), MISUSE)
def test_misuse(code: Path, name: str, says: list[str]) -> None:
    refused(lambda: open_dataset(f"{code}:{name}", ROW), *says)


def test_code_that_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def f(:\n")
    refused(lambda: open_dataset(f"{tmp_path}/broken.py:f", ROW), "raised SyntaxError")
    (tmp_path / "needs.py").write_text("import no_such_module_at_all\n")
    refused(lambda: open_dataset(f"{tmp_path}/needs.py:f", ROW), "no_such_module_at_all")
    refused(lambda: open_dataset(f"{tmp_path}/gone.py:f", ROW), "does not exist")
    refused(lambda: open_dataset("no_such_module_at_all:f", ROW), "there is no module", "run from its folder")


def test_misuse_from_python() -> None:
    refused(lambda: open_dataset(3, ROW), "found a int")  # type: ignore[arg-type]
    refused(lambda: open_dataset([np.zeros(2)], PAIR), "feeds one input")
    refused(lambda: open_dataset([{"a": np.zeros(2)}], PAIR), "samples[0]", "no array for input b")
    refused(lambda: open_dataset({"x": np.zeros((1, 2))}, sig()), "the model has no inputs")

    class Gpu:
        def __array__(self, *_: object, **__: object) -> np.ndarray:
            raise TypeError("copy the tensor to host memory first")

    refused(lambda: open_dataset([Gpu()], ROW), "samples[0], input 'x'", "host memory")
