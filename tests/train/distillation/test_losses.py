"""Losses against values worked out another way, and against what they must not see."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from onnxpress.train.distillation import losses  # noqa: E402

pytestmark = pytest.mark.unit


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def softmax(values: np.ndarray) -> np.ndarray:
    high = np.exp(values - values.max(-1, keepdims=True))
    return high / high.sum(-1, keepdims=True)


def test_soft_targets_is_the_divergence_by_hand() -> None:
    s, t = random(5, 7), 3 * random(5, 7, seed=1)
    p, q = softmax(t.numpy() / 4), softmax(s.numpy() / 4)
    wanted = 16 * (p * np.log(p / q)).sum(1).mean()
    assert float(losses.soft_targets(s, t, 4.0)) == pytest.approx(wanted, rel=1e-4)
    assert float(losses.soft_targets(t, t, 4.0)) == pytest.approx(0, abs=1e-6)


def test_temperature_keeps_the_gradient_s_size() -> None:
    """The factor T^2 is there so that soft targets weigh the same at any temperature."""
    sizes = []
    for temperature in (4.0, 16.0):
        s = (0.1 * random(8, 10)).requires_grad_()
        losses.soft_targets(s, 0.1 * random(8, 10, seed=1), temperature).backward()
        sizes.append(float(s.grad.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_decoupled_adds_up_to_soft_targets() -> None:
    """KL = binary KL + (1 - p_target) KL among the rest (the identity the method starts from)."""
    s, t = random(6, 5), random(6, 5, seed=2)
    target = t.argmax(1)
    own = torch.softmax(t, -1)[torch.arange(6), target]
    parts = [
        losses.decoupled(s[i : i + 1], t[i : i + 1], target[i : i + 1], 1.0, 1.0, float(1 - own[i])) for i in range(6)
    ]
    assert float(torch.stack(parts).mean()) == pytest.approx(float(losses.soft_targets(s, t, 1.0)), rel=1e-4)


def test_decoupled_counts_the_rest_in_full_where_the_teacher_is_sure() -> None:
    t = torch.tensor([[20.0, 1.0, -1.0]])
    s = torch.tensor([[20.0, -1.0, 1.0]])
    target = torch.tensor([0])
    assert float(losses.soft_targets(s, t, 1.0)) < 1e-6
    assert float(losses.decoupled(s, t, target, 1.0)) > 1.0


def test_hard_labels_ignore_rows_without_one() -> None:
    s = random(4, 3)
    target = torch.zeros(4, 3)
    target[0, 1] = target[2, 2] = 1
    wanted = torch.nn.functional.cross_entropy(s[[0, 2]], torch.tensor([1, 2]))
    assert float(losses.hard_labels(s, target)) == pytest.approx(float(wanted), rel=1e-5)
    assert float(losses.hard_labels(s, torch.zeros(4, 3))) == 0


def test_relative_mse_does_not_see_the_scale_of_the_output() -> None:
    s, t = random(16, 4), random(16, 4, seed=1)
    small = losses.relative_mse(s, t, losses.variance(t))
    large = losses.relative_mse(1000 * s, 1000 * t, losses.variance(1000 * t))
    assert float(small) == pytest.approx(float(large), rel=1e-4)
    mean = t.mean(0, keepdim=True).expand_as(t)
    assert float(losses.relative_mse(mean, t, losses.variance(t))) == pytest.approx(1, rel=1e-4)


def test_variance_of_values_that_do_not_vary_is_not_zero() -> None:
    assert losses.variance(torch.ones(3, 2)) == pytest.approx(1)
    assert losses.variance(torch.zeros(3, 2)) > 0


def test_cosine_sees_directions_only() -> None:
    t = random(2, 8, 3, 3)
    assert float(losses.cosine(5 * t, t)) == pytest.approx(0, abs=1e-5)
    assert float(losses.cosine(-t, t)) == pytest.approx(2, abs=1e-5)


def test_attention_compares_other_widths_and_sizes() -> None:
    t = random(2, 8, 8, 8)
    assert float(losses.attention(torch.cat([t, t], 1), t)) == pytest.approx(0, abs=1e-6)
    assert float(losses.attention(random(2, 3, 4, 4, seed=4), t)) > 0


def test_relational_does_not_see_rotation_and_scale() -> None:
    t = random(6, 5)
    turn, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((5, 5)))
    s = 7 * t @ torch.from_numpy(turn.astype(np.float32))
    assert float(losses.relational(s, t)) == pytest.approx(0, abs=1e-3)
    assert float(losses.relational(random(6, 9, seed=5), t)) > 0.1


@pytest.mark.parametrize("name", ["soft_targets", "decoupled", "relational"])
def test_gradients_are_finite_for_confident_teachers(name: str) -> None:
    s = random(4, 6).requires_grad_()
    t = 200 * random(4, 6, seed=1)
    loss = {
        "soft_targets": lambda: losses.soft_targets(s, t, 1.0),
        "decoupled": lambda: losses.decoupled(s, t, t.argmax(1), 1.0),
        "relational": lambda: losses.relational(s, torch.zeros_like(t)),
    }[name]()
    loss.backward()
    assert torch.isfinite(s.grad).all()
