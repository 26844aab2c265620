"""Weights in fewer bits, whatever the bits mean: from a decision a weight to what stands for it, and into the model.

A decision names a weight and either free centres ("centroids", "per") or an integer grid ("bits", "block").  Fits are kept with the
evidence, so that what was looked at while planning is not made again; the same evidence gives the same bytes either way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence
from onnxpress.measure.output_gain import summed_predicted_loss
from onnxpress.model import edit
from onnxpress.passes.core.contract import Action, Applied, Proposal, Refusal, Saving
from onnxpress.passes.core.refit_option import BIAS, NONE, refit_mode
from onnxpress.passes.core.weight_matrix import Seen, Stored, find_weights, keep_mean, seen_by
from onnxpress.passes.weights import codebook
from onnxpress.passes.weights.bit_packing import INT8, Packer, bytes_of
from onnxpress.passes.weights.codebook import Book
from onnxpress.passes.weights.half import halvable

CENTRES = (4, 8, 16, 256)
PER = ("scaled", "tensor")  # or a number: rows a book
GRIDS = {
    8: INT8,
    4: np.arange(-8, 8, dtype=np.float64),
    3: np.arange(-4, 4, dtype=np.float64),
    2: np.arange(-1.5, 2, dtype=np.float64),  # without a zero: four levels that lie evenly
}


@dataclass(frozen=True)
class Fit:
    """What stands for one weight. books: one, or one for each group of rows; lost: share of its layer's output power."""

    books: tuple[Book, ...]
    lost: float

    @property
    def book(self) -> Book:
        """All groups as one book, the centres of each behind those of the one before, all equally many."""
        if len(self.books) == 1:
            return self.books[0]
        most = max(len(b.centres) for b in self.books)
        padded = [np.pad(b.centres, (0, most - len(b.centres)), "edge") for b in self.books]
        codes, scale = np.concatenate([b.codes for b in self.books]), np.concatenate([b.scale for b in self.books])
        return Book(np.concatenate(padded), codes, scale)

    @property
    def rows(self) -> np.ndarray:
        return np.concatenate([b.rows for b in self.books])


@dataclass(frozen=True)
class Known:
    """A weight, what it meets (its Gram matrix let go), and the fit that a decision made of it."""

    weight: Stored
    seen: Seen
    decision: Action
    fit: Fit

    @property
    def bytes(self) -> int:
        return bytes_of(self.weight, self.fit.book, len(self.fit.books))

    @property
    def saving(self) -> Saving:
        return Saving(0.0, float(self.weight.array.nbytes - self.bytes))


def fits(evidence: Evidence, wanted: Mapping[str, Sequence[Action]], polish: bool = True) -> dict[str, list[Known]]:
    """For each weight what each of its decisions makes of it, in the model's order.  polish: as well as can be, or quickly.

    Raises InputProblem where a decision names a weight that is not there, or says what cannot be.
    """
    weights = find_weights(evidence.model)[0]
    unknown = sorted(wanted.keys() - {w.name for w in weights})
    if unknown:
        raise InputProblem(
            "the plan names a weight the model does not have, or that cannot be kept in fewer bits",
            unknown[0],
            "",
            "use the plan with the model it was made for",
        )
    for decision in (d for several in wanted.values() for d in several):
        _check(decision)
    kept: dict[tuple[str, str], Known] = evidence.kept.setdefault("few bits" if polish else "few bits, roughly", {})
    new = [w for w in weights if any(_key(d) not in kept for d in wanted.get(w.name, ()))]
    for weight, seen in seen_by(evidence, new):
        for decision in wanted[weight.name]:
            if _key(decision) not in kept:
                fit = _fit(weight, seen.gram, decision, polish)
                kept[_key(decision)] = Known(weight, replace(seen, gram=None), decision, fit)
    return {w.name: [kept[_key(d)] for d in wanted[w.name]] for w in weights if w.name in wanted}


