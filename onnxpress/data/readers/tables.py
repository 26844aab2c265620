""".csv, .tsv and .parquet tables: which columns feed which input.

A column with the name of an input feeds it; columns `name_0`, `name_1`, … fill its last axis; where the model has one
input, all columns but the labels do, in order.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from onnxpress.data import labels as labelling
from onnxpress.data.checks import fits, is_text, text
from onnxpress.data.layout import BatchLayout, Port
from onnxpress.data.readers.arrays import build
from onnxpress.data.readers.files import unreadable
from onnxpress.data.source import LoadedSource
from onnxpress.errors import InputProblem, missing_extra
from onnxpress.model.signature import Signature

SUFFIXES = (".csv", ".tsv", ".parquet")
_WHAT = "cannot use the table"
_ROWS = 10_000  # parsed at once: cells take twenty times more memory as Python strings than as numbers
_TRUTH = {"true": 1, "false": 0}


def open_table(path: Path, signature: Signature, layout: BatchLayout, label: str | None, raw: bool) -> LoadedSource:
    """A source of rows.  Raises InputProblem, or EnvironmentProblem without pyarrow for .parquet."""
    notes: list[str] = []
    if path.suffix.lower() == ".parquet":
        columns = _parquet(path)
    else:
        columns, notes = _delimited(path, "\t" if path.suffix.lower() == ".tsv" else ",")
    if not columns:
        raise InputProblem(_WHAT, path, "it has no columns")
    key = labelling.find_key(list(columns), layout.names, label, str(path), labelling.COLUMNS)
    if key is None and len(layout.ports) == 1:
        notes.append("no label column")
    arrays, more = assign({n: c for n, c in columns.items() if n != key}, layout, path)
    values = None if key is None else columns[key]
    loaded = build(arrays, layout, path.name, str(path), values, signature, raw)
    loaded.notes[:0] = notes + more
    return loaded


def assign(
    columns: Mapping[str, np.ndarray], layout: BatchLayout, path: Path
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Arrays by input name from columns (all of one length), and notes.  Raises InputProblem."""
    arrays: dict[str, np.ndarray] = {}
    used: set[str] = set()
    notes: list[str] = []
    for port in layout.ports:
        mine = _columns_of(port, columns)
        if not mine and len(layout.ports) == 1:
            mine = list(columns)
            notes.append(
                f"{len(mine)} columns in order fill {port.name!r}"
                if len(mine) != 1
                else f"column {mine[0]!r} is input {port.name!r}"
            )
        if not mine:
            shown = ", ".join(list(columns)[:10]) + (", …" if len(columns) > 10 else "")
            raise InputProblem(
                _WHAT,
                path,
                f"no column for input {port.name!r}; found {shown or 'none'}",
                f"name columns as the inputs ({', '.join(layout.names)}), or {port.name}_0, {port.name}_1, …",
            )
        used.update(mine)
        arrays[port.name] = _shaped([columns[n] for n in mine], mine, port, path)
    rest = [n for n in columns if n not in used]
    if rest:
        notes.append(f"columns not used: {', '.join(rest[:5])}" + (", …" if len(rest) > 5 else ""))
    return arrays, notes


def _columns_of(port: Port, columns: Mapping[str, np.ndarray]) -> list[str]:
    if port.name in columns:
        return [port.name]
    pattern = re.compile(re.escape(port.name) + r"[_.\[](\d+)\]?")
    numbered = {int(m[1]): name for name in columns if (m := pattern.fullmatch(name))}
    return [numbered[i] for i in sorted(numbered)]


