"""What a training run is told, as plain values that stand in a plan; no torch here."""

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
class Settings:
    """steps: updates in all; batch: samples an update; lr: top of the schedule (0: to be found by trying); warmup: share of the steps.

    decay: AdamW's, of weights of two axes and more; clip: of the gradient's norm (0: none); ema: of the averaged weights
    that are kept in the end (0: the last ones); looks: at the selection samples; patience: looks without a better one
    that end the run (0: none); loss "auto": to be found by trying, else mse; "blend": soft targets, and mse at first; "none":
    hard labels alone; features "auto": to be found by trying, else mse;
    labels: weight of hard labels; feature_weight: of matched inner values at first, feature_share: of the steps after which
    they (and the mse of a blend) no longer count; threads: of torch, which the last bits depend on;
    from_scratch: the student was never trained, so batch normalization goes by the batch; growing: pictures are small at first;
    precision, layout: how it is computed (exec_mode.py).
    """

    steps: int = 1000
    batch: int = 64
    lr: float = 0.0
    warmup: float = 0.05
    decay: float = 1e-4
    clip: float = 1.0
    ema: float = 0.99
    looks: int = 30
    patience: int = 0
    mode: str = "end-to-end"
    loss: str = "auto"
    temperature: float = 4.0
    labels: float = 0.0
    features: str = "mse"
    feature_weight: float = 10.0
    feature_share: float = 0.7
    augment: tuple[str, ...] = ()
    seed: int = 0
    threads: int = 1
    from_scratch: bool = False
    growing: bool = False
    precision: str = PRECISIONS[0]
    layout: str = LAYOUTS[0]

    def check(self) -> Settings:
        """Itself; raises InputProblem with the option and the range of the first value that makes no sense."""
        for name, low, high in (
            ("steps", 1, 10**9),
            ("batch", 1, 10**6),
            ("lr", 0.0, 100.0),
            ("warmup", 0.0, 1.0),
            ("decay", 0.0, 1.0),
            ("clip", 0.0, math.inf),
            ("ema", 0.0, 0.99999),
            ("looks", 1, 10**6),
            ("patience", 0, 10**6),
            ("temperature", 1e-3, 1e3),
            ("labels", 0.0, 1e6),
            ("feature_weight", 0.0, 1e6),
            ("feature_share", 0.0, math.inf),
            ("seed", 0, 2**32 - 1),
            ("threads", 1, 4096),
        ):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not low <= value <= high:
                raise InputProblem(
                    f"{name} is out of range", f"--{name.replace('_', '-')}", f"got {value}", f"{low:g} to {high:g}"
                )
        for name, known in (
            ("mode", MODES), ("loss", LOSSES), ("features", FEATURES), ("precision", PRECISIONS), ("layout", LAYOUTS),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise InputProblem(f"unknown {name}", getattr(self, name), "", f"one of {', '.join(known)}")
        if self.loss == "none" and not self.labels and self.features == "none":
            raise InputProblem("nothing to learn from", "--loss none", "no labels weight, no features", "add a loss")
        return self

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def read_settings(body: Mapping[str, Any]) -> Settings:
    """Settings from a plan; raises InputProblem for a word that is not one of them."""
    known = {f.name for f in fields(Settings)}
    for name in body:
        if name not in known:
            raise InputProblem("unknown setting of distill", name, "", f"one of {', '.join(sorted(known))}")
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in body.items()}
    given.setdefault("feature_share", math.inf)  # plans without it are older, and their weight did not fall
    return Settings(**given).check()
