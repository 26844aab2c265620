"""The nets of `topologies.py`: 24 ways in which channels are coupled, small, with seeded weights and a dynamic batch
axis.

A stem and a head surround the tested part, so that no layer of it reads an input or computes an output of the graph.
Each net also states what to zero to make every second channel dead, or every second block where channels can only be
removed in blocks (heads, groups of a normalization, channels that a pixel shuffle combines).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IMAGE: Sequence[int | str] = ("N", 3, 8, 8)
LARGE: Sequence[int | str] = ("N", 3, 16, 16)
TOKENS: Sequence[int | str] = ("N", "L", 16)
WIDTH, CLASSES = 64, 10


@dataclass(frozen=True)
class Made:
    """A net and its dead channels.

    dead: (initializer, axis, block) of which every second block of the axis is zero in the net with dead channels
    """

    model: onnx.ModelProto
    dead: tuple[tuple[str, int, int], ...]

    def half_dead(self) -> onnx.ModelProto:
        clone = onnx.ModelProto()
        clone.CopyFrom(self.model)
        tensors = {t.name: t for t in clone.graph.initializer}
        for name, axis, block in self.dead:
            array = np.moveaxis(numpy_helper.to_array(tensors[name]).copy(), axis, 0)
            array[np.arange(len(array)) // block % 2 == 1] = 0
            tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(np.moveaxis(array, 0, axis)), name))
        return clone


@dataclass
class Net:
    """Adds operators one by one; every method returns the name of the value it computes."""

    widths: dict[str, int] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)
    dead: list[tuple[str, int, int]] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def floats(self, array: np.ndarray, axis: int | None = None, block: int = 1) -> str:
        """axis: where given, every second block of it is zero in the net with dead channels."""
        name = self.constant(array.astype(np.float32))
        if axis is not None:
            self.dead.append((name, axis, block))
        return name

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def op(self, kind: str, inputs: Sequence[str], width: int = 0, **attributes: Any) -> str:
        """width: number of output channels; default: that of the first input."""
        out = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=out, **attributes))
        self.widths[out] = width or self.widths.get(inputs[0], 0)
        return out

    def normal(self, *shape: int, gain: float = 1.0) -> np.ndarray:
        return self.rng.standard_normal(shape) * gain

    def conv_weights(self, fan: int, width: int, k: int, group: int = 1, block: int = 1) -> list[str]:
        weight = self.normal(width, fan // group, k, k, gain=(2 / (fan // group * k * k)) ** 0.5)
        return [self.floats(weight, 0, block), self.floats(self.normal(width, gain=0.1), 0, block)]

    def conv(self, x: str, width: int = WIDTH, k: int = 3, stride: int = 1, group: int = 1, block: int = 1,
             bias: bool = True, shared: Sequence[str] = ()) -> str:  # fmt: skip
        weights = list(shared) or self.conv_weights(self.widths[x], width, k, group, block)
        attributes = {"kernel_shape": [k, k], "pads": [k // 2] * 4, "strides": [stride] * 2, "group": group}
        return self.op("Conv", [x, *weights[: 1 + bias]], width, **attributes)

    def relu(self, x: str) -> str:
        return self.op("Relu", [x])

    def block(self, x: str, width: int = WIDTH, k: int = 3, stride: int = 1, group: int = 1) -> str:
        return self.relu(self.conv(x, width, k, stride, group))

    def stem(self, width: int = WIDTH) -> str:
        return self.relu(self.conv("image", width))

    def depthwise(self, x: str, block: int = 1) -> str:
        return self.relu(self.conv(x, self.widths[x], group=self.widths[x], block=block))

    def upward(self, x: str, width: int) -> str:
        """A transposed convolution of stride 2."""
        weight = self.floats(self.normal(self.widths[x], width, 2, 2, gain=(2 / self.widths[x]) ** 0.5), 1)
        bias = self.floats(self.normal(width, gain=0.1), 0)
        return self.op("ConvTranspose", [x, weight, bias], width, kernel_shape=[2, 2], strides=[2, 2])

    def batchnorm(self, x: str) -> str:
        c = self.widths[x]
        scale, variance = self.floats(1 + self.normal(c, gain=0.2)), self.floats(0.5 + self.rng.random(c))
        shift, mean = self.floats(self.normal(c, gain=0.2), 0), self.floats(self.normal(c, gain=0.2), 0)
        return self.op("BatchNormalization", [x, scale, shift, mean, variance])

    def concat(self, *parts: str) -> str:
        return self.op("Concat", parts, sum(self.widths[p] for p in parts), axis=1)

    def pooled(self, x: str) -> str:
        return self.op("Flatten", [self.op("GlobalAveragePool", [x])])

    def gemm(self, x: str, width: int = WIDTH, fan: int = 0) -> str:
        fan = fan or self.widths[x]
        weight = self.floats(self.normal(width, fan, gain=(2 / fan) ** 0.5), 0)
        return self.op("Gemm", [x, weight, self.floats(self.normal(width, gain=0.1), 0)], width, transB=1)

    def dense(self, x: str, width: int = WIDTH, block: int = 1) -> str:
        """MatMul and its bias, as exporters write a layer on sequences."""
        fan = self.widths[x]
        weight = self.floats(self.normal(fan, width, gain=fan**-0.5), 1, block)
        y = self.op("MatMul", [x, weight], width)
        return self.op("Add", [y, self.floats(self.normal(width, gain=0.1), 0, block)], width)

    def out(self, x: str) -> None:
        """Make the result of the last layer an output of the graph; that layer's weight and bias stay."""
        del self.dead[-2:]
        self.outputs.append(x)

    def classify(self, x: str) -> None:
        """Global pooling and a linear head."""
        self.out(self.gemm(self.pooled(x), CLASSES))

    def layernorm(self, x: str) -> str:
        c = self.widths[x]
        parts = [self.floats(1 + self.normal(c, gain=0.1)), self.floats(self.normal(c, gain=0.1))]
        return self.op("LayerNormalization", [x, *parts], axis=-1)