def _shaped(parts: Sequence[np.ndarray], names: Sequence[str], port: Port, path: Path) -> np.ndarray:
    """Columns side by side in the shape of the input, first axis rows."""
    if (len(parts) > 1 and len({p.dtype.kind in "OU" for p in parts}) > 1) or (parts[0].dtype.kind in "OU") != is_text(
        port.spec.dtype
    ):
        wrong = next(
            (n for n, p in zip(names, parts, strict=True) if (p.dtype.kind in "OU") != is_text(port.spec.dtype)),
            names[0],
        )
        kind = "strings" if is_text(port.spec.dtype) else "numbers"
        raise InputProblem(
            _WHAT,
            f"{path}, column {wrong!r}",
            f"expected {kind} for input {port.name!r} ({port.spec.text()})",
            "name the column of labels with `labels`, or leave the column out",
        )
    values = parts[0] if len(parts) == 1 else np.stack(parts, axis=1)
    inner = port.inner
    if inner is None or fits(values.shape[1:], inner):
        return values
    width = math.prod(values.shape[1:])
    fixed = math.prod(d for d in inner if isinstance(d, int))
    free = sum(isinstance(d, str) for d in inner)
    if (free == 0 and fixed == width) or (free == 1 and fixed and width % fixed == 0):
        return values.reshape(len(values), *(d if isinstance(d, int) else width // fixed for d in inner))
    raise InputProblem(
        _WHAT,
        path,
        f"{width} columns for input {port.name!r}, whose samples are {text(inner)}",
        "leave out columns that are not inputs, or name the column of labels with `labels`",
    )


# --- text tables
# ---------------------------------------------------------------------------------------------------


def _delimited(path: Path, mark: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Columns of a csv or tsv file by name.  A first row of numbers only is data, and columns are numbered."""
    pieces: list[list[np.ndarray]] = []
    notes: list[str] = []
    names: list[str] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = _rows(csv.reader(stream, delimiter=mark), path)
            first = next(rows, None)
            if first is None:
                raise InputProblem(_WHAT, path, "the file is empty")
            head = [cell.strip() for cell in first[1]]
            if all(isinstance(labelling.parse_cell(cell), (int, float)) for cell in head):
                notes.append("no header: columns are numbered")
                names = [str(i) for i in range(len(head))]
                pieces.append(_parse([first], names, path))
            else:
                names = head
                repeated = sorted({n for n in names if names.count(n) > 1})
                if repeated:
                    raise InputProblem(_WHAT, path, f"duplicate column names: {', '.join(map(repr, repeated))}")
            while piece := list(islice(rows, _ROWS)):
                pieces.append(_parse(piece, names, path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise unreadable(path, error, "save it as UTF-8 with one row per line") from error
    if not pieces:
        raise InputProblem(_WHAT, path, "there are no rows below the header")
    return {name: _joined([piece[i] for piece in pieces]) for i, name in enumerate(names)}, notes


def _rows(reader: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of rows that are not blank, all of one width."""
    width: int | None = None
    for row in reader:
        if not row or (len(row) == 1 and not row[0].strip()):
            continue
        width = len(row) if width is None else width
        if len(row) != width:
            raise InputProblem(_WHAT, f"{path}:{reader.line_num}", f"found {len(row)} cells, expected {width}")
        yield reader.line_num, row


def _parse(rows: Sequence[tuple[int, list[str]]], names: Sequence[str], path: Path) -> list[np.ndarray]:
    """The narrowest of int64, float64 and strings for each column.  Empty cells are NaN."""
    found: list[np.ndarray] = []
    for i in range(len(names)):
        cells = [row[i].strip() for _, row in rows]
        low = [cell.lower() for cell in cells]
        if all(cell in _TRUTH for cell in low):
            cells = [str(_TRUTH[cell]) for cell in low]
        try:
            try:
                found.append(np.array([int(cell) for cell in cells], np.int64))
            except (ValueError, OverflowError):
                found.append(np.array([float(cell) if cell else math.nan for cell in cells], np.float64))
        except ValueError:
            found.append(np.array(cells, dtype=object))
    return found


def _joined(pieces: Sequence[np.ndarray]) -> np.ndarray:
    kinds = {p.dtype.kind for p in pieces}
    if "O" in kinds and len(kinds) > 1:  # text in a later piece: earlier numbers are text as well
        return np.concatenate(
            [p if p.dtype.kind == "O" else np.array([_shown(v) for v in p.tolist()], dtype=object) for p in pieces]
        )
    return np.concatenate(pieces)


def _shown(value: float | int) -> str:
    return "" if value != value else str(value)


# --- parquet
# -------------------------------------------------------------------------------------------------------


def _parquet(path: Path) -> dict[str, np.ndarray]:
    try:
        pyarrow: Any = import_module("pyarrow")
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError:
        raise missing_extra("pyarrow", "tables", "reading .parquet files") from None
    try:
        table = parquet.ParquetFile(path).read()
        return {name: _arrow(table.column(name), pyarrow, f"{path}, column {name!r}") for name in table.column_names}
    except (pyarrow.ArrowException, OSError) as error:
        raise unreadable(path, error) from error


def _arrow(column: Any, pyarrow: Any, where: str) -> np.ndarray:
    """An arrow column as an array; lists of equal length become a second axis.

    Missing numbers become NaN, missing strings "".
    """
    kind = column.type
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind):
        rows = column.to_pylist()
        lengths = {len(r) if r is not None else 0 for r in rows}
        if len(lengths) > 1:
            raise InputProblem(
                _WHAT,
                where,
                f"its lists have {min(lengths)} to {max(lengths)} values",
                "make them equally long",
            )
        return np.asarray(rows)
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_dictionary(kind):
        return np.array(["" if v is None else v for v in column.to_pylist()], dtype=object)
    return np.asarray(column.to_numpy())
