"""Random networks in the forms that exporters write, with samples: what commands meet in users' files.

Sizes that are computed, numbers told from sizes, rows that are found by value, shortcuts of zeros, masks of minus
infinity, branches that only hand a value on, tied embeddings, outputs under two names, operators of other domains; and
the ways to write a file: float16, old initializers as inputs, sparse ones, inputs with defaults, odd and double names.
The rules join those of `grammar.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests import grammar, nets
from tests.grammar import floats, ints
from tests.nets import Net

SAMPLES = 10
FEW = 40  # rows of a table of tokens
Samples = dict[str, np.ndarray]
Rule = Callable[[Net, st.DrawFn, str], str]


@dataclass(frozen=True)
class Exported:
    """A file and samples for it.

    form: what it was made of. whole: whether a sample is a whole input, and not a row of a batch. half: whether it is
    in float16.
    """

    model: onnx.ModelProto = field(repr=False)
    samples: Samples = field(repr=False)
    form: str
    whole: bool = False
    half: bool = False


def number(net: Net, value: float) -> str:
    return net.constant(np.array(value, np.float32))


def size_of(net: Net, x: str, axis: int) -> str:
    return net.op("Gather", [net.op("Shape", [x], 0), net.constant(np.array(axis, np.int64))], 0, axis=0)


def zeros_beside(net: Net, draw: st.DrawFn, x: str) -> str:
    """cat([x, zeros_like(x)], 1) as TorchScript and as dynamo write it, and a shortcut on it."""
    w = net.widths[x]
    shape = net.op("Shape", [x], 0)
    if draw(st.booleans()):
        value = helper.make_tensor("value", TensorProto.FLOAT, [1], [float(draw(st.booleans()))])
        zeros = net.op("ConstantOfShape", [shape], w, value=value)
    else:
        zeros = net.op("Expand", [number(net, 0), shape], w)
    wide = net.concat(x, zeros)
    return net.relu(net.add(net.conv(x, 2 * w), wide)) if draw(st.booleans()) else net.relu(net.conv(wide, 8))


def number_of_a_size(net: Net, draw: st.DrawFn, x: str) -> str:
    """Division by a number that is told from the number of channels."""
    w = net.widths[x]
    way = draw(st.sampled_from(["cast", "size", "castlike", "ones", "mask"]))
    if way == "cast":
        count = net.op("Cast", [size_of(net, x, 1)], 0, to=1)
    elif way == "size":
        count = net.op("Cast", [net.op("Size", [x], 0)], 0, to=1)
    elif way == "castlike":
        count = net.op("CastLike", [size_of(net, x, 1), x], 0)
    elif way == "ones":
        value = helper.make_tensor("value", TensorProto.FLOAT, [1], [1.0])
        ones = net.op("ConstantOfShape", [net.op("Shape", [x], 0)], w, value=value)
        count = net.op("ReduceSum", [ones, ints(net, 1, 2, 3)], 0, keepdims=1)
    else:
        lit = net.op("Greater", [net.op("ReduceMean", [x], 1, axes=[1], keepdims=1), number(net, -0.2)], 1)
        mask = net.op("Expand", [net.op("Cast", [lit], 1, to=1), net.op("Shape", [x], 0)], w)
        count = net.op("ReduceSum", [mask, ints(net, 1, 2, 3)], 0, keepdims=1)
        count = net.op("Max", [count, number(net, 1)], 0)
    return net.op("Mul", [net.op("Div", [x, count], w), number(net, 8)], w)


def resized_to(net: Net, draw: st.DrawFn, x: str) -> str:
    """Down, and up again to the sizes of what was there before."""
    w = net.widths[x]
    y = net.relu(net.conv(x, 12, stride=2))
    heads = net.op("Slice", [net.op("Shape", [y], 0), ints(net, 0), ints(net, 2)], 0)
    tails = net.op("Slice", [net.op("Shape", [x], 0), ints(net, 2), ints(net, 4)], 0)
    sizes = net.op("Concat", [heads, tails], 0, axis=0)
    up = net.op("Resize", [y, "", "", sizes], 12, mode=draw(st.sampled_from(["nearest", "linear"])))
    return net.relu(net.concat(up, x)) if draw(st.booleans()) else net.relu(net.conv(up, w))


def padded_to(net: Net, draw: st.DrawFn, x: str) -> str:
    """U-Net's Pad by a computed difference of sizes."""
    y = net.relu(net.conv(x, 12, stride=2))
    by = net.op("Unsqueeze", [net.op("Sub", [size_of(net, x, 2), size_of(net, y, 2)], 0), ints(net, 0)], 0)
    pads = net.op("Concat", [ints(net, 0, 0, 0, 0, 0, 0), by, by], 0, axis=0)
    return net.concat(net.op("Pad", [y, pads], 12), x)


