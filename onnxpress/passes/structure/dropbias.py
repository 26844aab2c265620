"""dropbias: biases of convolutions removed, the least important first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from onnxpress.measure.evidence import Evidence
from onnxpress.measure.output_gain import predicted_loss
from onnxpress.model import edit, read
from onnxpress.passes.core.contract import Action, Applied, Planned, Proposal, Refusal, Saving, proposals
from onnxpress.passes.core.options import PassOptions, check_between, option


@dataclass(frozen=True)
class DropBiasOptions(PassOptions):
    """Which biases are removed."""

    ratio: float = option(0.5, help="Share of the convolutions whose bias is removed.")

    def check(self) -> None:
        check_between("ratio", "the ratio", self.ratio, "0.5", 0, 1.01)


class DropBias:
    """Removal of the biases of convolutions."""

    name = "dropbias"
    exact = False
    needs_data = True
    extra = None
    Options = DropBiasOptions

    def propose(self, evidence: Evidence) -> Iterable[Proposal | Refusal]:
        """One proposal for each convolution with a constant bias."""
        for node in evidence.model.graph:
            if node.op_type != "Conv":
                continue
            name, bias = node.name or "", read.constant(node.inputs[2]) if len(node.inputs) > 2 else None
            if bias is None:
                yield Refusal(name, "it has no constant bias")
                continue
            loss = predicted_loss(evidence, name, float((bias.astype(float) ** 2).mean()))
            yield Proposal(name, {"node": name}, frozenset({name}), Saving(weight_bytes=float(bias.nbytes)), loss)

    def plan(self, evidence: Evidence, options: DropBiasOptions) -> Planned:
        """The share of the proposals with the least predicted loss."""
        offers = sorted(proposals(self, evidence), key=lambda p: p.loss)
        return Planned([p.action for p in offers[: round(options.ratio * len(offers))]])

    def apply(self, evidence: Evidence, actions: Sequence[Action]) -> Applied:
        """actions: [{"node": name}, …]."""
        work = evidence.model.clone()
        names = {str(a["node"]) for a in actions}
        for node in work.graph:
            if node.name in names and len(node.inputs) > 2:
                node.resize_inputs(2)
        edit.drop_dead(work)
        return Applied(work, [f"removed {len(names)} biases"] if names else [])


DROPBIAS = DropBias()
