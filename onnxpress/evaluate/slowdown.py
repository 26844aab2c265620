"""Whether a model is slower than allowed, decided by the confidence interval, for continuous integration.

Only an interval entirely above the limit fails.  An interval that contains the limit is inconclusive and passes, and
the message says so: failing on it would fail half of all runs in which only noise differs.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxpress.runtime.latency import Ratio

INTERLEAVED = "interleaved with the baseline model"
BY_REFERENCE = "by the ratios to the built-in reference model in two runs"


@dataclass(frozen=True)
class SlowdownDecision:
    """The decision on one model.

    times, low, high: its time as a multiple of the baseline's, and the 95 % interval
    allowed:          the largest multiple that passes
    how:              how the times were compared
    """

    name: str
    baseline: str
    times: float
    low: float
    high: float
    allowed: float
    how: str = INTERLEAVED

    @property
    def passed(self) -> bool:
        """Whether the interval is not entirely above the limit."""
        return self.low <= self.allowed

    @property
    def decided(self) -> bool:
        """Whether the interval lies entirely on one side of the limit."""
        return not self.low <= self.allowed < self.high

    @property
    def why(self) -> str:
        """The decision in one sentence."""
        found = f"{self.name} takes {self.times:.3f} times as long as {self.baseline} [{self.low:.3f}, {self.high:.3f}]"
        if not self.passed:
            return f"{found}: the whole interval is above the allowed {self.allowed:.3f}"
        if not self.decided:
            undecided = "which is inconclusive; a longer measurement may decide"
            return f"{found}: the interval contains the allowed {self.allowed:.3f}, {undecided}"
        if self.low <= 1 <= self.high:
            return f"{found}: no significant difference"
        return f"{found}: the whole interval is below the allowed {self.allowed:.3f}"


def decide_slowdown(ratio: Ratio, fail_slower: float, how: str = INTERLEAVED) -> SlowdownDecision:
    """The decision on a measured ratio.  fail_slower: 0.05 allows 5 % more time than the baseline."""
    high = 1 / ratio.low if ratio.low > 0 else float("inf")
    return SlowdownDecision(ratio.name, ratio.baseline, 1 / ratio.speedup, 1 / ratio.high, high, 1 + fail_slower, how)
