"""Coupled-slice closure: the smallest sets of channels that can be removed together.

Labels may vary along several axes.  A removal is valid where every tensor keeps a box: what is removed must be whole
slices along its axes, and linked labels must be removed together.  A channel that lies on one axis everywhere is a unit
on its own; elsewhere a unit is a slice (a head, a dimension of all heads, a group, one position of all groups), closed
under links and boxes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from onnxpress.model.channels.labels import Flow, Labels, compact, varying_axes

_MAX_LABELS = 200_000  # size at which the search for a closure is given up


@dataclass(frozen=True)
class SliceFamily:
    """Units of one kind: the slices of one box along one axis.

    units: disjoint sets of components, in the order of the axis
    """

    units: list[np.ndarray]


@dataclass
class CoupledSliceClosure:
    """Computes the closure of sets of components under boxes and links.

    component: of every label; the component of label 0 is frozen
    boxes:     arrays of components that must remain boxes
    bound:     [components] whether a component is in a box or link
    """

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
        """Add a box once, whatever the order and number of its axes."""
        box = compact(self.component[labels])
        box = box.reshape([s for s in box.shape if s > 1])
        if box.ndim < 2:
            return
        keys = {(b.shape, np.ascontiguousarray(b).tobytes()) for b in ((box, box.T) if box.ndim == 2 else (box,))}
        if not keys & seen:
            self.boxes.append(box)
        seen |= keys

    def families(self) -> Iterator[SliceFamily]:
        """All kinds of units that can be removed; each set of components once."""
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
        """The smallest superset of the seed that leaves boxes and satisfies the links.

        None where it contains frozen components.
        """
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
    """Components that must be removed as well, so that whole slices of a box are removed.

    Where an element could belong to several slices, those that add the fewest components are chosen.
    """
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