def handed_on(net: Net, draw: st.DrawFn, x: str) -> str:
    """If whose else branch only hands on an outer value, as `squeeze` of a free axis is written."""
    one = net.op("Equal", [size_of(net, x, 1), net.constant(np.array(99, np.int64))], 0)
    out, then, same = (net.name("branch") for _ in range(3))
    yes = helper.make_graph([helper.make_node("Neg", [x], [then])], "then", [], [info(then)])
    no = helper.make_graph([helper.make_node("Identity", [x], [same])], "else", [], [info(same)])
    net.nodes.append(helper.make_node("If", [one], [out], name=net.name("if"), then_branch=yes, else_branch=no))
    net.widths[out] = net.widths[x]
    return out


def scanned(net: Net, draw: st.DrawFn, x: str) -> str:
    """A Scan along the rows of an image, whose body hands its state on and gives it out."""
    w = net.widths[x]
    rows = net.op("Transpose", [x], w, perm=[2, 0, 1, 3])
    first = net.op("ReduceMax", [x], w, axes=[2], keepdims=0)
    state, row, new, out = (net.name("scan") for _ in range(4))
    body = helper.make_graph(
        [helper.make_node("Max", [state, row], [new]), helper.make_node("Identity", [new], [out])],
        "body", [info(state), info(row)], [info(new), info(out)],
    )  # fmt: skip
    last, every = (net.name("scanned") for _ in range(2))
    net.nodes.append(
        helper.make_node("Scan", [first, rows], [last, every], name=net.name("n"), num_scan_inputs=1, body=body)
    )
    net.widths[every] = w
    return net.op("Transpose", [every], w, perm=[1, 2, 0, 3])


def spelled_activation(net: Net, draw: st.DrawFn, x: str) -> str:
    w = net.widths[x]
    y = net.conv(x, w)
    way = draw(st.sampled_from(["hardswish", "silu", "gelu", "mish", "quick", "relu6"]))
    if way == "hardswish":
        z = net.op("Clip", [net.op("Add", [y, number(net, 3)], w), number(net, 0), number(net, 6)], w)
        return net.op("Div", [net.op("Mul", [y, z], w), number(net, 6)], w)
    if way == "silu":
        return net.op("Mul", [y, net.op("Sigmoid", [y], w)], w)
    if way == "gelu":
        z = net.op("Add", [net.op("Erf", [net.op("Div", [y, number(net, 2**0.5)], w)], w), number(net, 1)], w)
        return net.op("Mul", [net.op("Mul", [y, z], w), number(net, 0.5)], w)
    if way == "mish":
        return net.op("Mul", [y, net.op("Tanh", [net.op("Softplus", [y], w)], w)], w)
    if way == "quick":
        return net.op("QuickGelu", [y], w, domain="com.microsoft", alpha=1.702)
    return net.op("Min", [net.op("Max", [y, number(net, 0)], w), number(net, 6)], w)


def grid_sampled(net: Net, draw: st.DrawFn, x: str) -> str:
    """GridSample at positions that a convolution computes."""
    w = net.widths[x]
    grid = net.op("Transpose", [net.op("Tanh", [net.conv(x, 2, 1)], 2)], 2, perm=[0, 2, 3, 1])
    return net.op("GridSample", [x, grid], w, mode="bilinear", align_corners=1)


def summed_up(net: Net, draw: st.DrawFn, x: str) -> str:
    axis = draw(st.sampled_from([1, 2]))
    w = net.widths[x]
    y = net.op("CumSum", [x, net.constant(np.array(axis, np.int64))], w)
    return net.relu(net.conv(net.op("Mul", [y, number(net, 0.2)], w), 8))


