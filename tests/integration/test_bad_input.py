"""Bad input, one row each: exit code 2, one line that says what, where and what to do, and nothing left behind.

Rows that the tool can live with ("works") must then end with exit code 0 and a file that loads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxpress.cli.main import run
from onnxpress.evaluate.baseline import machine_fingerprint
from onnxpress.model import files
from onnxpress.train.settings import settings_from_dict
from tests import nets


@dataclass(frozen=True)
class Row:
    """make: prepares files in a folder and gives the command line; says: words the line must hold."""

    name: str
    make: Callable[[Path], list[str]]
    says: tuple[str, ...]
    code: int = 2


def good(folder: Path) -> Path:
    path = folder / "model.onnx"
    if not path.exists():
        files.save(nets.residual(width=8, blocks=1), path)
    return path


def good_data(folder: Path, count: int = 12) -> Path:
    path = folder / "data.npz"
    rng = np.random.default_rng(0)
    np.savez(path, image=rng.standard_normal((count, 3, 8, 8)).astype(np.float32), labels=rng.integers(0, 10, count))
    return path


def free_sizes(folder: Path) -> Path:
    """A model of pictures of any size."""
    model = proto(folder)
    for axis, name in ((2, "H"), (3, "W")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    return store(folder, model, "free.onnx")


def proto(folder: Path) -> onnx.ModelProto:
    return onnx.load(good(folder))


def store(folder: Path, model: onnx.ModelProto, name: str = "bad.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def simplify(folder: Path, model: Path) -> list[str]:
    return ["simplify", str(model), "-o", str(folder / "out.onnx")]


def quantize(folder: Path, model: Path, data: Path | str | None = None) -> list[str]:
    return ["quantize", str(model), "-d", str(data or good_data(folder)), "-o", str(folder / "out.onnx"), "-q"]


def optimize(folder: Path, model: Path, data: Path | str | None = None, *more: str) -> list[str]:
    return [
        "optimize",
        str(model),
        "-d",
        str(data or good_data(folder)),
        "-o",
        str(folder / "out.onnx"),
        "--time-budget",
        "5s",
        *more,
    ]


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def truncated(folder: Path, share: float) -> Path:
    data = good(folder).read_bytes()
    return written(folder, "short.onnx", data[: int(len(data) * share)])


def external(folder: Path, location: str, *, keep: bool = True, length: int | None = None, offset: int = 0) -> Path:
    """A model whose first weight is external, at a location of the test's choosing."""
    model = proto(folder)
    tensor = model.graph.initializer[0]
    raw = numpy_helper.to_array(tensor).tobytes()
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length or len(raw)))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    if keep:
        (folder / "weights.bin").write_bytes(raw)
    return store(folder, model)


def edited(change: Callable[[onnx.ModelProto], None]) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        model = proto(folder)
        change(model)
        return simplify(folder, store(folder, model))

    return make


def set_nan(model: onnx.ModelProto) -> None:
    array = numpy_helper.to_array(model.graph.initializer[0]).copy()
    array.flat[3] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, model.graph.initializer[0].name))


