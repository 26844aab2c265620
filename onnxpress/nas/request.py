"""The request of an architecture search, as plain values that are stored with the study."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from onnxpress.errors import InputProblem
from onnxpress.measure.quality import QualityOptions
from onnxpress.nas.evaluation import proxies
from onnxpress.nas.optional_dependencies import require_optuna
from onnxpress.train.optional_torch import require_torch

WORST_QUALITY = -1e9  # in place of a quality that is not finite
SCHEDULES = ("halving", "hyperband")
AIMS = {"size": "bytes", "memory": "peak_memory"}  # objectives besides quality and latency, and their facts


@dataclass(frozen=True)
class NasRequest:
    """Request of an architecture search.

    space: name of a built-in search space, FILE.toml or FILE.py:function.
    strategy: evolution, nsga2, tpe or random.
    proxy: estimate of the quality before training (see evaluation/proxies.py).
    trials: number of candidates to evaluate.
    time_budget: seconds of the whole search.
    latency_ms: maximum latency in milliseconds, one thread.
    size_mb: maximum size of the weights in megabytes (10^6 bytes).
    trainees: number of candidates whose training begins.
    keep: number of candidates trained to the end.
    seed: of everything random.
    storage: address of the study's database; default: study.db in the output folder.
    memory_mb: maximum of the inner values alive at once, in megabytes.
    proxy_train_time: seconds of the proxy "training".
    aims: names in AIMS, objectives to minimize besides latency.
    schedule: one of SCHEDULES, which divides the training time between the trainees.
    warm: folders of earlier searches, whose Pareto fronts are evaluated first.
    metric, decode, outputs: what trained candidates are judged by, as of `QualityOptions`; by name, because workers
        read them from the study.
    """

    space: str
    strategy: str = "evolution"
    proxy: str = "capacity"
    trials: int = 200
    time_budget: float = 1800.0
    latency_ms: float = math.inf
    size_mb: float = math.inf
    trainees: int = 8
    keep: int = 2
    seed: int = 0
    storage: str = ""
    memory_mb: float = math.inf
    proxy_train_time: float = 20.0
    aims: tuple[str, ...] = ()
    schedule: str = "halving"
    warm: tuple[str, ...] = ()
    metric: str | None = None
    decode: str | None = None
    outputs: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises InputProblem for invalid values, EnvironmentProblem where torch or optuna is not installed."""
        proxies.check_proxy(self.proxy)
        for name in ("metric", "decode"):
            if not isinstance(getattr(self, name), str | None):
                raise InputProblem(
                    "workers of a search cannot read a function", f"`{name}`", "", "give FILE.py:function"
                )
        self.quality.check()
        for aim in self.aims:
            if aim not in AIMS:
                raise InputProblem("unknown aim", "`aim`", aim, f"one of {', '.join(AIMS)}")
        if self.schedule not in SCHEDULES:
            raise InputProblem("unknown schedule", "`schedule`", self.schedule, f"one of {', '.join(SCHEDULES)}")
        for name in ("trials", "trainees", "keep"):
            if getattr(self, name) < 1:
                raise InputProblem("value out of range", f"`{name}`", f"got {getattr(self, name)}", "give at least 1")
        for name in ("time_budget", "latency_ms", "size_mb", "memory_mb", "proxy_train_time"):
            if not getattr(self, name) > 0:
                raise InputProblem("value must be positive", f"`{name}`", f"got {getattr(self, name):g}")
        require_torch("nas")
        require_optuna("nas")

    @property
    def quality(self) -> QualityOptions:
        """What trained candidates are judged by."""
        return QualityOptions(self.metric, self.decode, self.outputs)

    @property
    def latency(self) -> float:
        """Maximum latency in seconds."""
        return self.latency_ms / 1e3

    @property
    def size(self) -> float:
        """Maximum size of the weights in bytes."""
        return self.size_mb * 1e6

    @property
    def memory(self) -> float:
        """Maximum of the inner values alive at once, in bytes."""
        return self.memory_mb * 1e6

    @property
    def maximizes_quality_only(self) -> bool:
        """Whether latency is limited and there are no aims, so that candidates within the limit differ in quality
        only.
        """
        return math.isfinite(self.latency) and not self.aims

    @property
    def minimized_facts(self) -> tuple[str, ...]:
        """Names of the facts that are minimized besides latency."""
        return tuple(AIMS[aim] for aim in self.aims)

    def as_dict(self) -> dict[str, Any]:
        """The request as JSON values, without unlimited values (JSON has no infinity) and without the storage."""
        return {k: v for k, v in asdict(self).items() if v != math.inf and k != "storage"}


def request_from_dict(body: Mapping[str, Any]) -> NasRequest:
    """The request that `as_dict` converted; unknown keys of later versions are ignored."""
    known = {f.name for f in fields(NasRequest)}
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in body.items() if k in known}
    return NasRequest(**given)
