"""Small networks for tests of passes: built by hand, run by onnxruntime, without training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from onnxpress.data.dataset import Dataset
from onnxpress.model.signature import signature


@dataclass
class Net:
    """Adds operators one by one; every method returns the name of the value it computes."""

    seed: int = 0
    opset: int = 17
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)
    count: int = 0
    widths: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def constant(self, array: np.ndarray, stem: str = "w") -> str:
        name = self.name(stem)
        self.tensors.append(numpy_helper.from_array(np.array(array, order="C"), name))  # which keeps a scalar one
        return name

    def op(self, kind: str, inputs: list[str], width: int, **attributes: Any) -> str:
        out = self.name(kind.lower())
        self.nodes.append(helper.make_node(kind, inputs, [out], name=f"n_{out}", **attributes))
        self.widths[out] = width
        return out

    def conv(self, x: str, width: int, k: int = 3, stride: int = 1, group: int = 1, bias: bool = True) -> str:
        fan = self.widths[x] // group
        weight = self.rng.standard_normal((width, fan, k, k)) / np.sqrt(fan * k * k / 2)
        inputs = [x, self.constant(weight.astype(np.float32))]
        if bias:
            inputs.append(self.constant((self.rng.standard_normal(width) * 0.1).astype(np.float32), "b"))
        return self.op("Conv", inputs, width, kernel_shape=[k, k], pads=[k // 2] * 4, strides=[stride] * 2, group=group)

    def depthwise(self, x: str) -> str:
        return self.conv(x, self.widths[x], group=self.widths[x])

    def batchnorm(self, x: str) -> str:
        c = self.widths[x]
        parts = [
            1 + 0.2 * self.rng.standard_normal(c),
            0.2 * self.rng.standard_normal(c),
            0.2 * self.rng.standard_normal(c),
            0.5 + self.rng.random(c),
        ]
        return self.op("BatchNormalization", [x, *(self.constant(p.astype(np.float32), "bn") for p in parts)], c)

    def relu(self, x: str) -> str:
        return self.op("Relu", [x], self.widths[x])

    def add(self, a: str, b: str) -> str:
        return self.op("Add", [a, b], self.widths[a])

    def concat(self, *parts: str) -> str:
        return self.op("Concat", list(parts), sum(self.widths[p] for p in parts), axis=1)

    def head(self, x: str, classes: int = 10, pooled: bool = True, size: int = 64) -> str:
        """Global pooling (or none), Flatten, Gemm.  size: spatial positions without pooling."""
        width = self.widths[x]
        if pooled:
            x, size = self.op("GlobalAveragePool", [x], width), 1
        x = self.op("Flatten", [x], width * size)
        weight = (self.rng.standard_normal((classes, width * size)) / np.sqrt(width * size)).astype(np.float32)
        return self.op(
            "Gemm", [x, self.constant(weight), self.constant(np.zeros(classes, np.float32), "b")], classes, transB=1
        )

    def model(
        self, output: str, inputs: dict[str, list[int | str | None]], shape: list[int | str | None] | None = None
    ) -> ir.Model:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            self.tensors,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        onnx.checker.check_model(proto)
        return ir.from_proto(proto)


def image_net(seed: int = 0, channels: int = 3) -> Net:
    net = Net(seed)
    net.widths["image"] = channels
    return net


IMAGE: dict[str, list[int | str | None]] = {"image": ["N", 3, 8, 8]}


def residual(seed: int = 0, width: int = 32, blocks: int = 2, norm: bool = False) -> ir.Model:
    """Stem, residual blocks on one stream, global pooling, Gemm."""
    net = image_net(seed)
    x = net.relu(net.conv("image", width))
    for _ in range(blocks):
        y = net.conv(x, width)
        y = net.relu(net.batchnorm(y) if norm else y)
        x = net.relu(net.add(net.conv(y, width), x))
    return net.model(net.head(x), IMAGE, ["N", 10])


def mobile(seed: int = 0, width: int = 32) -> ir.Model:
    """Inverted residual blocks with depthwise convolutions and a concat, flattened without pooling."""
    net = image_net(seed)
    x = net.relu(net.conv("image", width))
    y = net.relu(net.depthwise(net.relu(net.conv(x, 2 * width, 1))))
    x = net.add(net.conv(y, width, 1), x)
    x = net.relu(net.concat(net.conv(x, width, 1), net.conv(x, width, 3)))
    return net.model(net.head(x, pooled=False), IMAGE, ["N", 10])


def padded_shortcut(seed: int = 0, width: int = 32) -> ir.Model:
    """A shortcut that strides with Slice and adds channels with Pad (option A of ResNet), and a Pad before a Conv."""
    net = image_net(seed)
    x = net.relu(net.conv("image", width))
    wide = net.constant(np.array([0, 4, 0, 0, 0, 4, 0, 0], np.int64), "pads")
    ends = [net.constant(np.array(v, np.int64), "at") for v in ([0, 0], [9, 9], [2, 3], [2, 2])]
    short = net.op("Pad", [net.op("Slice", [x, *ends], width), wide], width + 8)
    x = net.relu(net.add(net.conv(net.relu(net.conv(x, width, stride=2)), width + 8), short))
    around = net.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "pads")
    x = net.relu(net.conv(net.op("Pad", [x, around], width + 8, mode="reflect"), width, 3))
    return net.model(net.head(x), IMAGE, ["N", 10])


def mlp(seed: int = 0, width: int = 48) -> ir.Model:
    """MatMul, bias Add, Relu, MatMul on a batch of sequences."""
    net = Net(seed)
    rng = net.rng
    first = net.constant((rng.standard_normal((16, width)) / 4).astype(np.float32))
    second = net.constant((rng.standard_normal((width, 8)) / 7).astype(np.float32))
    bias = net.constant(rng.standard_normal(width).astype(np.float32), "b")
    hidden = net.op("Relu", [net.op("Add", [net.op("MatMul", ["tokens", first], width), bias], width)], width)
    out = net.op("MatMul", [hidden, second], 8)
    return net.model(out, {"tokens": ["N", "L", 16]}, ["N", "L", 8])


def transformer(seed: int = 0, width: int = 16, layers: int = 2, post: bool = True) -> ir.Model:
    """Attention with an additive mask and feed-forward, on sequences of dynamic length; normalization after the Add
    (post) or in the branch.
    """
    net = Net(seed)
    net.widths["tokens"] = width
    rng = net.rng

    def dense(x: str, out: int) -> str:
        fan = net.widths[x]
        y = net.op(
            "MatMul", [x, net.constant((rng.standard_normal((fan, out)) / np.sqrt(fan)).astype(np.float32))], out
        )
        return net.op("Add", [y, net.constant((rng.standard_normal(out) * 0.1).astype(np.float32), "b")], out)

    def norm(x: str) -> str:
        parts = (1 + 0.1 * rng.standard_normal(width), 0.1 * rng.standard_normal(width))
        return net.op("LayerNormalization", [x, *(net.constant(p.astype(np.float32)) for p in parts)], width, axis=-1)

    def attention(x: str) -> str:
        query, key, value = (dense(x, width) for _ in range(3))
        scores = net.op("MatMul", [query, net.op("Transpose", [key], 0, perm=[0, 2, 1])], 0)
        shares = net.op("Softmax", [net.op("Add", [scores, bias], 0)], 0, axis=-1)
        return dense(net.op("MatMul", [shares, value], width), width)

    def feed(x: str) -> str:
        return dense(net.relu(dense(x, 2 * width)), width)

    bias = net.op("Unsqueeze", ["mask", net.constant(np.array([1], np.int64))], 0)
    x = norm("tokens") if post else net.op("Mul", ["tokens", net.constant(np.array(1.5, np.float32))], width)
    for _ in range(layers):
        for part in (attention, feed):
            x = norm(net.add(part(x), x)) if post else net.add(part(norm(x)), x)
    return net.model(dense(x, 4), {"tokens": ["N", "L", width], "mask": ["N", "L"]}, ["N", "L", 4])


def samples(model: ir.Model, count: int = 24, seed: int = 0, labels: bool = False, sequence: int = 5) -> Dataset:
    """Random inputs of a model; labels are its own predictions, so that the original scores 1."""
    rng = np.random.default_rng(seed)
    sig = signature(model)
    arrays = {}
    for spec in sig.inputs:
        dims = [d if isinstance(d, int) else sequence for d in (spec.shape or ())[1:]]
        arrays[spec.name] = rng.standard_normal((count, *dims)).astype(np.float32)
    marks = None
    if labels:
        from onnxpress.runtime.session import open_session

        marks = open_session(model).run(None, arrays)[0].reshape(count, -1).argmax(1).astype(np.int64)
    return Dataset.from_arrays(arrays, sig, labels=marks)


def samples_like(model: ir.Model, dtype: type[np.floating], count: int = 6) -> Dataset:
    """Random samples of an image model of another float type."""
    arrays = {"image": np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(dtype)}
    return Dataset.from_arrays(arrays, signature(model))


def outputs(model: ir.Model, data: Dataset, level: str = "none") -> np.ndarray:
    """The first output on all samples."""
    from onnxpress.runtime.session import SessionSettings, open_session

    session = open_session(model, SessionSettings(level=level))
    return np.concatenate([session.run(None, b.inputs)[0][: b.count] for b in data.batches(8)])


def shared_weights() -> ir.Model:
    net = image_net()
    x = net.relu(net.conv("image", 32))
    weight = net.constant((net.rng.standard_normal((32, 32, 1, 1)) / 6).astype(np.float32))
    for _ in range(2):
        x = net.relu(net.op("Conv", [x, weight], 32))
    return net.model(net.head(x), IMAGE, ["N", 10])


def with_if() -> ir.Model:
    """A branch that reads an outer value: its channels must stay."""
    net = image_net()
    x = net.relu(net.conv("image", 32))
    y = net.relu(net.conv(x, 32))

    def branch(name: str, op: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, [y], [name])], name, [], [out])

    flag = net.constant(np.array(True), "flag")
    z = net.name("if")
    net.nodes.append(
        helper.make_node("If", [flag], [z], name=z, then_branch=branch("a", "Relu"), else_branch=branch("b", "Neg"))
    )
    net.widths[z] = 32
    return net.model(net.head(z), IMAGE, ["N", 10])


def conv_output() -> ir.Model:
    """A picture to a picture: the graph's output is a Conv, which integer passes must hand over to a DQ."""
    net = image_net()
    x = net.relu(net.conv("image", 32))
    scales = net.constant(np.array([1, 1, 2, 2], np.float32), "scales")
    x = net.op("Resize", [x, "", scales], 32, mode="nearest")
    return net.model(net.conv(net.relu(net.conv(x, 32)), 3), IMAGE, ["N", 3, 16, 16])


