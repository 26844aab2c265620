"""weights: weight-only integers of 8, 4, 3 or 2 bits; activations and arithmetic stay in float.

Each row of a weight (or each block of it) has a scale; integers are chosen so that the layer keeps its output on what
it was seen to get (`clusters.on_grid`), scales are refitted by least squares.  Written like codebooks
(`bit_packing.py`): a multiplication that onnxruntime folds at load.  A DequantizeLinear would be run anew at every
call.  A file that is to be so many times smaller gets for each weight so many bits, fewer, or float, as harms least.
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
from onnxpress.passes.weights.low_bit import LEVELS, low_bit_proposals, write_low_bit

_OFFERED = (4, 8)
_SHORTEST = 8  # weights a scale


@dataclass(frozen=True)
class WeightsOptions(ByteBudgetOptions):
    """How weights are represented by integers."""

    bits: int = option(8, help="Bits per weight.", choices=tuple(LEVELS))
    block: int = option(0, help="Number of weights that share a scale; 0: one scale per row.", metavar="N")

    def check(self) -> None:
        if self.block and self.block < _SHORTEST:
            raise InputProblem(
                "the block is too short to save", "`block`", f"got {self.block}", "8 or more, or 0: a row"
            )
        super().check()


class WeightOnly:
    """Weight-only integers of 8, 4, 3 or 2 bits with a scale for each row or block; activations stay in float.

    The file shrinks; onnxruntime unpacks the weights when it loads it, so that time and memory stay as they are.
    Without samples each row is rounded by itself, one weight in memory at a time, for files of any size.
    """

    name = "weights"
    exact = False
    needs_data = True
    extra = None
    Options = WeightsOptions

    def propose(self, evidence: Evidence) -> Iterable[Proposal | Refusal]:
        """Each weight in 4 and in 8 bits, before coordinate descent."""
        yield from low_bit_proposals(evidence, lambda name: [_action(name, bits, 0) for bits in _OFFERED])

    def plan(self, evidence: Evidence, options: WeightsOptions) -> Planned:
        """Integers for each weight, or the precision of each weight for a file of a given size."""
        actions, refused = plan_weights(evidence, options)
        notes = [] if actions else [nothing_to_do(options.smaller, "unpacking")]
        return Planned(with_bias_correction(actions, options.refit), notes, refused)

    def apply(self, evidence: Evidence, actions: Sequence[Action]) -> Applied:
        """actions: [{"weight": name, "bits": 8 | 4 | 3 | 2, "block": weights a scale}, …, {"refit": "bias" |
        "none"}]."""
        return write_low_bit(evidence, actions)


def _action(name: str, bits: int, block: int) -> Action:
    return {"weight": name, "bits": bits, **({"block": block} if block else {})}


def plan_weights(evidence: Evidence, options: WeightsOptions) -> tuple[list[Action], list[Refusal]]:
    """Actions that carry out the options, and the weights left alone with the reason."""
    options.checked()
    names = [w.name for w in find_weights(evidence.model)[0]]
    if options.smaller is not None:
        offers = {
            n: [_action(n, bits, options.block) for bits in sorted(LEVELS) if bits <= options.bits] for n in names
        }
        return plan_file_size(evidence, offers, model_size(evidence.original or evidence.model) / options.smaller)
    return plan_with_byte_budget(evidence, {n: _action(n, options.bits, options.block) for n in names}, options.spare)


WEIGHTS = WeightOnly()
