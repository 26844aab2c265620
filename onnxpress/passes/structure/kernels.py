"""kernels: convolutions with less spatial work, refitted to what they said.

* smaller: the kernel without its outer ring (5x5 to 3x3, 3x3 to 1x1), the padding less by as much.
* separable: a depthwise convolution with the layer's kernel, then a 1x1 convolution.  For every input channel the
kernel of
  the first is the leading right singular vector of its part of the weight, which loses least of it (Eckart and Young).

The layers' last weights are then solved by least squares for the original's outputs (`repair.refit`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence
from onnxpress.measure.output_gain import predicted_loss
from onnxpress.model import edit, read
from onnxpress.model.counts import node_macs
from onnxpress.passes.core.contract import Action, Applied, Planned, Proposal, Refusal, Saving, proposals
from onnxpress.passes.core.options import PassOptions, check_between, option
from onnxpress.passes.core.refit import refit_layers
from onnxpress.passes.core.refit_option import refit_mode, refit_note, with_refit
from onnxpress.passes.core.selection import select_by_saving
from onnxpress.passes.core.weight_matrix import find_weights, input_statistics
from onnxpress.passes.weights.codebook import lost_power

SMALLER, SEPARABLE = "smaller", "separable"
FORMS = (SMALLER, SEPARABLE)
ANY = "auto"


@dataclass(frozen=True)
class Site:
    """A convolution and what can stand in its place.  weight: [out, in / group, *kernel]."""

    node: str
    weight: np.ndarray
    forms: tuple[str, ...]

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(self.weight.shape[2:])


@dataclass(frozen=True)
class KernelsOptions(PassOptions):
    """How much spatial work to save, and by which forms."""

    ratio: float = option(0.3, help="Share of the multiply-accumulates of all spatial convolutions to save.")
    form: str = option(
        ANY, help="smaller: without the kernel's outer ring; separable: depthwise and pointwise.", choices=(ANY, *FORMS)
    )
    refit: bool = option(True, help="Refit the changed convolutions by least squares.")

    def check(self) -> None:
        check_between("ratio", "the ratio", self.ratio, "0.3")


class Kernels:
    """Cheaper convolution kernels: without their outer ring, or depthwise separable, refitted by least squares."""

    name = "kernels"
    exact = False
    needs_data = True
    extra = None
    Options = KernelsOptions

    def propose(self, evidence: Evidence) -> Iterable[Proposal | Refusal]:
        """One proposal for each convolution and form that saves work."""
        nodes = {n.name: n for n in evidence.model.graph}
        able, refused = sites(evidence.model)
        grams = _grams(evidence, {site.node for site in able})
        for site in able:
            before = node_macs(nodes[site.node], evidence.trace)
            for form in site.forms:
                left = _weights(site, form) / site.weight.size
                saving = Saving(before * (1 - left), 4.0 * site.weight.size * (1 - left))
                if saving.macs > 0:
                    loss = predicted_loss(
                        evidence, site.node, lost_power(_change(site, form), _rows(site), grams.get(site.node))
                    )
                    action = {"node": site.node, "form": form}
                    yield Proposal(site.node, action, frozenset({site.node}), saving, loss)
        yield from refused

    def plan(self, evidence: Evidence, options: KernelsOptions) -> Planned:
        """Convolutions and forms of least predicted loss for the saving."""
        able, refused = sites(evidence.model)
        nodes = {n.name: n for n in evidence.model.graph}
        whole = sum(node_macs(nodes[site.node], evidence.trace) for site in able)
        offers = [p for p in proposals(self, evidence) if options.form in (ANY, p.action["form"])]
        chosen = select_by_saving(offers, options.ratio * whole)
        saved = sum(p.saving.macs for p in chosen)
        notes = [] if offers else ["the model has no convolution with a kernel that can be made cheaper"]
        if offers and saved < options.ratio * whole:
            notes.append(f"{saved / max(whole, 1):.0%} of the multiply-accumulates is the most that can be saved")
        return Planned(with_refit([p.action for p in chosen], options.refit), notes, refused)

    def apply(self, evidence: Evidence, actions: Sequence[Action]) -> Applied:
        """actions: [{"node": name, "form": "smaller" | "separable"}, …, {"refit": "least-squares" | "none"}]."""
        if not actions:
            return Applied(evidence.model.clone())
        known, refused = sites(evidence.model)
        mode = refit_mode(actions)
        chosen = _named(known, actions)
        if not chosen:
            return Applied(evidence.model.clone(), [], refused)
        result = evidence.model.clone()
        nodes = {n.name: n for n in result.graph}
        for site, form in chosen:
            (_shrink if form == SMALLER else _separate)(result, nodes[site.node], site)
        edit.drop_dead(result)
        edit.forget_shapes(result)
        notes = [f"{len(chosen)} convolutions with less spatial work"]
        if mode != "none" and evidence.data is not None:
            notes += refit_note(refit_layers(evidence, result, {site.node for site, _ in chosen}))
        return Applied(result, notes, refused)


def sites(model: ir.Model) -> tuple[list[Site], list[Refusal]]:
    """The convolutions that can do with less, and why others cannot."""
    found, refused = [], []
    for node in model.graph:
        if node.op_type != "Conv" or not read.standard(node):
            continue
        weight = read.constant(node.inputs[1])
        if weight is None or weight.dtype != np.float32:
            refused.append(Refusal(node.name or "", "its weight is not a constant of float32"))
        elif max(weight.shape[2:], default=1) == 1:
            refused.append(Refusal(node.name or "", "its kernel looks at one position only"))
        else:
            able = [SMALLER] if _can_shrink(node, weight) else []
            whole = read.int_attribute(node, "group", 1) == 1 and weight.shape[1] > 1
            if able or whole:
                found.append(Site(node.name or "", weight, (*able, *([SEPARABLE] if whole else []))))
            else:
                refused.append(Refusal(node.name or "", "a grouped kernel that padding does not let shrink"))
    return found, refused


def _can_shrink(node: ir.Node, weight: np.ndarray) -> bool:
    """Whether taking the ring off leaves the output's size: the padding can give as much, on both sides."""
    kernel = weight.shape[2:]
    mode = _auto_pad(node)
    if any(k > 1 and k % 2 == 0 for k in kernel):
        return False
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        return all(s == 1 for s in read.ints_attribute(node, "strides") or [1])
    if mode != "NOTSET":
        return False
    pads = read.ints_attribute(node, "pads") or [0] * (2 * len(kernel))
    steps = read.ints_attribute(node, "dilations") or [1] * len(kernel)
    return all(k == 1 or min(pads[i], pads[i + len(kernel)]) >= steps[i] for i, k in enumerate(kernel))


