"""Datasets: lazy, re-iterable, immutable, checked against the model's inputs as they are read.

`open_dataset` accepts every supported form of data (listed in opening.py); the rest of the tool works with `Dataset`.
A dataset is a view (some indices) of a source that reads one sample at a time, so the parts of a split share files,
caches and digests, and memory does not depend on the number of samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from onnxpress.data import opening
from onnxpress.data.batch import Batch, Sample, can_stack, stack
from onnxpress.data.checks import cast_note, conform
from onnxpress.data.class_names import number_names, read_class_names
from onnxpress.data.digest import digest, inputs_digest
from onnxpress.data.layout import BatchLayout, batch_layout
from onnxpress.data.readers.arrays import from_mapping
from onnxpress.data.source import LoadedSource, SampleSource
from onnxpress.errors import InputProblem
from onnxpress.model.signature import Signature

__all__ = ["FEW", "Batch", "Dataset", "Reading", "Sample", "Splits", "dataset_from_source", "open_dataset"]

FEW = 100  # samples, below which three parts decide nothing


@dataclass(frozen=True)
class Reading:
    """How samples were read.

    numbered: names of classes that were numbered by their order, as nobody said their numbers
    files:    whether they are files of pictures, which a reader has preprocessed
    again:    opens the samples once more with another preprocessing; None where one was asked for, or where they can be
              read only once
    """

    numbered: tuple[str, ...] = ()
    files: bool = False
    again: Callable[[str], Dataset] | None = None


@dataclass(frozen=True)
class Splits:
    """Disjoint parts: `calibrate` for statistics, `select` for choices, `validate` used once, at the end.

    crossed: whether there are too few samples for three parts. Then they are two halves, and `select` and `validate`
    the same: what is made from one half is judged on the other, and at the end the other way round as well.
    """

    calibrate: Dataset
    select: Dataset
    validate: Dataset
    crossed: bool = False


@dataclass
class _Store:
    """A source and what its views share: the layout, the preprocessing, the digests computed so far."""

    source: SampleSource
    layout: BatchLayout
    prepare: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None
    digests: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)

    def sample(self, index: int, raw: dict[str, np.ndarray]) -> Sample:
        key = self.source.key(index)
        return Sample(preprocess_and_check(raw, self.layout, key, self.prepare), self.source.labels[index], key)


def preprocess_and_check(
    raw: dict[str, np.ndarray],
    layout: BatchLayout,
    key: str,
    prepare: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None,
) -> dict[str, np.ndarray]:
    """Raw arrays, preprocessed and checked.  Raises InputProblem with the sample's key."""
    if prepare is not None:
        try:
            raw = prepare(raw)
        except InputProblem as problem:
            raise InputProblem(
                problem.what, f"{key}, {problem.where}" if problem.where else key, problem.why, problem.hint
            ) from problem
    return conform(raw, layout, key)


