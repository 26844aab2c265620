"""Whether a model became slower than allowed, decided by the interval, and why: for continuous integration.

Only an interval that lies wholly beyond the limit fails.  One that reaches both sides of it decides nothing, which is said, and
passes: failing on it would fail half of all runs in which nothing changed but the noise.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxpress.runtime.latency import Ratio

BESIDE = "timed beside the baseline model"
BY_REFERENCE = "by ratios to the built-in reference model, of two runs"


@dataclass(frozen=True)
class SlowdownDecision:
    """Of one model: how many times the baseline's time it takes, with 95 % interval, what was allowed, and what follows.

    how: what the times were compared by; decided: whether the interval lies on one side of what is allowed.
    """

    name: str
    baseline: str
    times: float
    low: float
    high: float
    allowed: float
    how: str = BESIDE

    @property
    def passed(self) -> bool:
        return self.low <= self.allowed

    @property
    def decided(self) -> bool:
        return not self.low <= self.allowed < self.high

    @property
    def why(self) -> str:
        """The decision in one sentence."""
        found = f"{self.name} takes {self.times:.3f} times as long as {self.baseline} [{self.low:.3f}, {self.high:.3f}]"
        if not self.passed:
            return f"{found}: the whole interval lies above the allowed {self.allowed:.3f}"
        if not self.decided:
            return (
                f"{found}: the interval holds the allowed {self.allowed:.3f}, which decides nothing; more --seconds may"
            )
        if self.low <= 1 <= self.high:
            return f"{found}: no significant difference"
        return f"{found}: the whole interval lies below the allowed {self.allowed:.3f}"


def decide_slowdown(ratio: Ratio, allowed_slower: float, how: str = BESIDE) -> SlowdownDecision:
    """allowed_slower: 0.05 lets the new model take 5 % longer."""
    return SlowdownDecision(
        ratio.name, ratio.baseline, 1 / ratio.speedup, 1 / ratio.high, 1 / ratio.low if ratio.low > 0 else float("inf"), 1 + allowed_slower, how
    )  # fmt: skip
