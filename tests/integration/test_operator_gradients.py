"""Every differentiable operator's gradient against finite differences, in float64.

The cases cover the registry: an operator (or a version of one) without a case, or an input that carries gradients and
is in no case, fails `test_every_operator_has_a_case`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from onnxpress.train import operators  # noqa: E402
from onnxpress.train.graph.program import Program  # noqa: E402
from onnxpress.train.graph.registry import Operator  # noqa: E402
from tests.train.graphs import Few, away, body, chain, one, positive, unit, whole  # noqa: E402

MS = "com.microsoft"
PLAIN = """Abs Neg Identity Exp Sin Cos Tan Atan Sinh Cosh Tanh Asinh Erf Sigmoid Reciprocal Relu Softplus Softsign Mish
HardSwish LeakyRelu Elu Celu Selu HardSigmoid Gelu Swish Flatten Transpose Softmax LogSoftmax LpNormalization""".split()
REDUCTIONS = (
    "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSumExp".split()
)
CARRIED = body(
    ["step", "going", "state"],
    ["still", "next", "seen"],
    ("Identity", "going", "still"),
    ("Mul", "state w", "next"),
    ("Sin", "next", "seen"),
)
SCANNED = body(["state", "item"], ["next", "seen"], ("Mul", "state item", "next"), ("Add", "next w", "seen"))


def elementwise() -> Iterator[Few]:
    for name in PLAIN:
        yield one(name, away(3, 4))
    for name in ("Softmax", "LogSoftmax"):
        yield one(name, away(2, 3, 2), opset=11, axis=1)
    for name in ("Asin", "Acos", "Atanh"):
        yield one(name, unit(3, 4))
    for name in ("Log", "Sqrt"):
        yield one(name, positive(3, 4))
    yield one("Acosh", 1 + positive(3, 4))
    for name in ("Add", "Sub", "Mul", "Max", "Min"):
        yield one(name, away(2, 3, 4), away(3, 1))
    yield one("Div", away(2, 3), positive(1, 3))
    yield one("Pow", positive(2, 3), away(3))
    yield one("Mod", positive(2, 3), np.full(3, 0.4), fmod=1)
    yield one("Sum", away(2, 3), away(3), away(1))
    yield one("Mean", away(2, 3), away(3), away(1))
    yield one("Clip", away(3, 4), opset=10, min=-0.6, max=0.7)
    yield one("Clip", away(3, 4), np.array(-0.6), np.array(0.7))
    yield one("Cast", away(3, 4), to=11)
    yield one("CastLike", away(3, 4), away(1))
    yield one("Where", np.array([True, False, True]), away(2, 3), away(3))
    yield one("PRelu", away(2, 3, 2), away(3, 1))
    yield one("Dropout", away(3, 4))
    yield one("ThresholdedRelu", away(3, 4), alpha=0.5)
    yield one("Shrink", away(3, 4), lambd=0.5, bias=0.1)
    yield one("Swish", away(3, 4), opset=24, alpha=1.5)
    for name, inputs in {"Gelu": 1, "FastGelu": 2, "BiasGelu": 2, "QuickGelu": 1}.items():
        yield one(name, *[away(2, 3), away(3)][:inputs], domain=MS)


def layers() -> Iterator[Few]:
    yield one("Conv", away(2, 4, 5, 5), away(4, 2, 3, 3), away(4), pads=[1, 0, 2, 1], strides=[2, 1], group=2)
    yield one("Conv", away(1, 2, 7), away(3, 2, 3), auto_pad="SAME_LOWER", dilations=[2])
    yield one(
        "ConvTranspose",
        away(1, 2, 3, 3),
        away(2, 2, 3, 3),
        away(2),
        strides=[2, 2],
        pads=[1, 1, 0, 1],
        output_padding=[1, 0],
    )
    yield one("ConvTranspose", away(1, 4, 4), away(4, 1, 3), group=2, strides=[2], output_shape=[8])
    yield one(
        "CausalConvWithState",
        away(1, 3, 4),
        away(3, 1, 2),
        away(3),
        away(1, 3, 1),
        opset=27,
        outputs=2,
        activation="silu",
    )
    yield one("DeformConv", away(1, 2, 4, 4), away(2, 2, 2, 2), 0.4 * unit(1, 8, 3, 3), away(2), away(1, 4, 3, 3))
    yield one("Col2Im", away(1, 8, 4), whole(3, 3), whole(2, 2))
    yield one("MaxPool", away(1, 2, 5, 5), kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    yield one("MaxPool", away(1, 2, 5), kernel_shape=[3], pads=[0, 1])
    yield one("AveragePool", away(1, 2, 5, 5), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    yield one("AveragePool", away(1, 2, 6), kernel_shape=[2], dilations=[2], pads=[1, 0], count_include_pad=1)
    yield one("LpPool", away(1, 2, 5), kernel_shape=[2], p=3)
    yield one(
        "MaxUnpool", away(1, 1, 2, 2), whole(0, 3, 9, 14).reshape(1, 1, 2, 2), kernel_shape=[2, 2], strides=[2, 2]
    )
    for name in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
        yield one(name, away(2, 3, 2, 2))
    yield one("BatchNormalization", away(2, 3, 4), away(3), away(3), away(3), positive(3))
    yield one("InstanceNormalization", away(2, 3, 4), away(3), away(3))
    for domain in ("", MS):
        yield one("LayerNormalization", away(2, 3, 4), away(4), away(4), domain=domain)
    yield one("LayerNormalization", away(2, 3, 4), away(3, 4), axis=1, outputs=3)
    yield one("RMSNormalization", away(2, 3, 4), away(4))
    yield one("SimplifiedLayerNormalization", away(2, 3, 4), away(4))
    yield one("SkipLayerNormalization", away(2, 3, 4), away(2, 3, 4), away(4), away(4), away(4), domain=MS)
    yield one("SkipSimplifiedLayerNormalization", away(2, 3, 4), away(2, 3, 4), away(4), away(4), domain=MS)
    yield one("GroupNormalization", away(2, 4, 3), away(2), away(2), opset=18, num_groups=2)
    yield one("GroupNormalization", away(2, 4, 3), away(4), away(4), opset=21, num_groups=2)
    yield one("LRN", away(1, 5, 2, 2), size=3, alpha=0.5)
    yield one("MeanVarianceNormalization", away(2, 3, 2, 2))
    yield one("LpNormalization", away(3, 4), p=1, axis=0)
    yield one("MatMul", away(2, 3, 4), away(4, 2))
    yield one("Det", away(2, 3, 3))
    yield one("Einsum", away(2, 3), away(3, 4), equation="ij, jk -> ki")
    yield one("Gemm", away(3, 2), away(3, 4), away(1, 4), transA=1, alpha=0.5, beta=2.0)
    yield one("Gemm", away(2, 3), away(4, 3), away(4), transB=1)
    yield one("FusedMatMul", away(2, 3, 4), away(2, 3, 5), domain=MS, transA=1, alpha=0.5)
    yield one("FusedGemm", away(2, 3), away(3, 4), away(4), domain=MS, activation="Relu")
    yield one("FusedConv", away(1, 2, 4), away(2, 2, 3), away(2), away(1, 2, 2), domain=MS, activation="Tanh")
    for kind, gates in {"RNN": 1, "GRU": 3, "LSTM": 4}.items():
        yield from recurrent(kind, gates)
    yield from attention()


def recurrent(kind: str, gates: int) -> Iterator[Few]:
    """Both directions with every optional input, and the ordinary case that torch's kernel runs."""
    state = [away(2, 2, 2)] * (2 if kind == "LSTM" else 1)
    holes = [away(2, 6)] if kind == "LSTM" else []
    full = [unit(3, 2, 2), unit(2, gates * 2, 2), unit(2, gates * 2, 2), unit(2, gates * 4), np.array([3, 2], np.int32)]
    yield one(kind, *full, *state, *holes, outputs=2, hidden_size=2, direction="bidirectional")
    more = {"linear_before_reset": 1} if kind == "GRU" else {}
    plain = [unit(3, 2, 2), unit(1, gates * 2, 2), unit(1, gates * 2, 2), unit(1, gates * 4)]
    yield one(kind, *plain, outputs=2, hidden_size=2, direction="reverse", **more)


