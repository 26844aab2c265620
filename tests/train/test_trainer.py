"""The loop: resuming gives the same bits, replay gives the kept weights, and overfitting is seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from onnxpress.errors import EnvironmentProblem, InputProblem  # noqa: E402
from onnxpress.train.settings import TrainingSettings, settings_from_dict  # noqa: E402
from onnxpress.train.trainer import CurvePoint, Evaluation, Trainer, TrainingHistory  # noqa: E402

pytestmark = pytest.mark.unit

SETTINGS = TrainingSettings(steps=40, batch=8, lr=1e-2, evaluations=8, ema=0.9)
RNG = np.random.default_rng(0)
X = torch.from_numpy(RNG.standard_normal((24, 6)).astype(np.float32))
Y = torch.from_numpy(RNG.standard_normal((24, 3)).astype(np.float32))


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))


def trainer(
    settings: TrainingSettings = SETTINGS, fingerprint: str = "run", auxiliary: torch.nn.Module | None = None
) -> Trainer:
    module = net()

    def loss(step: int) -> torch.Tensor:
        rows = np.random.default_rng([settings.seed, step]).integers(0, len(X), settings.batch)
        error = (module(X[rows]) - Y[rows]).square().mean()
        return error if auxiliary is None else error + (auxiliary(module(X[rows])) - 1).square().mean()

    return Trainer(module, loss, settings, auxiliary, fingerprint)


def evaluations(t: Trainer) -> Callable[[], Evaluation]:
    """The last eight samples' error as a drop."""

    def evaluate() -> Evaluation:
        with torch.no_grad():
            error = float((t.module(X[16:]) - Y[16:]).square().mean())
        return error, error, 1 - error, 0.0

    return evaluate


def weights(t: Trainer) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in t.module.parameters()]


@pytest.mark.parametrize("at", [1, 13, 39])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_a_killed_run_resumes_to_the_same_bits(at: int, auxiliary: bool, tmp_path: Path) -> None:
    def fresh() -> Trainer:
        torch.manual_seed(1)
        return trainer(auxiliary=torch.nn.Linear(3, 2) if auxiliary else None)

    whole = fresh()
    whole.run(evaluations(whole))
    path = tmp_path / "checkpoint.pt"
    killed = fresh()
    killed.run(evaluations(killed), stop=at, checkpoint=path, checkpoint_interval=1e9)
    resumed = fresh()
    resumed.restore(path)
    assert resumed.steps_done == at
    resumed.run(evaluations(resumed))
    assert weights(resumed) == weights(whole)
    assert resumed.history == whole.history


def test_a_replay_to_the_best_step_needs_no_looks() -> None:
    first = trainer()
    history = first.run(evaluations(first))
    again = trainer()
    again.run(stop=history.best_step)
    assert weights(again) == weights(first)


def test_looks_do_not_change_the_training() -> None:
    seen, blind = trainer(), trainer()
    seen.run(evaluations(seen))
    blind.run()
    assert [a.numpy().tobytes() for a in seen.average] == [a.numpy().tobytes() for a in blind.average]


def test_the_best_look_is_kept_and_overfitting_shows() -> None:
    t = trainer()
    drops = iter([0.5, 0.2, 0.1, 0.3, 0.4, 0.5, 0.6, 0.7])
    history = t.run(lambda: (next(drops),) * 2 + (0.0, 0.0))
    assert history.best_step == history.curve[2].step
    assert history.overfitted
    assert t.steps_done == SETTINGS.steps


def test_early_stopping_ends_the_run_and_keeps_the_best() -> None:
    t = trainer(replace(SETTINGS, patience=2))
    drops = iter([0.5, 0.2, 0.3, 0.3])
    history = t.run(lambda: (next(drops), 0.0, 0.0, 0.0))
    assert t.steps_done == 20
    assert history.best_step == 10
    assert "no improvement" in history.stop_reason
    other = trainer(replace(SETTINGS, patience=2))
    other.run(stop=10)
    assert weights(other) == weights(t)


