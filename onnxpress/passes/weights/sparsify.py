"""sparsify: zeros among the weights, anywhere or N in every M of a row, chosen by what the samples use of them.

* magnitude: the smallest weights of a tensor;
* activation: in every row those with the least |w_j| times the root mean square of input j (Wanda, Sun et al. 2024);
* update: those with the least w_j^2 / [H^-1]_jj, H the Gram matrix of the layer's inputs, while the weights that are
left take
  up what the zeros cost (optimal brain surgeon, Hassibi and Stork 1993; layer by layer as in Frantar and Alistarh
  2023): a third of the zeros at a time, and in the end least squares on what is left.

Depthwise convolutions stay whole: with so few weights a channel every zero is felt, and there is little to save.  So
do weights whose inputs are not seen as a matrix, unless magnitude is asked for, which looks at no input.

The file stays as long and onnxruntime's CPU kernels take as long: zeros are multiplied like other numbers.  What
shrinks is the compressed file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence
from onnxpress.measure.linear import linear
from onnxpress.measure.output_gain import summed_predicted_loss
from onnxpress.model import edit, read
from onnxpress.model.files import compressed_size
from onnxpress.model.normal_forms.tied_weights import tied_to
from onnxpress.passes.core.contract import Action, Applied, Planned, Proposal, Refusal, Saving
from onnxpress.passes.core.options import PassOptions, check_between, option
from onnxpress.passes.core.refit_option import BIAS, NONE, refit_mode, with_bias_correction
from onnxpress.passes.core.rounding import Quantizer, add_damping, gptq_error_feedback
from onnxpress.passes.core.weight_matrix import (
    InputStatistics,
    WeightMatrix,
    correct_mean_error,
    find_weights,
    input_statistics,
)
from onnxpress.passes.weights import codebook

METHODS = ("update", "activation", "magnitude")
_STEPS = 3  # in which the zeros are made
_ITERATIONS = 60  # of conjugate gradients
_ENOUGH = 1e-12  # of the squared gradient at zero, where a row is done
_PATTERN = re.compile(r"(\d+):(\d+)")


@dataclass(frozen=True)
class SparsifyOptions(PassOptions):
    """How many weights become zero, and by which criterion."""

    ratio: float = option(0.5, help="Share of each weight's elements that become zero.")
    pattern: str = option(
        "",
        help="N:M sparsity instead of a ratio: N of every M neighbours in a row are kept, such as 2:4.",
        metavar="N:M",
    )
    method: str = option(
        METHODS[0],
        help="update: second-order (OBS), the remaining weights compensate; "
        "activation: magnitude times input norm; magnitude.",
        choices=METHODS,
    )
    refit: bool = option(True, help="Correct the mean error of the outputs in the biases.")

    def check(self) -> None:
        check_between("ratio", "the ratio", self.ratio, "0.5")
        if self.pattern:
            groups(self.pattern)

    @property
    def action(self) -> Action:
        """The action for one weight, without its name."""
        kind: Action = {"pattern": self.pattern} if self.pattern else {"ratio": self.ratio}
        return {**kind, "method": self.method}


def groups(pattern: str) -> tuple[int, int]:
    """(kept, of how many) of an N:M pattern; raises InputProblem for what is none."""
    found = _PATTERN.fullmatch(pattern)
    kept, size = (int(part) for part in found.groups()) if found else (0, 0)
    if not 0 < kept < size <= 64:
        raise InputProblem("not an N:M pattern", "`pattern`", pattern, "write 2:4: of every 4 neighbours 2 stay")
    return kept, size


class Sparsify:
    """Unstructured and N:M sparsity: zeros among the weights. The compressed file shrinks; the speed stays the same."""

    name = "sparsify"
    exact = False
    needs_data = True
    saves_time = False
    extra = None
    Options = SparsifyOptions

    def propose(self, evidence: Evidence) -> Iterable[Proposal | Refusal]:
        """Half of each weight, by the default criterion; the loss is the lost share of the layer's output power."""
        able, refused = sparsifiable(evidence, METHODS[0])
        for weight, seen in input_statistics(evidence, able):
            action = {"weight": weight.name, "ratio": 0.5, "method": METHODS[0]}
            lost = codebook.lost_power(_zeroed(weight, seen, action) - weight.matrix, weight.matrix, seen.gram)
            loss = summed_predicted_loss(evidence, weight.readers, lost)
            saving = Saving(compressed_bytes=0.4 * weight.array.nbytes)
            yield Proposal(weight.name, action, frozenset({weight.name, *weight.readers}), saving, loss)
        yield from refused

    def plan(self, evidence: Evidence, options: SparsifyOptions) -> Planned:
        """The same sparsity for every weight that can have zeros."""
        actions, refused = plan_zeros(evidence, options)
        notes = [] if actions else ["no weight is large enough to be worth zeros"]
        return Planned(with_bias_correction(actions, options.refit), notes, refused)

    def finish(self, evidence: Evidence, options: SparsifyOptions, planned: Planned, done: Applied) -> None:
        """Add the sizes of the compressed files."""
        before, after = (compressed_size(m) for m in (evidence.original or evidence.model, done.model))
        size = f"{before / 1e3:,.0f} kB -> {after / 1e3:,.0f} kB ({before / max(after, 1):.2f}x)"
        done.notes.append(f"compressed by gzip: {size}; the speed stays the same")

    def apply(self, evidence: Evidence, actions: Sequence[Action]) -> Applied:
        """actions: [{"weight": name, "ratio": share | "pattern": "N:M", "method": one of METHODS}, …, {"refit": "bias"
        | "none"}].

        Raises InputProblem where an action names a weight that is not there.
        """
        wanted = {str(d["weight"]): d for d in actions if "weight" in d}
        mode = refit_mode(actions, BIAS, NONE)
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
        for weight, seen in input_statistics(evidence, [w for w in weights if w.name in wanted]):
            rows = _zeroed(weight, seen, wanted[weight.name])
            edit.set_constant(work.graph.initializers[weight.name], weight.from_matrix(rows.astype(np.float32)))
            lost.append(codebook.lost_power(rows - weight.matrix, weight.matrix, seen.gram))
            zeros, total = zeros + int((rows == 0).sum()), total + rows.size
            if mode == "bias":
                correct_mean_error(work, seen, rows - weight.matrix)
        notes = []
        if lost:
            notes.append(
                f"{zeros / total:.1%} of {len(lost)} weights are zero, {np.mean(lost):.5f} of their outputs' power lost"
            )
        return Applied(work, notes, refused)