def scattered(net: Net, draw: st.DrawFn, x: str) -> str:
    """A window of a map is written over, as `x[:, :, 1:3] = ...` is exported."""
    w = net.widths[x]
    turned = net.op("Transpose", [x], w, perm=[2, 0, 1, 3])
    rows = net.op("Slice", [turned, ints(net, 1), ints(net, 3), ints(net, 0)], w)
    new = net.op("Mul", [rows, number(net, 0.5)], w)
    written = net.op("ScatterND", [turned, net.constant(np.array([[1], [2]], np.int64)), new], w)
    return net.op("Transpose", [written], w, perm=[1, 2, 0, 3])


def picked(net: Net, draw: st.DrawFn, x: str) -> str:
    """Some positions of a map, as `x[:, :, rows, columns]` is exported."""
    w = net.widths[x]
    turned = net.op("Transpose", [x], w, perm=[2, 3, 0, 1])
    places = net.constant(np.array([[0, 0], [1, 2], [2, 1], [1, 1]], np.int64))
    found = net.op("Transpose", [net.op("GatherND", [turned, places], w)], w, perm=[1, 2, 0])
    return net.op("Unsqueeze", [found, ints(net, 3)], w)


def channels_last(net: Net, draw: st.DrawFn, x: str) -> str:
    """A dense layer between two Transposes, as exporters of channels-last frameworks leave it."""
    w = net.widths[x]
    y = net.op("Transpose", [x], w, perm=[0, 2, 3, 1])
    y = net.op("Relu", [grammar.dense(net, y, 16)], 16)
    return net.op("Transpose", [grammar.dense(net, y, w)], w, perm=[0, 3, 1, 2])


FORMS: tuple[Rule, ...] = (
    zeros_beside,
    number_of_a_size,
    resized_to,
    padded_to,
    handed_on,
    scanned,
    spelled_activation,
    grid_sampled,
    summed_up,
    scattered,
    picked,
    channels_last,
)


