"""Measurements of one model on one set of samples, computed on first use and kept.

An Evidence belongs to one model in canonical form.  Everything is streamed: memory depends on the model and the batch,
not on the number of samples.  Results that are small and slow to compute are also cached on disk (`cache.py`), so that
a second command on the same file and samples, or a resumed run, does not measure them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar, cast

import numpy as np
import onnx_ir as ir
from onnxruntime import InferenceSession

from onnxpress.data.dataset import Dataset
from onnxpress.data.layout import batch_layout
from onnxpress.errors import InputProblem
from onnxpress.measure.cache import Arrays, Cache, cache_key, user_cache
from onnxpress.measure.model_inputs import synthetic_samples
from onnxpress.measure.quality import QualityOptions
from onnxpress.model import read
from onnxpress.model.channels.groups import Channels, find_channel_groups
from onnxpress.model.files import model_hash
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.model.normal_forms.float_types import fold_casts
from onnxpress.model.normal_forms.tied_weights import fold_transposes
from onnxpress.model.signature import Signature, signature
from onnxpress.model.trace import Trace
from onnxpress.runtime.machine import Machine, this_machine
from onnxpress.runtime.session import all_cores, open_session, run, tap, trace

_PROBES = 8  # samples that are looked at for one that leaves no tensor empty
_STREAM_BYTES = 48 * 2**20  # of intermediate values held at once
T = TypeVar("T")


class EvidenceKey(Generic[T]):
    """The typed key of a value that is derived from evidence and kept with it; a constant of the deriving module."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"EvidenceKey({self.name!r})"