def plan_zeros(evidence: Evidence, options: SparsifyOptions) -> tuple[list[Action], list[Refusal]]:
    """A decision for every weight that can take zeros, and those left alone with the reason."""
    options.checked()
    weights, refused = sparsifiable(evidence, options.method)
    return [{"weight": w.name, **options.action} for w in weights], refused


def sparsifiable(evidence: Evidence, method: str) -> tuple[list[WeightMatrix], list[Refusal]]:
    """The weights that can take zeros by the method, and those that cannot, with the reason."""
    nodes = {n.name: n for n in evidence.model.graph}
    tied = tied_to(evidence.model)
    found, refused = [], list(find_weights(evidence.model)[1])
    for weight in find_weights(evidence.model)[0]:
        reader = nodes[weight.readers[0]]
        if read.is_depthwise(reader):
            refused.append(Refusal(weight.name, "depthwise: so few weights a channel that every zero is felt"))
        elif weight.name in tied:
            refused.append(
                Refusal(
                    weight.name, "another operator reads it turned (a tied embedding), and the file would hold both"
                )
            )
        elif method != "magnitude" and linear(reader) is None:
            refused.append(
                Refusal(
                    weight.name,
                    f"what {reader.op_type} multiplies it by is not known; `method` magnitude does not need it",
                )
            )
        else:
            found.append(weight)
    return found, refused


def _zeroed(weight: WeightMatrix, seen: InputStatistics, action: Action) -> np.ndarray:
    """The weight's rows with zeros; those of a weight whose inputs nobody saw by magnitude."""
    rows = weight.matrix.astype(np.float64)
    method = action["method"] if seen.gram is not None else "magnitude"
    count = _Count(action)
    if method == "magnitude":
        return np.asarray(rows * count.mask(np.abs(rows), whole=True))
    assert seen.gram is not None
    diagonal = seen.gram if seen.gram.ndim == 1 else np.diag(seen.gram)
    if method == "activation" or seen.gram.ndim == 1:
        return np.asarray(rows * count.mask(np.abs(rows) * np.sqrt(np.maximum(diagonal, 0))))
    h = add_damping(seen.gram)
    price = np.sqrt(1 / np.diag(scipy.linalg.inv(h, check_finite=False)))
    found = rows
    for step in range(1, _STEPS + 1):
        mask = count.mask(np.abs(found) * price, step / _STEPS)
        found = gptq_error_feedback(found, h, _only(mask))
    return refit(rows, found, h, mask)


def _only(mask: np.ndarray) -> Quantizer:
    """Any value where the mask is, else zero."""
    return lambda wanted, columns: wanted * mask[:, columns]


def refit(rows: np.ndarray, start: np.ndarray, h: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Values [M, K] where the mask is, zero elsewhere, with the least (v - w)^T H (v - w) a row: conjugate gradients,
    all rows at once.

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

    action: Action

    def mask(self, worth: np.ndarray, part: float = 1.0, whole: bool = False) -> np.ndarray:
        """What stays, by worth [M, K]; part: of the zeros; whole: compare all rows, else each row's own.  Ties stay by
        place."""
        if "pattern" in self.action:
            kept, size = groups(self.action["pattern"])
            short = -worth.shape[1] % size
            padded = np.pad(worth, ((0, 0), (0, short)), constant_values=np.inf)
            cells = padded.reshape(len(worth), -1, size)
            gone = round(part * (size - kept))
            return self._but_least(cells, gone).reshape(len(worth), -1)[:, : worth.shape[1]]
        ratio = part * float(self.action["ratio"])
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
