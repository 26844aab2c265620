"""A model that channels are pruned from: what is found out about it once, for every ratio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from onnxpress.measure.evidence import Evidence
from onnxpress.passes.core.contract import Decision
from onnxpress.passes.pruning.allocation import Wish, candidates, plan_pruning, sensitivities
from onnxpress.passes.pruning.error_curves import curves
from onnxpress.passes.pruning.obs_selection import Curve
from onnxpress.passes.pruning.prune import widths
from onnxpress.plan.plan import Plan


@dataclass
class Ground:
    """plan: what led to the model; evidence: what is known of it."""

    plan: Plan
    evidence: Evidence
    _curves: dict[str, Curve] | None = None
    _scales: dict[str, float] = field(default_factory=dict)

    @property
    def can_prune(self) -> bool:
        return any(widths(g, self.evidence) for g in self.evidence.channels.groups)

    def decisions(self, wish: Wish, more_time: Callable[[], bool] = lambda: True) -> Sequence[Decision]:
        """Channels to remove for a wish; none where it removes nothing on this CPU's widths."""
        if self._curves is None:
            self._curves = curves(self.evidence)
        picked = candidates(self.evidence, wish, self._curves)
        if not self._scales:
            nothing = dict.fromkeys(self._curves, 0)
            self._scales = sensitivities(self.evidence, self._curves, nothing, more_time)
        return plan_pruning(self.evidence, wish, picked, self._scales)
