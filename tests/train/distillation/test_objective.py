"""The loss of a batch: what counts at first, and what in the end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from onnxpress.train.distillation import losses
from onnxpress.train.distillation.feature_matching import Pair
from onnxpress.train.distillation.objective import Objective
from onnxpress.train.distillation.output_heads import Head
from onnxpress.train.settings import Settings

RNG = np.random.default_rng(0)
SCORES = {n: torch.from_numpy(RNG.standard_normal((6, 4)).astype(np.float32)) for n in ("s", "t", "inner", "twin")}
HEAD = Head("y", "s", "t", 4, True, True)
SETTINGS = Settings(steps=100, loss="blend")


def loss(settings: Settings, step: int, head: Head = HEAD, pairs: tuple[Pair, ...] = ()) -> float:
    example = {n: v.numpy() for n, v in SCORES.items()}
    objective = Objective(settings, [head], pairs, example, {})
    objective.at(step)
    return float(
        objective({"s": SCORES["s"], "inner": SCORES["inner"]}, {"t": SCORES["t"], "twin": SCORES["twin"]}, None)
    )


def test_squares_give_way_to_soft_targets() -> None:
    soft = float(losses.soft_targets(SCORES["s"], SCORES["t"], SETTINGS.temperature))
    squares = [x - x.mean(-1, keepdim=True) for x in (SCORES["s"], SCORES["t"])]
    centred = float(losses.relative_mse(*squares, losses.variance(SCORES["t"])))
    assert loss(SETTINGS, 0) == pytest.approx(soft + centred, rel=1e-5)
    assert loss(SETTINGS, 35) == pytest.approx(soft + 0.5 * centred, rel=1e-5)
    assert loss(SETTINGS, 70) == loss(SETTINGS, 99) == pytest.approx(soft, rel=1e-6)


def test_what_may_be_no_class_scores_is_compared_by_squares_to_the_end() -> None:
    unsure = replace(HEAD, classes=0, output="s")
    plain = float(losses.relative_mse(SCORES["s"], SCORES["t"], losses.variance(SCORES["t"])))
    assert loss(SETTINGS, 0, unsure) == loss(SETTINGS, 99, unsure) == pytest.approx(plain, rel=1e-5)


def test_inner_values_count_less_and_less() -> None:
    pair = Pair("inner", "twin", 1)
    alone = [loss(SETTINGS, step) for step in (0, 35, 70)]
    with_inner = [loss(SETTINGS, step, pairs=(pair,)) for step in (0, 35, 70)]
    weights = [a - b for a, b in zip(with_inner, alone, strict=True)]
    assert weights[1] == pytest.approx(weights[0] / 2, rel=1e-4)
    assert weights[2] == pytest.approx(0, abs=1e-6)
