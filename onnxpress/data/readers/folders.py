"""Folders of .npz or .npy files, each with one sample or several, which are read on demand."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from onnxpress.data import labels as labelling
from onnxpress.data.checks import missing_inputs
from onnxpress.data.layout import BatchLayout
from onnxpress.data.readers import npfiles
from onnxpress.data.readers.arrays import Column, column, lengths, match_names, single_port
from onnxpress.data.readers.files import relative
from onnxpress.data.source import LoadedSource, SampleSource
from onnxpress.errors import InputProblem
from onnxpress.model.signature import Signature

_MAX_CACHED = 64 * 2**20  # maximum bytes of the last file's arrays that are kept for the next sample


class ArrayFiles(SampleSource):
    """Samples in files.  names: by file, the key of each input ("" is the array of an .npy file)."""

    def __init__(
        self,
        files: Sequence[Path],
        keys: Sequence[str],
        names: Sequence[dict[str, str]],
        counts: Sequence[int],
        labels: Sequence[Any | None],
        layout: BatchLayout,
        checked: bool,
    ) -> None:
        self._files, self._keys, self._names, self._counts = files, keys, names, counts
        self._ends = list(accumulate(counts))
        self.labels, self._layout, self._checked = labels, layout, checked
        self._last: tuple[int, list[Column]] | None = None

    def _place(self, index: int) -> tuple[int, int]:
        file = bisect_right(self._ends, index)
        return file, index - (self._ends[file] - self._counts[file])

    def read(self, index: int) -> dict[str, np.ndarray]:
        file, row = self._place(index)
        if self._last is None or self._last[0] != file:
            columns = self._columns(file)
            small = sum(c.array.nbytes for c in columns) <= _MAX_CACHED
            self._last = (file, columns) if small else None
        else:
            columns = self._last[1]
        return {c.port.name: np.asarray(c.row(row)) for c in columns}

    def _columns(self, file: int) -> list[Column]:
        path, names = self._files[file], self._names[file]
        if path.suffix.lower() == ".npy":
            arrays = {"": npfiles.load_npy(path, lazy=True)}
        else:
            arrays = npfiles.load_npz(path, names.values(), lazy=True)
        columns = [
            column(arrays[names[p.name]], p, f"{path}, input {p.name!r}", self._checked) for p in self._layout.ports
        ]
        if lengths(columns, str(path)) != self._counts[file]:
            raise InputProblem("cannot use the data", path, "the file changed while it was in use")
        return columns

    def key(self, index: int) -> str:
        file, row = self._place(index)
        return self._keys[file] if self._counts[file] == 1 else f"{self._keys[file]}[{row}]"


def open_folder(
    folder: Path,
    files: Sequence[Path],
    signature: Signature,
    layout: BatchLayout,
    key: str | None,
    raw: bool,
    trust: bool,
) -> LoadedSource:
    """A source of the .npz and .npy files of a folder; their sizes and element types are checked now.

    Raises InputProblem.
    """
    keys = relative(folder, files)
    names: list[dict[str, str]] = []
    counts: list[int] = []
    values: list[Any | None] = []
    notes: list[str] = []
    for path in files:
        if path.suffix.lower() == ".npy":
            port = single_port(layout, path, "an .npy file")
            if key is not None:
                raise InputProblem(
                    "cannot read the labels",
                    path,
                    f"an .npy file has no key {key!r}",
                    "name a label file, or use .npz",
                )
            known, mine, label = {"": npfiles.header_npy(path)}, {port.name: ""}, None
        else:
            known = npfiles.headers(path, trust)
            label = labelling.find_key(list(known), layout.names, key, str(path))
            mine, more = match_names({k: (h.shape, h.dtype) for k, h in known.items()}, layout, label)
            missing = [n for n, k in mine.items() if k not in known]
            if missing:
                raise missing_inputs(missing, known, layout, str(path))
            notes += more
        columns = [
            column(
                np.broadcast_to(np.zeros((), known[mine[p.name]].dtype), known[mine[p.name]].shape),
                p,
                f"{path}, input {p.name!r}",
                raw,
            )
            for p in layout.ports
        ]
        count = lengths(columns, str(path))
        if not count:
            raise InputProblem("cannot use the data", path, "it has no samples")
        names.append(mine)
        counts.append(count)
        values += _labels(path, label, count)
    tidied, more = labelling.normalize_labels(values, signature, folder)
    notes += more
    if max(counts) > 1:
        notes.append("first axis of each file is samples")
    return LoadedSource(
        ArrayFiles(files, keys, names, counts, tidied, layout, raw), folder.name, list(dict.fromkeys(notes))
    )


def _labels(path: Path, label: str | None, count: int) -> list[Any | None]:
    if label is None:
        return [None] * count
    array = npfiles.load_npz(path, [label])[label]
    if count == 1 and (array.ndim == 0 or len(array) != 1):
        return [array]
    rows = list(array) if array.ndim else [array]
    labelling.check_label_count(rows, count, path)
    return rows
