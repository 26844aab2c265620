"""Arrays by input name with samples on the first axis: .npz and .npy files, and arrays in memory.

Values in memory are checked when the dataset is opened, memory-mapped ones as they are read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxpress.data import labels as labelling
from onnxpress.data.checks import cast, fits, fitted, is_text, missing_inputs, refusal, text
from onnxpress.data.layout import BatchLayout, Port
from onnxpress.data.readers import npfiles
from onnxpress.data.source import LoadedSource, SampleSource
from onnxpress.errors import InputProblem
from onnxpress.model.signature import Signature

_CHUNK = 8 * 2**20  # bytes of values checked at once
_WHAT = "cannot use the data"


@dataclass(frozen=True)
class Column:
    """The values of one input.

    count: number of samples; None where all samples share one value (a whole input given once)
    batch: whether a row keeps a first axis of size 1 (inputs whose rank the model does not state)
    """

    port: Port
    array: np.ndarray
    count: int | None
    batch: bool = False

    def row(self, index: int) -> np.ndarray:
        if self.count is None:
            return self.array
        return self.array[index : index + 1] if self.batch else self.array[index]


class Arrays(SampleSource):
    """Columns of equal length as samples."""

    def __init__(self, columns: Sequence[Column], labels: Sequence[Any | None], name: str) -> None:
        self._columns, self.labels, self._name = columns, labels, name

    def read(self, index: int) -> dict[str, np.ndarray]:
        return {c.port.name: np.asarray(c.row(index)) for c in self._columns}

    def key(self, index: int) -> str:
        return f"{self._name}[{index}]"


def column(array: np.ndarray, port: Port, where: str, checked: bool = True) -> Column:
    """How an array holds the samples of an input, by its rank.

    The first axis is samples, with or without a batch axis of 1 after it; an array of one sample without batch axis,
    and one value of a whole input, are accepted as well.

    checked: raise InputProblem where the element type or the sizes do not fit; else only the rank is used (a
             preprocessing may still change the rest)
    """
    dims = port.dims
    if checked:
        reason = refusal(array.dtype, port.spec.dtype)
        if reason:
            raise InputProblem(_WHAT, where, reason, "convert the array and save it again")
    if dims is None:
        if array.ndim == 0:
            return Column(port, array, None)
        return Column(port, array, len(array), batch=True)
    if port.axis != 0 and array.ndim == len(dims) and fits(array.shape, dims):
        return Column(port, array, None)
    inner = port.inner or ()
    single = port.axis == 0 and not port.loose and array.ndim == len(inner)
    if single and array.ndim and fits(array.shape, inner):
        return Column(port, array[None], 1)
    if single and array.ndim >= 2 and checked:
        fitted(array.shape, port, where)  # its rows have too few axes: checked as a single sample
    if array.ndim == 0:
        raise InputProblem(_WHAT, where, "found a single number, expected an array whose first axis is samples")
    if checked and len(array):
        fitted(array.shape[1:], port, where)
    return Column(port, array, len(array))


def lengths(columns: Sequence[Column], where: str) -> int:
    """The common number of samples.  Raises InputProblem where the inputs disagree."""
    counts = {c.port.name: c.count for c in columns if c.count is not None}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise InputProblem(_WHAT, where, f"the inputs differ in their number of samples: {found}")
    return next(iter(counts.values())) if counts else 1


def check_values(columns: Sequence[Column], name: str) -> None:
    """Cast all values once, in chunks, so that invalid ones are found at the start.  Raises InputProblem."""
    for each in columns:
        if each.count is None:
            cast(each.array, each.port.spec.dtype, f"{name}, input {each.port.name!r}")
            continue
        step = max(1, _CHUNK // max(each.array.nbytes // max(each.count, 1), 1))
        for start in range(0, each.count, step):
            piece = each.array[start : start + step]
            try:
                cast(piece, each.port.spec.dtype, name)
            except InputProblem:
                for index in range(start, min(start + step, each.count)):
                    cast(
                        np.asarray(each.row(index)),
                        each.port.spec.dtype,
                        f"{name}[{index}], input {each.port.name!r}",
                    )
                raise


def build(
    arrays: Mapping[str, np.ndarray],
    layout: BatchLayout,
    name: str,
    where: str,
    labels: Any,
    signature: Signature,
    raw: bool = True,
    mapped: bool = False,
) -> LoadedSource:
    """A source of arrays by input name.

    labels: a sequence, an array or None
    raw:    nothing is preprocessed, so everything can be checked now
    mapped: the values are on disk and are checked as they are read

    Raises InputProblem.
    """
    columns = [column(arrays[p.name], p, f"{where}, input {p.name!r}", raw) for p in layout.ports]
    count = lengths(columns, where)
    notes = [f"{c.port.name!r} is the same for every sample" for c in columns if c.count is None]
    if any(c.count == 1 and c.array.ndim and arrays[c.port.name].ndim < c.array.ndim for c in columns):
        notes.append("the arrays are one sample without a batch axis")
    if labels is None:
        values: list[Any | None] = [None] * count
    else:
        values, more = labelling.normalize_labels(labels, signature, where)
        labelling.check_label_count(values, count, where)
        notes += more
    if raw and not mapped and count:
        check_values(columns, name)
    return LoadedSource(Arrays(columns, values, name), name, notes)


def match_names(
    shapes: Mapping[str, tuple[tuple[int, ...], np.dtype[np.generic]]], layout: BatchLayout, label: str | None
) -> tuple[dict[str, str], list[str]]:
    """The key of each input by name, and notes: a single input takes the only other array that could be it."""
    names = {port.name: port.name for port in layout.ports}
    notes: list[str] = []
    rest = [key for key in shapes if key not in names and key != label]
    if len(layout.ports) == 1 and layout.ports[0].name not in shapes:
        port = layout.ports[0]
        usable = [k for k in rest if is_text(shapes[k][1]) == is_text(port.spec.dtype)]
        if len(usable) == 1:
            names[port.name] = usable[0]
            rest.remove(usable[0])
            notes.append(f"array {usable[0]!r} is input {port.name!r}")
    if rest:
        notes.append(f"not used: {', '.join(rest)}")
    return names, notes


def from_mapping(
    given: Mapping[str, Any],
    signature: Signature,
    layout: BatchLayout,
    name: str,
    labels: Any = None,
    key: str | None = None,
    raw: bool = True,
) -> LoadedSource:
    """A source of arrays in memory.  labels: values; they take precedence over a key among the arrays."""
    arrays: dict[str, np.ndarray] = {}
    for each, value in given.items():
        array = _array(value, f"{name}, {each!r}")
        arrays[str(each)] = array
    label = None if labels is not None else labelling.find_key(list(arrays), layout.names, key, name)
    names, notes = match_names({k: (a.shape, a.dtype) for k, a in arrays.items()}, layout, label)
    missing = [n for n, k in names.items() if k not in arrays]
    if missing:
        raise missing_inputs(missing, arrays, layout, name)
    values = labels if labels is not None else (arrays[label] if label else None)
    loaded = build({n: arrays[k] for n, k in names.items()}, layout, name, name, values, signature, raw)
    loaded.notes[:0] = notes
    return loaded


def _array(value: Any, where: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except Exception as error:
        # ValueError of ragged lists, or whatever a foreign tensor's __array__ raises (TypeError,
        # RuntimeError for a GPU tensor)
        raise InputProblem(
            _WHAT,
            where,
            f"it cannot be converted to an array ({str(error).splitlines()[0]})",
            "give numpy arrays of equal shapes",
        ) from error


def open_npz(
    path: Path, signature: Signature, layout: BatchLayout, key: str | None, raw: bool, trust: bool
) -> LoadedSource:
    """A source of an .npz file with one key per input; only needed arrays are read, uncompressed ones are mapped."""
    known = npfiles.headers(path, trust)
    label = labelling.find_key(list(known), layout.names, key, str(path))
    names, notes = match_names({k: (h.shape, h.dtype) for k, h in known.items()}, layout, label)
    missing = [n for n, k in names.items() if k not in known]
    if missing:
        raise missing_inputs(missing, known, layout, str(path))
    if raw:
        for name, found in names.items():  # wrong sizes are reported before gigabytes are unpacked
            stub = np.broadcast_to(np.zeros((), known[found].dtype), known[found].shape)
            column(stub, layout.port(name), f"{path}, input {name!r}")
    wanted = [*names.values()] + ([label] if label else [])
    loaded = npfiles.load_npz(path, dict.fromkeys(wanted), lazy=True)
    mapped = any(_is_mapped(loaded[k]) for k in names.values())
    result = build(
        {n: loaded[k] for n, k in names.items()},
        layout,
        path.name,
        str(path),
        loaded[label] if label else None,
        signature,
        raw,
        mapped,
    )
    result.notes[:0] = notes
    return result


def _is_mapped(array: np.ndarray) -> bool:
    return isinstance(array.base, np.memmap) or isinstance(array, np.memmap)


def open_npy(path: Path, signature: Signature, layout: BatchLayout, key: str | None, raw: bool) -> LoadedSource:
    """A source of an .npy file for a model with one input, mapped."""
    port = single_port(layout, path, "an .npy file")
    if key is not None:
        raise InputProblem(
            "cannot read the labels",
            path,
            f"an .npy file has no key {key!r}",
            "name a label file, or use .npz",
        )
    array = npfiles.load_npy(path, lazy=True)
    if math.prod(array.shape) == 0:
        raise InputProblem(_WHAT, path, f"the array is empty: shape {text(array.shape)}")
    return build({port.name: array}, layout, path.name, str(path), None, signature, raw, mapped=True)


def single_port(layout: BatchLayout, where: object, what: str) -> Port:
    """The model's only input.  Raises InputProblem where it has several."""
    if len(layout.ports) != 1:
        raise InputProblem(
            _WHAT,
            where,
            f"{what} feeds one input, the model has {len(layout.ports)}: {', '.join(layout.names)}",
            "give an .npz with one key per input",
        )
    return layout.ports[0]
