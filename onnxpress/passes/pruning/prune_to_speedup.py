"""Pruning to a speed-up: channels are removed by loss per saved second until the measured speed-up is reached.

The saving of a node is predicted from its latency, measured alone. The share of the time to remove is found by
bisection over the whole model, timed side by side with the original.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxpress.measure.evidence import Evidence
from onnxpress.measure.unit_latency import node_seconds
from onnxpress.model.channels.removal import remove
from onnxpress.passes.core.contract import Action
from onnxpress.passes.pruning.allocation import candidate_groups, loss_sensitivities, plan_cost_share
from onnxpress.passes.pruning.cost_model import SECONDS
from onnxpress.passes.pruning.options import PruneOptions
from onnxpress.runtime.latency import Effort, compare_latency

_MAX_TRIALS = 7
_OVERSHOOT = 1.03  # a speed-up of at most this multiple of the goal ends the search
_MIN_INTERVAL = 0.02  # shares that differ by less give the same widths
_EFFORT = Effort(seconds=1.5, precision=0.005, rebuilds=2)


def prune_to_speedup(evidence: Evidence, options: PruneOptions, original: ir.Model, notes: list[str]) -> list[Action]:
    """Plan the fewest channels whose removal reaches a measured speed-up.

    Args:
        evidence: the model and its samples.
        options: the options, with `speedup`: latency of the original model divided by that of the pruned model.
        original: the model to compare with.
        notes: notes for the user; the measured speed-up is appended.

    Returns:
        Decisions. If the speed-up cannot be reached, those of the highest speed-up found.
    """
    picked = candidate_groups(evidence, options)
    costs = {SECONDS: node_seconds(evidence.model, evidence.trace)}
    loss_scales = loss_sensitivities(evidence, picked, dict.fromkeys(picked, 0)) if evidence.data is not None else None
    low_share, high_share = 0.0, 1.0
    best: tuple[float, list[Action]] | None = None
    reached = False
    goal = options.speedup or 1.0
    share = min(0.95, 1 / goal)
    for _ in range(_MAX_TRIALS):
        actions = plan_cost_share(evidence, options, picked, costs, share, loss_scales)
        speed = _measured_speedup(evidence, actions, original)
        if speed >= goal:
            if not reached or best is None or speed < best[0]:
                best, reached = (speed, actions), True
            low_share = share
            if speed <= _OVERSHOOT * goal:
                break
        else:
            if not reached and (best is None or speed > best[0]):
                best = speed, actions
            high_share = share
        if high_share - low_share < _MIN_INTERVAL:
            break
        share = (low_share + high_share) / 2
    if best is None:
        return []
    if not reached:
        notes.append(f"`speedup` {goal:g} cannot be reached by removing channels; the maximum found is {best[0]:.2f}x")
    else:
        notes.append(f"speed-up before refitting: {best[0]:.2f}x")
    return best[1]


def _measured_speedup(evidence: Evidence, actions: list[Action], original: ir.Model) -> float:
    """Latency of the original model divided by that of the pruned model."""
    removal = {str(d["group"]): list(d["remove"]) for d in actions}
    cut = remove(evidence.model, evidence.channels, removal) if removal else evidence.model
    return compare_latency({"original": original, "cut": cut}, [evidence.probe], _EFFORT).ratios[0].speedup
