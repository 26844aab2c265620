"""The quality of a result in lines of at most 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxpress.cli.output import console

if TYPE_CHECKING:
    from onnxpress.measure.metrics.metric import MetricResult


def quality_lines(part: MetricResult, samples: str) -> list[str]:
    """Value and drop of one metric. samples: which they are, such as "validation samples"."""
    name = f"{part.metric} of {part.output}" if part.output else part.metric
    lines = [f"  {name} {part.value:.4f}, original {part.reference:.4f}, on {part.samples} {samples}"]
    drop = f"  drop {part.drop:+.4f}"
    if part.low > float("-inf"):
        drop += f" {console.interval(part.low, part.high, 4)} (95 % interval, paired)"
    if part.expected:
        drop += "\n  (told from margins: one changed answer would be more than is allowed)"
    return [*lines, drop]
