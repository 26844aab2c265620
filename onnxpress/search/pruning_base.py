"""A model that channels are pruned from: what is found out about it once, for every ratio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from onnxpress.measure.evidence import Evidence
from onnxpress.measure.unit_latency import node_seconds
from onnxpress.passes.core.contract import Action
from onnxpress.passes.pruning.allocation import (
    candidate_groups,
    loss_sensitivities,
    plan_cost_share,
    plan_pruning,
)
from onnxpress.passes.pruning.cost_model import SECONDS, CostModel, Costs
from onnxpress.passes.pruning.error_curves import error_curves
from onnxpress.passes.pruning.kernel_grid import widths
from onnxpress.passes.pruning.obs_selection import ErrorCurve
from onnxpress.passes.pruning.options import PruneOptions
from onnxpress.plan.plan import Plan


@dataclass
class PruningBase:
    """plan: what led to the model; evidence: what is known of it; by_latency: whether channels are removed where they
    save time on this machine, by timings of single units, and not where they save multiply-accumulates and weights.
    whole: the base that this one is a part of, with some blocks out: what is known of its channels holds nearly for
    those that are left."""

    plan: Plan
    evidence: Evidence
    by_latency: bool = False
    whole: PruningBase | None = None
    _curves: dict[str, ErrorCurve] | None = None
    _scales: dict[str, float] = field(default_factory=dict)

    @property
    def can_prune(self) -> bool:
        return any(widths(g, self.evidence) for g in self.evidence.channels.groups)

    def actions(self, options: PruneOptions, more_time: Callable[[], bool] = lambda: True) -> Sequence[Action]:
        """Channels to remove for the options; none where they remove nothing on this CPU's widths.

        A ratio is one of the model's time where the times of units are known.
        """
        self._inherit()
        if self._curves is None:
            self._curves = error_curves(self.evidence)
        picked = candidate_groups(self.evidence, options, self._curves)
        if not self._scales:
            nothing = dict.fromkeys(self._curves, 0)
            self._scales = loss_sensitivities(self.evidence, self._curves, nothing, more_time)
        if self._costs is None or options.ratio is None:
            return plan_pruning(self.evidence, options, picked, self._scales)
        share = 1 - options.ratio  # of the time
        return plan_cost_share(self.evidence, options, picked, self._costs, share, self._scales)

    def _inherit(self) -> None:
        """Take curves and losses from the whole, where it has all of them for groups of the same sizes."""
        known = self.whole
        if self._curves is not None or known is None or known._curves is None or not known._scales:
            return
        sizes = {g.name: g.size for g in known.evidence.channels.groups}
        names = [g.name for g in self.evidence.channels.groups]
        if all(sizes.get(g.name) == g.size for g in self.evidence.channels.groups) and {*names} <= {*known._curves}:
            self._curves = {name: known._curves[name] for name in names}
            self._scales = {name: known._scales[name] for name in names if name in known._scales}

    def remaining_time(self, actions: Sequence[Action]) -> float | None:
        """Share of the model's time that is left without these channels, by the times of its units; None where those
        are not known."""
        if self._costs is None:
            return None
        removed = {str(a["group"]): len(a["remove"]) for a in actions if "group" in a}
        model = CostModel.from_evidence(self.evidence, removed, self._costs)
        whole = model.total(SECONDS)
        model.set_all_removed(removed)
        return model.total(SECONDS) / max(whole, 1e-12)

    @cached_property
    def _costs(self) -> Costs | None:
        if not self.by_latency:
            return None
        return {SECONDS: node_seconds(self.evidence.model, self.evidence.trace)}
