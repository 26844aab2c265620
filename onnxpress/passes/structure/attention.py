"""attention: softmax over all pairs of positions replaced by attention of linear cost, refitted to what it said.

    softmax(s q k' + mask) v   becomes   softmax_d(a q) (softmax_n(b k' + mask) v)

Queries choose among the d features, and each feature has its own shares of the n positions (Shen et al. 2021,
Efficient Attention): rows of the product still sum to one, keys that a mask hides stay hidden, and work grows with n d
instead of n n.  The two temperatures a and b are those of a small grid that come nearest to the original on the
samples; what reads the heads is then solved by least squares for the original's outputs (`repair.refit`).

Masks that hide other positions from each query (causal ones) do not factor and are refused; one that was written out
for every query is taken where it is the same for all of them on all samples.  Where exporters guard against rows
without any key (NaN becomes 0), so does what stands here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import scipy.special

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence
from onnxpress.measure.linear import linear
from onnxpress.measure.output_gain import predicted_loss
from onnxpress.model import edit, read
from onnxpress.passes.core.contract import (
    Action,
    Applied,
    Planned,
    Proposal,
    Refusal,
    Saving,
    proposals,
    refusals,
)
from onnxpress.passes.core.options import PassOptions, option
from onnxpress.passes.core.refit import refit_layers
from onnxpress.passes.core.refit_option import refit_mode, refit_note, with_refit

_TIMES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # temperatures tried, in square roots of the original's scale
_LOOKED_AT = 32  # samples that choose them
_ENDS_SOFTMAX_AXIS = 13  # before this opset Softmax takes all axes from its own on


@dataclass(frozen=True)
class Mask:
    """What is added to the scores of keys.  times: the factor the original applies to it."""

    value: ir.Value
    times: float


@dataclass(frozen=True)
class Site:
    """softmax(scale query keys + masks) values.  query: [..., n, d]; keys: [..., d, m]; values: [..., m, e]; guarded:
    whether shares that are no numbers, of queries without keys, count as 0."""

    softmax: ir.Node
    product: ir.Node
    query: ir.Value
    keys: ir.Value
    values: ir.Value
    scale: float
    masks: tuple[Mask, ...]
    guarded: bool

    @property
    def name(self) -> str:
        return self.softmax.name or ""

    @property
    def output(self) -> ir.Value:
        return self.product.outputs[0]


@dataclass(frozen=True)
class AttentionOptions(PassOptions):
    """How many attention layers to replace."""

    count: int | None = option(
        None,
        help="Number of attention layers to replace, those with the smallest predicted loss; "
        "default: all that become cheaper.",
    )
    refit: bool = option(True, help="Refit the layers behind the attention by least squares.")

    def check(self) -> None:
        if self.count is not None and self.count < 1:
            raise InputProblem("the number of layers must be at least 1", "`count`", f"got {self.count}", "give 1")


class Attention:
    """Softmax attention replaced by attention of linear cost (Shen et al. 2021), refitted by least squares."""

    name = "attention"
    exact = False
    needs_data = True
    extra = None
    Options = AttentionOptions

    def propose(self, evidence: Evidence) -> Iterable[Proposal | Refusal]:
        """One proposal for each attention that gets cheaper."""
        able, refused = sites(evidence)
        for site in able:
            saved = _saved(site, evidence)
            if saved > 0 and evidence.data is not None:
                loss = predicted_loss(evidence, site.product.name or "", min(_errors(evidence, site).values()))
                touches = frozenset({site.name, site.product.name or ""})
                yield Proposal(site.name, {"attention": site.name}, touches, Saving(saved), loss)
            else:
                reason = (
                    "linear attention is no cheaper at this size" if evidence.data is not None else "it needs samples"
                )
                yield Refusal(site.name, reason)
        yield from refused

    def plan(self, evidence: Evidence, options: AttentionOptions) -> Planned:
        """The attention layers with the least predicted loss."""
        offers = sorted(proposals(self, evidence), key=lambda p: p.assumed_loss)[: options.count]
        notes = [] if offers else ["the model has no attention that would get cheaper"]
        return Planned(with_refit([p.action for p in offers], options.refit), notes, refusals(self, evidence))

    def apply(self, evidence: Evidence, actions: Sequence[Action]) -> Applied:
        """actions: [{"attention": name of the Softmax}, …, {"refit": "least-squares" | "none"}]."""
        if not actions:
            return Applied(evidence.model.clone())
        mode = refit_mode(actions)
        able, refused = sites(evidence)
        wanted = list(dict.fromkeys(d["attention"] for d in actions if "attention" in d))
        if not wanted:
            return Applied(evidence.model.clone(), [], refused)
        known = {s.name: s for s in able}
        for name in wanted:
            if name not in known:
                raise InputProblem(
                    "the plan replaces an attention the model does not have",
                    name,
                    "",
                    "use the plan with the model it was made for",
                )
        result = evidence.model.clone()
        there = {s.name: s for s in _matched(result)[0]}
        readers: set[str] = set()
        for name in wanted:
            errors = _errors(evidence, known[name])
            axes = [_axis_of_queries(evidence, m) for m in known[name].masks]
            _write(result, there[name], min(errors, key=lambda t: errors[t]), axes)
            readers |= _readers(there[name].output)
        edit.drop_dead(result)
        edit.forget_shapes(result)
        notes = [f"{len(wanted)} attentions of linear cost"]
        if mode != "none" and evidence.data is not None:
            notes += refit_note(refit_layers(evidence, result, readers))
        return Applied(result, notes, refused)


def sites(evidence: Evidence) -> tuple[list[Site], list[Refusal]]:
    """The attentions that can be of linear cost, and why others cannot."""
    able, refused = _matched(evidence.model)
    found = []
    for site in able:
        reason = _reason(site, evidence)
        if reason:
            refused.append(Refusal(site.name, reason))
        else:
            found.append(site)
    return found, refused


def _matched(model: ir.Model) -> tuple[list[Site], list[Refusal]]:
    found, refused = [], []
    for node in model.graph:
        if node.op_type != "Softmax" or not read.standard(node) or not node.outputs:
            continue
        shares, guarded = _behind_guard(node.outputs[0])
        product = _only_reader(shares)
        if product is None or product.op_type != "MatMul" or product.inputs[0] is not shares:
            continue  # a Softmax of something else
        scores = _scores(node.inputs[0])
        if scores is None:
            refused.append(
                Refusal(
                    node.name or "", "its scores are not one product of queries and keys, scaled and masked by sums"
                )
            )
            continue
        query, keys, scale, masks = scores
        values = product.inputs[1]
        assert values is not None
        found.append(Site(node, product, query, keys, values, scale, masks, guarded))
    return found, refused


def _behind_guard(shares: ir.Value) -> tuple[ir.Value, bool]:
    """What stands for a Softmax's output behind Where(IsNaN(shares), 0, shares), and whether there is such a thing."""
    users = {u.node.op_type: u.node for u in shares.uses()}
    asks, where = users.get("IsNaN"), users.get("Where")
    if len(users) != 2 or len(list(shares.uses())) != 2 or asks is None or where is None:
        return shares, False
    asked = where.inputs[0] is asks.outputs[0] and where.inputs[2] is shares and _only_reader(asks.outputs[0]) is where
    zero = read.constant(where.inputs[1])
    return (where.outputs[0], True) if asked and zero is not None and not zero.any() else (shares, False)