class Dataset:
    """The samples of one model.  Made by open_dataset or Dataset.from_arrays, not by its constructor."""

    def __init__(
        self,
        name: str,
        signature: Signature,
        store: _Store,
        indices: Sequence[int],
        assumed: tuple[str, ...],
        reading: Reading = Reading(),
    ) -> None:
        """reading: how the samples were read."""
        self.name, self.signature, self.assumed, self.reading = name, signature, assumed, reading
        self.doubts: tuple[str, ...] | None = None  # why they may be wrong, where that was looked at
        self._store, self._indices = store, indices
        self._hash: str | None = None

    @classmethod
    def from_arrays(
        cls, inputs: Mapping[str, np.ndarray], signature: Signature, labels: Any = None, name: str = "arrays"
    ) -> Dataset:
        """A dataset of arrays in memory, first axis samples.  Raises InputProblem."""
        layout = batch_layout(signature)
        return dataset_from_source(
            from_mapping(inputs, signature, layout, name, labels=labels), signature, layout, None
        )

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Sample]:
        for index, raw in self._store.source.scan(self._indices):
            yield self._store.sample(index, raw)

    def __getitem__(self, index: int) -> Sample:
        position = self._indices[index]
        return self._store.sample(position, self._store.source.read(position))

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {len(self)} samples{', labelled' if self.labelled else ''})"

    @property
    def labels(self) -> list[Any | None]:
        """One entry per sample; None where unlabelled."""
        every = self._store.source.labels
        return [every[i] for i in self._indices]

    @property
    def labelled(self) -> bool:
        """Whether at least one sample has a label."""
        every = self._store.source.labels
        return any(every[i] is not None for i in self._indices)

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of all inputs and labels, independent of their order.  The first use reads every sample."""
        if self._hash is None:
            both = sorted(first + second for first, second in self._digests())
            self._hash = hashlib.sha256(b"".join(both)).hexdigest()
        return self._hash

    def _digests(self) -> list[tuple[bytes, bytes]]:
        """(inputs, label) digest of every sample; cached, so that the parts of a split do not read them again."""
        known = self._store.digests
        missing = [i for i in self._indices if i not in known]
        for index, raw in self._store.source.scan(missing):
            sample = self._store.sample(index, raw)
            known[index] = (inputs_digest(sample.inputs), digest(sample.label))
        return [known[i] for i in self._indices]

    def take(self, count: int) -> Dataset:
        """At most `count` samples, one from each of `count` equal stretches of the set, always the same ones.

        The position inside a stretch varies, so that periodic sets (classes in turn) are not sampled at one phase.
        """
        if count < 0:
            raise InputProblem("cannot take samples", self.name, f"{count} is negative")
        size = len(self)
        if count >= size:
            return self
        rng = np.random.default_rng([size, count])
        edges = [i * size // count for i in range(count + 1)] if count else [0]
        return self.select([int(rng.integers(low, high)) for low, high in pairwise(edges)])

    def select(self, indices: Sequence[int]) -> Dataset:
        """The samples at these positions, in this order."""
        return Dataset(
            self.name, self.signature, self._store, [self._indices[i] for i in indices], self.assumed, self.reading
        )

    def position(self, index: int) -> int:
        """The number of a sample in the source."""
        return self._indices[index]

    def batches(self, size: int) -> Iterator[Batch]:
        """Consecutive samples of equal shapes, stacked, at most `size` in a batch.

        A model with a fixed batch size always gets exactly that many rows; a model whose inputs cannot be stacked gets
        one sample at a time.
        """
        if size < 1:
            raise InputProblem("cannot make batches", self.name, f"the batch size is {size}", "use 1 or more")
        layout = self._store.layout
        rows = layout.batch or 1
        size = 1 if layout.alone else (layout.batch or size)
        group: list[Sample] = []
        for sample in self:
            if group and (len(group) == size or not can_stack(group[-1], sample, layout)):
                yield stack(group, layout, rows)
                group = []
            group.append(sample)
        if group:
            yield stack(group, layout, rows)

    def split(self, fractions: tuple[float, float, float] = (0.4, 0.3, 0.3)) -> Splits:
        """Three disjoint parts, by the content of the inputs.

        The split is independent of the order of the samples, and duplicates (with other labels as well) are in the same
        part.  Reads every sample once.

        Raises InputProblem where there are fewer than three distinct samples.
        """
        if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
            raise InputProblem(
                "cannot split the data",
                self.name,
                f"the fractions {tuple(fractions)} are not three positive numbers of sum 1",
            )
        if len(self) < 3:
            raise self._too_few(len(self))
        digests = [first for first, _ in self._digests()]
        distinct = sorted(set(digests))
        total = len(distinct)
        if total < 3:
            raise self._too_few(total)
        first = min(max(round(fractions[0] * total), 1), total - 2)
        second = min(max(round((fractions[0] + fractions[1]) * total), first + 1), total - 1)
        part = {d: (0 if i < first else 1 if i < second else 2) for i, d in enumerate(distinct)}
        chosen: tuple[list[int], list[int], list[int]] = ([], [], [])
        for position, own in enumerate(digests):
            chosen[part[own]].append(position)
        first_part, second_part, third_part = (self.select(indices) for indices in chosen)
        return Splits(first_part, second_part, third_part)

    def parts(self) -> Splits:
        """`split`, or two halves for cross-validation where three parts would be too small to decide anything.

        Raises InputProblem where there are fewer than three distinct samples.
        """
        if len(self) >= FEW:
            return self.split()
        three = self.split((0.5, 0.25, 0.25))
        rest = self.select([self._place[i] for part in (three.select, three.validate) for i in part._indices])
        return Splits(three.calibrate, rest, rest, crossed=True)

    @cached_property
    def _place(self) -> dict[int, int]:
        """The position in this set of each sample of the source."""
        return {index: position for position, index in enumerate(self._indices)}

    def _too_few(self, count: int) -> InputProblem:
        return InputProblem(
            "cannot split the data",
            self.name,
            f"three parts (calibrate, select, validate) need at least 3 distinct samples, found {count}",
            "give more samples, or name the parts with `select` and `validate`",
        )


def open_dataset(
    source: str | Path | Mapping[str, np.ndarray] | Iterable[Any] | Dataset,
    signature: Signature,
    *,
    labels: str | None = None,
    preprocess: str | None = None,
    tokenizer: str | Path | None = None,
    classes: str | Path | Mapping[str, int] | None = None,
    trust: bool = False,
) -> Dataset:
    """Open samples of any supported form; the first one is checked, and all of them where that is cheap.

    source:     a path, "module:function", "file.py:function", arrays by input name, an iterable, or a Dataset
    signature:  of the model that the samples are for
    labels:     a label file (.npy, .npz, .csv, .txt), or the key or column of the labels
    preprocess: the name of a preprocessing, a TOML file, or "module:function"
    tokenizer:  tokenizer.json, for text
    classes:    the number of each class by its name, or a file of class names (see `read_class_names`); None: names are
                numbered in sorted order
    trust:      lift the size limits that protect from malicious images and archives

    Raises InputProblem (wrong data) or EnvironmentProblem (a missing package, no memory).

    >>> data = onnxpress.open_dataset("samples.npz", onnxpress.signature(onnxpress.load("model.onnx")))
    """
    layout = batch_layout(signature)
    if not signature.inputs:
        raise InputProblem("cannot read the data", "", "the model has no inputs")
    known = read_class_names(classes) if isinstance(classes, (str, Path)) else dict(classes or {})
    if isinstance(source, Dataset):
        if source.signature == signature and labels is None and preprocess is None and classes is None:
            return source
        loaded = LoadedSource(_View(source), source.name, list(source.assumed))
        if labels is not None:
            opening.attach_labels(loaded, labels, signature)
        return dataset_from_source(
            loaded, signature, layout, opening.array_preprocessing(preprocess, layout), known, source.reading
        )
    request = opening.OpenRequest(signature, layout, labels, preprocess, tokenizer, trust)
    prepare = opening.array_preprocessing(preprocess, layout)
    loaded = opening.load(source, request, lambda raw, key: preprocess_and_check(raw, layout, key, prepare))
    once = preprocess is not None or not isinstance(source, (str, Path, Mapping))

    def again(name: str) -> Dataset:
        return open_dataset(
            source, signature, labels=labels, preprocess=name, tokenizer=tokenizer, classes=classes, trust=trust
        )

    reading = Reading(files=loaded.ready, again=None if once else again)
    return dataset_from_source(loaded, signature, layout, None if loaded.ready else prepare, known, reading)


class _View(SampleSource):
    """A dataset as a source, for reading its samples with another signature."""

    def __init__(self, data: Dataset) -> None:
        self._data = data
        self.labels = data.labels

    def read(self, index: int) -> dict[str, np.ndarray]:
        return self._data[index].inputs

    def key(self, index: int) -> str:
        return self._data._store.source.key(self._data._indices[index])

    def scan(self, indices: Iterable[int]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        wanted = list(indices)
        for index, sample in zip(wanted, self._data.select(wanted), strict=True):
            yield index, sample.inputs


def dataset_from_source(
    loaded: LoadedSource,
    signature: Signature,
    layout: BatchLayout,
    prepare: opening.ArrayPreprocessing | None,
    classes: Mapping[str, int] | None = None,
    reading: Reading = Reading(),
) -> Dataset:
    """A dataset of all samples of a source; the first one is checked.  Raises InputProblem.

    classes: the number of each class by its name. reading: how they were read so far.
    """
    if not len(loaded.source):
        raise InputProblem("cannot read the data", loaded.name, "it has no samples")
    labels, numbered, said = number_names(loaded.source.labels, classes or {}, loaded.class_names, loaded.name)
    loaded.source.labels = labels
    reading = replace(reading, numbered=numbered or reading.numbered)
    store = _Store(loaded.source, layout, prepare)
    raw = loaded.source.read(0)
    store.sample(0, raw)
    notes = [*loaded.notes, *said]
    if prepare is not None:
        notes += prepare.notes(raw)
        raw = prepare(raw)
    for port in layout.ports:
        note = cast_note(np.asarray(raw[port.name]).dtype, port.spec.dtype, port.name)
        if note:
            notes.append(note)
    return Dataset(loaded.name, signature, store, range(len(loaded.source)), tuple(dict.fromkeys(notes)), reading)