def attention() -> Iterator[Few]:
    q, k, v, past = away(1, 4, 2, 2), away(1, 2, 3, 2), away(1, 2, 3, 2), away(1, 2, 1, 2)
    yield one("Attention", q, k, v, away(2, 4), past, past * 0.5, outputs=4, is_causal=1, softcap=2.0)
    rows = away(1, 2, 4), away(1, 2, 4), away(1, 2, 4)
    hidden = np.array([[True, True], [False, False]])
    yield one("Attention", *rows, hidden, q_num_heads=2, kv_num_heads=2)
    yield one("RotaryEmbedding", away(1, 2, 2, 4), unit(2, 2), unit(2, 2), whole(0, 1).reshape(1, 2))
    yield one("TensorScatter", away(2, 4, 2), away(2, 2, 2), whole(1, 3), opset=24, mode="circular")


def moves() -> Iterator[Few]:
    x = away(2, 3, 4)
    yield one("Reshape", x, whole(0, -1))
    yield one("Squeeze", away(2, 1, 3), whole(1))
    yield one("Unsqueeze", x, whole(0, -1))
    yield one("Concat", x, away(2, 1, 4), axis=1)
    yield one("Split", x, whole(1, 3), outputs=2, axis=2)
    yield one("Slice", x, opset=9, starts=[1], ends=[3], axes=[2])
    yield one("Slice", x, whole(-1, 0), whole(-5, 2), whole(2, 1), whole(-2, 1))
    yield one("Pad", x, opset=10, pads=[0, 1, 0, 0, 0, 2], mode="edge")
    for mode in ("constant", "reflect", "wrap"):
        yield one("Pad", x, whole(0, 1, -1, 0, 0, 2), mode=mode)
    yield one("Expand", away(3, 1), whole(2, 1, 4))
    yield one("Tile", away(2, 3), whole(2, 1))
    yield one("Trilu", away(3, 4), whole(1).reshape(()))
    yield one("DepthToSpace", away(1, 8, 2, 2), blocksize=2, mode="CRD")
    yield one("SpaceToDepth", away(1, 2, 4, 4), blocksize=2)
    yield one("CenterCropPad", x, whole(4, 2), axes=[1, 2])
    yield one("Gather", x, whole(1, -1, 1).reshape(1, 3), axis=1)
    yield one("Gather", away(4, 3), whole(2, 0, 2))
    yield one("GatherElements", away(2, 3), whole(0, 2, -1, 1).reshape(2, 2), axis=1)
    yield one("GatherND", x, whole(1, 0).reshape(2, 1), batch_dims=1)
    yield one("ScatterElements", away(3, 3), whole(0, 2, 1).reshape(1, 3), away(1, 3))
    yield one("ScatterElements", away(3, 3), whole(0, 0, 1).reshape(1, 3), away(1, 3), reduction="add", axis=1)
    yield one("Scatter", away(3, 3), whole(0, 2, 1).reshape(1, 3), away(1, 3), opset=10)
    yield one("ScatterND", away(4, 2), whole(1, 3).reshape(2, 1), away(2, 2))
    yield one("TopK", away(3, 4), opset=9, outputs=2, k=2)
    yield one("TopK", away(3, 4), whole(2), outputs=2, axis=0, largest=0)
    yield one("Compress", away(3, 4), np.array([True, False, True]), axis=0)
    yield one("ReverseSequence", away(3, 2, 2), whole(3, 2))
    for name in REDUCTIONS:
        yield one(name, x, whole(0, 2), keepdims=0)
    yield one("ReduceLogSum", positive(2, 3), whole(1))
    yield one("ReduceSum", x, opset=11, axes=[1])
    yield one("CumSum", x, whole(1).reshape(()), exclusive=1, reverse=1)
    yield one("CumProd", x, whole(1).reshape(()), opset=26)
    yield one("DFT", away(1, 4, 1), opset=17, axis=1, onesided=1)
    yield one("DFT", away(1, 4, 2), opset=20, inverse=1)
    yield one("STFT", away(1, 8, 1), whole(2).reshape(()), positive(4))


