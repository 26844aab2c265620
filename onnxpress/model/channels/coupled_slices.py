"""The smallest sets of channels that can go together, where labels vary along several axes.

A removal is sound where every tensor keeps a box: what is left of it must be whole slices along each of its axes, and what a
link joins must go together.  A channel that stands on one axis everywhere is a unit by itself; elsewhere a unit is a slice
(a head, a dimension of all heads, a group, a place of all groups), closed under links and boxes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from onnxpress.model.channels.labels import Flow, Labels, compact, varying_axes

_MAX_LABELS = 200_000  # labels that a closure may hold, before it is given up


@dataclass(frozen=True)
class SliceFamily:
    """Units of one kind: the slices of one box along one axis.  units: disjoint sets of components, in the axis' order."""

    units: list[np.ndarray]


@dataclass
class CoupledSliceClosure:
    """Boxes and links by the components they hold.  component: of every label; component 0's label is frozen."""

    flow: Flow
    component: np.ndarray
    boxes: list[np.ndarray] = field(default_factory=list)
    bound: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        count = int(self.component.max()) + 1
        seen: set[tuple[tuple[int, ...], bytes]] = set()
        for labels in [*self.flow.of.values(), *self.flow.boxes]:
            if len(varying_axes(labels)) > 1:
                self._add(labels, seen)
        self._links: list[tuple[int, np.ndarray]] = []
        for link in self.flow.links:
            for p, members in zip(self.component[link.p].tolist(), self.component[link.members], strict=True):
                self._links.append((p, np.unique(members)))
        self._boxes_of: dict[int, list[int]] = {}
        for number, box in enumerate(self.boxes):
            for root in np.unique(box).tolist():
                self._boxes_of.setdefault(root, []).append(number)
        self._links_of: dict[int, list[int]] = {}
        for number, (p, members) in enumerate(self._links):
            for root in {p, *members.tolist()}:
                self._links_of.setdefault(root, []).append(number)
        self.bound = np.zeros(count, bool)
        self.bound[list(self._boxes_of) + list(self._links_of)] = True
        self._frozen = int(self.component[0])

    def _add(self, labels: Labels, seen: set[tuple[tuple[int, ...], bytes]]) -> None:
        """Keep a box once, whatever the order and number of its axes."""
        box = compact(self.component[labels])
        box = box.reshape([s for s in box.shape if s > 1])
        if box.ndim < 2:
            return
        keys = {(b.shape, np.ascontiguousarray(b).tobytes()) for b in ((box, box.T) if box.ndim == 2 else (box,))}
        if not keys & seen:
            self.boxes.append(box)
        seen |= keys

    def families(self) -> Iterator[SliceFamily]:
        """Every kind of unit that can go; each set of components once."""
        known: set[bytes] = set()
        for box in self.boxes:
            for axis in range(box.ndim):
                found: list[np.ndarray] = []
                taken: set[int] = set()
                for slice_ in np.moveaxis(box, axis, 0):
                    unit = self.closed(np.unique(slice_))
                    if unit is None or unit.tobytes() in known or taken & set(unit.tolist()):
                        continue
                    known.add(unit.tobytes())
                    taken |= set(unit.tolist())
                    found.append(unit)
                if len(found) > 1:
                    yield SliceFamily(found)

    def closed(self, seed: np.ndarray) -> np.ndarray | None:
        """The least set around the seed that leaves boxes and satisfies the links; None where it touches what must stay."""
        removed = np.zeros(len(self.bound), bool)
        removed[seed] = True
        waiting = seed.tolist()
        while waiting:
            boxes = {n for root in waiting for n in self._boxes_of.get(root, ())}
            links = {n for root in waiting for n in self._links_of.get(root, ())}
            more: set[int] = set()
            for number in links:
                p, members = self._links[number]
                if removed[p]:
                    more |= set(members[~removed[members]].tolist())
                elif removed[members].all():
                    more.add(p)
            for number in boxes:
                more |= set(_missing(self.boxes[number], removed).tolist())
            if more:
                removed[list(more)] = True
            if removed[self._frozen] or removed.sum() > _MAX_LABELS:
                return None
            waiting = list(more)
        return np.flatnonzero(removed)


def _missing(box: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Components that must go, too, so that what is gone of a box are whole slices; where an element could go with several
    slices, with those that cost least."""
    mask = removed[box]
    if not mask.any():
        return np.empty(0, np.int64)
    whole = np.zeros_like(mask)
    for axis in range(box.ndim):
        others = tuple(a for a in range(box.ndim) if a != axis)
        whole |= mask.all(axis=others, keepdims=True)
    loose = mask & ~whole
    if not loose.any():
        return np.empty(0, np.int64)
    best: np.ndarray | None = None
    for axis in range(box.ndim):
        others = tuple(a for a in range(box.ndim) if a != axis)
        slices = loose.any(axis=others, keepdims=True)
        need = np.unique(box[np.broadcast_to(slices, box.shape) & ~mask])
        if best is None or len(need) < len(best):
            best = need
    assert best is not None
    return best
