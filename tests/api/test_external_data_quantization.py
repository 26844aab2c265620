"""Weights rounded one by one, from a file of any size into another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxpress.api import external_data_quantization
from onnxpress.api.external_data_quantization import stream_weights
from onnxpress.cli.main import run as cli
from onnxpress.errors import InputProblem
from onnxpress.model import edit, read
from onnxpress.model.files import load, to_bytes
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.passes.weights.weights import WeightsOptions
from tests import nets


def written(model: ir.Model, folder: Path, external: bool) -> Path:
    path = folder / "given.onnx"
    ir.save(model, path, external_data="given.data" if external else None)
    return path


def nmse(model: ir.Model, path: Path) -> float:
    data = nets.samples(model, 16)
    wanted, found = nets.outputs(model, data), nets.outputs(load(path), data)
    return float(((found - wanted) ** 2).mean() / (wanted**2).mean())


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("build", [nets.mobile, nets.transformer], ids=["mobile", "transformer"])
def test_the_result_is_small_and_right(
    build: type, large: bool, external: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it goes through memory or from file to file, in stretches shorter than a weight."""
    monkeypatch.setattr(external_data_quantization, "_STRETCH", 500)
    monkeypatch.setattr(external_data_quantization, "_SMALL", -1 if large else 2**30)
    model: ir.Model = build()
    path, target = written(model, tmp_path, external), tmp_path / "small.onnx"
    done = stream_weights(path, target)
    assert nmse(model, target) < 1e-3
    assert (tmp_path / "small.onnx.data").exists() == large
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == [], "nothing is left lying about"
    size = target.stat().st_size + ((tmp_path / "small.onnx.data").stat().st_size if large else 0)
    assert done.bytes_after == size
    whole = sum(p.stat().st_size for p in (path, tmp_path / "given.data") if p.exists())
    assert 0.9 * whole <= done.bytes_before <= whole, "but for what fills the data file's pages"
    if not large:
        assert done.bytes_after < 0.6 * done.bytes_before
    again = tmp_path / "again.onnx"
    stream_weights(path, again)
    assert load(again).graph.initializers.keys() == load(target).graph.initializers.keys()
    assert to_bytes(load(again)) == to_bytes(load(target))


@pytest.mark.parametrize(("bits", "block", "most"), [(8, 32, 1e-3), (4, 0, 0.05), (4, 16, 0.03), (3, 0, 0.2)])
def test_few_bits_and_blocks(bits: int, block: int, most: float, tmp_path: Path) -> None:
    model = nets.mlp(width=64)
    done = stream_weights(written(model, tmp_path, False), tmp_path / "o.onnx", WeightsOptions(bits=bits, block=block))
    assert done.weights == 2
    assert nmse(model, tmp_path / "o.onnx") < most


def test_a_weight_that_is_not_finite_stays(tmp_path: Path) -> None:
    model = canonical(nets.mlp())
    node = next(n for n in model.graph if n.op_type == "MatMul")
    broken = np.array(read.constant(node.inputs[1]))
    broken[0, 0] = np.inf
    edit.set_input(model, node, 1, broken, "broken")
    done = stream_weights(written(model, tmp_path, False), tmp_path / "o.onnx")
    assert [r.reason for r in done.refused] == ["its weight is not finite"]
    assert done.weights == 1


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(nets.mlp(width=64), tmp_path, False)
    assert cli(["weights", str(path), "-o", str(tmp_path / "o.onnx"), "--bits", "4"]) == 0
    assert "x smaller" in capsys.readouterr().out
    for wrong in (["--plan", str(tmp_path / "p.json")], ["--spare", "0.1"]):
        assert cli(["weights", str(path), "-o", str(tmp_path / "n.onnx"), *wrong]) == 2
        assert wrong[0] in capsys.readouterr().err
    assert not (tmp_path / "n.onnx").exists()
    with pytest.raises(InputProblem, match="`bits`"):
        stream_weights(path, tmp_path / "n.onnx", WeightsOptions(bits=5))


_RUN = """
import sys
from onnxpress.api.external_data_quantization import stream_weights
done = stream_weights(sys.argv[1], sys.argv[2])
high = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(done.weights, done.bytes_before, done.bytes_after, int(high.split()[1]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak_memory memory is read from Linux's /proc")
def test_four_gigabytes_take_less_than_one_and_a_half(tmp_path: Path) -> None:
    width, layers = 8192, 16  # of 256 MiB each
    rng = np.random.default_rng(0)
    stretch = rng.standard_normal((1024, width)).astype(np.float32)
    with (tmp_path / "big.data").open("wb") as stream:
        for _ in range(layers * width // len(stretch)):
            stream.write(stretch.tobytes())
    nodes, held = [], []
    for i in range(layers):
        tensor = TensorProto(
            name=f"w{i}", data_type=TensorProto.FLOAT, dims=[width, width], data_location=TensorProto.EXTERNAL
        )
        for key, value in (("location", "big.data"), ("offset", i * 4 * width * width), ("length", 4 * width * width)):
            tensor.external_data.add(key=key, value=str(value))
        held.append(tensor)
        nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"], name=f"n{i}"))
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width]) for name in ("x0", f"x{layers}")]
    graph = helper.make_graph(nodes, "big", ports[:1], ports[1:], held)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "big.onnx").write_bytes(proto.SerializeToString())
    given = [sys.executable, "-c", _RUN, str(tmp_path / "big.onnx"), str(tmp_path / "small.onnx")]
    expected = subprocess.run(given, capture_output=True, text=True, check=True)
    weights, before, after, peak_memory = (int(n) for n in expected.stdout.split())
    assert weights == layers
    assert before > 4e9
    assert after < 0.26 * before
    assert peak_memory < 1.5e9, f"{peak_memory / 1e9:.2f} GB"
    onnx.checker.check_model(str(tmp_path / "small.onnx"))
    small = load(tmp_path / "small.onnx")
    codes = [v.const_value for v in small.graph.initializers.values() if v.dtype == ir.DataType.INT8]
    assert len(codes) == layers
