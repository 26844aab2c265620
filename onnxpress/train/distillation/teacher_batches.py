"""Batches of samples with what the teacher says of them, as a function of (seed, step).

Samples are kept in memory where they fit and read again where not; the teacher runs in onnxruntime with every core, on
the changed inputs where there are changes, and once a sample where there are none (kept where that fits).  Changed lessons
repeat after so many different samples that a student can hardly know them, so that a long training need not ask again.
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
from onnxpress.train.augment import change
from onnxpress.train.augmentations import Field
from onnxpress.train.distillation.output_heads import labels_as_rows

KEEP_BYTES = 512 * 2**20
DIFFERENT = 200_000  # changed samples, before they repeat

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Lesson:
    """inputs: arrays by name; targets: the teacher's values by name; labels: [N, K] or None; share: of the step."""

    inputs: Arrays
    targets: Arrays
    labels: np.ndarray | None
    share: float


class Pool:
    """Random access to the samples of a dataset, in batches of equal shapes."""

    def __init__(self, data: Dataset, classes: int = 0) -> None:
        self.data = data
        where = batch_layout(data.signature)
        self.axes = {p.name: p.axis for p in where.ports}
        self.fixed = where.batch
        self.alone = where.alone or (where.batch or 0) == 1
        first = data[0].inputs
        size = sum(a.nbytes for a in first.values()) * len(data)
        self._kept: list[Arrays] | None = [s.inputs for s in data] if size <= KEEP_BYTES else None
        self.labels = labels_as_rows(data.labels, classes) if classes and data.labelled else None
        self.buckets = self._buckets(len(data))

    def sample(self, index: int) -> Arrays:
        return self._kept[index] if self._kept is not None else self.data[index].inputs

    def _buckets(self, count: int) -> list[np.ndarray]:
        by_shape: dict[tuple[object, ...], list[int]] = {}
        for i in range(count):
            inputs = self.sample(i)
            whole = tuple(v.tobytes() for n, v in inputs.items() if self.axes[n] is None)
            by_shape.setdefault((*(v.shape for v in inputs.values()), *whole), []).append(i)
        return [np.array(b) for b in by_shape.values()]

    def stack(self, indices: Sequence[int]) -> Arrays:
        parts = [self.sample(i) for i in indices]
        return {
            n: np.array(parts[0][n]) if axis is None else np.concatenate([p[n] for p in parts], axis=axis)
            for n, axis in self.axes.items()
        }


class Order:
    """Which samples a step sees: every epoch a new order, drawn from (seed, epoch)."""

    def __init__(self, buckets: Sequence[np.ndarray], batch: int, seed: int) -> None:
        self.buckets, self.batch, self.seed = buckets, batch, seed
        self.steps = sum(self._parts(len(b)) for b in buckets)
        self._epoch = -1
        self._batches: list[np.ndarray] = []

    def _parts(self, size: int) -> int:
        return max(1, size // self.batch)

    def at(self, step: int) -> np.ndarray:
        """Sample numbers of a step (0-based); a bucket's rest that fills no batch waits for another epoch."""
        epoch, place = divmod(step, self.steps)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, 1, epoch])
            batches = []
            for bucket in self.buckets:
                mixed = rng.permutation(bucket)
                batches += [mixed[i * self.batch : (i + 1) * self.batch] for i in range(self._parts(len(bucket)))]
            self._batches = [batches[i] for i in rng.permutation(len(batches))]
            self._epoch = epoch
        return self._batches[place]


class Teacher:
    """The wished values of a model, by name, batch axis first."""

    def __init__(self, model: ir.Model, names: Sequence[str], data: Dataset) -> None:
        self.names = tuple(dict.fromkeys(names))
        self._session = tap(model, self.names)
        sig = signature(model)
        first = data[0].inputs
        other = data[len(data) - 1].inputs
        self.batches = supports_batching(model, first, sig, other)
        self.axes = {p.name: p.axis for p in batch_layout(sig).ports}

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        count = rows(inputs, self.axes)
        if count == 1 or self.batches:
            return dict(zip(self.names, run(self._session, inputs), strict=True))
        each = [run(self._session, one(inputs, self.axes, i)) for i in range(count)]
        return {n: np.concatenate([e[k] for e in each]) for k, n in enumerate(self.names)}


