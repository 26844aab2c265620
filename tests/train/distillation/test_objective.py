"""The loss of a batch: weights at the first and at the last steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from onnxpress.train.distillation import losses
from onnxpress.train.distillation.feature_matching import FeaturePair
from onnxpress.train.distillation.objective import Objective
from onnxpress.train.distillation.output_heads import OutputHead
from onnxpress.train.settings import TrainingSettings

pytestmark = pytest.mark.unit

RNG = np.random.default_rng(0)
SCORES = {n: torch.from_numpy(RNG.standard_normal((6, 4)).astype(np.float32)) for n in ("s", "t", "inner", "twin")}
HEAD = OutputHead("y", "s", "t", 4, True, True)
SETTINGS = TrainingSettings(steps=100, loss="blend")


def loss(settings: TrainingSettings, step: int, head: OutputHead = HEAD, pairs: tuple[FeaturePair, ...] = ()) -> float:
    example = {n: v.numpy() for n, v in SCORES.items()}
    objective = Objective(settings, [head], pairs, example, {})
    objective.set_step(step)
    return float(
        objective({"s": SCORES["s"], "inner": SCORES["inner"]}, {"t": SCORES["t"], "twin": SCORES["twin"]}, None)
    )


def test_weight_of_the_squared_error_decays() -> None:
    soft = float(losses.soft_targets(SCORES["s"], SCORES["t"], SETTINGS.temperature))
    squares = [x - x.mean(-1, keepdim=True) for x in (SCORES["s"], SCORES["t"])]
    centred = float(losses.relative_mse(*squares, losses.variance(SCORES["t"])))
    assert loss(SETTINGS, 0) == pytest.approx(soft + centred, rel=1e-5)
    assert loss(SETTINGS, 35) == pytest.approx(soft + 0.5 * centred, rel=1e-5)
    assert loss(SETTINGS, 70) == loss(SETTINGS, 99) == pytest.approx(soft, rel=1e-6)


def test_outputs_without_classes_use_the_squared_error() -> None:
    values = replace(HEAD, classes=0, output="s")
    plain = float(losses.relative_mse(SCORES["s"], SCORES["t"], losses.variance(SCORES["t"])))
    assert loss(SETTINGS, 0, values) == loss(SETTINGS, 99, values) == pytest.approx(plain, rel=1e-5)


def test_weight_of_inner_values_decays() -> None:
    pair = FeaturePair("inner", "twin", 1)
    alone = [loss(SETTINGS, step) for step in (0, 35, 70)]
    with_inner = [loss(SETTINGS, step, pairs=(pair,)) for step in (0, 35, 70)]
    weights = [a - b for a, b in zip(with_inner, alone, strict=True)]
    assert weights[1] == pytest.approx(weights[0] / 2, rel=1e-4)
    assert weights[2] == pytest.approx(0, abs=1e-6)