def opset_11() -> ir.Model:
    net = Net(opset=11)
    net.widths["image"] = 3
    x = net.relu(net.conv("image", 32))
    x = net.relu(net.add(net.conv(net.relu(net.conv(x, 32)), 32), x))
    return net.model(net.head(x), IMAGE, ["N", 10])


def broadcast_add() -> ir.Model:
    """A global context block: a pooled branch is added to every position."""
    net = image_net()
    x = net.relu(net.conv("image", 32))
    pooled = net.op("GlobalAveragePool", [x], 32)
    context = net.conv(net.relu(net.conv(pooled, 32, 1)), 32, 1)
    return net.model(net.head(net.relu(net.add(x, context))), IMAGE, ["N", 10])


def masked() -> ir.Model:
    """A computed tensor that holds -inf, as attention masks do."""
    net = image_net()
    x = net.relu(net.conv("image", 32))
    low = net.op("Log", [net.op("Mul", [x, net.constant(np.array(0, np.float32))], 32)], 32)
    capped = net.op("Max", [net.add(low, x), net.constant(np.array(-1, np.float32))], 32)
    return net.model(net.head(net.relu(net.conv(capped, 32))), IMAGE, ["N", 10])


# Networks that every pass must handle, by name.
NETWORKS: dict[str, Callable[[], ir.Model]] = {
    "residual": lambda: residual(width=32),
    "residual-bn": lambda: residual(width=32, norm=True),
    "mobile": lambda: mobile(width=32),
    "padded": padded_shortcut,
    "mlp": mlp,
    "post-norm": transformer,
    "pre-norm": lambda: transformer(post=False),
    "shared": shared_weights,
    "subgraph": with_if,
    "conv-output": conv_output,
    "opset-11": opset_11,
    "broadcast-add": broadcast_add,
    "minus-infinity": masked,
}
