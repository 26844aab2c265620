"""What a user asks of `optimize`."""

from __future__ import annotations

from dataclasses import dataclass

from onnxpress.errors import InputProblem
from onnxpress.train.optional_torch import require_torch

GOALS = ("latency", "size")


@dataclass(frozen=True)
class OptimizeOptions:
    """max_drop: in the metric's unit (0.01 = one point); time_budget: seconds; goal: latency or size.

    train_budget: seconds of training on top (0: none), which needs torch; speedup: times the original's speed that are enough,
    or latency: seconds a run may take (0: as fast as can be), so that of those the least harmed is wanted.
    """

    max_drop: float = 0.01
    goal: str = "latency"
    time_budget: float = 300.0
    threads: int = 1
    seed: int = 0
    train_budget: float = 0.0
    speedup: float = 0.0
    latency: float = 0.0

    def check(self) -> None:
        if self.goal not in GOALS:
            raise InputProblem("unknown goal", self.goal, "", f"one of {', '.join(GOALS)}")
        if not 0 <= self.max_drop < 1:
            raise InputProblem(
                "max-drop must lie between 0 and 1", "--max-drop", f"got {self.max_drop}", "0.01 is one point"
            )
        if self.time_budget < 5:
            raise InputProblem(
                "the time budget is too short", "--time-budget", f"{self.time_budget:g} s", "give at least 5s"
            )
        if self.train_budget < 0:
            raise InputProblem(
                "the training budget is negative", "--train-budget", f"{self.train_budget:g} s", "give 0, or 10m"
            )
        if self.speedup and self.speedup <= 1:
            raise InputProblem("the speed-up must be above 1", "--speedup", f"got {self.speedup:g}", "try 2")
        if self.latency < 0:
            raise InputProblem("the latency must be above 0", "--latency-ms", f"got {1e3 * self.latency:g}", "try 5")
        if (self.speedup or self.latency) and self.goal == "size":
            raise InputProblem("a goal in time and --goal size", "--goal", "", "take one of them")
        if self.speedup and self.latency:
            raise InputProblem("two goals in time", "--speedup, --latency-ms", "", "take one of them")
        if self.train_budget:
            require_torch("--train-budget")
