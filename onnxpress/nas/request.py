"""What a user asks of a search, as plain values that are kept with the study."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from onnxpress.errors import InputProblem
from onnxpress.nas.evaluation import proxies
from onnxpress.nas.optional_dependencies import require_optuna
from onnxpress.train.optional_torch import require_torch

WORST = -1e9  # in the place of a quality that is no number
SCHEDULES = ("halving", "hyperband")
AIMS = {"size": "bytes", "memory": "peak"}  # what may be lowered besides latency, and the fact that tells it


@dataclass(frozen=True)
class Request:
    """space: a ready one's name, FILE.toml or FILE.py:function; proxy: what stands for quality before training.

    trials: candidates to look at; seconds: of everything; latency: seconds a run may take, one thread (inf: no limit);
    size: bytes of weights; peak: bytes of values alive at once; pupils: candidates whose training begins; keep: those trained to
    the end; lesson: seconds of a training that is a proxy; aims: of AIMS, each a dimension of the front; schedule: of SCHEDULES, how the
    pupils share the time of training; warm: folders of earlier searches, whose fronts are looked at first.
    """

    space: str
    strategy: str = "evolution"
    proxy: str = "capacity"
    trials: int = 200
    seconds: float = 1800.0
    latency: float = math.inf
    size: float = math.inf
    pupils: int = 8
    keep: int = 2
    seed: int = 0
    storage: str = ""
    peak: float = math.inf
    lesson: float = 20.0
    aims: tuple[str, ...] = ()
    schedule: str = "halving"
    warm: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises InputProblem for what makes no sense, EnvironmentProblem where torch is missing."""
        proxies.check(self.proxy)
        for aim in self.aims:
            if aim not in AIMS:
                raise InputProblem("unknown aim", "--aim", aim, f"one of {', '.join(AIMS)}")
        if self.schedule not in SCHEDULES:
            raise InputProblem("unknown schedule", "--schedule", self.schedule, f"one of {', '.join(SCHEDULES)}")
        for name, value in (("--trials", self.trials), ("--pupils", self.pupils), ("--keep", self.keep)):
            if value < 1:
                raise InputProblem("a number is too small", name, f"got {value}", "give at least 1")
        for name, limit in (
            ("--time-budget", self.seconds),
            ("--latency-ms", self.latency),
            ("--size-mb", self.size),
            ("--memory-mb", self.peak),
            ("--lesson", self.lesson),
        ):
            if not limit > 0:
                raise InputProblem("a limit must be above zero", name, f"got {limit:g}")
        require_torch("nas")
        require_optuna("nas")

    @property
    def limited(self) -> bool:
        """Whether time is limited and nothing else is an aim, so that quality alone decides within it."""
        return math.isfinite(self.latency) and not self.aims

    @property
    def facts(self) -> tuple[str, ...]:
        """What a study lowers besides latency."""
        return tuple(AIMS[aim] for aim in self.aims)

    def plain(self) -> dict[str, Any]:
        """As JSON, which knows no infinity: what is not limited is left out; nor does a study know its storage."""
        return {k: v for k, v in asdict(self).items() if v != math.inf and k != "storage"}


def read_request(body: Mapping[str, Any]) -> Request:
    """As `plain` wrote it; words of a later version are passed over."""
    known = {f.name for f in fields(Request)}
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in body.items() if k in known}
    return Request(**given)