def _attributes(node: ir.Node) -> dict[str, object]:
    """As they stand; padding in one way only."""
    found: dict[str, object] = {name: a.value for name, a in node.attributes.items()}
    if _auto_pad(node) != "NOTSET":
        found.pop("pads", None)
    return found


def _auto_pad(node: ir.Node) -> str:
    mode = read.attribute(node, "auto_pad", "NOTSET")
    return mode.decode() if isinstance(mode, bytes) else str(mode)


def _named(known: Sequence[Site], actions: Sequence[Action]) -> list[tuple[Site, str]]:
    """What the decisions speak of; of several for one convolution the last counts."""
    by_name = {s.node: s for s in known}
    wanted = {d["node"]: str(d.get("form")) for d in actions if "node" in d}
    for name, form in wanted.items():
        if name not in by_name or form not in by_name[name].forms:
            raise InputProblem(
                "the plan changes a convolution the model does not have, or not in this form", f"{name}, {form}", "",
                "use the plan with the model it was made for",
            )  # fmt: skip
    return [(by_name[name], form) for name, form in wanted.items()]


def _core(site: Site) -> np.ndarray:
    return site.weight[(..., *(slice(1, -1) if k > 1 else slice(None) for k in site.kernel))]


def _weights(site: Site, form: str) -> int:
    if form == SMALLER:
        return int(_core(site).size)
    rows, columns = site.weight.shape[:2]
    return int(columns * (np.prod(site.kernel) + rows))


def _grams(evidence: Evidence, names: set[str]) -> dict[str, np.ndarray | None]:
    """Gram matrices of the inputs of convolutions, by node name; none without samples."""
    if evidence.data is None:
        return {}
    weights = [w for w in find_weights(evidence.model)[0] if w.readers[0] in names and len(w.readers) == 1]
    return {w.readers[0]: statistics.gram for w, statistics in input_statistics(evidence, weights)}


def _rows(site: Site) -> np.ndarray:
    """The weight as a matrix [out, in / group * taps]."""
    return np.asarray(site.weight.reshape(len(site.weight), -1), np.float64)


def _change(site: Site, form: str) -> np.ndarray:
    """What a form changes of the weight, as a matrix [out, in / group * taps]."""
    changed = np.zeros(site.weight.shape)
    if form == SMALLER:
        changed[(..., *(slice(1, -1) if k > 1 else slice(None) for k in site.kernel))] = _core(site)
    else:
        spatial, mixing = _factors(site)
        changed = np.einsum("ik,oi->oik", spatial, mixing).reshape(site.weight.shape)
    return np.asarray(changed.reshape(len(changed), -1) - _rows(site))


def _factors(site: Site) -> tuple[np.ndarray, np.ndarray]:
    """(kernels [in, taps] of norm 1, mixing [out, in])."""
    cube = site.weight.astype(np.float64).reshape(*site.weight.shape[:2], -1).transpose(1, 0, 2)
    left, values, right = np.linalg.svd(cube, full_matrices=False)
    return right[:, 0], (left[:, :, 0] * values[:, :1]).T


def _shrink(model: ir.Model, node: ir.Node, site: Site) -> None:
    kernel = site.kernel
    edit.set_input(model, node, 1, np.ascontiguousarray(_core(site)), f"{site.node}_core")
    attributes = _attributes(node) | {"kernel_shape": [max(k - 2, 1) for k in kernel]}
    if _auto_pad(node) == "NOTSET":
        steps = read.ints_attribute(node, "dilations") or [1] * len(kernel)
        less = [step if k > 1 else 0 for step, k in zip(steps, kernel, strict=True)] * 2
        pads = read.ints_attribute(node, "pads") or [0] * (2 * len(kernel))
        attributes["pads"] = [p - d for p, d in zip(pads, less, strict=True)]
    edit.set_attributes(node, attributes)


def _separate(model: ir.Model, node: ir.Node, site: Site) -> None:
    spatial, mixing = _factors(site)
    width, rank = site.weight.shape[1], len(site.kernel)
    first = spatial.reshape(width, 1, *site.kernel).astype(np.float32)
    second = mixing.reshape(*mixing.shape, *(1,) * rank).astype(np.float32)
    whole = _attributes(node) | {"kernel_shape": list(site.kernel), "group": width}
    inputs = [node.inputs[0], edit.add_constant(model, first, f"{site.node}_spatial")]
    inner = edit.insert_before(model, node, "Conv", inputs, f"{site.node}_inner", whole)
    node.replace_input_with(0, inner)
    node.replace_input_with(1, edit.add_constant(model, second, f"{site.node}_mixing"))
    edit.set_attributes(node, {"kernel_shape": [1] * rank})


KERNELS = Kernels()
