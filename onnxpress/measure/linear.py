"""Weighted layers as matrices: rows of inputs times a weight matrix give rows of outputs.

Conv (group 1, any number of spatial axes), Gemm and MatMul with a constant weight become W [M, K] with rows x [n, K]
and y [n, M].  For Conv a row is one receptive field, its columns ordered (channel, taps) as in W.reshape(M, -1).  Least
squares, Gram matrices and saturation checks are written once for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read


@dataclass(frozen=True)
class LinearLayer:
    """One weighted node as a matrix.

    weight: [M, K]; bias: [M] or None; taps: columns per input channel
    """

    node: str
    op: str
    source: str
    output: str
    weight: np.ndarray
    bias: np.ndarray | None
    taps: int

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return int(self.weight.shape[1]) // self.taps


def linear(node: ir.Node) -> LinearLayer | None:
    """The node as a matrix; None where it is not one (grouped, transposed, computed weight, unsupported attributes)."""
    if not read.standard(node) or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    weight = read.constant(node.inputs[1])
    source, output = node.inputs[0], node.outputs[0]
    if weight is None or weight.dtype != np.float32 or source is None or read.constant(source) is not None:
        return None
    taps = 1
    if node.op_type == "Conv":
        if read.int_attribute(node, "group", 1) != 1:
            return None
        taps = int(np.prod(weight.shape[2:]))
        matrix = weight.reshape(weight.shape[0], -1)
    elif node.op_type == "Gemm":
        if read.int_attribute(node, "transA", 0) or 0.0 in _scales(node):
            return None
        matrix = weight if read.int_attribute(node, "transB", 0) else weight.T
        matrix = matrix * np.float32(_scales(node)[0])
    else:
        if weight.ndim != 2:
            return None
        matrix = weight.T
    given = len(node.inputs) > 2 and node.inputs[2] is not None
    flat = read.column_bias(node, len(matrix)) if given and node.op_type != "MatMul" else None
    if given and flat is None:
        return None
    return LinearLayer(node.name or "", node.op_type, source.name or "", output.name or "", matrix, flat, taps)


def _scales(node: ir.Node) -> tuple[float, float]:
    """Factors of the weight and of the bias: Gemm's alpha and beta, else 1."""
    if node.op_type != "Gemm":
        return 1.0, 1.0
    return read.float_attribute(node, "alpha", 1.0), read.float_attribute(node, "beta", 1.0)


def set_linear(model: ir.Model, node: ir.Node, matrix: np.ndarray, bias: np.ndarray | None) -> None:
    """Write a weight matrix [M, K] (and a bias [M]) back in the layout of the node."""
    old = read.constant(node.inputs[1])
    assert old is not None
    alpha = _scales(node)[0]
    matrix = matrix / alpha
    if node.op_type == "Conv":
        new = matrix.reshape((matrix.shape[0], -1, *old.shape[2:]))
    elif node.op_type == "Gemm":
        new = matrix if read.int_attribute(node, "transB", 0) else matrix.T
    else:
        new = matrix.T
    edit.set_input(model, node, 1, np.ascontiguousarray(new, np.float32), f"{node.name}_weight")
    if bias is not None and node.op_type != "MatMul":
        set_bias(model, node, bias)


def set_bias(model: ir.Model, node: ir.Node, bias: np.ndarray) -> None:
    """Give a Conv or Gemm a bias [M]."""
    beta = _scales(node)[1]
    edit.set_input(model, node, 2, (bias / beta).astype(np.float32), f"{node.name}_bias")


def conv_pads(node: ir.Node, spatial: tuple[int, ...], kernel: tuple[int, ...]) -> list[tuple[int, int]]:
    """(begin, end) zero padding of each spatial axis, with auto_pad resolved for the given input size (ONNX Conv)."""
    rank = len(spatial)
    strides = read.ints_attribute(node, "strides") or [1] * rank
    dilations = read.ints_attribute(node, "dilations") or [1] * rank
    mode = read.attribute(node, "auto_pad", "NOTSET")
    mode = mode.decode() if isinstance(mode, bytes) else str(mode)
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        result = []
        for size, k, s, d in zip(spatial, kernel, strides, dilations, strict=True):
            total = max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
            small, large = total // 2, total - total // 2
            result.append((small, large) if mode == "SAME_UPPER" else (large, small))
        return result
    pads = read.ints_attribute(node, "pads") or [0] * (2 * rank)
    return [(0, 0)] * rank if mode == "VALID" else list(zip(pads[:rank], pads[rank:], strict=True))


def input_rows(node: ir.Node, x: np.ndarray, kernel: tuple[int, ...], picks: np.ndarray | None) -> np.ndarray:
    """Rows [n, K] of a layer's input.  picks: flat indices of rows (sample, then output position); None: all."""
    if node.op_type != "Conv":
        rows = x.reshape(-1, x.shape[-1])
        return rows if picks is None else rows[picks]
    spatial = x.shape[2:]
    pads = conv_pads(node, spatial, kernel)
    strides = read.ints_attribute(node, "strides") or [1] * len(spatial)
    dilations = read.ints_attribute(node, "dilations") or [1] * len(spatial)
    padded = np.pad(x, [(0, 0), (0, 0), *pads])
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)], axis=tuple(range(2, x.ndim))
    )
    rank = len(spatial)
    index = (
        slice(None),
        slice(None),
        *(slice(None, None, s) for s in strides),
        *(slice(None, None, d) for d in dilations),
    )
    windows = windows[index]
    fields = np.moveaxis(windows, 1, 1 + rank)  # sample, positions…, channel, taps…
    shape = fields.shape[: 1 + rank]
    if picks is None:
        return fields.reshape(int(np.prod(shape)), -1)
    return fields[np.unravel_index(picks, shape)].reshape(len(picks), -1)


def output_rows(node: ir.Node, y: np.ndarray, picks: np.ndarray | None) -> np.ndarray:
    """Rows [n, M] of a layer's output, in the order of `input_rows`."""
    moved = np.moveaxis(y, 1, -1) if node.op_type == "Conv" else y
    if picks is None:
        return moved.reshape(-1, moved.shape[-1])
    return moved[np.unravel_index(picks, moved.shape[:-1])]


def positions(node: ir.Node, y_shape: tuple[int, ...]) -> int:
    """Number of rows of a batch of outputs of this shape."""
    return int(np.prod(y_shape)) // y_shape[1 if node.op_type == "Conv" else -1]
