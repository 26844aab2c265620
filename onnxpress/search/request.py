"""Options of `optimize`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxpress.errors import InputProblem
from onnxpress.measure.quality import DecodeSource, MetricSource, QualityOptions
from onnxpress.runtime.session import CPU, SessionSettings, find_provider
from onnxpress.train.optional_torch import has_torch, require_torch

GOALS = ("latency", "size")
MOST_THREADS = 1024


@dataclass(frozen=True)
class OptimizeOptions:
    """What `optimize` is to reach, and what it may spend.

    max_drop:     largest drop of the metric in its own unit (0.01 is one point of accuracy); None: its default.
    metric:       how results are judged, with decode and outputs: see QualityOptions; None: chosen by what the outputs
                  are.
    goal:         "latency" or "size".
    time_budget:  seconds for the search.
    threads:      threads of onnxruntime that latency is measured with, in every timing of the search.
    provider:     execution provider of onnxruntime that models run on, such as "openvino"; "": the CPU's.
    seed:         of anything random.
    train_budget: seconds of training on top; needs torch. None: none on top, but where torch is installed students are
                  trained within `time_budget`, where that promises most; 0: nothing is trained.
    speedup:      target speed-up over the original (0: as fast as possible); of the candidates that reach it the most
                  accurate is chosen.
    latency_ms:   target latency of one run in milliseconds instead (0: none).
    """

    max_drop: float | None = None
    goal: str = "latency"
    time_budget: float = 300.0
    threads: int = 1
    seed: int = 0
    train_budget: float | None = None
    speedup: float = 0.0
    latency_ms: float = 0.0
    metric: MetricSource | None = None
    decode: DecodeSource | None = None
    outputs: tuple[str, ...] = ()
    provider: str = ""

    @property
    def sessions(self) -> SessionSettings:
        """How models are run and timed."""
        return SessionSettings(threads=self.threads, provider=find_provider(self.provider) if self.provider else CPU)

    @property
    def trains(self) -> bool:
        """Whether students are trained within the time budget."""
        return self.train_budget is None and has_torch()

    @property
    def quality(self) -> QualityOptions:
        """How results are judged."""
        return QualityOptions(self.metric, self.decode, tuple(self.outputs))

    def to_dict(self) -> dict[str, object]:
        """Plain values, functions by their names: what identifies a request."""
        named = {n: v if v is None or isinstance(v, str) else getattr(v, "__qualname__", type(v).__name__)
                 for n, v in (("metric", self.metric), ("decode", self.decode))}  # fmt: skip
        return {**self.__dict__, **named, "outputs": list(self.outputs)}

    def check(self) -> None:
        """Raises InputProblem for values out of range and goals that exclude each other."""
        if self.goal not in GOALS:
            raise InputProblem("unknown goal", self.goal, "", f"one of {', '.join(GOALS)}")
        if self.max_drop is not None and not 0 <= self.max_drop < (1 if self.metric is None else math.inf):
            raise InputProblem(
                "the drop must lie between 0 and 1", "`max_drop`", f"got {self.max_drop}", "0.01 is one point"
            )
        self.quality.check()
        if self.time_budget < 5:
            raise InputProblem(
                "the time budget is too short", "`time_budget`", f"{self.time_budget:g} s", "give at least 5 s"
            )
        if not 1 <= self.threads <= MOST_THREADS:
            raise InputProblem(
                "the number of threads must lie between 1 and 1024",
                "`threads`",
                f"got {self.threads}",
                "give 1 or more",
            )
        if self.provider:
            find_provider(self.provider)
        if self.train_budget is not None and not self.train_budget >= 0:
            raise InputProblem(
                "the training budget is negative", "`train_budget`", f"{self.train_budget:g} s", "give 0, or 10 minutes"
            )
        if self.speedup and self.speedup <= 1:
            raise InputProblem("the speed-up must be above 1", "`speedup`", f"got {self.speedup:g}", "give 2")
        if self.latency_ms < 0:
            raise InputProblem("the latency must be above 0", "`latency_ms`", f"got {self.latency_ms:g}", "give 5")
        if (self.speedup or self.latency_ms) and self.goal == "size":
            raise InputProblem("`goal` size and a target in time are mutually exclusive", "", "", "give one of them")
        if self.speedup and self.latency_ms:
            raise InputProblem("`speedup` and `latency_ms` are mutually exclusive", "", "", "give one of them")
        if self.train_budget:
            require_torch("`train_budget`")