def low_bit_proposals(evidence: Evidence, offers: Callable[[str], Sequence[Action]]) -> Iterator[Proposal | Refusal]:
    """Proposals for every weight, without coordinate descent, and the weights that cannot be changed.

    offers: the actions for a weight's name. The local loss is the lost share of the layer's output power.
    """
    weights, refused = find_weights(evidence.model)
    found = fits(evidence, {w.name: offers(w.name) for w in weights}, polish=False)
    readers = {w.name: w.readers for w in weights}
    for name, several in found.items():
        for known in several:
            if known.saving.weight_bytes > 0:
                loss = summed_predicted_loss(evidence, readers[name], known.fit.lost)
                yield Proposal(name, known.decision, frozenset({name, *readers[name]}), known.saving, loss)
        if all(known.saving.weight_bytes <= 0 for known in several):
            yield Refusal(name, "its weight is too small to be worth unpacking")
    yield from refused


def _key(decision: Action) -> tuple[str, str]:
    return str(decision["weight"]), json.dumps(decision, sort_keys=True)


def _check(decision: Action) -> None:
    per, block = str(decision.get("per", PER[0])), decision.get("block", 0)
    free = decision.get("centroids") in CENTRES and (per in PER or (per.isdigit() and int(per) > 0))
    on_grid = decision.get("bits") in GRIDS and isinstance(block, int) and block >= 0
    if free == on_grid:
        raise InputProblem(
            "the plan says neither centres nor bits that can be",
            str(decision["weight"]),
            json.dumps(decision),
            "mend the plan",
        )


def _fit(weight: Stored, gram: np.ndarray | None, decision: Action, polish: bool) -> Fit:
    rows = weight.rows
    if "bits" in decision:
        block = int(decision.get("block", 0))
        fitting = block and rows.shape[1] % block == 0 and rows.shape[1] > block and weight.rows_apart
        books = [codebook.on_grid(rows, gram, GRIDS[decision["bits"]], block if fitting else 0, polish)]
    else:
        per, count = str(decision.get("per", PER[0])), int(decision["centroids"])
        size = len(rows) if per in PER else _divisor(len(rows), int(per))
        parts = np.split(rows, len(rows) // size)
        books = [codebook.cluster(part, gram, count, per == "scaled", polish) for part in parts]
    fit = Fit(tuple(b.lean() for b in books), 0.0)
    return replace(fit, lost=codebook.lost(fit.rows - rows, rows, gram))


def _divisor(rows: int, wish: int) -> int:
    """The largest number of rows up to the wish that divides all of them."""
    return next(size for size in range(min(wish, rows), 0, -1) if rows % size == 0)


def write(evidence: Evidence, decisions: Sequence[Action], polish: bool = True) -> Applied:
    """The model with each weight that decisions speak of in fewer bits (of several for one the last counts), and the mean
    error taken back through biases ({"refit": "bias" | "none"}).  Biases and what else is no weight become float16 where that
    holds them, or they would be the larger part of what is left.  polish: as in `fits`."""
    if not decisions:
        return Applied(evidence.model.clone())
    mode = refit_mode(decisions, BIAS, NONE)
    found = fits(evidence, {str(d["weight"]): [d] for d in decisions if "weight" in d}, polish)
    work = evidence.model.clone()
    packer = Packer(work)
    moved = sum(keep_mean(work, k.seen, k.fit.rows - k.weight.rows) for (k,) in found.values()) if mode == "bias" else 0
    able = {weight.name for weight in find_weights(evidence.model)[0]}
    for value in halvable(work, "float16")[0]:
        if value.name not in able:
            packer.shorten(value)
    for (known,) in found.values():
        packer.put(known.weight, known.fit.book, len(known.fit.books))
    edit.drop_dead(work)
    edit.forget_floats(work)
    notes = []
    if found:
        mean = np.mean([known.fit.lost for (known,) in found.values()])
        notes.append(f"{len(found)} weights in fewer bits, {mean:.5f} of their outputs' power lost")
    if moved:
        notes.append(f"bias corrected on {moved} layers")
    return Applied(work, notes, find_weights(evidence.model)[1])
