"""prune: structured pruning of convolutions, matrix products and recurrent layers, with refit of the readers.

Units are channel groups (`model/channels/groups.py`): internal channels, the residual stream, stems, heads, groups. An
error curve orders the channels of each group (`error_curves.py`), the allocation decides how many go from which group
(`allocation.py`), on widths that the CPU's kernels prefer; the layers that read them are then refitted by least squares
(`passes/core/refit.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence
from onnxpress.measure.output_gain import summed_predicted_loss
from onnxpress.model import edit
from onnxpress.model.channels import groups as ch
from onnxpress.model.channels.removal import remove
from onnxpress.model.counts import macs
from onnxpress.model.parameter_count import parameters
from onnxpress.passes.core.contract import Action, Applied, Planned, Proposal, Refusal, Saving
from onnxpress.passes.core.refit import refit_readers
from onnxpress.passes.core.refit_option import refit_mode, refit_note, with_refit
from onnxpress.passes.pruning.allocation import plan_pruning
from onnxpress.passes.pruning.cost_model import CostModel, node_costs
from onnxpress.passes.pruning.error_curves import error_curves
from onnxpress.passes.pruning.kernel_grid import action_of, widths
from onnxpress.passes.pruning.options import PruneOptions
from onnxpress.passes.pruning.prune_to_speedup import prune_to_speedup


class Prune:
    """Structured pruning of channels, heads and groups, with least-squares refit of the layers that read them."""

    name = "prune"
    exact = False
    needs_data = True
    extra = None
    Options = PruneOptions

    def propose(self, evidence: Evidence) -> Iterable[Proposal | Refusal]:
        """One proposal for each group and width on the kernel grid: the least important channels of the group
        removed."""
        shapes = error_curves(evidence)
        cost_model = CostModel.from_evidence(evidence, shapes, node_costs(evidence))
        for name, curve in shapes.items():
            group = evidence.channels.group(name)
            touches = frozenset({name, *(p.node for p in group.slices)})
            readers = {p.node for p in group.readers}
            for width in widths(group, evidence):
                gone = group.size - width
                saving = Saving(cost_model.saving(name, gone, "macs"), 4.0 * cost_model.saving(name, gone, "params"))
                loss = summed_predicted_loss(evidence, readers, float(curve.error[gone]))
                yield Proposal(name, action_of(curve, gone), touches, saving, loss)
        yield from (Refusal(r.node, r.reason) for r in evidence.channels.refused)

    def plan(self, evidence: Evidence, options: PruneOptions) -> Planned:
        """Channels to remove for the one goal that the options name."""
        notes: list[str] = []
        if options.speedup is not None:
            actions = prune_to_speedup(evidence, options, evidence.original or evidence.model, notes)
        else:
            actions = plan_pruning(evidence, options)
        if not actions:
            notes.append("no channel group can be narrowed this far on this CPU's kernel widths")
        refused = [Refusal(r.node, r.reason) for r in evidence.channels.refused]
        return Planned(with_refit(actions, options.refit), notes, refused)

    def finish(self, evidence: Evidence, options: PruneOptions, planned: Planned, done: Applied) -> None:
        """Add what was reached."""
        if planned.actions:
            done.notes.append(_kept(evidence, done.model))

    def apply(self, evidence: Evidence, actions: Sequence[Action]) -> Applied:
        """actions: [{"group": name, "remove": [channels]}, …, {"refit": "least-squares" | "none"}]."""
        if not actions:
            return Applied(evidence.model.clone())
        facts = evidence.channels
        removal = _removal(facts, actions)
        refused = [Refusal(r.node, r.reason) for r in facts.refused]
        if not removal:
            return Applied(evidence.model.clone(), [], refused)
        pruned = remove(evidence.model, facts, removal)
        mode = refit_mode(actions)
        notes = [f"removed {sum(len(v) for v in removal.values())} channels of {len(removal)} groups"]
        if mode != "none" and evidence.data is not None:
            notes += refit_note(refit_readers(evidence, pruned, facts, removal))
        edit.drop_dead(pruned)
        return Applied(pruned, notes, refused)


def _kept(evidence: Evidence, pruned: ir.Model) -> str:
    """What is left of the work and the parameters of the evidence's model, in words."""
    after = Evidence(pruned, evidence.data, evidence.machine, evidence.seed)
    work = [sum(macs(e.model, e.trace).values()) for e in (evidence, after)]
    count = [parameters(m) for m in (evidence.model, pruned)]
    shares = [f"{now / max(before, 1):.3f}" for before, now in (work, count)]
    return f"left are {shares[0]} of the multiply-accumulates and {shares[1]} of the parameters"


def _removal(facts: ch.Channels, actions: Sequence[Action]) -> dict[str, list[int]]:
    sizes = {g.name: g.size for g in facts.groups}
    removal: dict[str, list[int]] = {}
    for action in actions:
        if "group" not in action:
            continue
        name, gone = action["group"], sorted({int(c) for c in action["remove"]})
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
    keep = facts.keep_mask(removal)
    if any(not slot.stays(keep).any() for slot in facts.flow.slots):
        raise InputProblem(
            "the plan removes all channels of an axis that several groups share",
            ", ".join(removal),
            "",
            "leave at least one channel",
        )
    return removal


PRUNE = Prune()
