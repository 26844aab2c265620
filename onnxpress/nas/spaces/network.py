"""A builder that writes a network as ONNX, operator by operator: the language of blocks and search spaces.

Values know their shape (without the batch axis, which is free), so that a block can read the width of its input.
Weights are drawn by He et al. (2015) from the seed; a normalization starts as the identity.  Values are [C,H,W] for
images, [C,L] for sequences of features, [L,D] for tokens and [D] for vectors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.errors import InputProblem

OPSET = 17
BATCH = "N"
_FLOAT = np.dtype(np.float32)
ACTIVATIONS = ("relu", "relu6", "hardswish", "silu", "gelu")


@dataclass(frozen=True)
class Value:
    """A value of the network.  shape: without the batch axis."""

    name: str
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        """Channels of an image or a sequence, features of tokens and vectors."""
        return self.shape[0] if len(self.shape) == 3 else self.shape[-1]


def _attribute(name: str, value: object) -> ir.Attr:
    """An ONNX attribute of one of the types that blocks use; faster than the general conversion."""
    if isinstance(value, int):
        return ir.AttrInt64(name, value)
    if isinstance(value, float):
        return ir.AttrFloat32(name, value)
    if isinstance(value, list) and value and isinstance(value[0], int):
        return ir.AttrInt64s(name, value)
    return ir.convenience.convert_attribute(name, value)  # type: ignore[arg-type]


class NetworkBuilder:
    """Collects nodes and weights; `model` returns the model."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._nodes: list[ir.Node] = []
        self._inputs: list[ir.Value] = []
        self._weights: list[ir.Value] = []
        self._values: dict[str, ir.Value] = {}
        self._shared: dict[tuple[bytes, str, tuple[int, ...]], str] = {}
        self._fixed = True  # only the batch axis is free, so that shapes can be declared
        self._count = 0

    # basic operations

    def input(
        self, name: str, shape: Sequence[int], dtype: np.dtype[np.generic] = _FLOAT, free: Sequence[str] = ()
    ) -> Value:
        """Add an input; shape without the batch axis, `free`: a symbol for each free axis ("" for fixed ones)."""
        self._fixed = self._fixed and not any(free)
        dims = [symbol or size for symbol, size in zip([*free, *[""] * len(shape)], shape, strict=False)]
        self._inputs.append(self._value(name, [BATCH, *dims], ir.DataType.from_numpy(dtype)))
        return Value(name, tuple(shape))

    def constant(self, array: np.ndarray) -> str:
        """Add a constant that is not trained; equal ones are stored once."""
        key = (array.tobytes(), str(array.dtype), array.shape)
        if key not in self._shared:
            self._shared[key] = self._held(array, "constant")
        return self._shared[key]

    def weight(self, array: np.ndarray, stem: str = "weight") -> str:
        """Add a trainable weight."""
        return self._held(np.asarray(array, np.float32), stem)

    def _held(self, array: np.ndarray, stem: str) -> str:
        name = self._name(stem)
        tensor = ir.Tensor(np.array(array, order="C"), name=name)
        value = self._value(name, array.shape, tensor.dtype)
        value.const_value = tensor
        self._weights.append(value)
        return name

    def _name(self, stem: str) -> str:
        self._count += 1
        return f"{stem}{self._count}"

    def _value(self, name: str, shape: Sequence[int | str], dtype: ir.DataType) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self._values[name] = value
        return value

    def op(
        self,
        kind: str,
        inputs: Sequence[str],
        shape: Sequence[int],
        batch: Sequence[str | int] = (BATCH,),
        **attributes: object,
    ) -> Value:
        """Add a node with one float output, of the given shape after the `batch` axes."""
        name = self._name(kind.lower())
        self._add(kind, inputs, self._value(name, [*batch, *map(int, shape)], ir.DataType.FLOAT), attributes)
        return Value(name, tuple(int(d) for d in shape))

    def _add(self, kind: str, inputs: Sequence[str], output: ir.Value, attributes: Mapping[str, object]) -> None:
        given = [self._values[n] if n else None for n in inputs]
        found = [_attribute(k, v) for k, v in attributes.items()]
        self._nodes.append(ir.Node("", kind, given, found, outputs=[output], name=output.name))

    def length(self, x: Value) -> str:
        """Size of the first axis after the batch at run time."""
        name = self._name("length")
        self._add("Shape", [x.name], self._value(name, [1], ir.DataType.INT64), {"start": 1, "end": 2})
        return name

    def drawn(self, shape: Sequence[int], fan: int) -> str:
        """Add a weight of standard deviation sqrt(2 / fan), drawn when first read: most candidates are only counted."""
        return self._random(shape, math.sqrt(2 / fan), "weight")

    def _random(self, shape: Sequence[int], deviation: float, stem: str) -> str:
        name = self._name(stem)
        key = [self._seed, self._count]

        def numbers() -> ir.TensorProtocol:
            drawn = np.random.default_rng(key).standard_normal(tuple(shape), np.float32)
            return ir.tensor(drawn * np.float32(deviation), name=name)

        value = self._value(name, shape, ir.DataType.FLOAT)
        value.const_value = ir.LazyTensor(numbers, ir.DataType.FLOAT, ir.Shape(shape), name=name, cache=True)
        self._weights.append(value)
        return name

    # layers

    def conv(
        self, x: Value, width: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = False
    ) -> Value:
        """Convolution with "same" padding over one axis ([C,L]) or two ([C,H,W]); axes of size 1 are not strided."""
        if kernel % 2 == 0:
            raise InputProblem("the kernel size must be odd", "kernel", f"got {kernel}", "use 3, 5 or 7")
        space = x.shape[1:]
        strides = [stride if size > 1 else 1 for size in space]
        kernels = [kernel if size > 1 else 1 for size in space]
        fan = x.shape[0] // groups * math.prod(kernels)
        inputs = [x.name, self.drawn([width, x.shape[0] // groups, *kernels], fan)]
        if bias:
            inputs.append(self.weight(np.zeros(width), "bias"))
        pads = [k // 2 for k in kernels]
        out = [(size + 2 * p - k) // s + 1 for size, p, k, s in zip(space, pads, kernels, strides, strict=True)]
        return self.op(
            "Conv", inputs, [width, *out], kernel_shape=kernels, strides=strides, pads=[*pads, *pads], group=groups
        )

    def depthwise(self, x: Value, kernel: int = 3, stride: int = 1) -> Value:
        """Depthwise convolution."""
        return self.conv(x, x.shape[0], kernel, stride, groups=x.shape[0])

    def norm(self, x: Value) -> Value:
        """Batch normalization over the channels of [C,...]."""
        width = x.shape[0]
        parts = (("scale", 1.0), ("bias", 0.0), ("mean", 0.0), ("var", 1.0))
        names = [self.weight(np.full(width, start), stem) for stem, start in parts]
        return self.op("BatchNormalization", [x.name, *names], x.shape, epsilon=1e-5)

    def layer_norm(self, x: Value) -> Value:
        """Layer normalization over the last axis."""
        width = x.shape[-1]
        names = [self.weight(np.ones(width), "scale"), self.weight(np.zeros(width), "bias")]
        return self.op("LayerNormalization", [x.name, *names], x.shape, axis=-1, epsilon=1e-5)

    def activation(self, x: Value, kind: str = "relu") -> Value:
        """One of ACTIVATIONS.  Raises InputProblem for another name."""
        if kind == "relu":
            return self.op("Relu", [x.name], x.shape)
        if kind == "relu6":
            ends = [self.constant(np.array(v, np.float32)) for v in (0.0, 6.0)]
            return self.op("Clip", [x.name, *ends], x.shape)
        if kind == "hardswish":
            return self.op("HardSwish", [x.name], x.shape)
        if kind == "silu":
            return self.multiply(x, self.op("Sigmoid", [x.name], x.shape))
        if kind == "gelu":
            scaled = self.op("Mul", [x.name, self.constant(np.array(math.sqrt(0.5), np.float32))], x.shape)
            error = self.op("Erf", [scaled.name], x.shape)
            gate = self.op("Add", [error.name, self.constant(np.array(1.0, np.float32))], x.shape)
            half = self.op("Mul", [x.name, self.constant(np.array(0.5, np.float32))], x.shape)
            return self.multiply(half, gate)
        raise InputProblem("unknown activation", kind, "", f"one of {', '.join(ACTIVATIONS)}")

    def conv_norm(
        self, x: Value, width: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: str = "relu"
    ) -> Value:
        """Convolution, batch normalization, and an activation ("": none)."""
        y = self.norm(self.conv(x, width, kernel, stride, groups))
        return self.activation(y, act) if act else y

    def dense(self, x: Value, width: int) -> Value:
        """A linear layer over the last axis: Gemm for vectors, MatMul and Add for tokens."""
        size = x.shape[-1]
        bias = self.weight(np.zeros(width), "bias")
        if len(x.shape) == 1:
            return self.op("Gemm", [x.name, self.drawn([width, size], size), bias], [width], transB=1)
        y = self.op("MatMul", [x.name, self.drawn([size, width], size)], [*x.shape[:-1], width])
        return self.op("Add", [y.name, bias], y.shape)

    # connections and shapes

    def add(self, x: Value, y: Value) -> Value:
        """Elementwise sum."""
        return self.op("Add", [x.name, y.name], x.shape)

    def multiply(self, x: Value, y: Value) -> Value:
        """Elementwise product."""
        return self.op("Mul", [x.name, y.name], x.shape if len(x.shape) >= len(y.shape) else y.shape)

    def pool(self, x: Value, kernel: int = 2, stride: int = 2, kind: str = "max") -> Value:
        """Pooling over [C,L] or [C,H,W]; odd kernels keep the size at stride 1; averages exclude the padding."""
        kernels = [(kernel if kernel % 2 else min(kernel, size)) if size > 1 else 1 for size in x.shape[1:]]
        strides = [stride if size > 1 else 1 for size in x.shape[1:]]
        pads = [k // 2 if k % 2 else 0 for k in kernels]
        out = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(x.shape[1:], pads, kernels, strides, strict=True)]
        name = "MaxPool" if kind == "max" else "AveragePool"
        shape = [x.shape[0], *out]
        return self.op(name, [x.name], shape, kernel_shape=kernels, strides=strides, pads=[*pads, *pads])

    def global_pool(self, x: Value) -> Value:
        """Mean over all positions: [C,...] -> [C]."""
        ones = [1] * (len(x.shape) - 1)
        y = self.op("GlobalAveragePool", [x.name], [x.shape[0], *ones])
        return self.op("Flatten", [y.name], [x.shape[0]], axis=1)

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """Reshape the axes after the batch."""
        target = self.constant(np.array([0, *shape], np.int64))
        return self.op("Reshape", [x.name, target], shape)

    def transpose(self, x: Value, order: Sequence[int]) -> Value:
        """Permute the axes after the batch (0: the first after the batch)."""
        shape = [x.shape[i] for i in order]
        return self.op("Transpose", [x.name], shape, perm=[0, *(i + 1 for i in order)])

    def resized(self, x: Value, size: int) -> Value:
        """An image [C,H,W] at another resolution (bilinear; `size`: of the longer side)."""
        scale = size / max(x.shape[1:])
        if scale == 1:
            return x
        factors = self.constant(np.array([1, 1, scale, scale], np.float32))
        shape = [x.shape[0], *(math.floor(n * scale) for n in x.shape[1:])]
        return self.op("Resize", [x.name, "", factors], shape, mode="linear")

    def embedding(self, x: Value, size: int, width: int) -> Value:
        """Embedding of token ids: [L] -> [L, width].  size: of the vocabulary."""
        table = self._random([size, width], 0.1, "table")
        return self.op("Gather", [table, x.name], [*x.shape, width], axis=0)

    def model(self, outputs: Mapping[str, Value]) -> ir.Model:
        """The model with the named outputs."""
        found = []
        for name, value in outputs.items():
            last = self._values[value.name]
            if last in self._inputs or last in found:
                self._add("Identity", [value.name], self._value(name, [BATCH, *value.shape], ir.DataType.FLOAT), {})
                last = self._values[name]
            last.name = name
            found.append(last)
        if not self._fixed:
            for node in self._nodes:
                for output in node.outputs:
                    output.shape = output.shape if output in found else None
        graph = ir.Graph(
            self._inputs,
            found,
            nodes=self._nodes,
            initializers=self._weights,
            opset_imports={"": OPSET},
            name="candidate",
        )
        return ir.Model(graph, ir_version=8)