def chain(net: Net) -> None:
    x = net.stem()
    for _ in range(3):
        x = net.block(x)
    net.classify(x)


def inception(net: Net) -> None:
    x = net.stem()
    for _ in range(2):
        pool = net.op("MaxPool", [x], kernel_shape=[3, 3], pads=[1] * 4)
        wide = net.block(net.block(net.block(x, 32, 1), 32), 32)
        x = net.concat(net.block(x, 32, 1), net.block(net.block(x, 32, 1), 32), wide, net.block(pool, 32, 1))
    net.classify(x)


def se_convolutions(net: Net) -> None:
    """The gate as two 1x1 convolutions and a Sigmoid."""
    x = net.block(net.stem())
    pooled = net.op("GlobalAveragePool", [x])
    gate = net.op("Sigmoid", [net.conv(net.block(pooled, 16, 1), k=1)])
    net.classify(net.block(net.op("Mul", [x, gate])))


def se_dense(net: Net) -> None:
    """The gate as ReduceMean, two Gemm, HardSigmoid and a Reshape back to a feature map."""
    x = net.block(net.stem())
    pooled = net.op("ReduceMean", [x], axes=[2, 3], keepdims=0)
    gate = net.op("HardSigmoid", [net.gemm(net.relu(net.gemm(pooled, 16)))])
    gate = net.op("Reshape", [gate, net.ints(-1, WIDTH, 1, 1)])
    net.classify(net.block(net.op("Mul", [x, gate])))


def deconvolution(net: Net) -> None:
    x = net.block(net.stem(), stride=2)
    net.out(net.conv(net.block(net.relu(net.upward(x, WIDTH))), 3))


def grouped(net: Net) -> None:
    x = net.stem()
    for _ in range(2):
        x = net.block(net.block(net.block(x, k=1), group=4), k=1)
    net.classify(x)


def residual_projection(net: Net) -> None:
    x = net.stem(32)
    for width, stride in ((32, 1), (WIDTH, 2), (WIDTH, 1)):
        y = net.conv(net.block(x, width, stride=stride), width)
        same = width == net.widths[x]
        x = net.relu(net.op("Add", [y, x if same else net.conv(x, width, 1, stride)]))
    net.classify(x)


def inverted_residual(net: Net) -> None:
    x = net.conv(net.stem(32), 32, 1)
    for _ in range(2):
        x = net.op("Add", [net.conv(net.depthwise(net.block(x, 128, 1)), 32, 1), x])
    net.classify(net.block(x, 128, 1))


def fpn(net: Net) -> None:
    fine = net.block(net.stem())
    coarse = net.block(fine, 128, stride=2)
    top = net.conv(coarse, k=1)
    large = net.op("Resize", [top, "", net.floats(np.array([1, 1, 2, 2]))], mode="nearest", nearest_mode="floor",
                   coordinate_transformation_mode="asymmetric")  # fmt: skip
    for level in (net.op("Add", [net.conv(fine, k=1), large]), top):
        net.out(net.conv(net.block(level), 8, 1))


def conv_batchnorm(net: Net) -> None:
    """After a Conv, where it folds, and before one (after an Add), where it does not."""
    x = net.relu(net.batchnorm(net.conv("image", bias=False)))
    for _ in range(2):
        y = net.relu(net.batchnorm(net.conv(net.relu(net.batchnorm(x)), bias=False)))
        x = net.op("Add", [net.conv(y, bias=False), x])
    net.classify(net.relu(net.batchnorm(x)))