def sampled() -> Iterator[Few]:
    x = away(1, 2, 4, 4)
    none = np.zeros(0)
    yield one("Upsample", x, np.array([1.0, 1, 2, 2], np.float32), opset=9)
    yield one("Resize", x, np.array([1.0, 1, 2, 2], np.float32), opset=10, mode="linear")
    for attributes in ({"mode": "cubic"}, {"mode": "linear", "antialias": 1}, {"mode": "linear"}, {"mode": "nearest"}):
        yield one("Resize", x, None, np.array([1, 1, 0.6, 1.7], np.float32), opset=19, **attributes)
    yield one("Resize", x, none, None, whole(1, 2, 8, 8), mode="linear", coordinate_transformation_mode="align_corners")
    grid = unit(1, 3, 3, 2)
    for mode, border in (("linear", "zeros"), ("cubic", "border"), ("linear", "reflection")):
        yield one("GridSample", x, grid, mode=mode, padding_mode=border)
    yield one("AffineGrid", away(1, 2, 3), whole(1, 1, 2, 3))
    rois, batch = np.array([[0.3, 0.2, 2.9, 3.1]]), whole(0)
    for mode in ("avg", "max"):
        yield one("RoiAlign", x, rois, batch, output_height=2, output_width=2, sampling_ratio=2, mode=mode)
    yield one("NegativeLogLikelihoodLoss", away(3, 4), whole(1, 0, 2), positive(4), ignore_index=0)
    yield one("SoftmaxCrossEntropyLoss", away(3, 4, 2), whole(1, 0, 2, 3, 1, 1).reshape(3, 2), outputs=2)


