"""Building blocks: functions of a value that return one of another width, at half the size where `stride` is 2.

The options of a block (kernel, expansion, act, squeeze, heads) are its keyword arguments, which a search space
names.  A block has a shortcut where shapes agree, and a projection shortcut otherwise, unless its docstring says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from onnxpress.errors import InputProblem
from onnxpress.nas.spaces.network import NetworkBuilder, Value

Block = Callable[..., Value]
_EIGHT = 8


def _round_width(width: float) -> int:
    """The nearest multiple of eight, at least eight."""
    return max(_EIGHT, int(width + _EIGHT / 2) // _EIGHT * _EIGHT)


def shortcut(net: NetworkBuilder, x: Value, like: Value, stride: int) -> Value:
    """The input in the shape of the block's output: unchanged, or by a 1x1 projection."""
    if x.shape == like.shape:
        return x
    return net.conv_norm(x, like.shape[0], 1, stride, act="")


def residual(
    net: NetworkBuilder, x: Value, width: int, stride: int = 1, *, kernel: int = 3, act: str = "relu"
) -> Value:
    """Two convolutions and a shortcut (He et al. 2016, basic block)."""
    y = net.conv_norm(x, width, kernel, stride, act=act)
    y = net.conv_norm(y, width, kernel, act="")
    return net.activation(net.add(y, shortcut(net, x, y, stride)), act)


def bottleneck(
    net: NetworkBuilder,
    x: Value,
    width: int,
    stride: int = 1,
    *,
    kernel: int = 3,
    expansion: float = 0.25,
    act: str = "relu",
) -> Value:
    """1x1, k x k on fewer channels, 1x1, and a shortcut (He et al. 2016)."""
    inner = _round_width(width * expansion)
    y = net.conv_norm(x, inner, 1, act=act)
    y = net.conv_norm(y, inner, kernel, stride, act=act)
    y = net.conv_norm(y, width, 1, act="")
    return net.activation(net.add(y, shortcut(net, x, y, stride)), act)


def inverted(
    net: NetworkBuilder, x: Value, width: int, stride: int = 1, *,
    kernel: int = 3, expansion: float = 4, act: str = "relu", squeeze: bool = False,
) -> Value:  # fmt: skip
    """1x1 expansion, depthwise, (squeeze-and-excitation), linear 1x1 projection (Sandler et al. 2018)."""
    inner = _round_width(x.shape[0] * expansion)
    y = net.conv_norm(x, inner, 1, act=act) if inner != x.shape[0] else x
    y = net.activation(net.norm(net.depthwise(y, kernel, stride)), act)
    if squeeze:
        y = squeeze_excite(net, y)
    y = net.conv_norm(y, width, 1, act="")
    return net.add(y, x) if y.shape == x.shape else y


def squeeze_excite(net: NetworkBuilder, x: Value, ratio: float = 0.25) -> Value:
    """Squeeze-and-excitation (Hu et al. 2018): channels are scaled by a function of their means."""
    ones = [1] * (len(x.shape) - 1)
    mean = net.op("GlobalAveragePool", [x.name], [x.shape[0], *ones])
    small = net.activation(net.conv(mean, _round_width(x.shape[0] * ratio), 1, bias=True))
    gate = net.op("HardSigmoid", [net.conv(small, x.shape[0], 1, bias=True).name], mean.shape, alpha=1 / 6, beta=0.5)
    return net.multiply(x, gate)


def convnext(
    net: NetworkBuilder,
    x: Value,
    width: int,
    stride: int = 1,
    *,
    kernel: int = 7,
    expansion: float = 4,
    act: str = "gelu",
) -> Value:
    """Depthwise, normalization, two 1x1 with an activation between (Liu et al. 2022); with batch normalization,
    which folds.
    """
    if stride > 1 or x.shape[0] != width:
        x = net.norm(net.conv(x, width, 3 if stride > 1 else 1, stride))
    y = net.norm(net.depthwise(x, kernel))
    y = net.activation(net.conv(y, _round_width(width * expansion), 1, bias=True), act)
    return net.add(x, net.conv(y, width, 1, bias=True))


