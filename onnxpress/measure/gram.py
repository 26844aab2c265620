"""Second moments of layer inputs, and of inputs with target outputs, accumulated in one stream.

Everything is computed in float64: in float32 the order in which BLAS adds, which differs between processes, would show
in the weights.  Rows are sampled, deterministically, so that a layer takes about ROWS_PER_COLUMN rows per column
whatever the number of samples: spatially adjacent rows are redundant.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxpress.measure.evidence import Evidence
from onnxpress.measure.linear import LinearLayer, input_rows, linear, output_rows, positions
from onnxpress.model import read

ROWS_PER_COLUMN = 32
MIN_ROWS = 6144
WIDE = 2304  # columns from which a Gram matrix is kept per channel instead of per (channel, tap)
_PASS_BYTES = 512 * 2**20


@dataclass
class Moments:
    """Sums over rows x [K] and y [M].

    count:  number of rows
    x, y:   [K], [M] sums
    xx, yx: [K, K], [M, K] sums of outer products
    yy:     sum of squares of y
    parts:  the moments of two halves of the samples, or None
    """

    count: float
    x: np.ndarray
    xx: np.ndarray
    y: np.ndarray
    yx: np.ndarray
    yy: float
    parts: tuple[Moments, Moments] | None = None

    @classmethod
    def empty(cls, columns: int, outputs: int) -> Moments:
        """Moments without rows."""
        return cls(
            0.0, np.zeros(columns), np.zeros((columns, columns)), np.zeros(outputs), np.zeros((outputs, columns)), 0.0
        )

    def add(self, x: np.ndarray, y: np.ndarray | None = None) -> None:
        """Add rows x [n, K] and, optionally, y [n, M].

        Rows that are not finite are left out: attention gives NaN at positions that are masked wholly, and nobody reads
        them.
        """
        x, y = x.astype(np.float64), None if y is None else y.astype(np.float64)
        if not np.isfinite(x.sum() + (0.0 if y is None else y.sum())):
            finite = np.isfinite(x).all(axis=1) & (True if y is None else np.isfinite(y).all(axis=1))
            x, y = x[finite], None if y is None else y[finite]
        self.count += len(x)
        self.x += x.sum(axis=0)
        self.xx += x.T @ x
        if y is not None:
            self.y += y.sum(axis=0)
            self.yx += y.T @ x
            self.yy += float((y * y).sum())

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            self.x + other.x,
            self.xx + other.xx,
            self.y + other.y,
            self.yx + other.yx,
            self.yy + other.yy,
        )

    def centred(self, centre: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """(covariance of x [K, K], covariance of y with x [M, K]); second moments about zero where centre is False."""
        n = max(self.count, 1.0)
        if not centre:
            return self.xx / n, self.yx / n
        mx, my = self.x / n, self.y / n
        return self.xx / n - np.outer(mx, mx), self.yx / n - np.outer(my, mx)


def sampled_rows(node: ir.Node, y_shape: tuple[int, ...], columns: int, samples: int, batch: int) -> np.ndarray | None:
    """Indices of the rows of a batch to use, drawn at random with a fixed seed; None: all rows."""
    total = positions(node, y_shape)
    budget = max(MIN_ROWS, ROWS_PER_COLUMN * columns)
    rows = min(y_shape[0], samples) * max(1, -(-budget // max(samples, 1)))
    if rows >= total:
        return None
    rng = np.random.default_rng([zlib.crc32((node.name or "").encode()), batch])
    return np.sort(rng.choice(total, rows, replace=False))


def input_moments(
    evidence: Evidence, nodes: Sequence[ir.Node], blocks: Mapping[str, int] | None = None, wide: int = WIDE
) -> Iterator[tuple[str, LinearLayer, Moments]]:
    """Moments of layer inputs: (node name, layer, moments).

    Each pass over the samples holds about _PASS_BYTES of moments.  Nodes that are not linear are skipped.  A layer with
    more than `wide` columns is treated as its taps separately: columns are channels, rows (row, tap); one that has more
    than WIDE even so is skipped.

    blocks: by node, the number of adjacent columns that belong to one channel, for layers behind a Flatten
    """
    part: list[tuple[ir.Node, LinearLayer]] = []
    size = 0
    for node in nodes:
        layer = linear(node)
        if layer is None:
            continue
        if layer.taps == 1 and blocks is not None and layer.weight.shape[1] > wide:
            layer = replace(layer, taps=blocks.get(layer.node, 1))
        columns = _columns(layer, wide)
        if columns > WIDE:
            continue
        if part and size + 16 * columns**2 > _PASS_BYTES:
            yield from _one_pass(evidence, part, wide)
            part, size = [], 0
        part.append((node, layer))
        size += 16 * columns**2
    if part:
        yield from _one_pass(evidence, part, wide)


def _columns(layer: LinearLayer, wide: int) -> int:
    total = int(layer.weight.shape[1])
    return layer.channels if total > wide and layer.taps > 1 else total


def weight_by_tap(layer: LinearLayer) -> np.ndarray:
    """The weight with taps moved to the rows: [M * taps, channels]."""
    m = layer.weight.shape[0]
    return layer.weight.reshape(m, layer.channels, layer.taps).transpose(0, 2, 1).reshape(m * layer.taps, -1)


def _one_pass(
    evidence: Evidence, part: Sequence[tuple[ir.Node, LinearLayer]], wide: int
) -> Iterator[tuple[str, LinearLayer, Moments]]:
    halves = {layer.node: tuple(Moments.empty(_columns(layer, wide), 0) for _ in range(2)) for _, layer in part}
    names = list(dict.fromkeys(layer.source for _, layer in part))
    shapes = evidence.trace.shapes
    samples = len(evidence.samples())
    for index, values in enumerate(evidence.stream(names)):
        for node, layer in part:
            x = values[layer.source]
            y_shape = (x.shape[0], *shapes[layer.output][1:])
            if node.op_type != "Conv":
                y_shape = (*x.shape[:-1], shapes[layer.output][-1])
            elif x.shape[2:] != shapes[layer.source][2:]:
                y_shape = _conv_shape(node, layer, x)
            kernel = _kernel(node)
            rows = input_rows(node, x, kernel, sampled_rows(node, y_shape, layer.weight.shape[1], samples, index))
            if _columns(layer, wide) != rows.shape[1]:
                rows = (
                    rows.reshape(len(rows), layer.channels, layer.taps).transpose(0, 2, 1).reshape(-1, layer.channels)
                )
            middle = len(rows) // 2 if len(x) > 1 else len(rows) * ((index + 1) % 2)  # rows of a sample are adjacent
            for half, own in zip(halves[layer.node], (rows[:middle], rows[middle:]), strict=True):
                if len(own):
                    half.add(own)
    for _, layer in part:
        first, second = halves.pop(layer.node)
        yield layer.node, layer, replace(first + second, parts=(first, second))


def _kernel(node: ir.Node) -> tuple[int, ...]:
    weight = read.constant(node.inputs[1])
    assert weight is not None
    return tuple(weight.shape[2:]) if node.op_type == "Conv" else ()


def _conv_shape(node: ir.Node, layer: LinearLayer, x: np.ndarray) -> tuple[int, ...]:
    rows = input_rows(node, x[:1, :1], _kernel(node), None)
    return (x.shape[0], layer.weight.shape[0], len(rows))


def fit_moments(
    node: ir.Node, layer: LinearLayer, x: np.ndarray, y: np.ndarray, samples: int, batch: int, into: Moments
) -> None:
    """Add one batch of a layer's inputs and target outputs to the moments."""
    picks = sampled_rows(node, y.shape, layer.weight.shape[1], samples, batch)
    into.add(input_rows(node, x, _kernel(node), picks), output_rows(node, y, picks))