def dense_block(net: Net) -> None:
    x = net.stem()
    for _ in range(3):
        x = net.concat(x, net.block(net.block(x, WIDTH, 1), 32))
    net.classify(net.block(x, k=1))


def unet(net: Net) -> None:
    fine = net.block(net.stem(32), 32)
    middle = net.block(net.op("MaxPool", [fine], kernel_shape=[2, 2], strides=[2, 2]))
    deep = net.block(net.op("MaxPool", [middle], kernel_shape=[2, 2], strides=[2, 2]), 128)
    x = net.block(net.concat(net.upward(deep, WIDTH), middle))
    net.out(net.conv(net.block(net.concat(net.upward(x, 32), fine), 32), 4, 1))


def c2f_split(net: Net) -> None:
    x = net.block(net.stem(), WIDTH, 1)
    half = WIDTH // 2
    node = helper.make_node("Split", [x, net.ints(half, half)], ["left", "right"], name="split", axis=1)
    net.nodes.append(node)
    net.widths |= {"left": half, "right": half}
    parts = ["left", "right"]
    for _ in range(2):
        parts.append(net.op("Add", [net.block(net.block(parts[-1], half), half), parts[-1]]))
    net.classify(net.block(net.concat(*parts), WIDTH, 1))


def channel_shuffle(net: Net) -> None:
    x = net.block(net.stem(), WIDTH, 1)
    y = net.block(x, WIDTH, 1, group=4)
    y = net.op("Reshape", [y, net.ints(-1, 4, WIDTH // 4, 8, 8)], WIDTH)
    y = net.op("Reshape", [net.op("Transpose", [y], perm=[0, 2, 1, 3, 4]), net.ints(-1, WIDTH, 8, 8)], WIDTH)
    net.classify(net.block(net.conv(net.depthwise(y, 4), WIDTH, 1, group=4), WIDTH, 1))


def channel_slice(net: Net) -> None:
    """The split of ShuffleNet and GhostNet: each half of the channels takes its own path."""
    x, half = net.stem(), WIDTH // 2
    for _ in range(2):
        x = net.block(x)
        low = net.op("Slice", [x, net.ints(0), net.ints(half), net.ints(1)], half)
        high = net.op("Slice", [x, net.ints(half), net.ints(WIDTH), net.ints(1)], half)
        x = net.concat(low, net.block(high, half))
    net.classify(net.block(x))


def groupnorm_reshape(net: Net) -> None:
    """As PyTorch's exporter writes it: InstanceNormalization on groups, reshaped back by the shape of the input."""
    x, groups, block = net.stem(), 8, WIDTH // 8
    for _ in range(2):
        y = net.conv(x, block=block)
        flat = net.op("Reshape", [y, net.ints(0, groups, -1)], WIDTH)
        plain = net.op("InstanceNormalization", [flat, net.floats(np.ones(groups)), net.floats(np.zeros(groups))])
        back = net.op("Reshape", [plain, net.op("Shape", [y])], WIDTH)
        scaled = net.op("Mul", [back, net.floats(1 + net.normal(WIDTH, 1, 1, gain=0.2))])
        x = net.relu(net.op("Add", [scaled, net.floats(net.normal(WIDTH, 1, 1, gain=0.2), 0, block)]))
    net.classify(net.block(x))


def flatten_head(net: Net) -> None:
    x = net.block(net.block(net.stem(), stride=2), 32)
    flat = net.op("Flatten", [x])
    net.out(net.gemm(net.relu(net.gemm(flat, WIDTH, fan=32 * 16)), CLASSES))


def lstm(net: Net) -> None:
    x = net.op("Transpose", [net.relu(net.dense("tokens"))], perm=[1, 0, 2])
    for _ in range(2):
        weights = [net.floats(net.normal(1, 4 * WIDTH, WIDTH, gain=WIDTH**-0.5), 1) for _ in range(2)]
        bias = net.floats(net.normal(1, 8 * WIDTH, gain=0.1), 1)
        y = net.op("LSTM", [x, *weights, bias], WIDTH, hidden_size=WIDTH)
        x = net.op("Squeeze", [y, net.ints(1)])
    x = net.op("Transpose", [x], perm=[1, 0, 2])
    net.out(net.dense(net.relu(net.dense(x)), CLASSES))


def siamese(net: Net) -> None:
    """Two images through the same weights, then their distance."""
    stem, *inner = [net.conv_weights(fan, WIDTH, 3) for fan in (3, WIDTH, WIDTH)]
    sides = []
    for name in ("image", "other"):
        x = net.relu(net.conv(name, shared=stem))
        for weights in inner:
            x = net.relu(net.conv(x, shared=weights))
        sides.append(net.pooled(x))
    net.out(net.gemm(net.relu(net.gemm(net.op("Abs", [net.op("Sub", sides)]))), CLASSES))


def residual_mlp_layernorm(net: Net) -> None:
    """LayerNormalization on the residual stream, whose width is then part of the function; the branches are free
    inside.
    """
    x = net.dense("tokens")
    for _ in range(2):
        y = net.relu(net.dense(net.layernorm(x), 128))
        x = net.op("Add", [net.dense(net.relu(net.dense(y, 128)), WIDTH), x])
    net.out(net.dense(net.layernorm(x), CLASSES))


def _attend(net: Net, query: str, key: str, value: str, x: str) -> None:
    """From heads (query and value N,h,L,d; key N,h,d,L) through projection and feed-forward to the output."""
    scores = net.op("Div", [net.op("MatMul", [query, key]), net.constant(np.array(4, np.float32))])
    mixed = net.op("MatMul", [net.op("Softmax", [scores], axis=-1), value])
    flat = net.op("Reshape", [net.op("Transpose", [mixed], perm=[0, 2, 1, 3]), net.ints(0, 0, WIDTH)], WIDTH)
    x = net.op("Add", [net.dense(flat), x])
    net.out(net.dense(net.op("Add", [net.dense(net.relu(net.dense(x, 128))), x]), CLASSES))


def attention(net: Net) -> None:
    """Four heads of 16; Q, K and V each with a layer of its own, no normalization."""
    x = net.dense("tokens")
    q, k, v = (net.op("Reshape", [net.dense(x, block=16), net.ints(0, 0, 4, 16)]) for _ in range(3))
    permutations = ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    query, key, value = (net.op("Transpose", [t], perm=p) for t, p in zip((q, k, v), permutations, strict=True))
    _attend(net, query, key, value, x)


def attention_packed(net: Net) -> None:
    """The same from one layer of three times the width, as in vision transformers."""
    x = net.dense("tokens")
    packed = net.op("Reshape", [net.dense(x, 3 * WIDTH, block=16), net.ints(0, 0, 3, 4, 16)])
    packed = net.op("Transpose", [packed], perm=[2, 0, 3, 1, 4])
    query, key, value = (net.op("Gather", [packed, net.constant(np.array(i, np.int64))], axis=0) for i in range(3))
    _attend(net, query, net.op("Transpose", [key], perm=[0, 1, 3, 2]), value, x)


def gated_ffn(net: Net) -> None:
    x = net.dense("tokens")
    for _ in range(2):
        gate, up = net.dense(x, 128), net.dense(x, 128)
        gate = net.op("Mul", [gate, net.op("Sigmoid", [gate])])
        x = net.op("Add", [net.dense(net.op("Mul", [gate, up])), x])
    net.out(net.dense(x, CLASSES))


def depth_to_space(net: Net) -> None:
    """Two pixel shuffles, as in super-resolution: four adjacent channels become one of twice the size."""
    x = net.stem()
    for _ in range(2):
        x = net.relu(net.op("DepthToSpace", [net.conv(x, 4 * 32, block=4)], 32, blocksize=2, mode="CRD"))
    net.out(net.conv(net.block(x, 32), 3))


Build = Callable[[Net], None]
ON_IMAGES: tuple[Build, ...] = (
    chain, inception, se_convolutions, se_dense, grouped, residual_projection, inverted_residual, conv_batchnorm,
    dense_block, c2f_split, channel_shuffle, channel_slice, groupnorm_reshape, flatten_head, siamese, depth_to_space,
)  # fmt: skip
ON_LARGE: tuple[Build, ...] = (deconvolution, fpn, unet)
ON_TOKENS: tuple[Build, ...] = (lstm, residual_mlp_layernorm, attention, attention_packed, gated_ffn)


def _inputs() -> dict[str, tuple[Build, dict[str, Sequence[int | str]]]]:
    kinds = [(ON_IMAGES, "image", IMAGE), (ON_LARGE, "image", LARGE), (ON_TOKENS, "tokens", TOKENS)]
    found = {b.__name__: (b, {name: shape}) for builds, name, shape in kinds for b in builds}
    found["siamese"][1]["other"] = IMAGE
    return found


TOPOLOGIES = _inputs()


def make(name: str) -> Made:
    """The net with this name, checked."""
    build, inputs = TOPOLOGIES[name]
    net = Net(widths={k: int(shape[-1 if k == "tokens" else 1]) for k, shape in inputs.items()})
    build(net)
    graph = helper.make_graph(
        net.nodes, name,
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, shape) for k, shape in inputs.items()],
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, None) for k in net.outputs], net.tensors)  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    shaped = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    for value, known in zip(model.graph.output, shaped.graph.output, strict=True):
        value.CopyFrom(known)
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.checker.check_model(model, full_check=True)
    return Made(model, tuple(net.dead))
