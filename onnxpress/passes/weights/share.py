"""share: weights that share a few values, kept as short codes and a codebook: 4 bits a weight with 16 centres.

Which centres and codes: `codebook.py`; how they are written so that onnxruntime makes plain weights of them when it loads the
file (the file shrinks, time and memory do not): `bit_packing.py`.  One book a tensor with a scale a row keeps most for its bytes;
without the scales, or with a book for every few rows, there is less to pay or more to choose from.  With 16 centres the weights
that lose most for their bytes (those of depthwise layers, and of narrow ones) are kept in 8 bits, as far as `spare` goes.  A file that
is to be so many times smaller gets 4, 8 or 16 centres, 8 bits or float for each weight, as harms least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence
from onnxpress.model.files import model_size
from onnxpress.passes.core.contract import Applied, Decision, Option, Refused
from onnxpress.passes.core.weight_matrix import find_weights
from onnxpress.passes.weights.bit_allocation import check_smaller, plan_bits, plan_size
from onnxpress.passes.weights.low_bit import CENTRES, PER, fits, write

_OFFERED = (16, 256)


@dataclass(frozen=True)
class Wish:
    """centres: in a book; per: "scaled" (one book a tensor and a scale a row), "tensor", or how many rows have a book of
    their own; spare: share of the bytes that goes into 8 bits for the weights that lose most; None: as little as keeps the
    outputs on the samples; smaller: how many times smaller than it was the file shall be, with at most so many centres."""

    centres: int = 16
    per: str = "scaled"
    spare: float | None = None
    smaller: float | None = None

    def check(self) -> None:
        if self.centres not in CENTRES:
            raise InputProblem("no such number of centres", "--centres", f"got {self.centres}", "4, 8, 16 or 256")
        if self.per not in PER and not (self.per.isdigit() and int(self.per) > 0):
            raise InputProblem("unknown granularity", "--per", f"got {self.per}", "scaled, tensor, or rows such as 4")
        if self.spare is not None and not 0 <= self.spare <= 1:
            raise InputProblem("the spare share must lie between 0 and 1", "--spare", f"got {self.spare}", "try 0.05")
        check_smaller(self.smaller, self.spare)


class Share:
    name = "share"
    exact = False
    needs_data = True

    def options(self, model: ir.Model, evidence: Evidence) -> list[Option]:
        """Each weight with 16 and with 256 centres. harm: lost share of its layer's output power, before polishing."""
        names = [w.name for w in find_weights(evidence.model)[0]]
        found = fits(evidence, {n: [_decision(n, c, PER[0]) for c in _OFFERED] for n in names}, polish=False)
        return [
            Option(self.name, name, known.decision, known.saving, known.fit.lost)
            for name, several in found.items()
            for known in several
            if known.saving.weight_bytes > 0
        ]

    def apply(self, model: ir.Model, decisions: Sequence[Decision], evidence: Evidence) -> Applied:
        """decisions: [{"weight": name, "centres": 4 | 8 | 16 | 256, "per": "scaled" | "tensor" | rows} or {"weight": name,
        "bits": 8}, …, {"repair": "bias" | "none"}]."""
        return write(evidence, decisions)


def _decision(name: str, centres: int, per: str) -> Decision:
    return {"weight": name, "centres": centres, "per": per}


def plan_sharing(evidence: Evidence, wish: Wish, original: int | None = None) -> tuple[list[Decision], list[Refused]]:
    """Decisions that carry out a wish, and the weights left alone with the reason. original: bytes before (None: the evidence's)."""
    wish.check()
    names = [w.name for w in find_weights(evidence.model)[0]]
    if wish.smaller is not None:
        counts = [c for c in CENTRES if c <= wish.centres]
        offers: dict[str, list[Decision]] = {
            n: [*(_decision(n, c, wish.per) for c in counts), {"weight": n, "bits": 8}] for n in names
        }
        return plan_size(evidence, offers, (original or model_size(evidence.model)) / wish.smaller)
    main = {n: _decision(n, wish.centres, wish.per) for n in names}
    return plan_bits(evidence, main, wish.spare)


SHARE = Share()
