"""ONNX test data: folders test_data_set_N with input_M.pb, inputs in the order of the graph.

Files output_M.pb hold outputs of some runtime, not labels, and are ignored.  A file with several rows along the batch
axis gives several samples.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import numpy_helper

from onnxpress.data.layout import BatchLayout
from onnxpress.data.readers.files import unreadable
from onnxpress.data.source import LoadedSource, SampleSource
from onnxpress.errors import InputProblem

_WHAT = "cannot use the data"


def sets(folder: Path) -> list[Path]:
    """The test sets in a folder (or the folder itself, where it is one), by number."""
    if (folder / "input_0.pb").is_file():
        return [folder]
    found = [p for p in folder.glob("test_data_set_*") if p.is_dir()]
    return sorted(found, key=lambda p: (_number(p.name), p.name))


def _number(name: str) -> int:
    match = re.search(r"(\d+)$", name)
    return int(match[1]) if match else -1


class ProtoSets(SampleSource):
    """Test sets, one file per input, rows of a file as samples, read on demand."""

    def __init__(self, folders: Sequence[Path], counts: Sequence[int], layout: BatchLayout) -> None:
        self._folders, self._counts, self._layout = folders, counts, layout
        self._ends = list(accumulate(counts))
        self.labels: Sequence[Any | None] = [None] * sum(counts)
        self._last: tuple[int, dict[str, np.ndarray]] | None = None

    def _place(self, index: int) -> tuple[int, int]:
        folder = bisect_right(self._ends, index)
        return folder, index - (self._ends[folder] - self._counts[folder])

    def read(self, index: int) -> dict[str, np.ndarray]:
        folder, row = self._place(index)
        if self._counts[folder] == 1:
            return load(self._folders[folder], self._layout)
        if self._last is None or self._last[0] != folder:
            self._last = (folder, load(self._folders[folder], self._layout))
        return {p.name: _row(self._last[1][p.name], p.axis, row, p.loose) for p in self._layout.ports}

    def key(self, index: int) -> str:
        folder, row = self._place(index)
        name = self._folders[folder].name
        return name if self._counts[folder] == 1 else f"{name}[{row}]"


def _row(value: np.ndarray, axis: int | None, row: int, loose: bool) -> np.ndarray:
    return value if axis is None or loose else np.take(value, [row], axis=axis)


def open_sets(folders: Sequence[Path], name: str, layout: BatchLayout) -> LoadedSource:
    """A source of test sets; every file is read once now, to count its rows.  Raises InputProblem."""
    counts = [_rows(load(folder, layout), layout, folder) for folder in folders]
    notes = ["inputs in the order of the graph"]
    if max(counts) > 1:
        notes.append("rows along the batch axis are samples")
    return LoadedSource(ProtoSets(folders, counts, layout), name, notes)


def load(folder: Path, layout: BatchLayout) -> dict[str, np.ndarray]:
    """The inputs of one test set by name.  Raises InputProblem."""
    values: dict[str, np.ndarray] = {}
    for number, port in enumerate(layout.ports):
        path = folder / f"input_{number}.pb"
        if not path.is_file():
            found = sorted(p.name for p in folder.glob("input_*.pb"))
            raise InputProblem(
                _WHAT,
                folder,
                f"no {path.name} for input {port.name!r}; found {', '.join(found) or 'no input_*.pb'}",
                f"give one file for each of the model's {len(layout.ports)} inputs, in order",
            )
        values[port.name] = _tensor(path)
    extra = folder / f"input_{len(layout.ports)}.pb"
    if extra.is_file():
        raise InputProblem(
            _WHAT,
            extra,
            f"there are more files than the model's {len(layout.ports)} inputs",
            "use the test data of this model",
        )
    return values


def _tensor(path: Path) -> np.ndarray:
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise InputProblem(
                _WHAT,
                path,
                "its values are in another file, which is not read",
                "save it with its values",
            )
        if not tensor.data_type:
            raise ValueError("it is not a tensor (sequences and optionals are not supported)")
        return np.asarray(numpy_helper.to_array(tensor))
    except (DecodeError, ValueError, TypeError, KeyError, OSError) as error:
        raise unreadable(path, error, "expected a TensorProto as onnx.save_tensor writes") from error


def _rows(values: dict[str, np.ndarray], layout: BatchLayout, folder: Path) -> int:
    """Number of samples of a set: the common size along the batch axes of the inputs with full rank."""
    counts: dict[str, int] = {}
    for port in layout.ports:
        value = values[port.name]
        if (
            port.axis is not None
            and not port.loose
            and value.ndim == (port.spec.rank if port.spec.rank is not None else value.ndim)
            and value.ndim
        ):
            counts[port.name] = value.shape[port.axis]
    if len(set(counts.values())) > 1:
        raise InputProblem(
            _WHAT,
            folder,
            f"the inputs differ along the batch axis: {', '.join(f'{n} {c}' for n, c in counts.items())}",
        )
    count = next(iter(counts.values()), 1)
    if not count:
        raise InputProblem(_WHAT, folder, "its arrays are empty")
    return count