def info(name: str, kind: int = TensorProto.FLOAT, shape: list[int | str | None] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def finished(
    net: Net,
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    samples: Samples,
    form: str,
    whole: bool = False,
) -> Exported:
    graph = helper.make_graph(net.nodes, "net", inputs, outputs, net.tensors)
    sets = [helper.make_opsetid("", net.opset)]
    if any(n.domain == "com.microsoft" for n in net.nodes):
        sets.append(helper.make_opsetid("com.microsoft", 1))
    return Exported(helper.make_model(graph, opset_imports=sets, ir_version=8), samples, form, whole)


@st.composite
def pictures(draw: st.DrawFn) -> Exported:
    """Pictures of any size; outputs of classes, under two names, a map, or rows found by value."""
    net = nets.image_net(draw(st.integers(0, 10_000)))
    free = draw(st.booleans())
    x = net.relu(net.conv("image", draw(grammar.WIDTHS)))
    plain = (grammar.plain, grammar.residual, grammar.depthwise, grammar.normalized, grammar.gate, grammar.joined)
    used = draw(
        st.lists(st.sampled_from([*FORMS, *FORMS, *(plain if free else grammar.PICTURES)]), min_size=1, max_size=3)
    )
    for rule in used:
        x = rule(net, draw, x)
    sides: list[int | str | None] = ["h", "w"] if free else [8, 8]
    inputs = [info("image", shape=["N", 3, *sides])]
    samples = {"image": net.rng.standard_normal((SAMPLES, 3, 8, 8)).astype(np.float32)}
    end = draw(st.sampled_from(["classes", "two names", "map", "rows", "input as output"]))
    outputs = []
    if end == "map":
        outputs = [info(net.conv(x, 2, 1), shape=["N", 2, None, None])]
    elif end == "rows":
        outputs = [info(rows_found(net, x), shape=["rows", 5])]
        inputs = [info("image", shape=[1, 3, *sides])]
        samples["image"][:: draw(st.sampled_from([2, 3]))] *= 0.1  # in some samples nothing is found
    else:
        head = net.head(x)
        outputs = [info(head, shape=["N", 10])]
        if end == "two names":
            outputs.append(info(net.op("Identity", [head], 10), shape=["N", 10]))
        if end == "input as output":
            outputs.append(info(net.op("Identity", ["image"], 3), shape=["N", 3, *sides]))
    return finished(net, inputs, outputs, samples, f"{end}: {', '.join(r.__name__ for r in used)}, free: {free}")


def rows_found(net: Net, x: str) -> str:
    """A second stage for the places where the picture is bright."""
    w = net.widths[x]
    bright = net.op("ReduceMean", ["image"], 1, axes=[1], keepdims=0)
    flat = net.op("Reshape", [bright, ints(net, -1)], 1)
    where = net.op("NonZero", [net.op("Greater", [flat, number(net, 0.8)], 1)], 1)
    places = net.op("Squeeze", [where, ints(net, 0)], 1)
    heads = net.op("Slice", [net.op("Shape", [x], 0), ints(net, 0), ints(net, 2)], 0)
    tails = net.op("Slice", [net.op("Shape", ["image"], 0), ints(net, 2), ints(net, 4)], 0)
    like = net.op("Resize", [x, "", "", net.op("Concat", [heads, tails], 0, axis=0)], w, mode="nearest")
    features = net.op("Transpose", [net.op("Reshape", [like, ints(net, w, -1)], w)], w, perm=[1, 0])
    roi = net.op("Gather", [features, places], w, axis=0)
    hidden = net.relu(net.op("Gemm", [roi, floats(net, w, 24, gain=w**-0.5), floats(net, 24)], 24))
    return net.op("Gemm", [hidden, floats(net, 24, 5, gain=0.2), floats(net, 5)], 5)


@st.composite
def token_models(draw: st.DrawFn) -> Exported:
    """Tokens of a small table, with a mask or without; classes, tied logits, or a vector a token."""
    net = Net(draw(st.integers(0, 10_000)))
    masked, end = draw(st.booleans()), draw(st.sampled_from(["classes", "tied", "tied gemm", "vectors"]))
    width = 24
    table = floats(net, FEW, width)
    x = net.op("Gather", [table, "ids"], width)
    inputs = [info("ids", TensorProto.INT64, ["batch", "length"])]
    samples: Samples = {"ids": net.rng.integers(0, FEW, (SAMPLES, 9))}
    weight = ""
    if masked:
        inputs.append(info("mask", TensorProto.INT64, ["batch", "length"]))
        samples["mask"] = (np.arange(9) < net.rng.integers(1, 10, (SAMPLES, 1))).astype(np.int64)
        weight = net.op("Unsqueeze", [net.op("Cast", ["mask"], 1, to=1), ints(net, 2)], 1)
    rules = [grammar.feed_forward, grammar.layer_norm, grammar.attention, grammar.recurrent]
    used = draw(st.lists(st.sampled_from(rules), min_size=1, max_size=3))
    for rule in used:
        x = rule(net, draw, x)
        if masked and draw(st.booleans()):
            x = masked_attention(net, x)
    width_now = net.widths[x]
    if end == "vectors":
        outputs = [info(grammar.dense(net, x, 16), shape=["batch", "length", 16])]
    elif end == "tied":
        y = x if width_now == width else grammar.dense(net, x, width)
        turned = net.op("Transpose", [table], FEW, perm=[1, 0])
        outputs = [info(net.op("MatMul", [y, turned], FEW), shape=["batch", "length", FEW])]
    else:
        if masked:
            total = net.op("ReduceSum", [net.op("Mul", [x, weight], width_now), ints(net, 1)], width_now, keepdims=0)
            count = net.op(
                "ReduceSum", [net.op("Expand", [weight, net.op("Shape", [x], 0)], 1), ints(net, 1)], 1, keepdims=0
            )
            pooled = net.op("Div", [total, net.op("Clip", [count, number(net, 1e-9)], 1)], width_now)
        else:
            pooled = net.op("ReduceMean", [x], width_now, axes=[1], keepdims=0)
        if end == "tied gemm" and width_now == width:
            outputs = [info(net.op("Gemm", [pooled, table], FEW, transB=1), shape=["batch", FEW])]
        else:
            head = floats(net, width_now, 6, gain=width_now**-0.5)
            outputs = [info(net.op("Gemm", [pooled, head, floats(net, 6)], 6), shape=["batch", 6])]
    return finished(
        net, inputs, outputs, samples, f"tokens, {end}: {', '.join(r.__name__ for r in used)}, masked: {masked}"
    )


def masked_attention(net: Net, x: str) -> str:
    """One head; padded places get minus infinity, and wholly padded rows are NaN until a Where takes them out; or the
    most negative number is added."""
    w = net.widths[x]
    lit = net.op("Cast", ["mask"], 1, to=TensorProto.BOOL)
    across, down = (net.op("Unsqueeze", [lit, ints(net, axis)], 1) for axis in (1, 2))
    both = net.op("And", [across, down], 1)
    q, k, v = (grammar.dense(net, x, w) for _ in range(3))
    scores = net.op("MatMul", [q, net.op("Transpose", [k], w, perm=[0, 2, 1])], 0)
    scores = net.op("Mul", [scores, number(net, w**-0.5)], 0)
    if net.rng.integers(2):
        scores = net.op("Where", [both, scores, number(net, -np.inf)], 0)
    else:
        hidden = net.op("Sub", [number(net, 1), net.op("Cast", [both], 1, to=TensorProto.FLOAT)], 1)
        lowest = net.op("Mul", [hidden, number(net, float(np.finfo(np.float32).min))], 1)
        scores = net.op("Add", [scores, lowest], 0)
    mixed = net.op("MatMul", [net.op("Softmax", [scores], 0, axis=-1), v], w)
    return net.op("Add", [net.op("Where", [down, grammar.dense(net, mixed, w), number(net, 0)], w), x], w)


@st.composite
def signals(draw: st.DrawFn) -> Exported:
    """Sound of any length, a state that is an input and comes back, or steps before the batch."""
    net = Net(draw(st.integers(0, 10_000)))
    way = draw(st.sampled_from(["sound", "state", "time major", "generator"]))
    if way == "sound":
        net.widths["audio"] = 1
        x = net.op("Unsqueeze", ["audio", ints(net, 1)], 1)
        for width, kernel, stride in ((12, 8, 4), (16, 4, 2)):
            w = floats(net, width, net.widths[x], kernel, gain=(net.widths[x] * kernel) ** -0.5)
            x = net.relu(net.op("Conv", [x, w], width, kernel_shape=[kernel], strides=[stride]))
        x = net.op("Transpose", [x], 16, perm=[0, 2, 1])
        x = grammar.recurrent(net, draw, x) if draw(st.booleans()) else grammar.feed_forward(net, draw, x)
        samples: Samples = {"audio": net.rng.standard_normal((SAMPLES, 200)).astype(np.float32)}
        outputs = [info(grammar.dense(net, x, 12), shape=["batch", "frames", 12])]
        return finished(net, [info("audio", shape=["batch", "samples"])], outputs, samples, way)
    if way == "generator":
        weight = floats(net, 12, 16 * 16, gain=0.3)
        x = net.relu(net.op("Gemm", ["z", weight, floats(net, 256)], 256))
        x = net.op("Reshape", [x, ints(net, -1, 16, 4, 4)], 16)
        x = net.op(
            "ConvTranspose",
            [x, floats(net, 16, 8, 4, 4, gain=0.1)],
            8,
            strides=[2, 2],
            pads=[1] * 4,
            kernel_shape=[4, 4],
        )
        samples = {"z": net.rng.standard_normal((SAMPLES, 12)).astype(np.float32)}
        y = net.op("Tanh", [net.conv(net.relu(x), 3)], 3)
        return finished(net, [info("z", shape=["N", 12])], [info(y, shape=["N", 3, 8, 8])], samples, way)
    hidden, fan = 8, 6
    kind, gates = draw(st.sampled_from([("LSTM", 4), ("GRU", 3), ("RNN", 1)])) if way == "time major" else ("GRU", 3)
    weights = [floats(net, 1, gates * hidden, n, gain=n**-0.5) for n in (fan, hidden)]
    parts = ["x", *weights, floats(net, 1, 2 * gates * hidden, gain=0.1)]
    every, last = net.name("every"), net.name("last")
    if way == "state":
        node = helper.make_node(kind, [*parts, "", "state"], [every, last], name=net.name("n"), hidden_size=hidden)
    else:
        node = helper.make_node(kind, parts, ["", last], name=net.name("n"), hidden_size=hidden)
    net.nodes.append(node)
    flat = net.op("Squeeze", [last, ints(net, 0)], hidden)
    y = net.op("Gemm", [flat, floats(net, hidden, 6, gain=0.4), floats(net, 6)], 6)
    if way == "time major":
        samples = {"x": net.rng.standard_normal((SAMPLES, 12, 1, fan)).astype(np.float32)}
        return finished(net, [info("x", shape=["T", 1, fan])], [info(y, shape=[1, 6])], samples, f"{way} {kind}", True)
    samples = {
        "x": net.rng.standard_normal((SAMPLES, 1, 1, fan)).astype(np.float32),
        "state": net.rng.standard_normal((SAMPLES, 1, 1, hidden)).astype(np.float32),
    }
    inputs = [info("x", shape=[1, 1, fan]), info("state", shape=[1, 1, hidden])]
    return finished(net, inputs, [info(y, shape=[1, 6]), info(last, shape=[1, 1, hidden])], samples, way, True)


def weights_as_inputs(model: onnx.ModelProto) -> None:
    """IR 3: every initializer is an input, too."""
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(info(tensor.name, tensor.data_type, list(tensor.dims)))


def one_default(model: onnx.ModelProto) -> None:
    """An initializer that callers may override."""
    scalars = [t for t in model.graph.initializer if not t.dims and t.data_type == TensorProto.FLOAT]
    for tensor in scalars[:1]:
        model.graph.input.append(info(tensor.name, tensor.data_type, []))


def constants_as_nodes(model: onnx.ModelProto) -> None:
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
    old = list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend([*nodes, *old])


def double_names(model: onnx.ModelProto) -> None:
    for node in model.graph.node[::2]:
        node.name = ""


def odd_names(model: onnx.ModelProto) -> None:
    for number_, node in enumerate(model.graph.node):
        node.name = f"/block:{number_}/Größe der/{node.op_type} #"


def sparse(model: onnx.ModelProto) -> None:
    """The first plain matrix as a sparse initializer."""
    read = {n.input[1] for n in model.graph.node if n.op_type in ("MatMul", "Gemm") and len(n.input) > 1}
    for tensor in [t for t in model.graph.initializer if t.name in read and len(t.dims) == 2][:1]:
        dense = numpy_helper.to_array(tensor).copy()
        dense[np.random.default_rng(0).random(dense.shape) < 0.7] = 0
        dense[0, 0] = 1.0
        places = np.argwhere(dense)
        values = helper.make_tensor(tensor.name, TensorProto.FLOAT, [len(places)], dense[dense != 0])
        where = helper.make_tensor(f"{tensor.name}_at", TensorProto.INT64, list(places.shape), places.ravel())
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, where, list(dense.shape)))
        model.graph.initializer.remove(tensor)