def vgg(net: NetworkBuilder, x: Value, width: int, stride: int = 1, *, kernel: int = 3, act: str = "relu") -> Value:
    """One convolution, without shortcut."""
    return net.conv_norm(x, width, kernel, stride, act=act)


def separable(
    net: NetworkBuilder, x: Value, width: int, stride: int = 1, *, kernel: int = 3, act: str = "relu"
) -> Value:
    """Depthwise and 1x1, each with normalization and activation (Howard et al. 2017); a shortcut where shapes agree."""
    y = net.activation(net.norm(net.depthwise(x, kernel, stride)), act)
    y = net.conv_norm(y, width, 1, act=act)
    return net.add(y, x) if y.shape == x.shape else y


def mlp(net: NetworkBuilder, x: Value, width: int, stride: int = 1, *, act: str = "relu") -> Value:
    """A linear layer and an activation; a shortcut where widths agree."""
    y = net.activation(net.dense(x, width), act)
    return net.add(y, x) if y.shape == x.shape else y


def encoder(
    net: NetworkBuilder, x: Value, width: int, stride: int = 1, *,
    heads: int = 4, expansion: float = 4, act: str = "gelu", mask: Value | None = None,
) -> Value:  # fmt: skip
    """Self-attention and a feed-forward part with pre-normalization (pre-norm Transformer).  [L,D] -> [L,width].

    mask: what is added to the attention scores (None: no mask).
    Raises InputProblem where the number of heads does not divide the width.
    """
    if width % heads:
        raise InputProblem(
            "the number of heads does not divide the width", "encoder", f"{width} by {heads}", "change one"
        )
    if x.shape[-1] != width:
        x = net.dense(x, width)
    x = net.add(x, attention(net, net.layer_norm(x), heads, mask))
    y = net.activation(net.dense(net.layer_norm(x), _round_width(width * expansion)), act)
    return net.add(x, net.dense(y, width))


def attention(net: NetworkBuilder, x: Value, heads: int, mask: Value | None) -> Value:
    """Multi-head self-attention in standard operators, as exporters write it."""
    width = x.shape[-1]
    inner = width // heads
    free = net.constant(np.array([0, -1, heads, inner], np.int64))

    def split(order: tuple[int, ...], shape: tuple[int, ...]) -> Value:
        part = net.op("Reshape", [net.dense(x, width).name, free], [x.shape[0], heads, inner])
        return net.op("Transpose", [part.name], shape, perm=[0, *(i + 1 for i in order)])

    length = x.shape[0]
    q, v = (split((1, 0, 2), (heads, length, inner)) for _ in range(2))
    k = split((1, 2, 0), (heads, inner, length))
    root = net.constant(np.array(1 / math.sqrt(inner), np.float32))
    scores = net.op(
        "Mul", [net.op("MatMul", [q.name, k.name], [heads, length, length]).name, root], [heads, length, length]
    )
    if mask is not None:
        scores = net.op("Add", [scores.name, mask.name], scores.shape)
    shares = net.op("Softmax", [scores.name], scores.shape, axis=-1)
    mixed = net.op("MatMul", [shares.name, v.name], [heads, length, inner])
    back = net.op("Transpose", [mixed.name], [length, heads, inner], perm=[0, 2, 1, 3])
    joined = net.op("Reshape", [back.name, net.constant(np.array([0, -1, width], np.int64))], [length, width])
    return net.dense(joined, width)


BLOCKS: dict[str, Block] = {
    "residual": residual,
    "bottleneck": bottleneck,
    "inverted": inverted,
    "convnext": convnext,
    "vgg": vgg,
    "separable": separable,
    "mlp": mlp,
    "encoder": encoder,
}


def find_block(name: str) -> Block:
    """A block by name.  Raises InputProblem for an unknown one."""
    if name not in BLOCKS:
        raise InputProblem("unknown block", name, "", f"one of {', '.join(BLOCKS)}")
    return BLOCKS[name]
