"""Ways of computing a training: offered by what the CPU says, chosen by the clock, kept in the plan."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

import torch

from onnxpress.errors import InputProblem
from onnxpress.nas.spaces.network import NetworkBuilder
from onnxpress.train import throughput
from onnxpress.train.exec_mode import ExecMode, exec_modes, to_float32
from onnxpress.train.graph.program import Program
from onnxpress.train.settings import TrainingSettings, settings_from_dict

pytestmark = pytest.mark.unit

DEFAULT, HALF, LAST = ExecMode(), ExecMode("bfloat16"), ExecMode(layout="channels_last")

X = np.random.default_rng(0).standard_normal((16, 4, 8, 8)).astype(np.float32)


def small() -> ir.Model:
    net = NetworkBuilder()
    x = net.conv_norm(net.input("x", (4, 8, 8)), 8)
    return net.model({"y": net.dense(net.global_pool(x), 3)})


def test_modes_depend_on_cpu_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": False})
    assert exec_modes() == [DEFAULT, LAST]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": True})
    assert exec_modes() == [DEFAULT, LAST, HALF, ExecMode("bfloat16", "channels_last")]


def answered(program: Program, mode: ExecMode) -> torch.Tensor:
    with mode.autocast():
        return to_float32(program(mode.to_layout({"x": torch.from_numpy(X)})))["y"]


def test_bfloat16_products_and_float32_gradients() -> None:
    program = Program(small(), from_scratch=True)
    exact = answered(program, DEFAULT)
    torch.testing.assert_close(answered(program, LAST), exact, rtol=1e-4, atol=1e-5)
    rounded = answered(program, HALF)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).abs().max() < 0.05 * exact.abs().max()
    rounded.square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in program.parameters())


def test_memory_layout() -> None:
    x = torch.from_numpy(X)
    assert LAST.to_layout({"x": x})["x"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(LAST.to_layout({"x": x})["x"], x)
    assert LAST.to_layout({"x": x[:, :, 0]})["x"].is_contiguous() == x[:, :, 0].is_contiguous()


@pytest.mark.parametrize(("times", "chosen"), [((1.0, 0.5), HALF), ((1.0, 0.97), DEFAULT), ((1.0, 2.0), DEFAULT)])
def test_another_mode_needs_a_speedup(
    times: tuple[float, float], chosen: ExecMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = dict(zip((DEFAULT, HALF), times, strict=True))
    monkeypatch.setattr(throughput, "exec_modes", lambda: [DEFAULT, HALF])
    monkeypatch.setattr(throughput, "_step_seconds", lambda program, inputs, mode: seconds[mode])
    assert throughput.fastest_exec_mode(small(), {"x": X}, 1) == (chosen, seconds[chosen] / len(X))


def test_settings_round_trip_and_default() -> None:
    body = TrainingSettings(precision="bfloat16", layout="channels_last").as_dict()
    assert ExecMode.from_settings(settings_from_dict(body)) == ExecMode("bfloat16", "channels_last")
    del body["precision"], body["layout"]
    assert ExecMode.from_settings(settings_from_dict(body)) == DEFAULT
    with pytest.raises(InputProblem, match="unknown precision"):
        settings_from_dict(body | {"precision": "float8"})