def _scores(value: ir.Value | None) -> tuple[ir.Value, ir.Value, float, tuple[Mask, ...]] | None:
    """(queries, keys, scale, masks) of scores that are scaled by numbers and masked by sums, in any order."""
    scale = 1.0
    masks: list[Mask] = []
    while (
        value is not None
        and (node := value.producer()) is not None
        and len(value.uses()) == 1
        and not value.is_graph_output()
    ):
        if not read.standard(node):
            return None
        first, second = (*node.inputs, None)[:2]
        if node.op_type == "MatMul" and first is not None and second is not None:
            return first, second, scale, tuple(masks)
        if node.op_type in ("Mul", "Div") and (number := _number(second)):
            scale *= number if node.op_type == "Mul" else 1 / number
            value = first
        elif node.op_type == "Mul" and (number := _number(first)):
            scale *= number
            value = second
        elif node.op_type == "Add" and first is not None and second is not None:
            inner = next((v for v in (first, second) if _leads_to_scores(v)), None)
            if inner is None:
                return None
            masks.append(Mask(second if inner is first else first, scale))
            value = inner
        else:
            return None
    return None


def _leads_to_scores(value: ir.Value) -> bool:
    return _scores(value) is not None


def _number(value: ir.Value | None) -> float | None:
    array = read.constant(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _reason(site: Site, evidence: Evidence) -> str:
    """Why an attention must stay; "" where it need not."""
    shapes = [_shape(v, evidence) for v in (site.query, site.keys, site.values, site.output)]
    axis = read.int_attribute(site.softmax, "axis", -1 if read.node_opset(site.softmax) >= _ENDS_SOFTMAX_AXIS else 1)
    if any(s is None or len(s) < 2 for s in shapes):
        return "the shapes of its operands are not known"
    query, keys, values, _ = (s for s in shapes if s is not None)
    if axis not in (-1, max(len(query), len(keys)) - 1):
        return "its Softmax is not over the keys"
    if site.scale <= 0:
        return "its scores are scaled by a number that is not positive"
    if len({len(query), len(keys), len(values)}) > 1 or not query[:-2] == keys[:-2] == values[:-2]:
        return "its queries, keys and values lie on different batches or heads"
    if keys[-1] == 1:
        return "one key was seen at the size it was run at: what its mask hides is not known"
    for mask in site.masks:
        shape = _shape(mask.value, evidence)
        if shape is None:
            return "the shape of its mask is not known"
        if len(shape) > len(keys) or not _same_for_all_queries(evidence, mask):
            return "its mask hides other keys from each query (a causal one, or positions' distances)"
    return ""


def _axis_of_queries(evidence: Evidence, mask: Mask) -> int | None:
    """The axis along which a mask is written out for every query; None where it is not."""
    shape = _shape(mask.value, evidence) or ()
    return len(shape) - 2 if len(shape) > 1 and shape[-2] != 1 else None


def _same_for_all_queries(evidence: Evidence, mask: Mask) -> bool:
    axis = _axis_of_queries(evidence, mask)
    if axis is None:
        return True
    fixed, name = read.constant(mask.value), mask.value.name or ""
    if fixed is None and evidence.data is None:
        return False
    seen = [fixed] if fixed is not None else (batch[name] for batch in evidence.stream([name], _LOOKED_AT))
    return all(bool((x == x.take([0], axis=axis)).all()) for x in seen)


def _shape(value: ir.Value, evidence: Evidence) -> tuple[int, ...] | None:
    array = read.constant(value)
    return evidence.trace.shape(value.name) if array is None else array.shape


def _saved(site: Site, evidence: Evidence) -> float:
    """Multiply-accumulates a sample."""
    query, keys, values = (_shape(v, evidence) or (0, 0) for v in (site.query, site.keys, site.values))
    many, (n, d), m, e = float(np.prod(query[:-2])), query[-2:], keys[-1], values[-1]
    return many * (n * m * (d + e) - d * e * (n + m))


def _errors(evidence: Evidence, site: Site) -> dict[tuple[float, float], float]:
    """Of every pair of temperatures (a, b) the share of the output's power that is lost on the samples."""
    root = float(np.sqrt(site.scale))
    lost = {(a * root, b * root): 0.0 for a, b in itertools.product(_TIMES, repeat=2)}
    power = 0.0
    for query, keys, values, mask, wanted in _seen(evidence, site):
        power += float((wanted**2).sum())
        shares = {a: scipy.special.softmax(a * query, axis=-1) for a, _ in lost}
        contexts = {b: _shares(b * keys + mask, site.guarded) @ values for _, b in lost}
        for a, b in lost:
            lost[a, b] += float(((shares[a] @ contexts[b] - wanted) ** 2).sum())
    return {pair: error / max(power, 1e-30) for pair, error in lost.items()}


def _shares(scores: np.ndarray, guarded: bool) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        shares = scipy.special.softmax(scores, axis=-1)
    return np.asarray(np.nan_to_num(shares, nan=0.0) if guarded else shares)


def _seen(
    evidence: Evidence, site: Site
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | float, np.ndarray]]:
    """(queries, keys, values, sum of masks, output) of the first samples, batch by batch."""
    operands = [site.query, site.keys, site.values, *(m.value for m in site.masks)]
    fixed = {v.name or "": a for v in operands if (a := read.constant(v)) is not None}
    names = list(dict.fromkeys(n for v in (*operands, site.output) if (n := v.name or "") not in fixed))
    for batch in evidence.stream(names, _LOOKED_AT):
        seen = fixed | batch
        query, keys, values, *hidden = (seen[v.name or ""] for v in operands)
        axes = [_axis_of_queries(evidence, m) for m in site.masks]
        rows = [h if axis is None else h.take([0], axis=axis) for h, axis in zip(hidden, axes, strict=True)]
        mask = sum((m.times * h for m, h in zip(site.masks, rows, strict=True)), start=0.0)
        yield query, keys, values, mask, seen[site.output.name or ""]


