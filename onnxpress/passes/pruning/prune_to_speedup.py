"""Pruning for a speed: channels go by harm for the seconds that they save, until the clock says that it is enough.

What a node saves is told from its own time, measured alone; how much has to go, from the whole, timed beside the original.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxpress.measure.evidence import Evidence
from onnxpress.model.channels.removal import remove
from onnxpress.passes.core.contract import Action
from onnxpress.passes.pruning.allocation import candidates, plan_share, sensitivities
from onnxpress.passes.pruning.options import PruneOptions
from onnxpress.runtime.latency import Effort, compare_latency
from onnxpress.runtime.unit_latency import node_seconds

_ROUNDS = 7
_CLOSE = 1.03  # times the wish: more need not be taken out
_NEAR = 0.02  # shares that do not differ by more lead to the same widths
_EFFORT = Effort(seconds=1.5, precision=0.005, rebuilds=2)


def fast_enough(evidence: Evidence, options: PruneOptions, original: ir.Model, notes: list[str]) -> list[Action]:
    """The fewest channels found whose removal is as fast as wished, times the original's speed; where nothing is, as many as
    can go, and a note that says how fast that is."""
    picked = candidates(evidence, options)
    costs = {"seconds": node_seconds(evidence.model, evidence.trace)}
    scales = sensitivities(evidence, picked, dict.fromkeys(picked, 0)) if evidence.data is not None else None
    least, most = 0.0, 1.0
    best: tuple[float, list[Action]] | None = None
    reached = False
    wanted = options.speedup or 1.0
    share = min(0.95, 1 / wanted)
    for _ in range(_ROUNDS):
        decisions = plan_share(evidence, options, picked, costs, share, scales)
        speed = _speed(evidence, decisions, original)
        if speed >= wanted:
            if not reached or best is None or speed < best[0]:
                best, reached = (speed, decisions), True
            least = share
            if speed <= _CLOSE * wanted:
                break
        else:
            if not reached and (best is None or speed > best[0]):
                best = speed, decisions
            most = share
        if most - least < _NEAR:
            break
        share = (least + most) / 2
    if best is None:
        return []
    if not reached:
        notes.append(f"a speed-up of {wanted:g} is out of reach by pruning: {best[0]:.2f}x is the most that was found")
    else:
        notes.append(f"{best[0]:.2f}x the original's speed before repair")
    return best[1]


def _speed(evidence: Evidence, decisions: list[Action], original: ir.Model) -> float:
    """Times the original's."""
    removal = {str(d["group"]): list(d["remove"]) for d in decisions}
    cut = remove(evidence.model, evidence.channels, removal) if removal else evidence.model
    return compare_latency({"original": original, "cut": cut}, [evidence.probe], _EFFORT).ratios[0].speedup
