"""Which weights get how many bits: one wish for all with some spared, or the harm that a file of a given size needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence
from onnxpress.measure.score import Scorer, logits_model
from onnxpress.model.files import model_size
from onnxpress.passes.core.contract import Action, Refusal
from onnxpress.passes.core.knapsack import choose
from onnxpress.passes.core.weight_matrix import find_weights
from onnxpress.passes.weights.low_bit import Known, fits, write

_SPARE = (0.0, 0.02, 0.05, 0.1)  # tried in turn
_CLOSE = 0.003  # relative squared error of the outputs that is near enough
_TRIES = 6  # of meeting a size
_JUDGED = 32  # samples
_NEAR = 0.998  # of the size wished for that is near enough


@dataclass(frozen=True)
class _Rung:
    """One way to keep a weight. bytes: in the file; harm: relative squared error of the outputs; decision: None where it stays in
    float."""

    bytes: int
    harm: float
    decision: Action | None


def check_byte_budget(spare: float | None, smaller: float | None) -> None:
    """Raises InputProblem for options that exclude each other, or values out of range."""
    if spare is not None and not 0 <= spare <= 1:
        raise InputProblem("the spare share must lie between 0 and 1", "`spare`", f"got {spare}", "try 0.05")
    if smaller is not None and not 1 < smaller < float("inf"):
        raise InputProblem("the file must become smaller", "`smaller`", f"got {smaller:g}", "how many times, such as 8")
    if smaller is not None and spare is not None:
        raise InputProblem("`smaller` and `spare` are mutually exclusive", "", "", "give one of them")


def nothing_to_do(smaller: float | None, what: str) -> str:
    """The remark where no weight is changed. what: the cost of changing one."""
    if smaller is None:
        return f"no weight is large enough to be worth {what}"
    return "the simplified file is small enough as it is"


def plan_bits(
    evidence: Evidence, main: Mapping[str, Action], spare: float | None
) -> tuple[list[Action], list[Refusal]]:
    """Decisions: each weight's main one where that saves bytes, and 8 bits for those that lose most for their bytes, as far as
    `spare`, a share of all bytes so far, goes (None: the least that keeps the outputs on the samples)."""
    known = fits(evidence, {name: [main[name], {"weight": name, "bits": 8}] for name in main})
    refused = find_weights(evidence.model)[1]
    lean: dict[str, Known] = {}
    for name, (first, safe) in known.items():
        best = safe if safe.bytes <= first.bytes and safe.fit.lost <= first.fit.lost else first
        if best.saving.weight_bytes > 0:
            lean[name] = best
        else:
            refused.append(Refusal(name, "its weight is too small to be worth unpacking"))
    safer = {name: several[1] for name, several in known.items()}
    if spare is not None:
        return _spent(lean, safer, spare), refused
    found: list[Action] = []
    judge = Scorer(evidence.model, evidence.samples()) if lean else None
    for share in _SPARE if judge is not None else ():
        tried, found = found, _spent(lean, safer, share)
        if judge is not None and found != tried and judge.score(write(evidence, found).model).nmse <= _CLOSE:
            break
    return found, refused


def _spent(lean: Mapping[str, Known], safer: Mapping[str, Known], spare: float) -> list[Action]:
    """The lean decisions, but the safer ones where they pay most for their bytes, as far as the spare share goes."""
    chosen = dict(lean)
    left = spare * sum(k.bytes for k in chosen.values())
    worth = {
        name: (k.fit.lost - safer[name].fit.lost) / max(safer[name].bytes - k.bytes, 1)
        for name, k in lean.items()
        if k.fit.lost > safer[name].fit.lost and safer[name].saving.weight_bytes > 0
    }
    for name in sorted(worth, key=lambda n: -worth[n]):
        more = safer[name].bytes - chosen[name].bytes
        if more <= left:
            left -= more
            chosen[name] = safer[name]
    return [k.decision for k in chosen.values()]


def plan_size(
    evidence: Evidence, offers: Mapping[str, Sequence[Action]], goal: float
) -> tuple[list[Action], list[Refusal]]:
    """Decisions of least harm for a file of at most `goal` bytes: for each weight one of its offers, or float.

    An offer's harm is the error of the outputs that the weight alone makes on the samples, seen for the richest offer but one and for
    the others in proportion to what they lose; the sum is minimised.  Offers are compared as they are before polishing.

    Raises InputProblem where even the least of all is a larger file.
    """
    known = fits(evidence, offers, polish=False)
    ladders = {name: _rungs(several) for name, several in _weighed(evidence, known).items()}
    whole = model_size(evidence.model)
    least = sum(min(r.bytes for r in rungs) for rungs in ladders.values())
    budget = goal - whole + sum(several[0].weight.array.nbytes for several in known.values())
    low, high = float(least), np.inf  # budgets that are too small and too large
    best: tuple[int, list[Action]] | None = None
    smallest = whole
    for _ in range(_TRIES if ladders else 0):
        chosen = _within(list(ladders.values()), max(budget, least))
        size = model_size(write(evidence, chosen).model)  # names, tables and what else is kept shorter count only here
        smallest = min(smallest, size)
        if size <= goal:
            best = max(best or (0, []), (size, chosen), key=lambda pair: pair[0])
            low = max(low, budget)
        else:
            high = min(high, budget)
        if _NEAR * goal <= size <= goal or high <= low * (2 - _NEAR):
            break
        budget += _NEAR**0.5 * goal - size
        if not low < budget < high:
            budget = (low + high) / 2 if high < np.inf else 2 * low
    if best is None:
        raise InputProblem(
            "the file cannot be made so small", "--smaller", f"{smallest / 1e3:,.0f} kB is the least, {goal / 1e3:,.0f} kB were asked for",
            "ask for less, or prune first",
        )  # fmt: skip
    return best[1], find_weights(evidence.model)[1]


def _weighed(evidence: Evidence, known: Mapping[str, Sequence[Known]]) -> dict[str, tuple[float, Sequence[Known]]]:
    """For each weight the error of the outputs for every share of its layer's power that it loses, and its offers."""
    judge = Scorer(logits_model(evidence.model), evidence.samples().take(_JUDGED))
    found = {}
    for name, several in known.items():
        tried = sorted(several, key=lambda k: k.bytes)[-2:][0]  # what is leanest of all breaks more than its share
        alone = judge.score(logits_model(write(evidence, [tried.decision], polish=False).model)).nmse
        found[name] = alone / max(tried.fit.lost, 1e-12), several
    return found


def _rungs(weighed: tuple[float, Sequence[Known]]) -> list[_Rung]:
    """The ways to keep one weight."""
    gain, several = weighed
    rungs = [_Rung(k.bytes, gain * k.fit.lost, k.decision) for k in several if k.saving.weight_bytes > 0]
    return [*rungs, _Rung(several[0].weight.array.nbytes, 0.0, None)]


def _within(ladders: Sequence[Sequence[_Rung]], budget: float) -> list[Action]:
    """The decisions of least harm that a number of bytes for all weights together allows; the leanest where it allows none."""
    sizes = [[float(r.bytes) for r in rungs] for rungs in ladders]
    picks = choose([[r.harm for r in rungs] for rungs in ladders], sizes, budget) or [int(np.argmin(s)) for s in sizes]
    found = (rungs[pick].decision for rungs, pick in zip(ladders, picks, strict=True))
    return [decision for decision in found if decision is not None]