def in_half(model: onnx.ModelProto) -> None:
    """float16 throughout."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values, largest = numpy_helper.to_array(tensor), np.finfo(np.float16).max
            finite = np.where(np.isinf(values), values, np.clip(values, -largest, largest))
            tensor.CopyFrom(numpy_helper.from_array(finite.astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for node in model.graph.node:
        for attribute in node.attribute:
            for value in (*attribute.g.input, *attribute.g.output):
                value.type.tensor_type.elem_type = TensorProto.FLOAT16
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            if attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(
                    helper.make_tensor("value", TensorProto.FLOAT16, [1], numpy_helper.to_array(attribute.t))
                )


WRITINGS: tuple[Callable[[onnx.ModelProto], None], ...] = (
    weights_as_inputs,
    one_default,
    constants_as_nodes,
    double_names,
    odd_names,
    sparse,
    in_half,
)


@st.composite
def exported(draw: st.DrawFn) -> Exported:
    """A network, and a way of writing it."""
    made: Exported = draw(st.one_of(pictures(), pictures(), token_models(), signals()))
    writing = draw(st.sampled_from([None, None, *WRITINGS]))
    if writing is None:
        return made
    model = onnx.ModelProto()
    model.CopyFrom(made.model)
    writing(model)
    samples = made.samples
    if writing is in_half:
        samples = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in samples.items()}
    return Exported(model, samples, f"{made.form}, {writing.__name__}", made.whole, writing is in_half)
