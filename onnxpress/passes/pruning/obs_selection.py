"""Second-order selection: which channels cost least, given that the survivors are refitted.

One greedy run of the optimal-brain downdate (Hassibi & Stork 1993; for groups of columns, Frantar & Alistarh 2022)
removes the channels of a group one after another and keeps the inverse Gram matrix that of the survivors.  Its
cumulative score is exactly the least-squares error of the readers at every width, so one run gives the whole
error-versus-width curve.  Readers are weighed by their output's power; the sum over readers is the group's score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from onnxpress.measure.cache import Arrays
from onnxpress.measure.gram import Moments, weight_by_tap
from onnxpress.measure.linear import LinearLayer
from onnxpress.model.channels.groups import ChannelGroup

_DAMP = 1e-3


@dataclass(frozen=True)
class Curve:
    """order: channels, cheapest first; error[k]: relative output error of the readers when the first k are gone."""

    group: str
    order: tuple[int, ...]
    error: tuple[float, ...]


def packed(curves: Mapping[str, Curve]) -> Arrays:
    """Curves as arrays, in their order."""
    arrays: Arrays = {}
    for i, curve in enumerate(curves.values()):
        arrays[f"order {i}"] = np.array(curve.order, np.int64)
        arrays[f"error {i}"] = np.array(curve.error, np.float64)
    return arrays


def unpacked(groups: Sequence[str], arrays: Arrays) -> dict[str, Curve]:
    """The curves of the named groups, as they were packed."""
    return {
        name: Curve(name, tuple(arrays[f"order {i}"].tolist()), tuple(arrays[f"error {i}"].tolist()))
        for i, name in enumerate(groups)
    }


@dataclass
class _Reader:
    """weight [M, K], inverse [K, K], blocks: columns of each channel, scale: 1 / output power."""

    weight: np.ndarray
    inverse: np.ndarray
    blocks: np.ndarray
    scale: float


def second_order(group: ChannelGroup, moments: Mapping[str, tuple[LinearLayer, Moments]]) -> Curve | None:
    """The removal order and curve of one group; None where none of its readers is linear."""
    readers = [
        r for p in group.readers if p.node in moments if (r := _prepare(*moments[p.node], p.positions)) is not None
    ]
    if not readers:
        return None
    alive = np.ones(group.size, bool)
    order: list[int] = []
    error = [0.0]
    step = max(1, group.size // 96)
    while alive.sum() > 1:
        scores = np.zeros(group.size)
        for reader in readers:
            scores[alive] += reader.scale * _scores(reader, np.flatnonzero(alive))
        scores[~alive] = np.inf
        count = min(step, int(alive.sum()) - 1)
        chosen = np.argsort(scores, kind="stable")[:count]
        for reader in readers:
            for channel in chosen:
                _downdate(reader, reader.blocks[channel])
        for channel in chosen:
            order.append(int(channel))
            error.append(error[-1] + float(max(scores[channel], 0.0)))
        alive[chosen] = False
    return Curve(group.name, tuple(order), tuple(error))


def _prepare(layer: LinearLayer, moments: Moments, positions: Sequence[np.ndarray]) -> _Reader | None:
    """positions: the group's channel positions on the reader's input axis."""
    gram, _ = moments.centred(layer.op != "MatMul")
    weight = layer.weight.astype(np.float64)
    taps = layer.taps
    if gram.shape[0] != weight.shape[1]:
        per = layer.taps if layer.op != "Conv" else 1
        positions = [np.unique(p // per) for p in positions]
        weight, taps = weight_by_tap(layer).astype(np.float64), 1
    width = {len(p) for p in positions}
    if len(width) != 1:
        return None
    columns = np.array([[int(q) * taps + t for q in p for t in range(taps)] for p in positions])
    power = float(np.einsum("mk,kl,ml->", weight, gram, weight, optimize=True))
    damp = _DAMP * float(np.mean(np.diag(gram))) + 1e-12
    damped = gram + damp * np.eye(len(gram))
    try:
        inverse = scipy.linalg.cho_solve(scipy.linalg.cho_factor(damped), np.eye(len(gram)))
    except (scipy.linalg.LinAlgError, ValueError):  # values not finite, or a matrix that damping does not save
        return None
    return _Reader(weight, inverse, columns, 1.0 / max(power, 1e-30))


def _scores(reader: _Reader, channels: np.ndarray) -> np.ndarray:
    """tr(W_S [(H^-1)_SS]^-1 W_S^T) for each channel's columns S."""
    blocks = reader.blocks[channels]
    corner = reader.inverse[blocks[:, :, None], blocks[:, None, :]]
    weight = reader.weight[:, blocks].transpose(1, 0, 2)
    eye = 1e-12 * np.eye(corner.shape[1])
    solved = np.linalg.solve(corner + eye, weight.transpose(0, 2, 1))
    return np.asarray(np.einsum("cmk,ckm->c", weight, solved))


def _downdate(reader: _Reader, columns: np.ndarray) -> None:
    """Remove columns: refit the other weights and turn the inverse into that of the rest."""
    inverse = reader.inverse
    corner = inverse[np.ix_(columns, columns)] + 1e-12 * np.eye(len(columns))
    across = np.linalg.solve(corner, inverse[columns, :])
    reader.weight = reader.weight - reader.weight[:, columns] @ across
    reader.weight[:, columns] = 0.0
    reader.inverse = inverse - inverse[:, columns] @ across
    reader.inverse[columns, :] = 0.0
    reader.inverse[:, columns] = 0.0
    reader.inverse[columns, columns] = 1.0
