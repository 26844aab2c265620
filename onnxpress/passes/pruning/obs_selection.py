"""Second-order selection of channels: the error of the readers, given that the remaining weights are refitted.

A greedy run of the optimal brain surgeon removes the channels of a group one after another. After each removal, the
inverse Gram matrix is updated to that of the remaining channels and the weights are refitted. The cumulative score is
the least-squares error of the readers at every width, so that one run gives the whole error curve. Readers are
normalized by their output power, and the score of a group is the sum over its readers.

Source: Hassibi and Stork, Second Order Derivatives for Network Pruning: Optimal Brain Surgeon (1993); Frantar and
Alistarh, Optimal Brain Compression (2022), for blocks of columns.
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
from onnxpress.runtime.time_limit import check_time

_STEPS = 48  # removals of a group; those of one step are chosen together
_DAMPING = 1e-3


@dataclass(frozen=True)
class ErrorCurve:
    """Order in which the channels of a group are removed, and the error at every width.

    Attributes:
        group: name of the group.
        order: indices of the channels, least important first.
        error: relative output error of the readers when the first k channels are removed, k = 0 ... len(order).
    """

    group: str
    order: tuple[int, ...]
    error: tuple[float, ...]


def curves_to_arrays(curves: Mapping[str, ErrorCurve]) -> Arrays:
    """Convert curves to arrays for the cache, in their order."""
    arrays: Arrays = {}
    for i, curve in enumerate(curves.values()):
        arrays[f"order {i}"] = np.array(curve.order, np.int64)
        arrays[f"error {i}"] = np.array(curve.error, np.float64)
    return arrays


def curves_from_arrays(groups: Sequence[str], arrays: Arrays) -> dict[str, ErrorCurve]:
    """Convert arrays of `curves_to_arrays` back to the curves of the named groups."""
    return {
        name: ErrorCurve(name, tuple(arrays[f"order {i}"].tolist()), tuple(arrays[f"error {i}"].tolist()))
        for i, name in enumerate(groups)
    }


@dataclass
class _Reader:
    """State of one reader: weight [M, K], inverse Gram matrix [K, K], columns of each channel, 1 / output power.

    removed: whether each column is removed, [K]. K falls as channels are removed; the columns of a removed channel
    mean nothing.
    """

    weight: np.ndarray
    inverse: np.ndarray
    columns_of_channel: np.ndarray
    scale: float
    removed: np.ndarray


def obs_curve(group: ChannelGroup, moments: Mapping[str, tuple[LinearLayer, Moments]]) -> ErrorCurve | None:
    """Compute removal order and error curve of one group.

    Args:
        group: the channel group.
        moments: by node name the readers' layers and the second moments of their inputs.

    Returns:
        The curve; None if none of the readers is linear. Large groups remove several channels per step.
    """
    readers = [
        r for p in group.readers if p.node in moments if (r := _reader_state(*moments[p.node], p.positions)) is not None
    ]
    if not readers:
        return None
    remaining = np.ones(group.size, bool)
    order: list[int] = []
    error = [0.0]
    channels_per_step = max(1, group.size // _STEPS)
    while remaining.sum() > 1:
        check_time()
        scores = np.zeros(group.size)
        for reader in readers:
            scores[remaining] += reader.scale * _scores(reader, np.flatnonzero(remaining))
        scores[~remaining] = np.inf
        count = min(channels_per_step, int(remaining.sum()) - 1)
        removed = np.argsort(scores, kind="stable")[:count]
        for channel in removed:
            order.append(int(channel))
            error.append(error[-1] + float(max(scores[channel], 0.0)))
        remaining[removed] = False
        for reader in readers:
            _remove_channels(reader, removed)
    return ErrorCurve(group.name, tuple(order), tuple(error))


def _reader_state(layer: LinearLayer, moments: Moments, positions: Sequence[np.ndarray]) -> _Reader | None:
    """Weight, inverse Gram matrix and columns of one reader; None where they are not usable."""
    gram, _ = moments.centred(layer.op != "MatMul")
    weight = layer.weight.astype(np.float64)
    taps = layer.taps
    if gram.shape[0] != weight.shape[1]:
        per_channel = layer.taps if layer.op != "Conv" else 1
        positions = [np.unique(p // per_channel) for p in positions]
        weight, taps = weight_by_tap(layer).astype(np.float64), 1
    block_sizes = {len(p) for p in positions}
    if len(block_sizes) != 1:
        return None
    columns = np.array([[int(q) * taps + t for q in p for t in range(taps)] for p in positions])
    output_power = float(np.einsum("mk,kl,ml->", weight, gram, weight, optimize=True))
    damping = _DAMPING * float(np.mean(np.diag(gram))) + 1e-12
    damped = gram + damping * np.eye(len(gram))
    try:
        inverse = scipy.linalg.cho_solve(scipy.linalg.cho_factor(damped), np.eye(len(gram)))
    except (scipy.linalg.LinAlgError, ValueError):  # not finite, or singular in spite of damping
        return None
    return _Reader(weight, inverse, columns, 1.0 / max(output_power, 1e-30), np.zeros(len(gram), bool))


def _scores(reader: _Reader, channels: np.ndarray) -> np.ndarray:
    """Error increase tr(W_S [(H^-1)_SS]^-1 W_S^T) for the columns S of each channel."""
    columns_of_channel = reader.columns_of_channel[channels]
    block_inverse = reader.inverse[columns_of_channel[:, :, None], columns_of_channel[:, None, :]]
    weight = reader.weight[:, columns_of_channel].transpose(1, 0, 2)
    eye = 1e-12 * np.eye(block_inverse.shape[1])
    solution = np.linalg.solve(block_inverse + eye, weight.transpose(0, 2, 1))
    return np.asarray(np.einsum("cmk,ckm->c", weight, solution))


def _remove_channels(reader: _Reader, removed: np.ndarray) -> None:
    """Remove channels: refit the remaining weights and update the inverse to that of the remaining columns.

    removed: indices of channels. All go in one update, which equals removing them one after another. Removed columns
    stay as zeros until they are half of all: copying the matrix each time would cost more.
    """
    columns = reader.columns_of_channel[removed].ravel()
    inverse, weight = reader.inverse, reader.weight
    block_inverse = inverse[np.ix_(columns, columns)] + 1e-12 * np.eye(len(columns))
    coefficients = np.linalg.solve(block_inverse, inverse[columns, :])
    weight -= weight[:, columns] @ coefficients
    inverse -= inverse[:, columns] @ coefficients
    weight[:, columns] = 0.0
    inverse[columns, :] = 0.0
    inverse[:, columns] = 0.0
    inverse[columns, columns] = 1.0
    reader.removed[columns] = True
    if 2 * reader.removed.sum() >= len(inverse):
        kept = np.flatnonzero(~reader.removed)
        reader.weight, reader.inverse = weight[:, kept], inverse[np.ix_(kept, kept)]
        reader.columns_of_channel = (np.cumsum(~reader.removed) - 1)[reader.columns_of_channel]
        reader.removed = np.zeros(len(kept), bool)
