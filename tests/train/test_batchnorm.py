"""Training from scratch: normalization by the batch, running statistics that are written back, kept and resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from onnxpress.nas.spaces.network import NetworkBuilder  # noqa: E402
from onnxpress.runtime.session import open_session, run  # noqa: E402
from onnxpress.train.graph.program import Program  # noqa: E402
from onnxpress.train.settings import TrainingSettings  # noqa: E402
from onnxpress.train.trainer import Trainer  # noqa: E402

pytestmark = pytest.mark.unit

RNG = np.random.default_rng(0)
X = (3 + 2 * RNG.standard_normal((32, 4, 6, 6))).astype(np.float32)
SETTINGS = TrainingSettings(steps=30, batch=8, lr=3e-3, evaluations=6, ema=0.9)


def normalized() -> ir.Model:
    net = NetworkBuilder()
    x = net.conv_norm(net.input("x", (4, 6, 6)), 8)
    return net.model({"y": net.dense(net.global_pool(net.conv_norm(x, 8)), 3)})


def test_the_batch_is_normalized_as_torch_does() -> None:
    net = NetworkBuilder()
    model = net.model({"y": net.norm(net.input("x", (4, 6, 6)))})
    program, layer = Program(model, from_scratch=True), torch.nn.BatchNorm2d(4, momentum=0.05)
    for _ in range(3):
        ours, theirs = program({"x": torch.from_numpy(X)})["y"], layer(torch.from_numpy(X))
        torch.testing.assert_close(ours, theirs)
    written = program.to_model()
    names = [v.name for v in written.graph.node(0).inputs]
    found = {n: written.graph.initializers[n].const_value.numpy() for n in names[3:]}
    np.testing.assert_allclose(found[names[3]], layer.running_mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(found[names[4]], layer.running_var.numpy(), rtol=1e-5)


def test_stored_statistics_serve_where_a_channel_has_one_number() -> None:
    net = NetworkBuilder()
    program = Program(net.model({"y": net.norm(net.input("x", (4, 1, 1)))}), from_scratch=True)
    one = torch.ones((1, 4, 1, 1))
    torch.testing.assert_close(program({"x": one})["y"], one, rtol=1e-4, atol=1e-4)


def trainer(model: ir.Model) -> tuple[Program, Trainer]:
    program = Program(model, from_scratch=True)

    def loss(step: int) -> torch.Tensor:
        rows = np.random.default_rng([0, step]).integers(0, len(X), 8)
        y = program({"x": torch.from_numpy(X[rows])})["y"]
        return (y - torch.from_numpy(X[rows].mean((2, 3))[:, :3])).square().mean()

    return program, Trainer(program, loss, SETTINGS)


def test_what_was_learned_by_the_batch_holds_for_single_samples() -> None:
    program, job = trainer(normalized())
    job.settings = replace(SETTINGS, steps=300)
    job.run()
    wanted = X.mean((2, 3))[:, :3]

    def error(model: ir.Model) -> float:
        session = open_session(model)
        return float(np.mean([(run(session, {"x": X[i : i + 1]})[0] - wanted[i]) ** 2 for i in range(len(X))]))

    assert error(program.to_model()) < 0.1 * error(normalized())


def test_a_killed_run_resumes_with_its_statistics(tmp_path: Path) -> None:
    model = normalized()
    whole, job = trainer(model)
    job.run(lambda: (0.0, 1.0 / job.steps_done, 0.0, 0.0))
    _, killed = trainer(model)
    killed.run(
        lambda: (0.0, 1.0 / killed.steps_done, 0.0, 0.0), stop=17, checkpoint=tmp_path / "c.pt", checkpoint_interval=1e9
    )
    again, resumed = trainer(model)
    resumed.restore(tmp_path / "c.pt")
    resumed.run(lambda: (0.0, 1.0 / resumed.steps_done, 0.0, 0.0))
    first, second = whole.weights(), again.weights()
    assert all(first[n].tobytes() == second[n].tobytes() for n in first)


def test_the_best_look_comes_with_its_statistics() -> None:
    program, job = trainer(normalized())
    seen: dict[int, dict[str, bytes]] = {}

    def evaluate() -> tuple[float, float, float, float]:
        seen[job.steps_done] = {n: a.tobytes() for n, a in program.weights().items()}
        return 0.0, abs(job.steps_done - 10) + 1.0, 0.0, 0.0

    job.run(evaluate)
    assert job.history.best_step == 10
    assert {n: a.tobytes() for n, a in program.weights().items()} == seen[10]
