"""sparsify: zeros among the weights, anywhere or N in every M of a row, chosen by what the samples use of them.

* magnitude: the smallest weights of a tensor;
* activation: in every row those with the least |w_j| times the root mean square of input j (Wanda, Sun et al. 2024);
* update: those with the least w_j^2 / [H^-1]_jj, H the Gram matrix of the layer's inputs, while the weights that are left take
  up what the zeros cost (optimal brain surgeon, Hassibi and Stork 1993; layer by layer as in Frantar and Alistarh 2023): a third
  of the zeros at a time, and in the end least squares on what is left.

Depthwise convolutions stay whole: with so few weights a channel every zero is felt, and there is little to save.  So do weights
whose inputs are not seen as a matrix, unless magnitude is asked for, which looks at no input.

The file stays as long and onnxruntime's CPU kernels take as long: zeros are multiplied like other numbers.  What shrinks is the
compressed file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import scipy.linalg

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence
from onnxpress.measure.linear import linear
from onnxpress.model import edit, read
from onnxpress.passes.core.contract import Applied, Decision, Option, Refused
from onnxpress.passes.core.rounding import Snap, damped, feedback
from onnxpress.passes.core.weight_matrix import Seen, Stored, find_weights, keep_mean, seen_by
from onnxpress.passes.weights import codebook

METHODS = ("update", "activation", "magnitude")
_STEPS = 3  # in which the zeros are made
_ITERATIONS = 60  # of conjugate gradients
_ENOUGH = 1e-12  # of the squared gradient at zero, where a row is done
_PATTERN = re.compile(r"(\d+):(\d+)")


@dataclass(frozen=True)
class Wish:
    """ratio: share of each weight's numbers that become zero; pattern: "N:M" instead, N of every M neighbours of a row stay."""

    ratio: float = 0.5
    pattern: str = ""
    method: str = METHODS[0]

    def check(self) -> None:
        if not 0 < self.ratio < 1:
            raise InputProblem("the ratio must lie between 0 and 1", "--ratio", f"got {self.ratio:g}", "try 0.5")
        if self.method not in METHODS:
            raise InputProblem("unknown method", "--method", self.method, f"one of {', '.join(METHODS)}")
        if self.pattern:
            groups(self.pattern)

    @property
    def decision(self) -> Decision:
        kind: Decision = {"pattern": self.pattern} if self.pattern else {"ratio": self.ratio}
        return {**kind, "method": self.method}


def groups(pattern: str) -> tuple[int, int]:
    """(kept, of how many) of an N:M pattern; raises InputProblem for what is none."""
    found = _PATTERN.fullmatch(pattern)
    kept, size = (int(part) for part in found.groups()) if found else (0, 0)
    if not 0 < kept < size <= 64:
        raise InputProblem("not an N:M pattern", "--pattern", pattern, "write 2:4: of every 4 neighbours 2 stay")
    return kept, size


class Sparsify:
    name = "sparsify"
    exact = False
    needs_data = True

    def options(self, model: ir.Model, evidence: Evidence) -> list[Option]:
        """Half of each weight. harm: lost share of its layer's output power."""
        found = []
        for weight, seen in seen_by(evidence, sparsifiable(evidence, METHODS[0])[0]):
            decision = {"weight": weight.name, "ratio": 0.5, "method": METHODS[0]}
            lost = codebook.lost(_zeroed(weight, seen, decision) - weight.rows, weight.rows, seen.gram)
            found.append(Option(self.name, weight.name, decision, harm=lost))
        return found

    def apply(self, model: ir.Model, decisions: Sequence[Decision], evidence: Evidence) -> Applied:
        """decisions: [{"weight": name, "ratio": share | "pattern": "N:M", "method": one of METHODS}, …, {"repair": "bias" | "none"}].

        Raises InputProblem where a decision names a weight that is not there.
        """
        wanted = {str(d["weight"]): d for d in decisions if "weight" in d}
        mode = next((d["repair"] for d in decisions if "repair" in d), "bias")
        weights, refused = find_weights(evidence.model)
        unknown = sorted(wanted.keys() - {w.name for w in weights})
        if unknown:
            raise InputProblem(
                "the plan names a weight the model does not have",
                unknown[0],
                "",
                "use the plan with the model it was made for",
            )
        work = evidence.model.clone()
        lost, zeros, total = [], 0, 0
        for weight, seen in seen_by(evidence, [w for w in weights if w.name in wanted]):
            rows = _zeroed(weight, seen, wanted[weight.name])
            edit.set_constant(work.graph.initializers[weight.name], weight.restored(rows.astype(np.float32)))
            lost.append(codebook.lost(rows - weight.rows, weight.rows, seen.gram))
            zeros, total = zeros + int((rows == 0).sum()), total + rows.size
            if mode == "bias":
                keep_mean(work, seen, rows - weight.rows)
        notes = []
        if lost:
            notes.append(
                f"{zeros / total:.1%} of {len(lost)} weights are zero, {np.mean(lost):.5f} of their outputs' power lost"
            )
        return Applied(work, notes, refused)


