"""Labels: where each form of data stores them, label files, and their common form.

The common form is one Python value per sample: an int, a float, an array, or None where unlabelled.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxpress.data.checks import is_float
from onnxpress.data.readers import npfiles
from onnxpress.data.readers.files import existing, unreadable
from onnxpress.errors import InputProblem
from onnxpress.model.signature import Signature

KEYS = ("labels", "label", "y")
COLUMNS = ("label", "labels", "y", "target")
FILES = (".npy", ".npz", ".csv", ".tsv", ".txt")
_NAME_COLUMNS = ("filename", "file", "file_name", "name", "image", "path", "key", "id")
_CLASS_COLUMNS = (*COLUMNS, "class")
_WHAT = "cannot read the labels"


def find_key(
    keys: Sequence[str], inputs: Sequence[str], named: str | None, where: str, usual: Sequence[str] = KEYS
) -> str | None:
    """The key or column of the labels: the named one, else a usual name that is not an input.  Raises InputProblem."""
    if named is not None:
        if named not in keys:
            raise InputProblem(
                _WHAT,
                where,
                f"there is no {named!r}; found {', '.join(keys) or 'nothing'}",
                f"name a key or column, or a file ({', '.join(FILES)})",
            )
        return named
    return next((key for key in usual if key in keys and key not in inputs), None)


def is_file(labels: str | None) -> bool:
    """Whether `labels` names a file rather than a key or column."""
    return labels is not None and Path(labels).suffix.lower() in FILES


def read_file(path: Path, keys: Sequence[str] | None = None) -> tuple[list[Any | None], list[str]]:
    """The labels of a file, and notes.

    keys: names of the samples in order, matched against lines of `filename,label`; None where samples have no names and
          labels are in order

    Raises InputProblem.
    """
    existing(path, _WHAT)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _rows(npfiles.load_npy(path)), []
    if suffix == ".npz":
        arrays = npfiles.headers(path)
        key = find_key(list(arrays), (), None, str(path)) or (next(iter(arrays)) if len(arrays) == 1 else None)
        if key is None:
            raise InputProblem(_WHAT, path, f"found several arrays: {', '.join(arrays)}", "name the right one 'labels'")
        return _rows(npfiles.load_npz(path, [key])[key]), []
    if suffix in (".csv", ".tsv", ".txt"):
        return _read_text(path, keys)
    raise InputProblem(_WHAT, path, f"unknown kind of file {path.suffix!r}", f"use {', '.join(FILES)}")


def _rows(array: np.ndarray) -> list[Any]:
    if array.ndim == 0:
        return [array]
    return array.tolist() if array.ndim == 1 else list(array)


def _read_text(path: Path, keys: Sequence[str] | None) -> tuple[list[Any | None], list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputProblem(_WHAT, path, "the file is empty")
    mark = "\t" if "\t" in lines[0] else ","
    try:
        rows = [[text.strip() for text in row] for row in csv.reader(lines, delimiter=mark)]
    except csv.Error as error:
        raise unreadable(path, error) from error
    if keys is not None and all(len(row) == 1 for row in rows):  # "7.png 3": separated by the last space
        split = [row[0].rsplit(None, 1) for row in rows]
        if all(len(pair) == 2 for pair in split) and _match(split[0][0], _index(keys)) is not None:
            rows = split
    if all(len(row) == 1 for row in rows):
        if rows[0][0].lower() in _CLASS_COLUMNS:
            rows = rows[1:]
        return [parse_cell(row[0]) for row in rows], []
    return _table(rows, path, keys)


def _table(rows: list[list[str]], path: Path, keys: Sequence[str] | None) -> tuple[list[Any | None], list[str]]:
    head = [name.lower() for name in rows[0]]
    label = next((head.index(c) for c in _CLASS_COLUMNS if c in head), None)
    name = next((head.index(c) for c in _NAME_COLUMNS if c in head and head.index(c) != label), None)
    if label is not None:
        rows = rows[1:]
        name = name if name is not None or keys is None else (0 if label != 0 else 1)
    elif keys is None:
        raise InputProblem(_WHAT, path, f"found {len(head)} columns and none named {' or '.join(COLUMNS)}")
    else:
        name, label = 0, 1
        rows = rows[1:] if name < len(head) and head[0] in _NAME_COLUMNS else rows
    if not rows:
        raise InputProblem(_WHAT, path, "there are no rows below the header")
    short = next((i for i, row in enumerate(rows) if len(row) <= max(label, name or 0)), None)
    if short is not None:
        raise InputProblem(
            _WHAT,
            path,
            f"row {short + 1} has {len(rows[short])} columns, expected {max(label, name or 0) + 1} or more",
        )
    if keys is None or name is None:
        return [parse_cell(row[label]) for row in rows], []
    return _by_name({row[name]: parse_cell(row[label]) for row in rows}, path, keys)


def _by_name(given: Mapping[str, Any], path: Path, keys: Sequence[str]) -> tuple[list[Any | None], list[str]]:
    index = _index(keys)
    labels: list[Any | None] = [None] * len(keys)
    used = 0
    for name, label in given.items():
        position = _match(name, index)
        if position is not None:
            labels[position] = label
            used += 1
    if not used:
        raise InputProblem(
            _WHAT,
            path,
            f"none of its {len(given)} names is a sample's; the first is {next(iter(given))!r}, "
            f"samples are named like {keys[0]!r}",
        )
    notes = [] if used == len(given) else [f"{len(given) - used} of {len(given)} names in {path.name} have no file"]
    missing = sum(label is None for label in labels)
    if missing:
        notes.append(f"{missing} of {len(keys)} samples are not labelled")
    return labels, notes


def _index(keys: Sequence[str]) -> dict[str, int | None]:
    """Positions by full name, file name and stem; None where a short name is not unique."""
    index: dict[str, int | None] = {}
    forms: tuple[Callable[[str], str], ...] = (lambda k: Path(k).name, lambda k: Path(k).stem)
    for form in forms:
        for position, key in enumerate(keys):
            short = form(key)
            index[short] = None if short in index and index[short] != position else position
    index.update({key: position for position, key in enumerate(keys)})
    return index


def _match(name: str, index: Mapping[str, int | None]) -> int | None:
    return index.get(name.replace("\\", "/").removeprefix("./"))


def parse_cell(text: str) -> Any | None:
    """The text of a cell as int, float or string; None where empty."""
    text = text.strip()
    if not text:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def check_label_count(labels: Sequence[Any], count: int, where: object) -> None:
    """Raises InputProblem unless there is one label per sample."""
    if len(labels) != count:
        raise InputProblem(
            _WHAT, where, f"there are {len(labels)} labels for {count} samples", "give one label per sample"
        )


def normalize_labels(values: Any, signature: Signature, where: object = "") -> tuple[list[Any | None], list[str]]:
    """Labels in their common form, and notes.

    NaN, "" and, for classifiers with integer labels, -1 mean unlabelled; arrays of shape [1] become scalars; names of
    classes stay (`class_names.py`).  Raises InputProblem for labels that are neither numbers nor names.
    """
    labels = [_plain_label(v, where) for v in (list(values) if not isinstance(values, np.ndarray) else _rows(values))]
    notes: list[str] = []
    named = [v for v in labels if isinstance(v, str)]
    if named and len(named) != sum(v is not None for v in labels):
        other = next(v for v in labels if v is not None and not isinstance(v, str))
        raise InputProblem(
            _WHAT, where, f"found both names ({named[0]!r}) and numbers ({other!r})", "use one of the two"
        )
    if (
        scores_classes(signature)
        and any(isinstance(v, int) and v == -1 for v in labels)
        and all(v is None or isinstance(v, int) for v in labels)
    ):
        notes.append(f"{sum(v == -1 for v in labels)} labels of -1 read as unlabelled")
        labels = [None if v == -1 else v for v in labels]
    return labels, notes


def _plain_label(value: Any, where: object) -> Any | None:
    if value is None or isinstance(value, str):
        return value or None
    array = np.asarray(value)
    if array.dtype.kind not in "biufUSO" and not is_float(array.dtype):
        raise InputProblem(_WHAT, where, f"a label is {array.dtype.name}", "use numbers or class names")
    if array.size != 1 or array.ndim > 1:
        if array.dtype.kind in "OUS":
            raise InputProblem(
                _WHAT,
                where,
                f"a label is {type(value).__name__}",
                "use numbers, arrays of numbers, or class names",
            )
        return array
    item = array.reshape(-1).tolist()[0] if array.dtype.kind != "V" else float(array.reshape(-1)[0])
    if isinstance(item, bytes):
        item = item.decode(errors="replace")
    if isinstance(item, str):
        return item or None
    if isinstance(item, bool):
        return int(item)
    if isinstance(item, float) and np.isnan(item):
        return None
    if not isinstance(item, (int, float)):
        raise InputProblem(_WHAT, where, f"a label is {type(item).__name__}", "use numbers or class names")
    return item


def scores_classes(signature: Signature) -> bool:
    """Whether the first output looks like class scores: float, with a class axis of dynamic size or of at least 2."""
    if not signature.outputs:
        return False
    spec = signature.outputs[0]
    if not is_float(spec.dtype) or spec.shape is None or len(spec.shape) < 2:
        return False
    return any(isinstance(d, str) or d > 1 for d in spec.shape[1:])
