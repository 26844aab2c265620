"""share: weights that share a few values, kept as short codes and a codebook: 4 bits a weight with 16 centres.

Which centres and codes: `codebook.py`; how they are written so that onnxruntime makes plain weights of them when it
loads the file (the file shrinks, time and memory do not): `bit_packing.py`.  One book a tensor with a scale a row
keeps most for its bytes; without the scales, or with a book for every few rows, there is less to pay or more to choose
from.  With 16 centres the weights that lose most for their bytes (those of depthwise layers, and of narrow ones) are
kept in 8 bits, as far as `spare` goes.  A file that is to be so many times smaller gets 4, 8 or 16 centres, 8 bits or
float for each weight, as harms least.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence
from onnxpress.model.files import model_size
from onnxpress.passes.core.contract import Action, Applied, Planned, Proposal, Refusal
from onnxpress.passes.core.options import option
from onnxpress.passes.core.refit_option import with_bias_correction
from onnxpress.passes.core.weight_matrix import find_weights
from onnxpress.passes.weights.bit_allocation import (
    ByteBudgetOptions,
    nothing_to_do,
    plan_file_size,
    plan_with_byte_budget,
)
from onnxpress.passes.weights.low_bit import CENTROID_COUNTS, CODEBOOK_SCOPES, low_bit_proposals, write_low_bit

_OFFERED = (16, 256)


@dataclass(frozen=True)
class ShareOptions(ByteBudgetOptions):
    """How weights are represented by codebooks."""

    centroids: int = option(
        16, help="Number of values in a codebook; with `smaller`, the largest number.", choices=CENTROID_COUNTS
    )
    per: str = option(
        CODEBOOK_SCOPES[0],
        help="scaled: one codebook per tensor and a scale per row; tensor: one codebook per tensor; N: one per N rows.",
        metavar="scaled|tensor|N",
    )

    def check(self) -> None:
        if self.per not in CODEBOOK_SCOPES and not (self.per.isdigit() and int(self.per) > 0):
            raise InputProblem("unknown granularity", "`per`", f"got {self.per}", "scaled, tensor, or rows such as 4")
        super().check()


class Share:
    """Weight sharing: weights as short codes into codebooks of 4 to 256 values, unpacked when the file is loaded."""

    name = "share"
    exact = False
    needs_data = True
    extra = None
    Options = ShareOptions

    def propose(self, evidence: Evidence) -> Iterable[Proposal | Refusal]:
        """Each weight with 16 and with 256 centroids, before coordinate descent."""
        yield from low_bit_proposals(evidence, lambda name: [_action(name, c, CODEBOOK_SCOPES[0]) for c in _OFFERED])

    def plan(self, evidence: Evidence, options: ShareOptions) -> Planned:
        """A codebook for each weight, or the precision of each weight for a file of a given size."""
        actions, refused = plan_sharing(evidence, options)
        notes = [] if actions else [nothing_to_do(options.smaller, "a codebook")]
        return Planned(with_bias_correction(actions, options.refit), notes, refused)

    def apply(self, evidence: Evidence, actions: Sequence[Action]) -> Applied:
        """actions: [{"weight": name, "centroids": 4 | 8 | 16 | 256, "per": "scaled" | "tensor" | rows} or {"weight":
        name, "bits": 8}, …, {"refit": "bias" | "none"}]."""
        return write_low_bit(evidence, actions)


def _action(name: str, centroids: int, per: str) -> Action:
    return {"weight": name, "centroids": centroids, "per": per}


def plan_sharing(evidence: Evidence, options: ShareOptions) -> tuple[list[Action], list[Refusal]]:
    """Actions that carry out the options, and the weights left alone with the reason."""
    options.checked()
    names = [w.name for w in find_weights(evidence.model)[0]]
    if options.smaller is not None:
        counts = [c for c in CENTROID_COUNTS if c <= options.centroids]
        offers: dict[str, list[Action]] = {
            n: [*(_action(n, c, options.per) for c in counts), {"weight": n, "bits": 8}] for n in names
        }
        return plan_file_size(evidence, offers, model_size(evidence.original or evidence.model) / options.smaller)
    main = {n: _action(n, options.centroids, options.per) for n in names}
    return plan_with_byte_budget(evidence, main, options.spare)


SHARE = Share()
