"""Training settings, as plain values that are stored in plans.  Does not import torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from onnxpress.errors import InputProblem

MODES = ("end-to-end", "blockwise")
LOSSES = ("auto", "blend", "kd", "dkd", "mse", "none")
FEATURES = ("auto", "none", "mse", "cosine", "attention", "relational")
PRECISIONS = ("float32", "bfloat16")
LAYOUTS = ("channels_first", "channels_last")


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of one training run.

    steps: number of weight updates.
    batch: samples per update.
    lr: peak learning rate; 0 selects it by short trials.
    warmup: fraction of the steps with linearly increasing learning rate.
    weight_decay: AdamW weight decay, applied to weights of two or more dimensions.
    clip: maximum norm of the gradient; 0 disables clipping.
    ema: decay of the exponential moving average of the weights, which is the result; 0 uses the last weights.
    evaluations: number of evaluations on the selection samples.
    patience: evaluations without improvement after which training stops; 0 disables early stopping.
    mode: one of MODES.
    loss: one of LOSSES.  "auto": selected by short trials, else "mse"; "blend": soft targets plus a mean squared error
        whose weight decays to 0; "none": labels only.
    temperature: softmax temperature of soft targets.
    labels_weight: weight of the cross entropy with the labels.
    features: one of FEATURES.  "auto": selected by short trials, else "mse".
    features_weight: initial weight of the loss on matched inner values.
    features_decay_fraction: fraction of the steps over which that weight (and the squared error of "blend") decays
        linearly to 0; inf keeps it constant.
    augment: names of augmentations.
    seed: seed of everything random.
    threads: number of torch threads; results depend on it in the last bits.
    from_scratch: the student is untrained, so that batch normalization uses batch statistics.
    progressive_resizing: images are small at first and grow to full size.
    precision, layout: execution mode (see exec_mode.py).
    """

    steps: int = 1000
    batch: int = 64
    lr: float = 0.0
    warmup: float = 0.05
    weight_decay: float = 1e-4
    clip: float = 1.0
    ema: float = 0.99
    evaluations: int = 30
    patience: int = 0
    mode: str = "end-to-end"
    loss: str = "auto"
    temperature: float = 4.0
    labels_weight: float = 0.0
    features: str = "mse"
    features_weight: float = 10.0
    features_decay_fraction: float = 0.7
    augment: tuple[str, ...] = ()
    seed: int = 0
    threads: int = 1
    from_scratch: bool = False
    progressive_resizing: bool = False
    precision: str = PRECISIONS[0]
    layout: str = LAYOUTS[0]

    def check(self) -> TrainingSettings:
        """Return the settings themselves.  Raises InputProblem for the first value that is out of range."""
        for name, low, high in (
            ("steps", 1, 10**9),
            ("batch", 1, 10**6),
            ("lr", 0.0, 100.0),
            ("warmup", 0.0, 1.0),
            ("weight_decay", 0.0, 1.0),
            ("clip", 0.0, math.inf),
            ("ema", 0.0, 0.99999),
            ("evaluations", 1, 10**6),
            ("patience", 0, 10**6),
            ("temperature", 1e-3, 1e3),
            ("labels_weight", 0.0, 1e6),
            ("features_weight", 0.0, 1e6),
            ("features_decay_fraction", 0.0, math.inf),
            ("seed", 0, 2**32 - 1),
            ("threads", 1, 4096),
        ):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not low <= value <= high:
                raise InputProblem("value out of range", f"`{name}`", f"got {value}", f"{low:g} to {high:g}")
        for name, known in (
            ("mode", MODES), ("loss", LOSSES), ("features", FEATURES), ("precision", PRECISIONS), ("layout", LAYOUTS),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise InputProblem(f"unknown {name}", getattr(self, name), "", f"one of {', '.join(known)}")
        if self.loss == "none" and not self.labels_weight and self.features == "none":
            raise InputProblem("no training loss", "`loss` none", "`labels_weight` is 0, `features` none", "add a loss")
        return self

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def settings_from_dict(body: Mapping[str, Any]) -> TrainingSettings:
    """Settings from a plan.  Raises InputProblem for an unknown key or a value out of range."""
    known = {f.name for f in fields(TrainingSettings)}
    for name in body:
        if name not in known:
            raise InputProblem("unknown setting of distill", name, "", f"one of {', '.join(sorted(known))}")
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in body.items()}
    given.setdefault("features_decay_fraction", math.inf)  # a plan without this key keeps the weight constant
    return TrainingSettings(**given).check()