@dataclass
class Evidence:
    """Measurements of a model.

    model:    in canonical form
    data:     calibration samples; None: only exact passes can run
    machine:  that the result is for
    seed:     of everything random
    cache:    on disk
    original: the model a plan began with, as the user gave it, for passes that refer to it
    whole:    the evidence whose samples these are a part of
    quality:  how results are judged
    """

    model: ir.Model
    data: Dataset | None = None
    machine: Machine = field(default_factory=this_machine)
    seed: int = 0
    cache: Cache = field(default_factory=user_cache)
    original: ir.Model | None = None
    whole: Evidence | None = None
    quality: QualityOptions = field(default_factory=QualityOptions)
    _derived: dict[EvidenceKey[Any], Any] = field(default_factory=dict, repr=False)

    @cached_property
    def signature(self) -> Signature:
        return signature(self.model)

    @cached_property
    def trace(self) -> Trace:
        """Shapes and small values at one sample (synthetic without data)."""
        return trace(self.model, self.probe) if self.whole is None else self.whole.trace

    @cached_property
    def probe(self) -> dict[str, np.ndarray]:
        """The feeds of one sample: the first.

        Where sizes depend on values, or the first sample has an empty input (a cache before its first step), it is the
        first of a few that leaves as few tensors empty as any: nothing can be told from a tensor without values.
        """
        source = self.data if self.data is not None and len(self.data) else None
        source = (
            source.select(range(min(_PROBES, len(source))))
            if source is not None
            else synthetic_samples(self.model, _PROBES, self.seed)
        )
        batches = source.batches(1)
        first = next(batches).inputs
        if all(array.size for array in first.values()) and not read.sizes_depend_on_values(self.model):
            return first
        return _least_empty(self.model, [first, *(rows.inputs for rows in batches)])

    @cached_property
    def channels(self) -> Channels:
        """Groups of removable channels."""
        return find_channel_groups(self.model, self.trace)

    @cached_property
    def batchable(self) -> bool:
        """Whether two samples in one batch give the same outputs as separately (not so with a fixed batch of 1)."""
        return (
            supports_batching(self.model, self.probe, self.signature, self._other)
            if self.whole is None
            else self.whole.batchable
        )

    def batchable_in(self, session: InferenceSession, names: Sequence[str]) -> bool:
        """`batchable`, determined in an open session.  names: of the model's own outputs in it."""
        if self.whole is not None:
            return self.whole.batchable_in(session, names)
        if "batchable" not in self.__dict__:
            self.batchable = signature_allows_batching(self.signature) and batching_agrees(
                session, self.probe, self.signature, self._other, names
            )
        return self.batchable

    @property
    def _other(self) -> dict[str, np.ndarray] | None:
        """The feeds of another sample than the probe's."""
        if self.data is None or len(self.data) < 2:
            return None
        return next(iter(self.data.select([len(self.data) - 1]).batches(1))).inputs

    @cached_property
    def identity(self) -> str:
        """The cache key of everything that measurements depend on: model, samples, seed and machine."""
        machine = f"{self.machine.model} {self.machine.arch} {self.machine.isa} {self.machine.onnxruntime}"
        data = self.data.hash if self.data is not None else "none"
        return cache_key(model_hash(self.model), data, str(self.seed), machine)

    def derive(self, key: EvidenceKey[T], make: Callable[[], T]) -> T:
        """The value kept under a key; computed by `make` on first use."""
        if key not in self._derived:
            self._derived[key] = make()
        return cast(T, self._derived[key])

    def put(self, key: EvidenceKey[T], value: T) -> None:
        """Keep a value under a key."""
        self._derived[key] = value

    def get(self, key: EvidenceKey[T]) -> T | None:
        """What is kept under a key, or None."""
        return cast("T | None", self._derived.get(key))

    def observed(self, what: str, measure: Callable[[], Arrays]) -> Arrays:
        """Arrays that `measure` computes from the samples, from the user's cache where they are there.

        what: identifies the measurement and its settings
        """
        if self.cache.folder is None:  # no key is needed, which would read every sample
            return measure()
        key = cache_key(self.identity, what)
        found = self.cache.get(key)
        if found is None:
            found = measure()
            self.cache.put(key, found)
        return found

    @cached_property
    def halves(self) -> tuple[Evidence, Evidence] | None:
        """Evidence of the same model on every second sample, and on the others; None with fewer than two samples."""
        count = len(self.samples())
        if count < 2:
            return None
        first, second = (self._on(self.samples().select(range(start, count, 2))) for start in (0, 1))
        return first, second

    def part(self, count: int) -> Evidence:
        """Evidence of the same model on so many of the samples, evenly drawn; itself where there are no more."""
        have = len(self.samples())
        if have <= count:
            return self
        return self._on(self.samples().select([int(i) for i in np.linspace(0, have - 1, count)]))

    def _on(self, part: Dataset) -> Evidence:
        return Evidence(self.model, part, self.machine, self.seed, cache=self.cache, whole=self, quality=self.quality)

    def samples(self) -> Dataset:
        """The calibration samples.  Raises InputProblem without data."""
        if self.data is None:
            raise InputProblem("this pass needs samples", "", "no data was given", "give `data`")
        return self.data

    def stream(self, names: Sequence[str], limit: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        """The named intermediate values, batch by batch, without padding.  limit: maximum number of samples."""
        data = self.samples() if limit is None else self.samples().take(limit)
        yield from stream(self.model, names, data, self.batch_for(names))

    def batch_for(self, names: Sequence[str]) -> int:
        """Samples per batch such that the named values fit in _STREAM_BYTES."""
        if not self.batchable:
            return 1
        each = sum(4 * int(np.prod(self.trace.shapes.get(n, (1,)))) for n in names)
        return int(max(1, min(16, _STREAM_BYTES // max(each, 1))))


def _least_empty(model: ir.Model, several: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The first of several feeds whose run leaves the fewest tensors empty."""
    empty = []
    for feeds in several:
        empty.append(sum(0 in shape for shape in trace(model, feeds).shapes.values()))
        if not empty[-1]:
            break
    return several[empty.index(min(empty))]


def supports_batching(
    model: ir.Model, feeds: dict[str, np.ndarray], sig: Signature, other: dict[str, np.ndarray] | None = None
) -> bool:
    """Whether two samples (one sample twice without `other`) give the same outputs in one batch as separately."""
    if not signature_allows_batching(sig):
        return False
    try:
        return batching_agrees(open_session(model, all_cores()), feeds, sig, other)
    except InputProblem:
        return False


def signature_allows_batching(sig: Signature) -> bool:
    """Whether the declared shapes allow more than one sample."""
    layout = batch_layout(sig)
    return layout.batch is None and not layout.alone and any(p.axis is not None for p in layout.ports)


def batching_agrees(
    session: InferenceSession,
    feeds: dict[str, np.ndarray],
    sig: Signature,
    other: dict[str, np.ndarray] | None = None,
    names: Sequence[str] | None = None,
) -> bool:
    """Whether two samples give the same outputs in one batch as separately.  names: outputs to compare (None: all)."""
    second = other if other is not None and all(other[k].shape == v.shape for k, v in feeds.items()) else feeds
    try:
        alone = [run(session, feeds, names), run(session, second, names)]
        both = run(session, stack_feeds(feeds, second, sig), names)
    except InputProblem:
        return False
    return all(_equal(np.concatenate([a, b]) if a.ndim else a, c) for a, b, c in zip(*alone, both, strict=True))


def _equal(wanted: np.ndarray, found: np.ndarray) -> bool:
    if wanted.shape != found.shape:
        return False
    if wanted.dtype.kind in "fc":
        return bool(np.allclose(wanted, found, rtol=1e-2, atol=1e-3, equal_nan=True))
    return bool(np.array_equal(wanted, found))


def stack_feeds(one: Mapping[str, np.ndarray], two: Mapping[str, np.ndarray], sig: Signature) -> dict[str, np.ndarray]:
    """Two samples stacked along the batch axis of each input."""
    axes = {p.name: p.axis for p in batch_layout(sig).ports}
    return {k: v if axes[k] is None else np.concatenate([v, two[k]], axis=axes[k]) for k, v in one.items()}


def repeat_feeds(feeds: Mapping[str, np.ndarray], sig: Signature, count: int) -> dict[str, np.ndarray]:
    """One sample repeated `count` times along the batch axis of each input."""
    axes = {p.name: p.axis for p in batch_layout(sig).ports}
    return {k: v if axes[k] is None else np.concatenate([v] * count, axis=axes[k]) for k, v in feeds.items()}


def stream(model: ir.Model, names: Sequence[str], data: Dataset, batch: int) -> Iterator[dict[str, np.ndarray]]:
    """The named values of a model on samples, batch by batch, without the padding of a fixed batch."""
    session = tap(model, names)
    fixed = batch_layout(data.signature).batch or 1
    for part in data.batches(batch):
        values = run(session, part.inputs, where=part.keys[0])
        padded = part.count < fixed
        yield {
            name: value[: part.count] if padded and value.ndim and value.shape[0] == fixed else value
            for name, value in zip(names, values, strict=True)
        }


def evidence_for(
    model: ir.Model,
    data: Dataset | None,
    machine: Machine | None = None,
    seed: int = 0,
    original: ir.Model | None = None,
    quality: QualityOptions | None = None,
) -> Evidence:
    """Evidence of a model in canonical form (the form passes edit)."""
    chosen = quality or QualityOptions()
    work = canonical(model)
    fold_casts(work)
    fold_transposes(work)
    return Evidence(work, data, machine or this_machine(), seed, original=original, quality=chosen)
