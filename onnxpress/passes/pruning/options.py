"""Options of structured pruning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from onnxpress.passes.core.options import PassOptions, check_between, only_one, option
from onnxpress.passes.pruning.error_curves import CRITERIA
from onnxpress.runtime.machine import Machine

ALL, INTERNAL = "all", "internal"
GLOBAL, UNIFORM = "global", "uniform"
_GOALS = ("ratio", "macs", "params", "speedup")


@dataclass(frozen=True)
class PruneOptions(PassOptions):
    """How much to prune, by exactly one of ratio, macs, params and speedup, and how.

    Remove channels, attention heads and groups at widths that this CPU's kernels prefer, and refit the remaining
    layers by least squares.
    """

    example: ClassVar[dict[str, Any]] = {"ratio": 0.3}

    ratio: float | None = option(None, help="Share of the channels to remove, such as 0.3.")
    macs: float | None = option(None, help="Share of the multiply-accumulates to keep, such as 0.6.")
    params: float | None = option(None, help="Share of the weights to keep.")
    speedup: float | None = option(None, help="Target speed-up over the original, measured.")
    ignore: tuple[str, ...] = option(
        (), help="Nodes whose channels are kept, such as 'stem*'; can be repeated.", metavar="PATTERN"
    )
    granularity: int | None = option(
        None, help="Remove channels in multiples of this number; default: the block of this CPU's kernels."
    )
    scope: str = option(
        ALL,
        help="internal: only channels inside blocks; the residual stream keeps its width.",
        choices=(ALL, INTERNAL),
    )
    allocation: str = option(
        GLOBAL,
        help="global: the same total saving as uniform, taken where the predicted loss is smallest.",
        choices=(GLOBAL, UNIFORM),
    )
    criterion: str = option(
        "second-order", help="Importance criterion that orders the channels of a group.", choices=CRITERIA
    )
    refit: bool = option(True, help="Refit the layers that read removed channels by least squares.")

    def check(self) -> None:
        name = only_one(_GOALS, [getattr(self, n) for n in _GOALS], "`ratio` 0.3")
        check_between("ratio", "the pruning ratio", self.ratio, "0.3")
        for share in ("macs", "params"):
            check_between(share, "the share to keep", getattr(self, share), "0.6")
        if name == "speedup":
            check_between("speedup", "the speed-up", self.speedup, "1.5", 1.0, float("inf"))
        if self.granularity is not None:
            check_between("granularity", "the granularity", self.granularity, "8", 0, float("inf"))

    def target_machine(self, machine: Machine) -> Machine:
        return replace(machine, granularity=self.granularity or 0)
