"""Which reader opens which form of data.

.npz .npy                      readers/arrays.py    folder of .npz/.npy     readers/folders.py
folder of images               readers/images.py    folder of sounds        readers/audio.py
test_data_set_N/input_M.pb     readers/protobuf.py  .csv .tsv .parquet      readers/tables.py
.txt .jsonl                    readers/text.py      module:function         readers/callables.py
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxpress.data import labels as labelling
from onnxpress.data.layout import BatchLayout
from onnxpress.data.prepare import ArrayPreprocessing, array_preprocessing_for
from onnxpress.data.preprocessing import read_preprocessing
from onnxpress.data.readers import arrays, audio, callables, folders, images, protobuf, tables, text
from onnxpress.data.readers.files import existing, listing, suffixes
from onnxpress.data.readers.user_function import names_function
from onnxpress.data.source import LoadedSource
from onnxpress.errors import InputProblem
from onnxpress.model.signature import Signature

__all__ = ["SUPPORTED", "ArrayPreprocessing", "OpenRequest", "array_preprocessing", "attach_labels", "load"]

_ARRAYS = (".npz", ".npy")
SUPPORTED = (
    *_ARRAYS,
    *tables.SUFFIXES,
    *text.SUFFIXES,
    "a folder of .npz/.npy, images, sounds or test_data_set_N",
    "module:function",
)
_WHAT = "cannot read the data"


@dataclass(frozen=True)
class OpenRequest:
    """The arguments of open_dataset; see there."""

    signature: Signature
    layout: BatchLayout
    labels: str | None
    preprocess: str | None
    tokenizer: str | Path | None
    trust: bool

    @property
    def label_file(self) -> Path | None:
        return Path(self.labels) if self.labels is not None and labelling.is_file(self.labels) else None

    @property
    def label_key(self) -> str | None:
        return self.labels if self.label_file is None else None

    @property
    def raw(self) -> bool:
        """Whether arrays are fed without preprocessing."""
        return self.preprocess in (None, "raw")


def array_preprocessing(preprocess: str | None, layout: BatchLayout) -> ArrayPreprocessing | None:
    """The preprocessing of arrays that `preprocess` names; None for none.  Raises InputProblem."""
    return None if preprocess is None else array_preprocessing_for(read_preprocessing(preprocess), layout)


def load(
    source: str | Path | Mapping[str, Any] | Iterable[Any], request: OpenRequest, check: callables.Check
) -> LoadedSource:
    """The samples of any supported form, unchecked where reading all of them would take long.  Raises InputProblem."""
    if isinstance(source, str) and names_function(source):
        loaded = callables.open_function(source, request.signature, request.layout, request.label_key, check)
    elif isinstance(source, (str, Path)):
        loaded = _path(existing(Path(source)), request)
    elif isinstance(source, Mapping):
        loaded = arrays.from_mapping(
            source, request.signature, request.layout, "arrays", key=request.label_key, raw=request.raw
        )
    elif isinstance(source, Iterable) and not isinstance(source, bytes):
        loaded = callables.open_iterable(source, "samples", request.signature, request.layout, request.label_key, check)
    else:
        raise InputProblem(
            _WHAT,
            "",
            f"found a {type(source).__name__}",
            f"give {', '.join(SUPPORTED)}, a dict of arrays or an iterable",
        )
    if request.label_file is not None and not _took_labels(loaded):
        attach_labels(loaded, str(request.label_file), request.signature)
    return loaded


def _took_labels(loaded: LoadedSource) -> bool:
    """Whether the reader has already matched the label file to file names."""
    return isinstance(loaded.source, (images.Images, audio.Sounds))


def attach_labels(loaded: LoadedSource, labels: str, signature: Signature) -> None:
    """Give a source the labels of a file, in order (or by file name, for folders of arrays).  Raises InputProblem."""
    if not labelling.is_file(labels):
        raise InputProblem(
            "cannot read the labels",
            labels,
            "this source has no keys or columns",
            f"name a file ({', '.join(labelling.FILES)})",
        )
    path = Path(labels)
    keys = (
        [loaded.source.key(i) for i in range(len(loaded.source))]
        if isinstance(loaded.source, folders.ArrayFiles)
        else None
    )
    values, notes = labelling.read_file(path, keys)
    labelling.check_label_count(values, len(loaded.source), path)
    loaded.source.labels, more = labelling.normalize_labels(values, signature, path)
    loaded.notes += [f"labels from {path.name}", *notes, *more]


def _path(path: Path, request: OpenRequest) -> LoadedSource:
    if path.is_dir():
        return _folder(path, request)
    suffix = path.suffix.lower()
    if path.stat().st_size == 0 and path.is_file():
        raise InputProblem(_WHAT, path, "the file is empty")
    if suffix == ".npz":
        return arrays.open_npz(path, request.signature, request.layout, request.label_key, request.raw, request.trust)
    if suffix == ".npy":
        return arrays.open_npy(path, request.signature, request.layout, request.label_key, request.raw)
    if suffix in tables.SUFFIXES:
        return tables.open_table(path, request.signature, request.layout, request.label_key, request.raw)
    if suffix in text.SUFFIXES:
        return text.open_text(
            path, request.signature, request.layout, request.label_key, request.tokenizer, request.preprocess
        )
    if suffix in images.SUFFIXES or suffix in audio.SUFFIXES or suffix == ".pb":
        raise InputProblem(
            _WHAT,
            path,
            f"a single {suffix} file is one sample",
            f"give its folder: {path.parent}",
        )
    raise InputProblem(
        _WHAT,
        path,
        f"unknown file type {path.suffix!r}" if path.suffix else "the file has no suffix",
        f"use {', '.join(SUPPORTED)}",
    )


def _folder(folder: Path, request: OpenRequest) -> LoadedSource:
    """Samples of the one form that a folder contains; label files are not samples."""
    found = protobuf.sets(folder)
    if found:
        _no_key(request, folder)
        return protobuf.open_sets(found, folder.name, request.layout)
    leave = [request.label_file] if request.label_file is not None else []
    kinds = {
        "arrays": listing(folder, _ARRAYS, leave),
        "images": listing(folder, images.SUFFIXES),
        "sound files": listing(folder, audio.SUFFIXES),
    }
    kinds = {name: files for name, files in kinds.items() if files}
    if len(kinds) > 1:
        counts = " and ".join(f"{len(files)} {name}" for name, files in kinds.items())
        raise InputProblem(_WHAT, folder, f"it contains {counts}", "give a folder of one kind")
    if "arrays" in kinds:
        return folders.open_folder(
            folder, kinds["arrays"], request.signature, request.layout, request.label_key, request.raw, request.trust
        )
    if "images" in kinds:
        _no_key(request, folder)
        return images.open_images(
            folder,
            kinds["images"],
            request.signature,
            request.layout,
            request.label_file,
            request.preprocess,
            request.trust,
        )
    if "sound files" in kinds:
        _no_key(request, folder)
        return audio.open_sounds(
            folder, kinds["sound files"], request.signature, request.layout, request.label_file, request.preprocess
        )
    others = suffixes(folder)
    if not others:
        raise InputProblem(_WHAT, folder, "the folder is empty")
    shown = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in others.most_common(5))
    raise InputProblem(
        _WHAT,
        folder,
        f"no file in it can be read as samples; found {shown}",
        "give a folder of .npz, .npy, images, sounds or test_data_set_N, or one of the files",
    )


def _no_key(request: OpenRequest, folder: Path) -> None:
    if request.label_key is not None:
        raise InputProblem(
            "cannot read the labels",
            request.label_key,
            f"{folder} has no keys or columns",
            f"name a label file ({', '.join(labelling.FILES)})",
        )
