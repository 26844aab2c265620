"""prune: whole channels of convolutions, matrix products and recurrent layers taken out, and the readers refitted.

Units are channel groups (`model/channels/groups.py`): inner widths, residual spines, stems, heads, groups.  Which channels go is decided
by a curve a group (`error_curves.py`), how many by a wish (`allocation.py`), on the widths that this CPU's kernels like; what
remains is repaired by least squares (`passes/core/refit.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence
from onnxpress.model import edit
from onnxpress.model.channels import groups as ch
from onnxpress.model.channels.removal import remove
from onnxpress.passes.core.contract import Applied, Decision, Option, Refused, Saving
from onnxpress.passes.core.refit import repair
from onnxpress.passes.pruning.cost_model import Ledger, counted
from onnxpress.passes.pruning.error_curves import curves
from onnxpress.passes.pruning.obs_selection import Curve


class Prune:
    name = "prune"
    exact = False
    needs_data = True

    def options(self, model: ir.Model, evidence: Evidence) -> list[Option]:
        """One option a group and width on the kernel grid. harm: relative error of the readers; saving: MACs."""
        found = []
        shapes = curves(evidence)
        ledger = Ledger.of(evidence, shapes, counted(evidence))
        for name, curve in shapes.items():
            group = evidence.channels.group(name)
            for width in widths(group, evidence):
                gone = group.size - width
                saving = Saving(
                    *(factor * ledger.gain(name, gone, what) for what, factor in (("macs", 1.0), ("params", 4.0)))
                )
                found.append(Option(self.name, name, decision(curve, gone), saving, curve.error[gone]))
        return found

    def apply(self, model: ir.Model, decisions: Sequence[Decision], evidence: Evidence) -> Applied:
        """decisions: [{"group": name, "remove": [channels]}, …, {"repair": "least-squares" | "none"}]."""
        if not decisions:
            return Applied(model.clone())
        facts = evidence.channels
        removal = _removal(facts, decisions)
        refused = [Refused(r.node, r.reason) for r in facts.refused]
        if not removal:
            return Applied(evidence.model.clone(), [], refused)
        pruned = remove(evidence.model, facts, removal)
        mode = next((d["repair"] for d in decisions if "repair" in d), "least-squares")
        notes = [f"removed {sum(len(v) for v in removal.values())} channels of {len(removal)} groups"]
        if mode != "none" and evidence.data is not None:
            fits = repair(evidence, pruned, facts, removal)
            if fits:
                notes.append(
                    f"refitted {len(fits)} layers, held-out error "
                    f"{np.mean([f.before for f in fits]):.4f} -> {np.mean([f.after for f in fits]):.4f}"
                )
        edit.drop_dead(pruned)
        return Applied(pruned, notes, refused)


def _removal(facts: ch.Channels, decisions: Sequence[Decision]) -> dict[str, list[int]]:
    sizes = {g.name: g.size for g in facts.groups}
    removal: dict[str, list[int]] = {}
    for decision in decisions:
        if "group" not in decision:
            continue
        name, gone = decision["group"], sorted({int(c) for c in decision["remove"]})
        if name not in sizes:
            raise InputProblem(
                "the plan names a channel group the model does not have",
                name,
                "",
                "use the plan with the model it was made for",
            )
        if gone and (gone[0] < 0 or gone[-1] >= sizes[name] or len(gone) >= sizes[name]):
            raise InputProblem(
                "the plan removes channels that do not exist, or all of them",
                name,
                f"{len(gone)} of {sizes[name]}",
                "leave at least one channel",
            )
        if gone:
            removal[name] = gone
    return removal


def widths(group: ch.ChannelGroup, evidence: Evidence) -> list[int]:
    """Widths of a group below its size that lie on the kernel grid, largest first."""
    step = step_of(group, evidence)
    return list(range((group.size - 1) // step * step, 0, -step))


def step_of(group: ch.ChannelGroup, evidence: Evidence) -> int:
    """How many of a group together make whole steps of the kernel grid: one of them may stand for several channels."""
    step = evidence.machine.grid(group.size * group.block)
    return step // math.gcd(step, group.block)


def decision(curve: Curve, gone: int) -> Decision:
    return {"group": curve.group, "remove": sorted(curve.order[:gone])}


def group_macs(group: ch.ChannelGroup, costs: Mapping[str, int]) -> float:
    return float(sum(costs.get(n, 0) for n in {p.node for p in group.slices}))


PRUNE = Prune()
