"""Ways of computing a training: offered by what the CPU says, chosen by the clock, kept in the plan."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

import torch

from onnxpress.errors import InputProblem
from onnxpress.nas.spaces.network import Net
from onnxpress.train import throughput
from onnxpress.train.exec_mode import Way, full, ways
from onnxpress.train.graph.program import Program
from onnxpress.train.settings import Settings, read_settings

PLAIN, HALF, LAST = Way(), Way("bfloat16"), Way(layout="channels_last")

X = np.random.default_rng(0).standard_normal((16, 4, 8, 8)).astype(np.float32)


def small() -> ir.Model:
    net = Net()
    x = net.conv_norm(net.input("x", (4, 8, 8)), 8)
    return net.model({"y": net.dense(net.global_pool(x), 3)})


def test_the_cpu_says_what_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": False})
    assert ways() == [PLAIN, LAST]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": True})
    assert ways() == [PLAIN, LAST, HALF, Way("bfloat16", "channels_last")]


def answered(program: Program, way: Way) -> torch.Tensor:
    with way():
        return full(program(way.laid({"x": torch.from_numpy(X)})))["y"]


def test_products_are_rounded_and_gradients_come_in_full() -> None:
    program = Program(small(), from_scratch=True)
    exact = answered(program, PLAIN)
    torch.testing.assert_close(answered(program, LAST), exact, rtol=1e-4, atol=1e-5)
    rounded = answered(program, HALF)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).abs().max() < 0.05 * exact.abs().max()
    rounded.square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in program.parameters())


def test_pictures_lie_as_told() -> None:
    x = torch.from_numpy(X)
    assert LAST.laid({"x": x})["x"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(LAST.laid({"x": x})["x"], x)
    assert LAST.laid({"x": x[:, :, 0]})["x"].is_contiguous() == x[:, :, 0].is_contiguous()


@pytest.mark.parametrize(("times", "chosen"), [((1.0, 0.5), HALF), ((1.0, 0.97), PLAIN), ((1.0, 2.0), PLAIN)])
def test_another_way_must_pay(times: tuple[float, float], chosen: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = dict(zip((PLAIN, HALF), times, strict=True))
    monkeypatch.setattr(throughput, "ways", lambda: [PLAIN, HALF])
    monkeypatch.setattr(throughput, "_step", lambda program, inputs, way: seconds[way])
    assert throughput.fastest(small(), {"x": X}, 1) == (chosen, seconds[chosen] / len(X))


def test_a_plan_keeps_it_and_older_plans_know_the_plain_way() -> None:
    body = Settings(precision="bfloat16", layout="channels_last").plain()
    assert Way.of(read_settings(body)) == Way("bfloat16", "channels_last")
    del body["precision"], body["layout"]
    assert Way.of(read_settings(body)) == PLAIN
    with pytest.raises(InputProblem, match="unknown precision"):
        read_settings(body | {"precision": "float8"})