def controlled() -> Iterator[Few]:
    """Gradients into the inputs of a body and into what it reads from outside (w)."""
    w = positive(2)
    branches = {"then_branch": body([], ["y"], ("Mul", "x w", "y")), "else_branch": body([], ["z"], ("Sin", "x", "z"))}
    for condition in (True, False):
        yield chain({"c": np.array(condition), "x": away(2), "w": w}, ("If", "c", "out", branches))
    feeds = {"n": whole(3).reshape(()), "go": np.array(True), "x": away(2), "w": w}
    yield chain(
        feeds,
        ("Loop", "n go x", "last all", {"body": CARRIED}),
        ("ReduceSum", "all", "total", {}),
        ("Mul", "last total", "out", {}),
    )
    scan = {"body": SCANNED, "num_scan_inputs": 1}
    yield chain(
        {"x": away(2), "rows": away(3, 2), "w": w},
        ("Scan", "x rows", "last all", {**scan, "scan_input_directions": [1]}),
        ("Add", "last all", "out", {}),
    )
    made = chain(
        {"x": away(1, 2), "rows": away(1, 3, 2), "w": w},
        ("Scan", "x rows", "last all", scan),
        ("Add", "last all", "out", {}),
        opset=8,
    )
    made.nodes[0].input.insert(0, "")
    yield made
    pair = {"x": away(2), "y": away(2), "w": w, "i": whole(1).reshape(())}
    each = {"body": body(["item"], ["made"], ("Mul", "item w", "made"))}
    yield chain(
        pair,
        ("SequenceConstruct", "x y", "s", {}),
        ("SequenceMap", "s", "t", each),
        ("SequenceInsert", "t x", "u", {}),
        ("ConcatFromSequence", "u", "out", {"axis": 0, "new_axis": 1}),
    )
    yield chain(
        pair,
        ("SequenceConstruct", "x y", "s", {}),
        ("SequenceErase", "s i", "t", {}),
        ("SequenceInsert", "t y i", "u", {}),
        ("SequenceAt", "u i", "out", {}),
    )
    yield chain(
        {"x": away(4)}, ("SplitToSequence", "x", "s", {"axis": 0}), ("ConcatFromSequence", "s", "out", {"axis": 0})
    )
    yield chain({"x": away(4)}, ("Optional", "x", "o", {}), ("OptionalGetElement", "o", "out", {}))


CASES = [*elementwise(), *layers(), *moves(), *sampled(), *controlled()]


def used(few: Few) -> Iterator[tuple[Operator, set[int]]]:
    """The registry's entry of each node of a case, and the inputs that hold something."""
    for node in few.nodes:
        version = few.opset if node.domain == "" else 1
        entry = operators.find_operator(node.domain, node.op_type, version)
        if entry is not None:
            yield entry, {i for i, name in enumerate(node.input) if name}


def label(few: Few) -> str:
    return "-".join(n.op_type for n in few.nodes) + f"-{few.opset}"


@pytest.mark.parametrize("few", CASES, ids=label)
def test_gradient_is_that_of_finite_differences(few: Few) -> None:
    program = Program(few.model())
    carried = {
        n.input[i]
        for n in few.nodes
        for e, _ in used(few)
        if e.name == n.op_type
        for i in range(len(n.input))
        if e.grad_inputs is None or i in e.grad_inputs
    }
    outer = {name for name in ("x", "w") if name in few.feeds}
    learned = [n for n, a in few.feeds.items() if a.dtype == np.float64 and (n in carried or n in outer)]
    feeds = {n: torch.from_numpy(np.array(a)) for n, a in few.feeds.items()}

    def run(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = program({**feeds, **dict(zip(learned, values, strict=True))})
        return tuple(r for r in results.values() if r is not None and r.dtype == torch.float64 and r.requires_grad)

    values = [feeds[n].clone().requires_grad_() for n in learned]
    assert learned
    assert run(*values)
    assert torch.autograd.gradcheck(run, values, eps=1e-6, atol=1e-5, rtol=1e-4, check_undefined_grad=False)


def test_every_operator_has_a_case() -> None:
    seen: dict[Operator, set[int]] = {}
    for few in CASES:
        for entry, inputs in used(few):
            seen.setdefault(entry, set()).update(inputs)
    for entries in operators.REGISTRY.values():
        for entry in entries:
            if entry.grad_inputs != ():
                where = f"{entry.domain}:{entry.name} from version {entry.since}"
                assert entry in seen, f"{where} has no gradient case"
                assert set(entry.grad_inputs or ()) <= seen[entry], (
                    f"{where}: an input that carries gradients is in no case"
                )
