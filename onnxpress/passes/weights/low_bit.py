"""Weights in fewer bits: from the action for a weight to its low-bit form, and into the model.

An action names a weight and either free centroids ("centroids", "per") or an integer grid ("bits", "block"). Results
are kept with the evidence, so that what was computed while planning is not computed again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, EvidenceKey
from onnxpress.measure.output_gain import summed_predicted_loss
from onnxpress.model import edit
from onnxpress.passes.core.contract import Action, Applied, Proposal, Refusal, Saving
from onnxpress.passes.core.refit_option import BIAS, NONE, refit_mode
from onnxpress.passes.core.weight_matrix import (
    InputStatistics,
    WeightMatrix,
    correct_mean_error,
    find_weights,
    input_statistics,
)
from onnxpress.passes.weights import codebook
from onnxpress.passes.weights.bit_packing import INT8, BitPacker, packed_bytes
from onnxpress.passes.weights.codebook import Codebook
from onnxpress.passes.weights.half import halvable

CENTROID_COUNTS = (4, 8, 16, 256)
CODEBOOK_SCOPES = ("scaled", "tensor")  # or the number of rows per codebook
LEVELS = {
    8: INT8,
    4: np.arange(-8, 8, dtype=np.float64),
    3: np.arange(-4, 4, dtype=np.float64),
    2: np.arange(-1.5, 2, dtype=np.float64),  # four equidistant levels without zero
}


@dataclass(frozen=True)
class LowBitWeight:
    """Low-bit form of one weight.

    Attributes:
        codebooks: one, or one per group of rows.
        lost_power: error of its layer's output relative to the output's power.
    """

    codebooks: tuple[Codebook, ...]
    lost_power: float

    @property
    def codebook(self) -> Codebook:
        """All groups as one codebook: the centroids of the groups one after another, padded to equal numbers."""
        if len(self.codebooks) == 1:
            return self.codebooks[0]
        largest = max(len(b.centroids) for b in self.codebooks)
        padded = [np.pad(b.centroids, (0, largest - len(b.centroids)), "edge") for b in self.codebooks]
        codes, scale = (
            np.concatenate([b.codes for b in self.codebooks]),
            np.concatenate([b.scale for b in self.codebooks]),
        )
        return Codebook(np.concatenate(padded), codes, scale)

    @property
    def dequantized(self) -> np.ndarray:
        """The represented weights, [M, K]."""
        return np.concatenate([b.dequantized for b in self.codebooks])


@dataclass(frozen=True)
class WeightCandidate:
    """A weight, the statistics of its inputs (without the Gram matrix), a decision, and the resulting low-bit form."""

    weight: WeightMatrix
    statistics: InputStatistics
    action: Action
    low_bit: LowBitWeight

    @property
    def bytes(self) -> int:
        """Bytes in the file, nodes included."""
        return packed_bytes(self.weight, self.low_bit.codebook, len(self.low_bit.codebooks))

    @property
    def saving(self) -> Saving:
        return Saving(0.0, float(self.weight.array.nbytes - self.bytes))


_Candidates = dict[tuple[str, str], WeightCandidate]  # by weight and action
_CANDIDATES: EvidenceKey[_Candidates] = EvidenceKey("low-bit weights")
_ROUGH_CANDIDATES: EvidenceKey[_Candidates] = EvidenceKey("low-bit weights without coordinate descent")


def low_bit_candidates(
    evidence: Evidence, wanted: Mapping[str, Sequence[Action]], output_aware: bool = True
) -> dict[str, list[WeightCandidate]]:
    """Compute the low-bit form of each weight for each of its decisions.

    Args:
        evidence: the model and its samples.
        wanted: for each weight name the decisions.
        output_aware: whether to round with the whole Gram matrix of the inputs; otherwise to the nearest centroid,
            which is faster.

    Returns:
        For each weight the results in the order of its decisions; weights in the order of the model.

    Raises:
        InputProblem: if a decision names an unknown weight or has invalid values.
    """
    found = dict(_stream_candidates(evidence, wanted, output_aware))
    return {w.name: found[w.name] for w in find_weights(evidence.model)[0] if w.name in found}


def _stream_candidates(
    evidence: Evidence, wanted: Mapping[str, Sequence[Action]], output_aware: bool
) -> Iterator[tuple[str, list[WeightCandidate]]]:
    """Each weight with its candidates as soon as they are there: first what is kept, then as the layers run."""
    weights = {w.name: w for w in find_weights(evidence.model)[0]}
    unknown = sorted(wanted.keys() - weights.keys())
    if unknown:
        raise InputProblem(
            "the plan names a weight that is not in the model or cannot be stored in fewer bits",
            unknown[0],
            "",
            "use the plan with the model it was made for",
        )
    for action in (d for several in wanted.values() for d in several):
        _check(action)
    kept = evidence.derive(_CANDIDATES if output_aware else _ROUGH_CANDIDATES, dict)
    new = {name: w for name, w in weights.items() if any(_key(d) not in kept for d in wanted.get(name, ()))}
    for name in (n for n in wanted if n not in new):
        yield name, [kept[_key(d)] for d in wanted[name]]
    for weight, statistics in input_statistics(evidence, list(new.values())):
        for action in wanted[weight.name]:
            if _key(action) not in kept:
                low_bit = _fit_weight(weight, statistics.gram, action, output_aware)
                kept[_key(action)] = WeightCandidate(weight, replace(statistics, gram=None), action, low_bit)
        yield weight.name, [kept[_key(d)] for d in wanted[weight.name]]


def low_bit_proposals(evidence: Evidence, offers: Callable[[str], Sequence[Action]]) -> Iterator[Proposal | Refusal]:
    """Proposals for every weight, rounded to nearest, and refusals for the weights that cannot be changed.

    Args:
        evidence: the model and its samples.
        offers: the actions for the name of a weight.

    The loss is predicted from the lost share of the layer's output power.
    """
    weights, refused = find_weights(evidence.model)
    wanted = {w.name: offers(w.name) for w in weights}
    readers = {w.name: w.readers for w in weights}
    for name, several in _stream_candidates(evidence, wanted, output_aware=False):
        for candidate in several:
            if candidate.saving.weight_bytes > 0:
                loss = summed_predicted_loss(evidence, readers[name], candidate.low_bit.lost_power)
                yield Proposal(name, candidate.action, frozenset({name, *readers[name]}), candidate.saving, loss)
        if all(candidate.saving.weight_bytes <= 0 for candidate in several):
            yield Refusal(name, "its weight is too small to save bytes")
    yield from refused


def _key(action: Action) -> tuple[str, str]:
    return str(action["weight"]), json.dumps(action, sort_keys=True)


def _check(action: Action) -> None:
    """Raise InputProblem for a decision that is neither a valid codebook nor a valid integer grid."""
    scope, block = str(action.get("per", CODEBOOK_SCOPES[0])), action.get("block", 0)
    is_codebook = action.get("centroids") in CENTROID_COUNTS and (
        scope in CODEBOOK_SCOPES or (scope.isdigit() and int(scope) > 0)
    )
    is_grid = action.get("bits") in LEVELS and isinstance(block, int) and block >= 0
    if is_codebook == is_grid:
        raise InputProblem(
            "an action needs either a valid 'centroids' or a valid 'bits'",
            str(action["weight"]),
            json.dumps(action),
            "correct the plan",
        )


def _fit_weight(weight: WeightMatrix, gram: np.ndarray | None, action: Action, output_aware: bool) -> LowBitWeight:
    """The low-bit form that a decision describes."""
    rows = weight.matrix
    if "bits" in action:
        block = int(action.get("block", 0))
        divisible = block and rows.shape[1] % block == 0 and rows.shape[1] > block and weight.has_outer_rows
        codebooks = [codebook.fit_grid(rows, gram, LEVELS[action["bits"]], block if divisible else 0, output_aware)]
    else:
        scope, count = str(action.get("per", CODEBOOK_SCOPES[0])), int(action["centroids"])
        size = len(rows) if scope in CODEBOOK_SCOPES else _largest_divisor(len(rows), int(scope))
        groups = np.split(rows, len(rows) // size)
        codebooks = [codebook.fit_centroids(group, gram, count, scope == "scaled", output_aware) for group in groups]
    low_bit = LowBitWeight(tuple(b.compact() for b in codebooks), 0.0)
    return replace(low_bit, lost_power=codebook.lost_power(low_bit.dequantized - rows, rows, gram))


def _largest_divisor(rows: int, limit: int) -> int:
    """The largest divisor of the number of rows that is at most `limit`."""
    return next(size for size in range(min(limit, rows), 0, -1) if rows % size == 0)


def write_low_bit(evidence: Evidence, actions: Sequence[Action], output_aware: bool = True) -> Applied:
    """Write weights in fewer bits into a copy of the model.

    Biases and other small constants become float16 where that represents them; otherwise they would be the larger part
    of the remaining bytes.

    Args:
        evidence: the model and its samples.
        decisions: one per weight (the last counts), and optionally {"refit": "bias" | "none"}, which states whether
            the mean output error is subtracted from biases ("bias" by default).
        output_aware: as in `low_bit_candidates`.

    Raises:
        InputProblem: as in `low_bit_candidates`, and for an unknown "refit".
    """
    if not actions:
        return Applied(evidence.model.clone())
    correction = refit_mode(actions, BIAS, NONE)
    found = low_bit_candidates(evidence, {str(d["weight"]): [d] for d in actions if "weight" in d}, output_aware)
    work = evidence.model.clone()
    packer = BitPacker(work)
    corrected = (
        sum(correct_mean_error(work, k.statistics, k.low_bit.dequantized - k.weight.matrix) for (k,) in found.values())
        if correction == "bias"
        else 0
    )
    weight_names = {weight.name for weight in find_weights(evidence.model)[0]}
    for value in halvable(work, "float16")[0]:
        if value.name not in weight_names:
            packer.store_as_float16(value)
    for (candidate,) in found.values():
        packer.write(candidate.weight, candidate.low_bit.codebook, len(candidate.low_bit.codebooks))
    edit.drop_dead(work)
    edit.forget_floats(work)
    notes = []
    if found:
        mean = np.mean([candidate.low_bit.lost_power for (candidate,) in found.values()])
        notes.append(f"{len(found)} weights in fewer bits, {mean:.5f} of the power of their outputs lost")
    if corrected:
        notes.append(f"bias corrected on {corrected} layers")
    return Applied(work, notes, find_weights(evidence.model)[1])