def rows(inputs: Mapping[str, np.ndarray], axes: Mapping[str, int | None]) -> int:
    """Samples of a batch."""
    return next((inputs[n].shape[a] for n, a in axes.items() if a is not None), 1)


def one(inputs: Mapping[str, np.ndarray], axes: Mapping[str, int | None], index: int) -> Arrays:
    """One sample of a batch, with its batch axis."""
    return {n: v if (a := axes[n]) is None else np.take(v, [index], axis=a) for n, v in inputs.items()}


class Memory:
    """What one teacher said of changed batches of one dataset, so that trainings by the same lessons ask once."""

    def __init__(self, room: int = KEEP_BYTES) -> None:
        """room: bytes of values to keep."""
        self._room = room
        self._told: dict[tuple[object, ...], Arrays] = {}

    def recall(self, key: tuple[object, ...], ask: Callable[[], Arrays]) -> Arrays:
        """The values kept under the key, or asked for now, and kept where there is room."""
        known = self._told.get(key)
        if known is None:
            known = ask()
            size = sum(v.nbytes for v in known.values())
            if size <= self._room:
                self._room -= size
                self._told[key] = known
        return known


def period(pool: Pool, order: Order, changes: Sequence[str]) -> int:
    """Steps, after which lessons repeat: an epoch of samples as they are, several of changed ones."""
    return order.steps * (-(-DIFFERENT // len(pool.data)) if changes else 1)


class Lessons:
    """lesson(step): the parts of a step, most often one; a student that takes no batches gets one sample a part."""

    def __init__(
        self,
        pool: Pool,
        teacher: Teacher,
        batch: int,
        seed: int,
        fields: Sequence[Field] = (),
        changes: Sequence[str] = (),
        together: bool = True,
        steps: int = 0,
        memory: Memory | None = None,
    ) -> None:
        """steps: of the whole training, whose own memory serves where it is long enough to hear things again."""
        self.pool, self.teacher, self.seed = pool, teacher, seed
        self.fields, self.changes, self.together = fields, tuple(changes), together and not pool.alone
        self.order = Order(pool.buckets, min(batch, len(pool.data)), seed)
        self.period = period(pool, self.order, self.changes)
        self._known: list[Arrays | None] | None = None
        self._memory = memory or Memory(KEEP_BYTES if steps > self.period else 0)
        self._source = (teacher.names, self.changes, self.order.batch, seed)
        if not self.changes:
            self._known = self._blank()

    def _blank(self) -> list[Arrays | None] | None:
        first = self.teacher(self.pool.sample(0))
        size = sum(v.nbytes for v in first.values()) * len(self.pool.data)
        apart = all(v.ndim and v.shape[0] == 1 for v in first.values())
        return [None] * len(self.pool.data) if apart and size <= KEEP_BYTES else None

    def __call__(self, step: int) -> Iterator[Lesson]:
        step = step % self.period if self.changes else step
        chosen = self.order.at(step).tolist()
        if self.together or len(chosen) == 1:
            yield self._lesson(chosen, step, 1.0)
            return
        for place, index in enumerate(chosen):
            yield self._lesson([index], step, 1.0 / len(chosen), place)

    def _lesson(self, chosen: list[int], step: int, share: float, place: int = 0) -> Lesson:
        inputs = self.pool.stack(chosen)
        labels = None if self.pool.labels is None else self.pool.labels[chosen]
        if not self.changes:
            return Lesson(inputs, self._asked(chosen, inputs), labels, share)
        rng = np.random.default_rng([self.seed, 2, step, place])
        inputs, mix = change(inputs, self.fields, self.changes, rng)
        if labels is not None and mix is not None:
            labels = (mix @ labels).astype(np.float32)
        targets = self._memory.recall((*self._source, step, place), lambda: self.teacher(inputs))
        return Lesson(inputs, targets, labels, share)

    def _asked(self, chosen: list[int], inputs: Arrays) -> Arrays:
        """The teacher's values of unchanged samples, asked for once each.

        One by one: what is kept must not depend on the company a sample was first asked about in, which a resumed run
        does not repeat.
        """
        known = self._known
        if known is None:
            return self.teacher(inputs)
        for i in chosen:
            if known[i] is None:
                known[i] = self.teacher(self.pool.sample(i))
        parts = [known[i] for i in chosen]
        return {n: np.concatenate([p[n] for p in parts if p is not None]) for n in self.teacher.names}
