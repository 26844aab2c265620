"""Training batches with the teacher's values, as a function of (seed, step).

Samples are kept in memory where they fit and read again otherwise.  The teacher runs in onnxruntime on all cores: once
per sample without augmentation (values are cached where they fit), and on every augmented batch with augmentation.
Augmented batches repeat after DISTINCT_SAMPLES samples, too many for a student to memorize, so that the teacher's
values can be cached in a long training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.data.dataset import Dataset
from onnxpress.data.layout import batch_layout
from onnxpress.measure.evidence import supports_batching
from onnxpress.model.signature import signature
from onnxpress.runtime.session import run, tap
from onnxpress.train.augment import Augmentation
from onnxpress.train.distillation.output_heads import one_hot_labels

CACHE_BYTES = 512 * 2**20
DISTINCT_SAMPLES = 200_000  # augmented samples before they repeat

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class TeacherBatch:
    """A batch, or a part of one.

    inputs: arrays by input name.
    targets: the teacher's values by name.
    labels: class distributions [N, K], or None.
    weight: of its loss in the step.
    """

    inputs: Arrays
    targets: Arrays
    labels: np.ndarray | None
    weight: float


class SamplePool:
    """Random access to the samples of a dataset, in batches of equal shapes.

    classes: number of classes of the labels; 0 ignores the labels.
    """

    def __init__(self, data: Dataset, classes: int = 0) -> None:
        self.data = data
        where = batch_layout(data.signature)
        self.axes = {p.name: p.axis for p in where.ports}
        self.fixed = where.batch
        self.alone = where.alone or (where.batch or 0) == 1
        first = data[0].inputs
        size = sum(a.nbytes for a in first.values()) * len(data)
        self._cached: list[Arrays] | None = [s.inputs for s in data] if size <= CACHE_BYTES else None
        self.labels = one_hot_labels(data.labels, classes) if classes and data.labelled else None
        self.buckets = self._buckets(len(data))

    def sample(self, index: int) -> Arrays:
        """The inputs of one sample."""
        return self._cached[index] if self._cached is not None else self.data[index].inputs

    def _buckets(self, count: int) -> list[np.ndarray]:
        """Sample indices grouped by the shapes of the inputs and by the values of the unbatched ones."""
        by_shape: dict[tuple[object, ...], list[int]] = {}
        for i in range(count):
            inputs = self.sample(i)
            unbatched = tuple(v.tobytes() for n, v in inputs.items() if self.axes[n] is None)
            by_shape.setdefault((*(v.shape for v in inputs.values()), *unbatched), []).append(i)
        return [np.array(b) for b in by_shape.values()]

    def stack(self, indices: Sequence[int]) -> Arrays:
        """The samples as one batch."""
        samples = [self.sample(i) for i in indices]
        return {
            n: np.array(samples[0][n]) if axis is None else np.concatenate([s[n] for s in samples], axis=axis)
            for n, axis in self.axes.items()
        }


class BatchOrder:
    """The samples of each step: shuffled in every epoch, drawn from (seed, epoch)."""

    def __init__(self, buckets: Sequence[np.ndarray], batch: int, seed: int) -> None:
        self.buckets, self.batch, self.seed = buckets, batch, seed
        self.steps = sum(self._batches_of(len(b)) for b in buckets)
        self._epoch = -1
        self._batches: list[np.ndarray] = []

    def _batches_of(self, size: int) -> int:
        """Number of batches that a bucket gives in an epoch."""
        return max(1, size // self.batch)

    def at(self, step: int) -> np.ndarray:
        """Sample indices of a step (0-based).  Samples of a bucket that do not fill a batch are left out in that
        epoch.
        """
        epoch, place = divmod(step, self.steps)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, 1, epoch])
            batches = []
            for bucket in self.buckets:
                shuffled = rng.permutation(bucket)
                count = self._batches_of(len(bucket))
                batches += [shuffled[i * self.batch : (i + 1) * self.batch] for i in range(count)]
            self._batches = [batches[i] for i in rng.permutation(len(batches))]
            self._epoch = epoch
        return self._batches[place]


class Teacher:
    """Runs a model and returns the named values, batch axis first."""

    def __init__(self, model: ir.Model, names: Sequence[str], data: Dataset) -> None:
        self.names = tuple(dict.fromkeys(names))
        self._session = tap(model, self.names)
        sig = signature(model)
        first = data[0].inputs
        other = data[len(data) - 1].inputs
        self.batches = supports_batching(model, first, sig, other)
        self.axes = {p.name: p.axis for p in batch_layout(sig).ports}

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        count = batch_size(inputs, self.axes)
        if count == 1 or self.batches:
            return dict(zip(self.names, run(self._session, inputs), strict=True))
        each = [run(self._session, single_sample(inputs, self.axes, i)) for i in range(count)]
        return {n: np.concatenate([e[k] for e in each]) for k, n in enumerate(self.names)}


def batch_size(inputs: Mapping[str, np.ndarray], axes: Mapping[str, int | None]) -> int:
    """Number of samples in a batch.  axes: the batch axis by input name."""
    return next((inputs[n].shape[a] for n, a in axes.items() if a is not None), 1)


def single_sample(inputs: Mapping[str, np.ndarray], axes: Mapping[str, int | None], index: int) -> Arrays:
    """One sample of a batch, with its batch axis."""
    return {n: v if (a := axes[n]) is None else np.take(v, [index], axis=a) for n, v in inputs.items()}


class TeacherCache:
    """The teacher's values on augmented batches of one dataset, shared by trainings with the same batches.

    capacity: bytes of values to keep.
    """

    def __init__(self, capacity: int = CACHE_BYTES) -> None:
        self._free = capacity
        self._values: dict[tuple[object, ...], Arrays] = {}

    def get(self, key: tuple[object, ...], compute: Callable[[], Arrays]) -> Arrays:
        """The values stored under the key; computed where missing, and stored while there is capacity."""
        values = self._values.get(key)
        if values is None:
            values = compute()
            size = sum(v.nbytes for v in values.values())
            if size <= self._free:
                self._free -= size
                self._values[key] = values
        return values


def repeat_period(pool: SamplePool, order: BatchOrder, augmentations: Sequence[str]) -> int:
    """Number of steps after which batches repeat: one epoch without augmentation, several with it."""
    return order.steps * (-(-DISTINCT_SAMPLES // len(pool.data)) if augmentations else 1)


class TeacherBatches:
    """Batches as a function of the step.

    Calling it with a step yields the parts of the batch, normally one; a student that accepts single samples only gets
    one part per sample.

    pool: the samples.
    teacher: gives the targets.
    batch: samples per step.
    seed: of the sample order and the augmentation.
    augmentation: of the inputs (default: none).
    batched: whether the student accepts batches.
    steps: of the whole training, which uses a cache of its own where batches repeat within them.
    cache: shared with other trainings.
    """

    def __init__(
        self,
        pool: SamplePool,
        teacher: Teacher,
        batch: int,
        seed: int,
        augmentation: Augmentation | None = None,
        batched: bool = True,
        steps: int = 0,
        cache: TeacherCache | None = None,
    ) -> None:
        self.pool, self.teacher, self.seed = pool, teacher, seed
        self.augmentation = augmentation or Augmentation()
        self.batched = batched and not pool.alone
        self.order = BatchOrder(pool.buckets, min(batch, len(pool.data)), seed)
        self.period = repeat_period(pool, self.order, self.augmentation.names)
        self._cache = cache or TeacherCache(CACHE_BYTES if steps > self.period else 0)
        self._key = (teacher.names, self.augmentation.names, self.order.batch, seed)
        self._by_sample = None if self.augmentation.names else self._empty_table()

    def _empty_table(self) -> list[Arrays | None] | None:
        """A table for the teacher's values of each sample; None where they do not fit or are not one row per sample."""
        first = self.teacher(self.pool.sample(0))
        size = sum(v.nbytes for v in first.values()) * len(self.pool.data)
        by_row = all(v.ndim and v.shape[0] == 1 for v in first.values())
        return [None] * len(self.pool.data) if by_row and size <= CACHE_BYTES else None

    def __call__(self, step: int) -> Iterator[TeacherBatch]:
        step = step % self.period if self.augmentation.names else step
        indices = self.order.at(step).tolist()
        if self.batched or len(indices) == 1:
            yield self._part(indices, step, 1.0)
            return
        for place, index in enumerate(indices):
            yield self._part([index], step, 1.0 / len(indices), place)

    def _part(self, indices: list[int], step: int, weight: float, place: int = 0) -> TeacherBatch:
        inputs = self.pool.stack(indices)
        labels = None if self.pool.labels is None else self.pool.labels[indices]
        if not self.augmentation.names:
            return TeacherBatch(inputs, self._targets(indices, inputs), labels, weight)
        rng = np.random.default_rng([self.seed, 2, step, place])
        inputs, mix = self.augmentation.apply(inputs, rng)
        if labels is not None and mix is not None:
            labels = (mix @ labels).astype(np.float32)
        targets = self._cache.get((*self._key, step, place), lambda: self.teacher(inputs))
        return TeacherBatch(inputs, targets, labels, weight)

    def _targets(self, indices: list[int], inputs: Arrays) -> Arrays:
        """The teacher's values of unaugmented samples, computed once per sample.

        Samples are computed one by one: a stored value must not depend on the batch in which the sample first occurred,
        since a resumed run begins with another batch.
        """
        table = self._by_sample
        if table is None:
            return self.teacher(inputs)
        for i in indices:
            if table[i] is None:
                table[i] = self.teacher(self.pool.sample(i))
        rows = [table[i] for i in indices]
        return {n: np.concatenate([r[n] for r in rows if r is not None]) for n in self.teacher.names}
