"""weights: weight-only integers of 8, 4, 3 or 2 bits; activations and arithmetic stay in float.

Each row of a weight (or each block of it) has a scale; integers are chosen so that the layer keeps its output on what it was seen
to get (`clusters.on_grid`), scales are refitted by least squares.  Written like codebooks (`bit_packing.py`): a multiplication that
onnxruntime folds at load.  A DequantizeLinear would be run anew at every call.  A file that is to be so many times smaller gets for
each weight so many bits, fewer, or float, as harms least.
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
from onnxpress.passes.weights.low_bit import GRIDS, fits, write

_OFFERED = (4, 8)
_SHORTEST = 8  # weights a scale


@dataclass(frozen=True)
class Wish:
    """bits: of a weight; block: weights that share a scale (0: a row; where a row cannot be cut so, it has one); spare: share
    of the bytes that goes into 8 bits for the weights that lose most; None: as little as keeps the outputs on the samples; smaller:
    how many times smaller than it was the file shall be, with at most so many bits."""

    bits: int = 8
    block: int = 0
    spare: float | None = None
    smaller: float | None = None

    def check(self) -> None:
        if self.bits not in GRIDS:
            raise InputProblem("no such number of bits", "--bits", f"got {self.bits}", "8, 4, 3 or 2")
        if self.block and self.block < _SHORTEST:
            raise InputProblem(
                "the block is too short to save", "--block", f"got {self.block}", "8 or more, or 0: a row"
            )
        if self.spare is not None and not 0 <= self.spare <= 1:
            raise InputProblem("the spare share must lie between 0 and 1", "--spare", f"got {self.spare}", "try 0.05")
        check_smaller(self.smaller, self.spare)


class WeightOnly:
    name = "weights"
    exact = False
    needs_data = True

    def options(self, model: ir.Model, evidence: Evidence) -> list[Option]:
        """Each weight in 4 and in 8 bits. harm: lost share of its layer's output power, before polishing."""
        names = [w.name for w in find_weights(evidence.model)[0]]
        found = fits(evidence, {n: [_decision(n, bits, 0) for bits in _OFFERED] for n in names}, polish=False)
        return [
            Option(self.name, name, known.decision, known.saving, known.fit.lost)
            for name, several in found.items()
            for known in several
            if known.saving.weight_bytes > 0
        ]

    def apply(self, model: ir.Model, decisions: Sequence[Decision], evidence: Evidence) -> Applied:
        """decisions: [{"weight": name, "bits": 8 | 4 | 3 | 2, "block": weights a scale}, …, {"repair": "bias" | "none"}]."""
        return write(evidence, decisions)


def _decision(name: str, bits: int, block: int) -> Decision:
    return {"weight": name, "bits": bits, **({"block": block} if block else {})}


def plan_weights(evidence: Evidence, wish: Wish, original: int | None = None) -> tuple[list[Decision], list[Refused]]:
    """Decisions that carry out a wish, and the weights left alone with the reason. original: bytes before (None: the evidence's)."""
    wish.check()
    names = [w.name for w in find_weights(evidence.model)[0]]
    if wish.smaller is not None:
        offers = {n: [_decision(n, bits, wish.block) for bits in sorted(GRIDS) if bits <= wish.bits] for n in names}
        return plan_size(evidence, offers, (original or model_size(evidence.model)) / wish.smaller)
    return plan_bits(evidence, {n: _decision(n, wish.bits, wish.block) for n in names}, wish.spare)


WEIGHTS = WeightOnly()