def test_a_nan_score_is_never_the_best() -> None:
    t = trainer()
    found = iter([0.9, float("nan"), *[0.95] * 6])
    assert t.run(lambda: (0.1, next(found), 0.0, 0.0)).best_step == 5


def chosen(*seen: tuple[float, float], uncertainty: float = 0.01, start: float = float("inf")) -> int:
    """Which of some evaluations (drop, nmse) is kept."""
    history = TrainingHistory()
    for number, (drop, nmse) in enumerate(seen, 1):
        history.add(CurvePoint(number, 0.0, drop, nmse, 0.0, uncertainty), start)
    return history.best_step


def test_a_lucky_look_does_not_beat_a_closer_one() -> None:
    assert chosen((0.02, 0.9), (0.010, 0.5), (0.012, 0.3), (0.03, 0.1)) == 3
    assert chosen((0.02, 0.9), (0.010, 0.5), (0.012, 0.3), uncertainty=0.0) == 2
    assert chosen((0.0, 0.5), (0.004, 0.3), start=0.001) == 1, (
        "a kept evaluate is no worse than the start if one can be"
    )
    assert chosen((0.3, 0.1), (0.1, 0.5)) == 2
    assert chosen((float("nan"), 0.1), (0.1, 0.5)) == 2


def test_schedule_warms_up_and_ends_low() -> None:
    t = trainer(replace(SETTINGS, steps=100, warmup=0.1))
    rates = [t.learning_rate(i) for i in range(100)]
    assert rates[0] == pytest.approx(1e-3)
    assert max(rates) == pytest.approx(1e-2)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] < 2e-4
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_vectors_do_not_decay() -> None:
    t = trainer()
    assert {(p.ndim, g["weight_decay"]) for g in t.optimizer.param_groups for p in g["params"]} == {(2, 1e-4), (1, 0.0)}


def test_parts_of_a_step_add_up_to_the_whole() -> None:
    whole, apart = trainer(), trainer()
    rows = np.arange(8)
    whole.loss = lambda step: (whole.module(X[rows]) - Y[rows]).square().mean()
    apart.loss = lambda step: ((apart.module(X[[i]]) - Y[[i]]).square().mean() / 8 for i in rows)
    for t in (whole, apart):
        t.step()
    for a, b in zip(whole.module.parameters(), apart.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_divergence_is_one_line() -> None:
    t = trainer()
    t.loss = lambda step: sum(p.sum() for p in t.module.parameters()) * float("nan")
    with pytest.raises(EnvironmentProblem, match="diverged"):
        t.run()


def test_a_gradient_that_is_no_number_moves_nothing_by_itself() -> None:
    t = trainer()
    first, *_, last = t.module.parameters()
    blocked = torch.tensor([float("-inf")])
    t.loss = lambda step: last.square().sum() + torch.maximum(blocked, (0 * first.sum()).log()).exp()[0]
    before = [p.detach().clone() for p in t.module.parameters()]
    t.step()
    assert torch.isfinite(first).all()
    assert torch.equal(first, before[0] * (1 - t.learning_rate(0) * t.settings.weight_decay))
    assert not torch.equal(last, before[-1])


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    trainer().save(path)
    with pytest.raises(InputProblem, match="another run"):
        trainer(fingerprint="other").restore(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputProblem, match="damaged"):
        trainer().restore(path)
    with pytest.raises(InputProblem, match="no checkpoint"):
        trainer().restore(tmp_path / "absent.pt")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"format": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputProblem, match="damaged"):
        trainer().restore(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_settings_come_back_from_json() -> None:
    s = TrainingSettings(steps=7, augment=("flip",), mode="blockwise")
    assert settings_from_dict(s.as_dict()) == s
    with pytest.raises(InputProblem, match="speed"):
        settings_from_dict({"speed": 1})
    with pytest.raises(InputProblem, match="lr"):
        settings_from_dict({"lr": -1.0})
