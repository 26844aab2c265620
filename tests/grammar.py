"""Random networks from a grammar of some forty operators, as exporters write them for images and sequences.

Every rule takes a value and returns one; a network is a sequence of rules on images, and sometimes one on tokens after
it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from hypothesis import strategies as st
from onnx import helper

from tests import nets
from tests.nets import Net

SIDE = 8
Rule = Callable[[Net, st.DrawFn, str], str]
WIDTHS = st.sampled_from([4, 8, 12, 16])


def ints(net: Net, *numbers: int) -> str:
    return net.constant(np.array(numbers, np.int64), "i")


def floats(net: Net, *shape: int, gain: float = 1.0, base: float = 0.0) -> str:
    return net.constant((base + gain * net.rng.standard_normal(shape)).astype(np.float32))


def plain(net: Net, draw: st.DrawFn, x: str) -> str:
    return net.relu(net.conv(x, draw(WIDTHS), draw(st.sampled_from([1, 3]))))


def residual(net: Net, draw: st.DrawFn, x: str) -> str:
    y = net.relu(net.conv(x, draw(WIDTHS)))
    return net.relu(net.add(net.conv(y, net.widths[x]), x))


def joined(net: Net, draw: st.DrawFn, x: str) -> str:
    parts = [net.conv(x, draw(WIDTHS), 1), net.relu(net.conv(x, draw(WIDTHS)))]
    return net.concat(*parts, *([x] if draw(st.booleans()) else []))


def depthwise(net: Net, draw: st.DrawFn, x: str) -> str:
    w = net.widths[x]
    if draw(st.booleans()):  # two channels of each
        return net.relu(net.conv(x, 2 * w, group=w))
    return net.op("Clip", [net.depthwise(x), floats(net, gain=0), floats(net, gain=0, base=6)], w)


def normalized(net: Net, draw: st.DrawFn, x: str) -> str:
    y = net.batchnorm(net.conv(x, draw(WIDTHS), bias=False))
    return net.op("PRelu", [y, floats(net, net.widths[y], 1, 1, gain=0.2)], net.widths[y])


def gate(net: Net, draw: st.DrawFn, x: str) -> str:
    w = net.widths[x]
    if draw(st.booleans()):
        pooled = net.op("GlobalAveragePool", [x], w)
        scores = net.conv(net.relu(net.conv(pooled, 8, 1)), w, 1)
    else:
        pooled = net.op("ReduceMean", [x], w, axes=[2, 3], keepdims=0)
        hidden = net.op("Gemm", [pooled, floats(net, 8, w, gain=w**-0.5)], 8, transB=1)
        flat = net.op("Gemm", [net.op("Tanh", [hidden], 8), floats(net, 8, w, gain=0.3), floats(net, w)], w)
        scores = net.op("Unsqueeze", [flat, ints(net, 2, 3)], w)
    return net.op("Mul", [x, net.op("HardSigmoid", [scores], w)], w)


def position_gate(net: Net, draw: st.DrawFn, x: str) -> str:
    """One number per position, which multiplies all channels."""
    mean = net.op("ReduceMean", [x], 1, axes=[1], keepdims=1)
    return net.op("Mul", [x, net.op("Sigmoid", [net.conv(mean, 1)], 1)], net.widths[x])


def padded(net: Net, draw: st.DrawFn, x: str) -> str:
    extra = draw(st.integers(1, 4))
    wide = net.op("Pad", [x, ints(net, 0, extra, 0, 0, 0, extra, 0, 0)], net.widths[x] + 2 * extra)
    return net.relu(net.add(net.conv(x, net.widths[wide]), wide))


def grouped(net: Net, draw: st.DrawFn, x: str) -> str:
    groups, width = draw(st.sampled_from([2, 4])), draw(st.sampled_from([8, 16]))
    y = net.relu(net.conv(x, width, 1))
    return net.relu(net.conv(y, draw(st.sampled_from([8, 16, 24])), group=groups))


def shuffled(net: Net, draw: st.DrawFn, x: str) -> str:
    groups = draw(st.sampled_from([2, 4]))
    y = net.conv(x, 16, 1)
    y = net.op("Reshape", [y, ints(net, 0, groups, 16 // groups, SIDE, SIDE)], 16)
    y = net.op("Reshape", [net.op("Transpose", [y], 16, perm=[0, 2, 1, 3, 4]), ints(net, -1, 16, SIDE, SIDE)], 16)
    return net.relu(net.depthwise(y) if draw(st.booleans()) else net.conv(y, 16, 1, group=groups))


def split(net: Net, draw: st.DrawFn, x: str) -> str:
    y = net.relu(net.conv(x, 16, 1))
    left, right = (net.name("part") for _ in range(2))
    sizes = ints(net, 6, 10)
    net.nodes.append(helper.make_node("Split", [y, sizes], [left, right], name=net.name("split"), axis=1))
    net.widths |= {left: 6, right: 10}
    return net.concat(left, net.add(net.conv(right, 10), right))


def cut(net: Net, draw: st.DrawFn, x: str) -> str:
    y = net.relu(net.conv(x, 16))
    low = net.op("Slice", [y, ints(net, 0), ints(net, 7), ints(net, 1)], 7)
    high = net.op("Slice", [y, ints(net, -9), ints(net, 1000), ints(net, 1)], 9)
    return net.concat(net.conv(low, 8), high)


def picked(net: Net, draw: st.DrawFn, x: str) -> str:
    y = net.relu(net.conv(x, 12))
    order = net.rng.permutation(12)[: draw(st.integers(6, 12))]
    return net.op("Gather", [y, ints(net, *order.tolist())], len(order), axis=1)


def pixels(net: Net, draw: st.DrawFn, x: str) -> str:
    """Up- and downsampling by two."""
    mode = draw(st.sampled_from(["CRD", "DCR"]))
    y = net.op("DepthToSpace", [net.conv(x, 32, 1)], 8, blocksize=2, mode=mode)
    if draw(st.booleans()):
        return net.op("SpaceToDepth", [net.relu(y)], 32, blocksize=2)
    return net.relu(net.conv(y, 8, stride=2))


def upward(net: Net, draw: st.DrawFn, x: str) -> str:
    groups, width = draw(st.sampled_from([1, 2])), draw(st.sampled_from([8, 12]))
    weight = floats(net, net.widths[x], width // groups, 2, 2, gain=net.widths[x] ** -0.5)
    if net.widths[x] % groups:
        return plain(net, draw, x)
    y = net.op(
        "ConvTranspose", [x, weight, floats(net, width)], width, kernel_shape=[2, 2], strides=[2, 2], group=groups
    )
    return net.op(draw(st.sampled_from(["AveragePool", "MaxPool"])), [y], width, kernel_shape=[2, 2], strides=[2, 2])


def resized(net: Net, draw: st.DrawFn, x: str) -> str:
    y = net.op("Resize", [x, "", net.constant(np.array([1, 1, 2, 2], np.float32))],
               net.widths[x], mode="nearest")  # fmt: skip
    return net.op("MaxPool", [y], net.widths[x], kernel_shape=[2, 2], strides=[2, 2])


def group_norm(net: Net, draw: st.DrawFn, x: str) -> str:
    groups, width = draw(st.sampled_from([2, 4])), 16
    y = net.conv(x, width)
    flat = net.op("Reshape", [y, ints(net, 0, groups, -1)], width)
    ones, zeros = (net.constant(np.full(groups, v, np.float32)) for v in (1, 0))
    normal = net.op("InstanceNormalization", [flat, ones, zeros], width)
    target = net.op("Shape", [y], 0) if draw(st.booleans()) else ints(net, -1, width, SIDE, SIDE)
    back = net.op("Reshape", [normal, target], width)
    return net.relu(net.op("Mul", [back, floats(net, width, 1, 1, gain=0.2, base=1)], width))


def instance_norm(net: Net, draw: st.DrawFn, x: str) -> str:
    w = net.widths[x]
    return net.op("InstanceNormalization", [x, floats(net, w, gain=0.2, base=1), floats(net, w)], w)


def prequantized_conv(net: Net, draw: st.DrawFn, x: str) -> str:
    """A convolution that is already quantized: int8 weights with one scale per channel."""
    width, fan = draw(WIDTHS), net.widths[x]
    weight = net.constant(net.rng.integers(-120, 120, (width, fan, 1, 1), np.int8))
    scale = net.constant((0.01 / fan**0.5 * (1 + net.rng.random(width))).astype(np.float32))
    unpacked = net.op("DequantizeLinear", [weight, scale, net.constant(np.zeros(width, np.int8))], width, axis=0)
    step, zero = net.constant(np.array(0.05, np.float32)), net.constant(np.array(128, np.uint8))
    rounded = net.op("DequantizeLinear", [net.op("QuantizeLinear", [x, step, zero], fan), step, zero], fan)
    return net.relu(net.op("Conv", [rounded, unpacked], width, kernel_shape=[1, 1]))


PICTURES: tuple[Rule, ...] = (
    plain,
    residual,
    joined,
    depthwise,
    normalized,
    gate,
    position_gate,
    padded,
    grouped,
    shuffled,
    split,
    cut,
    picked,
    pixels,
    upward,
    resized,
    group_norm,
    instance_norm,
    prequantized_conv,
)


def dense(net: Net, x: str, width: int) -> str:
    fan = net.widths[x]
    y = net.op("MatMul", [x, floats(net, fan, width, gain=fan**-0.5)], width)
    return net.op("Add", [floats(net, width, gain=0.1), y], width)


def feed_forward(net: Net, draw: st.DrawFn, x: str) -> str:
    y = dense(net, x, 24)
    act = draw(st.sampled_from(["Relu", "HardSwish", "Softplus", "Erf"]))
    y = net.op(act, [y], 24)
    if draw(st.booleans()):
        y = net.op("Mul", [y, dense(net, x, 24)], 24)
    return net.op("Add", [dense(net, y, net.widths[x]), x], net.widths[x])


def layer_norm(net: Net, draw: st.DrawFn, x: str) -> str:
    w = net.widths[x]
    return net.op("LayerNormalization", [x, floats(net, w, gain=0.1, base=1), floats(net, w, gain=0.1)], w, axis=-1)


def attention(net: Net, draw: st.DrawFn, x: str) -> str:
    """Two to four heads; query, key and value from separate layers or from one, key and value sometimes with fewer
    heads.
    """
    heads, inner = draw(st.sampled_from([(2, 4), (4, 3), (3, 4)]))
    width = heads * inner
    way = draw(st.sampled_from(["apart", "packed", "shared"]))
    if way == "packed":
        packed = net.op("Reshape", [dense(net, x, 3 * width), ints(net, 0, 0, 3, heads, inner)], width)
        packed = net.op("Transpose", [packed], width, perm=[2, 0, 3, 1, 4])
        q, k, v = (net.op("Gather", [packed, net.constant(np.array(i, np.int64))], width, axis=0) for i in range(3))
    else:
        few = 1 if way == "shared" else heads
        q, k, v = (
            net.op(
                "Transpose",
                [net.op("Reshape", [dense(net, x, n * inner), ints(net, 0, 0, n, inner)], width)],
                width,
                perm=[0, 2, 1, 3],
            )
            for n in (heads, few, few)
        )
    scores = net.op("MatMul", [q, net.op("Transpose", [k], width, perm=[0, 1, 3, 2])], 0)
    scores = net.op("Div", [scores, net.constant(np.array(inner**0.5, np.float32))], 0)
    mixed = net.op("MatMul", [net.op("Softmax", [scores], 0, axis=-1), v], width)
    mixed = net.op("Transpose", [mixed], width, perm=[0, 2, 1, 3])
    if draw(st.booleans()):
        made = net.op(
            "Einsum",
            [mixed, floats(net, heads, inner, net.widths[x], gain=width**-0.5)],
            net.widths[x],
            equation="nlhd,hdm->nlm",
        )
    else:
        made = dense(net, net.op("Reshape", [mixed, ints(net, 0, 0, width)], width), net.widths[x])
    return net.op("Add", [made, x], net.widths[x])


def recurrent(net: Net, draw: st.DrawFn, x: str) -> str:
    kind, gates = draw(st.sampled_from([("LSTM", 4), ("GRU", 3), ("RNN", 1)]))
    both, hidden = draw(st.booleans()), draw(st.sampled_from([4, 6]))
    sides, fan = 1 + both, net.widths[x]
    weights = [floats(net, sides, gates * hidden, n, gain=n**-0.5) for n in (fan, hidden)]
    y = net.op("Transpose", [x], fan, perm=[1, 0, 2])
    direction = "bidirectional" if both else "forward"
    y = net.op(
        kind,
        [y, *weights, floats(net, sides, 2 * gates * hidden, gain=0.1)],
        hidden,
        hidden_size=hidden,
        direction=direction,
    )
    y = net.op("Transpose", [y], hidden, perm=[2, 0, 1, 3])  # batch, time, directions, hidden
    return net.op("Reshape", [y, ints(net, 0, 0, sides * hidden)], sides * hidden)


def mixed_tokens(net: Net, draw: st.DrawFn, x: str) -> str:
    """A layer across positions, as in MLP-Mixer: the weight is the left operand."""
    y = net.op("MatMul", [floats(net, SIDE * SIDE, SIDE * SIDE, gain=1 / SIDE), x], net.widths[x])
    return net.op("Add", [y, x], net.widths[x])


TOKENS: tuple[Rule, ...] = (feed_forward, layer_norm, attention, recurrent, mixed_tokens)


@st.composite
def networks(draw: st.DrawFn) -> ir.Model:
    """Image of 8 x 8 to ten numbers."""
    net = nets.image_net(draw(st.integers(0, 10_000)))
    x = net.relu(net.conv("image", draw(WIDTHS)))
    for rule in draw(st.lists(st.sampled_from(PICTURES), min_size=1, max_size=3)):
        x = rule(net, draw, x)
    tokens = draw(st.lists(st.sampled_from(TOKENS), max_size=2))
    if not tokens:
        return net.model(net.head(x, pooled=draw(st.booleans())), nets.IMAGE, ["N", 10])
    width = net.widths[x]
    x = net.op("Transpose", [net.op("Reshape", [x, ints(net, 0, 0, -1)], width)], width, perm=[0, 2, 1])
    x = dense(net, x, 12)
    for rule in tokens:
        x = rule(net, draw, x)
    pooled = net.op("ReduceMean", [x], net.widths[x], axes=[1], keepdims=0)
    weight = floats(net, net.widths[x], 10, gain=net.widths[x] ** -0.5)
    return net.model(net.op("Gemm", [pooled, weight, floats(net, 10)], 10), nets.IMAGE, ["N", 10])
