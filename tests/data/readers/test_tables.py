"""Tables: columns to inputs, labels, types of cells."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from onnxpress.data.dataset import open_dataset
from onnxpress.errors import EnvironmentProblem
from tests.data.helpers import refused, sig, values

pytestmark = pytest.mark.unit

THREE = sig("x float32 N 3")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_all_columns_fill_a_single_input(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "a,b,label,c\n1,2,7,3\n4,5.5,8,6\n")
    data = open_dataset(path, THREE)
    assert values(data).tolist() == [[1, 2, 3], [4, 5.5, 6]]
    assert data.labels == [7, 8]
    assert data[1].key == "a.csv[1]"
    assert "3 columns in order fill 'x'" in data.assumed


def test_named_and_numbered_columns(tmp_path: Path) -> None:
    text = "age,vec_1,vec_0,vec_2,vec_10,name,other,target\n30,1,0,2,3,ann,9,yes\n40,5,4,6,7,bob,9,no\n"
    path = write(tmp_path / "a.csv", text)
    model = sig("age int64 N 1", "vec float32 N 4", "name string N 1")
    data = open_dataset(path, model)
    assert data[1].inputs["age"].tolist() == [[40]]
    assert data[1].inputs["vec"].tolist() == [[4, 5, 6, 7]]
    assert data[0].inputs["name"].tolist() == [["ann"]]
    assert data.labels == [1, 0]
    assert "columns not used: other" in data.assumed


def test_labels_by_column_or_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "a\tb\tc\tmark\n1\t2\t3\t0.5\n4\t5\t6\t\n")
    assert open_dataset(path, THREE, labels="mark").labels == [0.5, None]
    marks = write(tmp_path / "l.txt", "1\n2\n")
    assert open_dataset(write(tmp_path / "b.csv", "1,2,3\n4,5,6\n"), THREE, labels=str(marks)).labels == [
        1,
        2,
    ]


def test_shapes_and_types(tmp_path: Path) -> None:
    grid = write(tmp_path / "g.csv", "1,2,3,4,5,6\n7,8,9,10,11,12\n")
    data = open_dataset(grid, sig("x float32 N 2 3"))
    assert data[1].inputs["x"].tolist() == [[[7, 8, 9], [10, 11, 12]]]
    assert "no header: columns are numbered" in data.assumed
    assert open_dataset(grid, sig("x float32 N L 2"))[0].inputs["x"].shape == (1, 3, 2)
    truth = write(tmp_path / "t.csv", "x\nTrue\nFalse\n")
    assert values(open_dataset(truth, sig("x bool N 1"))).tolist() == [[True], [False]]
    words = write(tmp_path / "w.csv", "x\n1\ntwo\n")
    assert open_dataset(words, sig("x string N 1"))[0].inputs["x"].tolist() == [["1"]]
    large = write(tmp_path / "l.csv", f"x\n{2**60 + 1}\n")
    assert open_dataset(large, sig("x int64 N 1"))[0].inputs["x"].item() == 2**60 + 1


def test_long_tables_are_parsed_in_pieces(tmp_path: Path) -> None:
    rows = "".join(f"{i},{i / 2 if i == 20_000 else i}\n" for i in range(25_000))
    data = open_dataset(write(tmp_path / "a.csv", "a,b\n" + rows), sig("x float32 N 2"))
    assert len(data) == 25_000
    assert data[20_000].inputs["x"].tolist() == [[20_000, 10_000]]


def test_preprocessing_of_a_table(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "a,b,c\n255,0,51\n")
    np.testing.assert_allclose(open_dataset(path, THREE, preprocess="unit")[0].inputs["x"], [[1, 0, 0.2]], atol=1e-6)


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    table = pa.table({"vec": [[1.0, 2.0], [3.0, 4.0]], "n": [5, 6], "s": ["a", "b"], "y": [1, None]})
    pq.write_table(table, tmp_path / "a.parquet")
    data = open_dataset(tmp_path / "a.parquet", sig("vec float32 N 2", "n int64 N 1", "s string N 1"))
    assert data[1].inputs["vec"].tolist() == [[3, 4]]
    assert data[1].inputs["n"].tolist() == [[6]]
    assert data[1].inputs["s"].tolist() == [["b"]]
    assert data.labels == [1, None]
    pq.write_table(pa.table({"vec": [[1.0], [3.0, 4.0]]}), tmp_path / "b.parquet")
    refused(lambda: open_dataset(tmp_path / "b.parquet", sig("vec float32 N 2")), "column 'vec'", "1 to 2 values")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 this is none")
    refused(lambda: open_dataset(tmp_path / "c.parquet", THREE), "c.parquet")


def test_missing_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EnvironmentProblem, match=r"onnxpress\[tables\]"):
        open_dataset(tmp_path / "a.parquet", THREE)


MISUSE = [
    ("a,b,c\n1,2,3\n4,5\n", THREE, None, ["a.csv:3", "found 2 cells, expected 3"]),
    ("a,b,c\n1,,3\n", THREE, None, ["a.csv[0], input 'x'", "NaN"]),
    ("a,b,c\n1,x,3\n", THREE, None, ["column 'b'", "expected numbers"]),
    ("a,b\n1,2\n", THREE, None, ["2 columns for input 'x'", "samples are [3]"]),
    ("a,a,b\n1,2,3\n", THREE, None, ["duplicate column names: 'a'"]),
    ("a,b,c\n", THREE, None, ["no rows below the header"]),
    ("", THREE, None, ["the file is empty"]),
    ("\n\n", THREE, None, ["the file is empty"]),
    ("a,b,c\n1,2,3\n", THREE, "mark", ["there is no 'mark'; found a, b, c"]),
    ("a,b\n1,2\n", sig("p float32 N 1", "q float32 N 1"), None, ["no column for input 'p'; found a, b"]),
    ("s\n1\n", sig("s string N 1"), None, ["expected strings"]),
    ("n\n1.5\n", sig("n int64 N 1"), None, ["with fractions"]),
]


@pytest.mark.parametrize(("text", "model", "labels", "says"), MISUSE)
def test_misuse(tmp_path: Path, text: str, model: object, labels: str | None, says: list[str]) -> None:
    path = write(tmp_path / "a.csv", text)
    refused(lambda: open_dataset(path, model, labels=labels), *says)  # type: ignore[arg-type]


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"a,b,c\n1,2,\xff\n")
    refused(lambda: open_dataset(tmp_path / "a.csv", THREE), "a.csv", "utf-8")