def plan_zeros(evidence: Evidence, wish: Wish) -> tuple[list[Decision], list[Refused]]:
    """A decision for every weight that can take zeros, and those left alone with the reason."""
    wish.check()
    weights, refused = sparsifiable(evidence, wish.method)
    return [{"weight": w.name, **wish.decision} for w in weights], refused


def sparsifiable(evidence: Evidence, method: str) -> tuple[list[Stored], list[Refused]]:
    """The weights that can take zeros by the method, and those that cannot, with the reason."""
    nodes = {n.name: n for n in evidence.model.graph}
    found, refused = [], list(find_weights(evidence.model)[1])
    for weight in find_weights(evidence.model)[0]:
        reader = nodes[weight.readers[0]]
        if read.is_depthwise(reader):
            refused.append(Refused(weight.name, "depthwise: so few weights a channel that every zero is felt"))
        elif method != "magnitude" and linear(reader) is None:
            refused.append(
                Refused(
                    weight.name, f"what {reader.op_type} multiplies it by is not seen; --method magnitude does not ask"
                )
            )
        else:
            found.append(weight)
    return found, refused


def _zeroed(weight: Stored, seen: Seen, decision: Decision) -> np.ndarray:
    """The weight's rows with zeros; those of a weight whose inputs nobody saw by magnitude."""
    rows = weight.rows.astype(np.float64)
    method = decision["method"] if seen.gram is not None else "magnitude"
    count = _Count(decision)
    if method == "magnitude":
        return np.asarray(rows * count.mask(np.abs(rows), whole=True))
    assert seen.gram is not None
    diagonal = seen.gram if seen.gram.ndim == 1 else np.diag(seen.gram)
    if method == "activation" or seen.gram.ndim == 1:
        return np.asarray(rows * count.mask(np.abs(rows) * np.sqrt(np.maximum(diagonal, 0))))
    h = damped(seen.gram)
    price = np.sqrt(1 / np.diag(scipy.linalg.inv(h, check_finite=False)))
    found = rows
    for step in range(1, _STEPS + 1):
        mask = count.mask(np.abs(found) * price, step / _STEPS)
        found = feedback(found, h, _only(mask))
    return refit(rows, found, h, mask)


def _only(mask: np.ndarray) -> Snap:
    """Any value where the mask is, else zero."""
    return lambda wish, columns: wish * mask[:, columns]


def refit(rows: np.ndarray, start: np.ndarray, h: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Values [M, K] where the mask is, zero elsewhere, with the least (v - w)^T H (v - w) a row: conjugate gradients, all rows at once.

    rows: the weights w; start: values to begin from; h: [K, K], positive definite."""
    values: np.ndarray = start * mask
    residual = ((rows - values) @ h) * mask
    way, power = residual, (residual**2).sum(1)
    enough = _ENOUGH * np.maximum((((rows @ h) * mask) ** 2).sum(1), np.finfo(float).tiny)
    for _ in range(_ITERATIONS):
        going = power > enough
        if not going.any():
            break
        pulled = (way @ h) * mask
        step = np.where(going, power / np.where(going, (way * pulled).sum(1), 1.0), 0.0)[:, None]
        values = values + step * way
        residual = residual - step * pulled
        before, power = power, (residual**2).sum(1)
        way = residual + np.where(going, power / np.where(going, before, 1.0), 0.0)[:, None] * way
    return values


@dataclass(frozen=True)
class _Count:
    """How many zeros a decision wants."""

    decision: Decision

    def mask(self, worth: np.ndarray, part: float = 1.0, whole: bool = False) -> np.ndarray:
        """What stays, by worth [M, K]; part: of the zeros; whole: compare all rows, else each row's own.  Ties stay by place."""
        if "pattern" in self.decision:
            kept, size = groups(self.decision["pattern"])
            short = -worth.shape[1] % size
            padded = np.pad(worth, ((0, 0), (0, short)), constant_values=np.inf)
            cells = padded.reshape(len(worth), -1, size)
            gone = round(part * (size - kept))
            return self._but_least(cells, gone).reshape(len(worth), -1)[:, : worth.shape[1]]
        ratio = part * float(self.decision["ratio"])
        if whole:
            return self._but_least(worth.reshape(1, -1), round(ratio * worth.size)).reshape(worth.shape)
        return self._but_least(worth, round(ratio * worth.shape[1]))

    @staticmethod
    def _but_least(worth: np.ndarray, gone: int) -> np.ndarray:
        order = np.argsort(worth, axis=-1, kind="stable")
        stays = np.ones(worth.shape, bool)
        np.put_along_axis(stays, order[..., :gone], False, axis=-1)
        return stays


SPARSIFY = Sparsify()
