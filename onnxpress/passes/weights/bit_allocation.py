"""Allocation of bits to weights: a main precision with a byte budget for int8, or a given file size.

Both choose one precision per weight by a multiple-choice knapsack over bytes. They differ in what a weight's loss is:
with a main precision the lost power of its layer, which costs no run of the model; for a file size the loss of the
outputs, measured once per weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence
from onnxpress.measure.score import Scorer, logits_model
from onnxpress.model.files import model_size
from onnxpress.passes.core.contract import Action, Refusal
from onnxpress.passes.core.knapsack import multiple_choice_knapsack
from onnxpress.passes.core.options import PassOptions, option
from onnxpress.passes.core.weight_matrix import find_weights
from onnxpress.passes.weights.low_bit import WeightCandidate, low_bit_candidates, write_low_bit

_BUDGET_SHARES = (0.0, 0.02, 0.05, 0.1)  # tried in this order
_MAX_LOSS = 0.003  # relative squared error of the outputs that ends the search
_MAX_TRIALS = 6  # models written to meet a file size
_EVALUATION_SAMPLES = 32
_SIZE_TOLERANCE = 0.998  # share of the maximum file size that ends the search


@dataclass(frozen=True)
class _PrecisionChoice:
    """One precision of a weight: bytes in the file, loss, and the decision (None: float32)."""

    bytes: int
    loss: float
    action: Action | None


@dataclass(frozen=True, kw_only=True)
class ByteBudgetOptions(PassOptions):
    """Options of passes that store weights in fewer bits: how bytes are spent."""

    spare: float | None = option(
        None,
        help="Share of the bytes to spend on 8 bits for the most sensitive weights; default: as little as needed.",
    )
    smaller: float | None = option(
        None,
        help="How many times smaller the file should be; precision is allocated per weight to minimize the loss.",
        metavar="TIMES",
    )
    refit: bool = option(True, help="Correct the mean error of the outputs in the biases.")

    def check(self) -> None:
        spare, smaller = self.spare, self.smaller
        if spare is not None and not 0 <= spare <= 1:
            raise InputProblem("the spare share must lie between 0 and 1", "`spare`", f"got {spare}", "give 0.05")
        if smaller is not None and not 1 < smaller < float("inf"):
            raise InputProblem("the size factor must be above 1", "`smaller`", f"got {smaller:g}", "give 8")
        if smaller is not None and spare is not None:
            raise InputProblem("`smaller` and `spare` are mutually exclusive", "", "", "give one of them")


def nothing_to_do(smaller: float | None, what: str) -> str:
    """The note where no weight is changed; what: the operation that does not pay off."""
    if smaller is None:
        return f"no weight is large enough to be worth {what}"
    return "the simplified file is small enough as it is"


def plan_with_byte_budget(
    evidence: Evidence, main: Mapping[str, Action], spare: float | None
) -> tuple[list[Action], list[Refusal]]:
    """Plan one main precision for all weights, and 8 bits for those that gain most within a byte budget.

    Args:
        evidence: the model and its samples.
        main: the decision of the main precision for each weight name.
        spare: byte budget for int8, as a share of the bytes of all weights in the main precision; None for the
            smallest of 0, 2, 5 and 10% with which the relative squared error of the outputs is at most 0.003.

    Returns:
        Decisions for the weights that become smaller, and the other weights with the reason.
    """
    candidates = low_bit_candidates(evidence, {name: [main[name], {"weight": name, "bits": 8}] for name in main})
    refused = find_weights(evidence.model)[1]
    preferred: dict[str, WeightCandidate] = {}
    for name, (first, int8) in candidates.items():
        dominated = int8.bytes <= first.bytes and int8.low_bit.lost_power <= first.low_bit.lost_power
        best = int8 if dominated else first
        if best.saving.weight_bytes > 0:
            preferred[name] = best
        else:
            refused.append(Refusal(name, "its weight is too small to save bytes"))
    int8_forms = {name: several[1] for name, several in candidates.items()}
    if spare is not None:
        return _spend_budget(preferred, int8_forms, spare), refused
    found: list[Action] = []
    scorer = Scorer(evidence.model, evidence.samples()) if preferred else None
    for share in _BUDGET_SHARES if scorer is not None else ():
        previous, found = found, _spend_budget(preferred, int8_forms, share)
        if scorer is None or found == previous:
            continue
        if scorer.nmse(write_low_bit(evidence, found).model) <= _MAX_LOSS:
            break
    return found, refused


def _spend_budget(
    preferred: Mapping[str, WeightCandidate], int8_forms: Mapping[str, WeightCandidate], share: float
) -> list[Action]:
    """The preferred decisions, some replaced by int8 such that the least power is lost within the budget."""
    choices = []
    for name, first in preferred.items():
        int8 = int8_forms[name]
        several = [first, int8] if int8.saving.weight_bytes > 0 else [first]
        choices.append([_PrecisionChoice(c.bytes, c.low_bit.lost_power, c.action) for c in several])
    return _allocate(choices, (1 + share) * sum(c.bytes for c in preferred.values()))


def plan_file_size(
    evidence: Evidence, offers: Mapping[str, Sequence[Action]], max_bytes: float
) -> tuple[list[Action], list[Refusal]]:
    """Plan a precision per weight that minimizes the predicted loss at a maximum file size.

    The loss of a weight is the relative squared error of the outputs with this weight alone in the second largest of
    its precisions; for the other precisions it is scaled by their lost output power. The sum is minimized by a
    multiple-choice knapsack over forms rounded to nearest. As names and tables count only in the written file, the byte
    budget is adapted until the file meets the size.

    Args:
        evidence: the model and its samples.
        offers: for each weight name the decisions to choose from; float32 is always a choice.
        max_bytes: maximum size of the file, in bytes.

    Returns:
        Decisions for the weights that do not stay in float32, and the refused weights with the reason.

    Raises:
        InputProblem: if even the smallest choice exceeds the size.
    """
    candidates = low_bit_candidates(evidence, offers, output_aware=False)
    choices = [_precision_choices(*pair) for pair in _with_loss_scales(evidence, candidates)]
    original_size = model_size(evidence.model)
    min_bytes = sum(min(c.bytes for c in several) for several in choices)
    budget = max_bytes - original_size + sum(several[0].weight.array.nbytes for several in candidates.values())
    low, high = float(min_bytes), np.inf  # budgets known to be too small and too large
    best: tuple[int, list[Action]] | None = None
    smallest = original_size
    for _ in range(_MAX_TRIALS if choices else 0):
        chosen = _allocate(choices, max(budget, min_bytes))
        size = model_size(write_low_bit(evidence, chosen).model)
        smallest = min(smallest, size)
        if size <= max_bytes:
            best = max(best or (0, []), (size, chosen), key=lambda pair: pair[0])
            low = max(low, budget)
        else:
            high = min(high, budget)
        if _SIZE_TOLERANCE * max_bytes <= size <= max_bytes or high <= low * (2 - _SIZE_TOLERANCE):
            break
        budget += _SIZE_TOLERANCE**0.5 * max_bytes - size
        if not low < budget < high:
            budget = (low + high) / 2 if high < np.inf else 2 * low
    if best is None:
        sizes = f"the smallest is {smallest / 1e3:,.0f} kB, the goal {max_bytes / 1e3:,.0f} kB"
        raise InputProblem("the file cannot become so small", "`smaller`", sizes, "ask for less, or prune first")
    return best[1], find_weights(evidence.model)[1]


def _with_loss_scales(
    evidence: Evidence, candidates: Mapping[str, Sequence[WeightCandidate]]
) -> list[tuple[float, Sequence[WeightCandidate]]]:
    """For each weight the output loss per unit of lost power of its layer, and its candidates."""
    scorer = Scorer(logits_model(evidence.model), evidence.samples().take(_EVALUATION_SAMPLES))
    found = []
    for several in candidates.values():
        # Not the smallest one: its loss exceeds what its lost power predicts for the others.
        trial = sorted(several, key=lambda c: c.bytes)[-2:][0]
        changed = write_low_bit(evidence, [trial.action], output_aware=False).model
        loss = scorer.nmse(logits_model(changed))
        found.append((loss / max(trial.low_bit.lost_power, 1e-12), several))
    return found


def _precision_choices(loss_scale: float, candidates: Sequence[WeightCandidate]) -> list[_PrecisionChoice]:
    """The candidates of one weight that save bytes, and float32."""
    smaller = [c for c in candidates if c.saving.weight_bytes > 0]
    choices = [_PrecisionChoice(c.bytes, loss_scale * c.low_bit.lost_power, c.action) for c in smaller]
    return [*choices, _PrecisionChoice(candidates[0].weight.array.nbytes, 0.0, None)]


def _allocate(choices: Sequence[Sequence[_PrecisionChoice]], budget: float) -> list[Action]:
    """The decisions of minimal loss within a byte budget; the smallest choices where none fits."""
    sizes = [[float(c.bytes) for c in several] for several in choices]
    losses = [[c.loss for c in several] for several in choices]
    picks = multiple_choice_knapsack(losses, sizes, budget) or [int(np.argmin(s)) for s in sizes]
    found = (several[pick].action for several, pick in zip(choices, picks, strict=True))
    return [action for action in found if action is not None]