def claim_much(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 1 << 40


def negative_dim(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -8


def unknown_op(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Reluu"


def unknown_domain(model: onnx.ModelProto) -> None:
    model.graph.node[1].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def future_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 999


def no_nodes(model: onnx.ModelProto) -> None:
    del model.graph.node[:]


def no_outputs(model: onnx.ModelProto) -> None:
    del model.graph.output[:]


def dangling(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "nowhere"


def twice(model: onnx.ModelProto) -> None:
    model.graph.node.append(model.graph.node[0])


def no_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def array_data(key: str, array: np.ndarray, **more: np.ndarray) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        path = folder / "odd.npz"
        np.savez(path, **{key: array}, **more)
        return quantize(folder, good(folder), path)

    return make


F = np.float32
RNG = np.random.default_rng(1)


def images(folder: Path, content: bytes) -> list[str]:
    (folder / "pictures").mkdir()
    written(folder / "pictures", "a.png", content)
    return quantize(folder, good(folder), folder / "pictures")


def float16(folder: Path) -> list[str]:
    model = proto(folder)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return quantize(folder, store(folder, model))


def quantized_again(folder: Path) -> list[str]:
    assert run([*quantize(folder, good(folder))[:-3], "-o", str(folder / "int8.onnx"), "-q"]) == 0
    return quantize(folder, folder / "int8.onnx")


def plan(folder: Path, text: str) -> list[str]:
    path = written(folder, "plan.json", text.encode())
    return ["apply", str(path), str(good(folder)), "-o", str(folder / "out.onnx")]


def outside(folder: Path) -> list[str]:
    (folder.parent / "secret.bin").write_bytes(b"\0" * 100_000)
    return simplify(folder, external(folder, "../secret.bin", keep=False))


def link_out(folder: Path) -> list[str]:
    (folder.parent / "secret2.bin").write_bytes(b"\0" * 100_000)
    (folder / "weights.bin").symlink_to(folder.parent / "secret2.bin")
    return simplify(folder, external(folder, "weights.bin", keep=False))


def folder_model(folder: Path) -> list[str]:
    (folder / "dir.onnx").mkdir()
    return simplify(folder, folder / "dir.onnx")


def overwrite(folder: Path) -> list[str]:
    return ["simplify", str(good(folder)), "-o", str(good(folder))]


def overwrite_by_link(folder: Path) -> list[str]:
    (folder / "same.onnx").symlink_to(good(folder))
    return ["simplify", str(good(folder)), "-o", str(folder / "same.onnx")]


def few(folder: Path) -> list[str]:
    return optimize(folder, good(folder), good_data(folder, 2))


def labels_wrong(folder: Path) -> list[str]:
    np.save(folder / "y.npy", np.zeros(5, np.int64))
    return [*quantize(folder, good(folder)), "--labels", str(folder / "y.npy")]


def bench(folder: Path, *options: str) -> list[str]:
    return ["bench", str(good(folder)), "--seconds", "0.1", *options]


def baseline(folder: Path, text: str, *options: str) -> list[str]:
    return bench(folder, "--baseline", str(written(folder, "b.json", text.encode())), *options)


def kept(folder: Path, **machine: str) -> str:
    """A baseline of the good model, made here, but for some of the machine's facts."""
    usual = {"threads": [1], "batch": [], "shapes": {}, "pin": [], "graph optimizations": "all", "spinning": False}
    facts = {
        "machine": {**machine_fingerprint(), **machine},
        "conditions": {**usual, "session entries": [], "inputs": "synthetic"},
    }
    times = {"median": 1.0, "speed": 1.0, "low": 0.9, "high": 1.1, "path": str(good(folder)), "sha256": "0"}
    return json.dumps({"schema": 1, "kind": "bench baseline", **times, **facts})


def fixed_batch(folder: Path) -> list[str]:
    model = proto(folder)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return ["bench", str(store(folder, model)), "--batch", "1,16"]


def other_inputs(folder: Path) -> list[str]:
    files.save(nets.mlp(), folder / "other.onnx")
    return ["bench", str(good(folder)), str(folder / "other.onnx"), "--seconds", "1"]


def foreign_plan(folder: Path) -> list[str]:
    body = {"schema": 1, "model": "0" * 64, "data": "", "steps": []}
    return plan(folder, json.dumps(body))


def plan_rank(folder: Path) -> list[str]:
    name = next(n.name for n in proto(folder).graph.node if n.op_type == "Conv")
    step = {"pass": "lowrank", "actions": [{"node": name, "rank": 999, "form": "pointwise"}]}
    return [*plan(folder, json.dumps({"schema": 1, "steps": [step]})), "-d", str(good_data(folder))]


def plan_block(folder: Path) -> list[str]:
    step = {"pass": "depth", "actions": [{"block": "ghost"}]}
    return [*plan(folder, json.dumps({"schema": 1, "steps": [step]})), "-d", str(good_data(folder))]


def plan_step(step: object) -> Callable[[Path], list[str]]:
    return lambda folder: plan(folder, json.dumps({"schema": 1, "steps": [step]}))


def prune(folder: Path, *more: str) -> list[str]:
    return ["prune", str(good(folder)), "-d", str(good_data(folder)), "-o", str(folder / "out.onnx"), *more]


def depth(folder: Path, *more: str) -> list[str]:
    return ["depth", str(good(folder)), "-d", str(good_data(folder)), "-o", str(folder / "out.onnx"), *more]


def lowrank(folder: Path, *more: str) -> list[str]:
    return ["lowrank", str(good(folder)), "-d", str(good_data(folder)), "-o", str(folder / "out.onnx"), *more]


def share(folder: Path, *more: str) -> list[str]:
    return ["share", str(good(folder)), "-d", str(good_data(folder)), "-o", str(folder / "out.onnx"), *more]


def weights(folder: Path, *more: str) -> list[str]:
    return ["weights", *share(folder, *more)[1:]]


def sparsify(folder: Path, *more: str) -> list[str]:
    return ["sparsify", *share(folder, *more)[1:]]


def plan_bits(action: dict[str, object]) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        large = next(t.name for t in proto(folder).graph.initializer if np.prod(t.dims) > 500)
        step = {"pass": "share", "actions": [{"weight": large, **action}]}
        return [*plan(folder, json.dumps({"schema": 1, "steps": [step]})), "-d", str(good_data(folder))]

    return make


def without_blocks(folder: Path) -> list[str]:
    files.save(nets.mlp(), folder / "mlp.onnx")
    np.savez(folder / "tokens.npz", tokens=RNG.standard_normal((6, 5, 16)).astype(F))
    out = str(folder / "out.onnx")
    return ["depth", str(folder / "mlp.onnx"), "-d", str(folder / "tokens.npz"), "--keep", "0.5", "-o", out]


def distill(folder: Path, *more: str, teacher: Path | None = None) -> list[str]:
    """A student with itself as a teacher, in closed form unless said otherwise."""
    student, target = str(good(folder)), str(folder / "out.onnx")
    return ["distill", student, "-t", str(teacher or good(folder)), "-d", str(good_data(folder)), "-o", target, *more]


def other_teacher(folder: Path) -> Path:
    files.save(nets.mlp(), folder / "other.onnx")
    return folder / "other.onnx"


def damaged_run(folder: Path) -> list[str]:
    pytest.importorskip("torch")
    (folder / "out.run").mkdir()
    settings = settings_from_dict({}).as_dict()
    (folder / "out.run" / "settings.json").write_text(json.dumps(settings))
    (folder / "out.run" / "checkpoint.pt").write_bytes(b"no checkpoint")
    return distill(folder, "--resume")


X = RNG.standard_normal((6, 3, 8, 8)).astype(F)
ROWS = [
    # the model file
    Row("calibrated by nothing", lambda d: [*simplify(d, good(d)), "--calibrated"], ("samples", "--data")),
    Row(
        "a family of rewrites that does not exist",
        lambda d: ["rewrite", str(good(d)), "--family", "magic", "-o", str(d / "o.onnx")],
        ("magic", "activations"),
    ),
    Row(
        "rewrites for no thread",
        lambda d: ["rewrite", str(good(d)), "--threads", "0", "-o", str(d / "o.onnx")],
        ("thread",),
    ),
    Row(
        "rewrites for no provider",
        lambda d: ["rewrite", str(good(d)), "--provider", "abacus", "-o", str(d / "o.onnx")],
        ("provider", "CPU"),
    ),
    Row("no file", lambda d: simplify(d, d / "absent.onnx"), ("no such model", "absent.onnx")),
    Row("a near name", lambda d: simplify(d, good(d).with_name("modle.onnx")), ("did you mean", "model.onnx")),
    Row("a folder", folder_model, ("folder",)),
    Row("empty file", lambda d: simplify(d, written(d, "e.onnx", b"")), ("empty", "e.onnx")),
    Row(
        "text",
        lambda d: simplify(d, written(d, "t.onnx", b"hello, I am no model\n" * 9)),
        ("not an ONNX file", "t.onnx"),
    ),
    Row("zeros", lambda d: simplify(d, written(d, "z.onnx", b"\0" * 64)), ("not an ONNX file",)),
    Row("random bytes", lambda d: simplify(d, written(d, "r.onnx", RNG.bytes(999))), ("not an ONNX file",)),
    Row("a zip", lambda d: simplify(d, written(d, "m.onnx", b"PK\x03\x04" + b"x" * 99)), ("not an ONNX file",)),
    Row("cut in half", lambda d: simplify(d, truncated(d, 0.5)), ("truncated",)),
    Row("cut at the end", lambda d: simplify(d, truncated(d, 0.99)), ("truncated",)),
    Row("cut at the start", lambda d: simplify(d, truncated(d, 0.01)), ("error",)),
    Row("no nodes", edited(no_nodes), ("empty", "no nodes")),
    Row("no outputs", edited(no_outputs), ("no outputs",)),
    Row("no opset", edited(no_opset), ("checker",)),
    Row("unknown operator", edited(unknown_op), ("Reluu",)),
    Row("unknown domain", edited(unknown_domain), ("com.example",)),
    Row("opset of the future", edited(future_opset), ("error",)),
    Row("dangling input", edited(dangling), ("nowhere",)),
    Row("a value made twice", edited(twice), ("checker",)),
    Row("NaN in a weight", edited(set_nan), ("NaN", "tensor")),
    Row("tensor of 2^40 rows", edited(claim_much), ("more data than the file holds",)),
    Row("negative dimension", edited(negative_dim), ("negative dimension",)),
    Row(
        "external data missing",
        lambda d: simplify(d, external(d, "weights.bin", keep=False)),
        ("missing", "weights.bin"),
    ),
    Row("external data outside", outside, ("outside",)),
    Row("external data by absolute path", lambda d: simplify(d, external(d, "/etc/hostname")), ("outside",)),
    Row("external data by a link outside", link_out, ("outside",)),
    Row("external data too short", lambda d: simplify(d, external(d, "weights.bin", offset=10**6)), ("more data",)),
    Row("external data, good", lambda d: simplify(d, external(d, "weights.bin")), (), 0),
    Row("a float16 model", float16, (), 0),
    Row("already quantized", quantized_again, (), 0),
    # the output
    Row(
        "output in a missing folder",
        lambda d: ["simplify", str(good(d)), "-o", str(d / "no" / "out.onnx")],
        ("does not exist", "mkdir"),
    ),
    Row("output is the input", overwrite, ("overwrite",)),
    Row("output is a link to the input", overwrite_by_link, ("overwrite",)),
    Row("output is a folder", lambda d: ["simplify", str(good(d)), "-o", str(d)], ("folder",)),
    # the data
    Row("no such data", lambda d: quantize(d, good(d), d / "absent.npz"), ("absent.npz",)),
    Row("empty folder", lambda d: (d / "void").mkdir() or quantize(d, good(d), d / "void"), ("void",)),
    Row("unknown kind of data", lambda d: quantize(d, good(d), written(d, "x.xyz", b"1")), ("x.xyz",)),
    Row("npz of another name and several arrays", array_data("a", X, b=X), ("image",)),
    Row("npz without samples", array_data("image", X[:0]), ("error",)),
    Row("npz of the wrong rank", array_data("image", X.reshape(6, -1)), ("image",)),
    Row("npz in the wrong layout", array_data("image", X.transpose(0, 2, 3, 1)), ("image", "3,8,8")),
    Row("npz of the wrong size", array_data("image", np.zeros((6, 3, 9, 9), F)), ("image",)),
    Row("npz of complex numbers", array_data("image", X.astype(np.complex64)), ("complex",)),
    Row("npz of text", array_data("image", np.full((6, 3, 8, 8), "a")), ("error",)),
    Row("npz with NaN", array_data("image", np.where(X > 2, np.nan, X).astype(F)), ("NaN",)),
    Row("npz with infinity", array_data("image", np.where(X > 2, np.inf, X).astype(F)), ("error",)),
    Row(
        "npz cut in half",
        lambda d: quantize(d, good(d), written(d, "h.npz", good_data(d).read_bytes()[:900])),
        ("h.npz",),
    ),
    Row("npz of pickled objects", array_data("image", np.array([{"a": 1}] * 6, dtype=object)), ("error",)),
    Row("npy of text bytes", lambda d: quantize(d, good(d), written(d, "x.npy", b"nothing")), ("x.npy",)),
    Row("labels too few", array_data("image", X, labels=np.zeros(4, np.int64)), ("label",)),
    Row("labels too many", array_data("image", X, labels=np.zeros(9, np.int64)), ("label",)),
    Row("labels file of another length", labels_wrong, ("label", "5", "12")),
    Row("unreadable picture", lambda d: images(d, b"\x89PNG\r\n\x1a\nbroken"), ("a.png",)),
    Row("picture of no bytes", lambda d: images(d, b""), ("a.png",)),
    Row("text without a tokenizer", lambda d: quantize(d, good(d), written(d, "s.txt", b"one\ntwo\n")), ("error",)),
    Row("function that is not there", lambda d: quantize(d, good(d), "nowhere:samples"), ("nowhere",)),
    Row("unknown recipe", lambda d: [*quantize(d, good(d)), "--preprocess", "magic"], ("magic",)),
    Row("too few to split", few, ("3",)),
    # options and plans
    Row("ratio above one", lambda d: prune(d, "--ratio", "1.5"), ("between 0 and 1",)),
    Row("ratio of nothing", lambda d: prune(d, "--ratio", "0"), ("between 0 and 1",)),
    Row("no goal of pruning", lambda d: prune(d), ("one goal", "--speedup")),
    Row("two goals of pruning", lambda d: prune(d, "--ratio", "0.3", "--macs", "0.5"), ("one goal", "2 were given")),
    Row("share left above one", lambda d: prune(d, "--macs", "1.5"), ("--macs", "between 0 and 1")),
    Row("speed-up below one", lambda d: prune(d, "--speedup", "0.5"), ("--speedup", "between 1")),
    Row("granularity of nothing", lambda d: prune(d, "--ratio", "0.3", "--granularity", "0"), ("granularity",)),
    Row("unknown criterion", lambda d: prune(d, "--ratio", "0.3", "--criterion", "luck"), ("luck",)),
    Row("ratio that is no number", lambda d: prune(d, "--ratio", "much"), ("much",)),
    Row("depth that does not say how much", lambda d: depth(d), ("--keep", "exactly one")),
    Row("depth that says it twice", lambda d: depth(d, "--keep", "0.5", "--remove", "1"), ("exactly one",)),
    Row("depth that keeps more than all", lambda d: depth(d, "--keep", "1.5"), ("between 0 and 1", "1.5")),
    Row("depth that removes nothing", lambda d: depth(d, "--remove", "0"), ("at least 1",)),
    Row("depth of a negative drop", lambda d: depth(d, "--remove", "1", "--max-drop", "-1"), ("drop", "-1")),
    Row("depth of an unknown unit", lambda d: depth(d, "--keep", "0.5", "--units", "atoms"), ("atoms",)),
    Row("depth of a model without blocks", without_blocks, ("no removable block", "inspect")),
    Row("lowrank that does not say how far", lambda d: lowrank(d), ("--rank", "exactly one")),
    Row("lowrank that says it twice", lambda d: lowrank(d, "--rank", "4", "--ratio", "0.5"), ("exactly one",)),
    Row("lowrank of too large a ratio", lambda d: lowrank(d, "--ratio", "1"), ("ratio", "between 0 and 1")),
    Row("lowrank of negative energy", lambda d: lowrank(d, "--energy", "-0.5"), ("energy", "-0.5")),
    Row("lowrank of no rank", lambda d: lowrank(d, "--rank", "0"), ("rank", "at least 1")),
    Row("lowrank for an unknown goal", lambda d: lowrank(d, "--rank", "4", "--goal", "beauty"), ("beauty",)),
    Row("lowrank of layers too narrow", lambda d: lowrank(d, "--rank", "64", "--goal", "size"), (), 0),
    Row("plan of a rank that cannot be", plan_rank, ("rank", "999")),
    Row("plan of a block that is not there", plan_block, ("ghost", "block")),
    Row("share with a book of other size", lambda d: share(d, "--centroids", "17"), ("17", "256")),
    Row("share per something unknown", lambda d: share(d, "--per", "galaxy"), ("galaxy", "tensor")),
    Row("share per no rows", lambda d: share(d, "--per", "0"), ("--per", "rows")),
    Row("share that spares more than all", lambda d: share(d, "--spare", "2"), ("spare", "between 0 and 1")),
    Row("zeros everywhere", lambda d: sparsify(d, "--ratio", "1"), ("--ratio", "got 1")),
    Row("zeros in no pattern", lambda d: sparsify(d, "--pattern", "4:2"), ("--pattern", "4:2", "2:4")),
    Row("zeros by no method", lambda d: sparsify(d, "--method", "luck"), ("--method", "luck", "magnitude")),
    Row("weights in no such bits", lambda d: weights(d, "--bits", "5"), ("--bits", "5")),
    Row("weights in blocks too short", lambda d: weights(d, "--block", "3"), ("--block", "3", "8")),
    Row("share for a larger file", lambda d: share(d, "--smaller", "0.5"), ("--smaller", "0.5")),
    Row("share for a file smaller than can be", lambda d: share(d, "--smaller", "500"), ("smaller", "the smallest is")),
    Row(
        "weights of a size and with a share",
        lambda d: weights(d, "--smaller", "4", "--spare", "0.1"),
        ("--smaller and --spare", "one"),
    ),
    Row("weights that spare less than nothing", lambda d: weights(d, "--spare", "-1"), ("spare", "-1")),
    Row(
        "half of an unknown type",
        lambda d: ["half", *simplify(d, good(d))[1:], "--type", "float8"],
        ("float8", "bfloat16"),
    ),
    Row("dynamic but for a ghost", lambda d: ["dynamic", *simplify(d, good(d))[1:], "--exclude", "ghost"], ("ghost",)),
    Row(
        "plan of a ghost in 16 bits",
        plan_step({"pass": "half", "actions": [{"tensor": "ghost", "type": "float16"}]}),
        ("ghost",),
    ),
    Row(
        "plan of an unknown type",
        plan_step({"pass": "half", "actions": [{"tensor": "w1", "type": "float8"}]}),
        ("float8",),
    ),
    Row("plan of a ghost in int8", plan_step({"pass": "dynamic", "actions": [{"node": "ghost"}]}), ("ghost",)),
    Row("share of few samples, a book for four rows", lambda d: share(d, "--per", "4", "--no-refit"), (), 0),
    Row("weights in two bits", lambda d: weights(d, "--bits", "2", "--block", "8"), (), 0),
    Row(
        "half of a model without large tensors",
        lambda d: ["half", *simplify(d, good(d))[1:], "--type", "bfloat16"],
        (),
        0,
    ),
    Row("dynamic of a model without MatMul", lambda d: ["dynamic", *simplify(d, good(d))[1:], "-q"], (), 0),
    Row("plan of a weight that is not there", plan_bits({"weight": "ghost", "centroids": 16}), ("ghost", "weight")),
    Row("plan of a weight in no bits", plan_bits({"bits": 5}), ("bits", "5")),
    Row("plan of a weight's unknown repair", plan_bits({"centroids": 16, "refit": "unknown"}), ("unknown", "bias")),
    Row("negative drop", lambda d: optimize(d, good(d), None, "--max-drop", "-1"), ("max-drop",)),
    Row("budget of no unit", lambda d: optimize(d, good(d), None, "--time-budget", "soon"), ("soon",)),
    Row("budget too short", lambda d: optimize(d, good(d), None, "--time-budget", "1s"), ("time budget",)),
    Row("unknown metric", lambda d: optimize(d, good(d), None, "--metric", "rouge"), ("no such metric", "cosine")),
    Row("metric of no file", lambda d: [*quantize(d, good(d)), "--metric", "mine.py:f"], ("mine.py",)),
    Row("unknown decoder", lambda d: [*quantize(d, good(d)), "--decode", "yolo99"], ("no such decoder", "yolov8")),
    Row(
        "decoder that does not fit",
        lambda d: optimize(d, good(d), None, "--metric", "map", "--decode", "yolov8"),
        ("does not fit", "--outputs"),
    ),
    Row("boxes without a decoder", lambda d: [*quantize(d, good(d)), "--metric", "map"], ("boxes", "--decode")),
    Row("unknown output", lambda d: optimize(d, good(d), None, "--outputs", "ghost"), ("no such output", "ghost")),
    Row(
        "drop of a share above 1",
        lambda d: optimize(d, good(d), None, "--metric", "top-1", "--max-drop", "3"),
        ("--max-drop", "top-1"),
    ),
    Row("unknown goal", lambda d: optimize(d, good(d), None, "--goal", "beauty"), ("beauty",)),
    Row("optimize on no thread", lambda d: optimize(d, good(d), None, "--threads", "0"), ("threads", "0")),
    Row("optimize elsewhere", lambda d: optimize(d, good(d), None, "--provider", "quantum"), ("quantum", "CPU")),
    Row("a front among other files", lambda d: optimize(d, good(d), None, "--front", str(d)), ("front", "not empty")),
    Row(
        "a range method that is none",
        lambda d: [*quantize(d, good(d)), "--ranges", "guess"],
        ("unknown calibration method", "output-error"),
    ),
    Row(
        "16 bits as integer operators",
        lambda d: [*quantize(d, good(d)), "--activations", "16", "--format", "qoperator"],
        ("no integer operators of 16 bits", "--activations"),
    ),
    Row(
        "ranges in no folder",
        lambda d: [*quantize(d, good(d)), "--ranges", str(d / "no" / "r.json")],
        ("does not exist", "mkdir"),
    ),
    Row(
        "include an operator that is not there",
        lambda d: [*quantize(d, good(d)), "--include", "LSTM"],
        ("--include", "LSTM"),
    ),
    Row(
        "exclude by half an expression", lambda d: [*quantize(d, good(d)), "--exclude", "conv("], ("--exclude", "conv(")
    ),
    Row("a drop of all", lambda d: [*quantize(d, good(d)), "--max-drop", "1"], ("--max-drop", "got 1")),
    Row("exclude a node that is not there", lambda d: [*quantize(d, good(d)), "--exclude", "ghost"], ("ghost",)),
    Row("labels without data", lambda d: ["bench", str(good(d)), "--labels", "y"], ("--data",)),
    Row("bench on no thread", lambda d: bench(d, "--threads", "0"), ("threads", "0")),
    Row("bench on some threads", lambda d: bench(d, "--threads", "1,some"), ("some", "1,2,4")),
    Row("bench on too many threads", lambda d: bench(d, "--threads", "100000"), ("threads", "100000")),
    Row("bench for no time", lambda d: bench(d, "--seconds", "0"), ("time above 0",)),
    Row("bench of a batch the model does not take", fixed_batch, ("batch", "16", "1 only")),
    Row(
        "bench of more samples than there are",
        lambda d: bench(d, "-d", str(good_data(d)), "--batch", "64"),
        ("64", "samples"),
    ),
    Row("a shape without a name", lambda d: bench(d, "--shape", "1,3,8,8"), ("--shape", "1,3,8,8")),
    Row("a shape in words", lambda d: bench(d, "--shape", "image=1,3,H,W"), ("image=1,3,H,W", "whole numbers")),
    Row("a shape of no input", lambda d: bench(d, "--shape", "ghost=1,3"), ("ghost", "image")),
    Row("a shape of another rank", lambda d: bench(d, "--shape", "image=1,3,8"), ("image=1,3,8", "N,3,8,8")),
    Row("a shape with a batch twice", lambda d: bench(d, "--shape", "image=4,3,8,8", "--batch", "2"), ("4", "twice")),
    Row(
        "samples of another shape",
        lambda d: ["compare", *2 * [str(free_sizes(d))], "-d", str(good_data(d)), "--shape", "image=1,3,9,9"],
        ("9", "8"),
    ),
    Row(
        "a shape of other channels",
        lambda d: ["simplify", str(free_sizes(d)), "-o", str(d / "out.onnx"), "--shape", "image=1x4x8x8"],
        ("image=1,4,8,8", "N,3,H,W"),
    ),
    Row("pinned to a CPU that is not there", lambda d: bench(d, "--pin", "4000"), ("4000", "CPU")),
    Row("pinned to no number", lambda d: bench(d, "--pin", "-1"), ("-1",)),
    Row(
        "a session entry without a value", lambda d: bench(d, "--session-config", "fast"), ("--session-config", "fast")
    ),
    Row("a provider that is not here", lambda d: bench(d, "--provider", "quantum"), ("quantum", "CPU")),
    Row("an unknown level of optimization", lambda d: bench(d, "--graph-opt", "most"), ("most",)),
    Row("callers of no throughput", lambda d: bench(d, "--callers", "2"), ("--callers", "--throughput")),
    Row("a gate for one model", lambda d: bench(d, "--fail-slower", "5%"), ("--fail-slower", "--baseline")),
    Row("a gate in words", lambda d: bench(d, "--fail-slower", "much"), ("much", "5%")),
    Row("a gate of 500 times", lambda d: bench(d, "--fail-slower", "500"), ("500", "5%")),
    Row("no such baseline", lambda d: bench(d, "--baseline", str(d / "b.json")), ("b.json", "--save-baseline")),
    Row("a baseline of another kind", lambda d: baseline(d, "[]"), ("baseline", "schema")),
    Row(
        "a damaged baseline",
        lambda d: baseline(d, '{"schema": 1, "kind": "bench baseline", "path": "x"}'),
        ("damaged",),
    ),
    Row(
        "a baseline of another machine",
        lambda d: baseline(d, kept(d, arch="pdp11")),
        ("another machine", "pdp11", "--force"),
    ),
    Row(
        "a baseline of other conditions",
        lambda d: baseline(d, kept(d), "--threads", "2"),
        ("conditions", "threads", "2"),
    ),
    Row("force without a baseline", lambda d: bench(d, "--force"), ("--force", "--baseline")),
    Row(
        "a baseline of two models",
        lambda d: bench(d, str(good(d)), "--save-baseline", str(d / "b.json")),
        ("one model",),
    ),
    Row(
        "a baseline of a sweep",
        lambda d: bench(d, "--threads", "1,2", "--save-baseline", str(d / "b.json")),
        ("one number of threads",),
    ),
    Row("a report into no folder", lambda d: bench(d, "--junit", str(d / "no" / "j.xml")), ("folder", "no")),
    Row("a report over the model", lambda d: bench(d, "--markdown", str(good(d))), ("overwrite",)),
    Row("bench of models of other inputs", other_inputs, ("different inputs",)),
    Row("no such plan", lambda d: ["apply", str(d / "p.json"), str(good(d)), "-o", str(d / "out.onnx")], ("p.json",)),
    Row("plan that is no JSON", lambda d: plan(d, "{"), ("JSON",)),
    Row("plan that is a list", lambda d: plan(d, "[]"), ("schema",)),
    Row("plan of another schema", lambda d: plan(d, '{"schema": 99}'), ("99",)),
    Row("plan of another model", foreign_plan, ("another model",)),
    Row("plan of an unknown pass", plan_step({"pass": "magic", "actions": [{}]}), ("magic",)),
    Row("plan with a malformed step", plan_step({"pass": "prune", "actions": 3}), ("step 1",)),
    Row("plan that needs data", plan_step({"pass": "quantize", "actions": [{"nodes": ["x"]}]}), ("data",)),
    Row("no such teacher", lambda d: distill(d, teacher=d / "absent.onnx"), ("no such model", "absent.onnx")),
    Row("a teacher of other inputs", lambda d: distill(d, "--closed-form", teacher=other_teacher(d)), ("inputs",)),
    Row("a match without a sign", lambda d: distill(d, "--closed-form", "--match", "relu"), ("T=S", "relu")),
    Row("a match of a ghost", lambda d: distill(d, "--closed-form", "--match", "ghost=ghost"), ("ghost", "teacher")),
    Row("unknown augmentation", lambda d: distill(d, "--augment", "flip,blur"), ("blur", "cutmix")),
    Row("an augmentation that does not fit", lambda d: distill(d, "--augment", "tokens"), ("tokens", "image")),
    Row("negative learning rate", lambda d: distill(d, "--lr", "-1"), ("lr", "out of range")),
    Row("negative steps", lambda d: distill(d, "--steps", "-3"), ("steps", "negative")),
    Row("nothing to learn from", lambda d: distill(d, "--loss", "none", "--features", "none"), ("no training loss",)),
    Row("shrunk by more than all", lambda d: [*distill(d)[:1], *distill(d, "--shrink", "2")[2:]], ("between 0 and 1",)),
    Row("a student and a shrink", lambda d: distill(d, "--shrink", "0.5"), ("one student",)),
    Row("no student", lambda d: [*distill(d)[:1], *distill(d)[2:]], ("no student", "--shrink")),
    Row("nothing to resume", lambda d: distill(d, "--resume"), ("no run to resume", "--resume")),
    Row("a damaged checkpoint", damaged_run, ("damaged",)),
    Row("closed form of a good student", lambda d: distill(d, "--closed-form"), (), 0),
    Row("unknown command", lambda d: ["improve", str(good(d))], ("improve",)),
    Row("unknown option", lambda d: ["simplify", str(good(d)), "--fast"], ("--fast",)),
    Row("output missing", lambda d: ["simplify", str(good(d))], ("output",)),
]


def test_the_table_is_large_enough() -> None:
    assert len(ROWS) >= 60
    assert len({r.name for r in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.name)
def test_bad_input(row: Row, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    command = row.make(folder)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    source = good(folder).read_bytes()
    capsys.readouterr()
    code = run(command)
    err = capsys.readouterr().err
    assert code == row.code, err
    assert good(folder).read_bytes() == source, "the user's file was touched"
    if row.code:
        lines = [line for line in err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1, err
        assert "Traceback" not in err
        for word in row.says:
            assert word.lower() in lines[0].lower(), lines[0]
        left = {p for p in folder.rglob("*") if p not in before} - {good(folder), folder / "data.npz"}
        assert not left, f"left behind: {left}"
    else:
        ir.load(folder / "out.onnx")


def test_a_full_disk_is_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    model = good(tmp_path)
    monkeypatch.setattr("onnxpress.model.files.os.fsync", full)
    assert run(["simplify", str(model), "-o", str(tmp_path / "out.onnx")]) == 3
    assert "No space left" in capsys.readouterr().err
    assert not [p for p in tmp_path.iterdir() if ".part" in p.name or p.name == "out.onnx"]