def _write(model: ir.Model, site: Site, temperatures: tuple[float, float], axes: Sequence[int | None]) -> None:
    """The product's place is taken by one of linear cost; what only the scores needed is dead then.  axes: of the
    queries in each mask, the first of which is taken."""
    anchor, dtype = site.product, np.float32
    a, b = (edit.add_constant(model, np.array(t, dtype), f"{site.name}_temperature") for t in temperatures)
    query = edit.insert_before(model, anchor, "Mul", [site.query, a], f"{site.name}_queries")
    keys = edit.insert_before(model, anchor, "Mul", [site.keys, b], f"{site.name}_keys")
    for mask, axis in zip(site.masks, axes, strict=True):
        hidden: ir.Value = mask.value
        if axis is not None:
            first = edit.add_constant(model, np.zeros(1, np.int64), f"{site.name}_first")
            hidden = edit.insert_before(model, anchor, "Gather", [hidden, first], f"{site.name}_row", {"axis": axis})
        if mask.times != 1.0:
            times = edit.add_constant(model, np.array(mask.times, dtype), f"{site.name}_times")
            hidden = edit.insert_before(model, anchor, "Mul", [hidden, times], f"{site.name}_mask")
        keys = edit.insert_before(model, anchor, "Add", [keys, hidden], f"{site.name}_masked")
    rank = {"axis": -1}
    features = edit.insert_before(model, anchor, "Softmax", [query], f"{site.name}_features", rank)
    shares = edit.insert_before(model, anchor, "Softmax", [keys], f"{site.name}_shares", rank)
    if site.guarded:
        none = edit.insert_before(model, anchor, "IsNaN", [shares], f"{site.name}_none")
        zero = edit.add_constant(model, np.array(0, dtype), f"{site.name}_zero")
        shares = edit.insert_before(model, anchor, "Where", [none, zero, shares], f"{site.name}_kept")
    context = edit.insert_before(model, anchor, "MatMul", [shares, site.values], f"{site.name}_context")
    anchor.replace_input_with(0, features)
    anchor.replace_input_with(1, context)


def _readers(value: ir.Value) -> set[str]:
    """The linear layers that read a value, directly or through what has no weights."""
    found: set[str] = set()
    ahead, seen = [value], {value}
    while ahead:
        for use in ahead.pop().uses():
            if use.node.op_type in read.WEIGHTED | read.RECURRENT:
                if linear(use.node) is not None:
                    found.add(use.node.name or "")
                continue
            ahead += [o for o in use.node.outputs if o not in seen]
            seen |= set(use.node.outputs)
    return found


ATTENTION = Attention()
