"""dynamic: MatMul and Gemm in int8 without calibration: the range of each input is looked at as it comes.

Plain ONNX that onnxruntime fuses: DynamicQuantizeLinear, MatMulInteger, then a Cast and a Mul by both scales (and the
bias).  Weights are s8 with a scale a column, found with rounding to nearest.  On a CPU whose u8 x s8 products saturate
a column is as fine as its heaviest pair allows (`runtime.pairs`).  Whether it is faster depends on the sizes: `bench`
tells.  Convolutions have no such kernel that is worth it: `quantize` is for them.  An embedding table that is also the
weight of such a product (a tied embedding) is stored in int8 for its look-ups, too: the file would hold it twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, EvidenceKey
from onnxpress.measure.output_gain import predicted_loss
from onnxpress.model import edit, read, submodels
from onnxpress.model.normal_forms.tied_weights import tied_to
from onnxpress.passes.core.contract import Action, Applied, Planned, Proposal, Refusal, Saving
from onnxpress.passes.core.options import TargetCpuOptions, option
from onnxpress.passes.core.rounding import symmetric_integers
from onnxpress.passes.int8.embedding_tables import products_of_table, quantizable_lookups, quantize_tables
from onnxpress.runtime import vpmaddubsw_saturation
from onnxpress.runtime.latency import Effort, compare_latency
from onnxpress.runtime.session import run, tap
from onnxpress.runtime.vpmaddubsw_saturation import MAX_WEIGHT

_OPSET = 11
_TINY = 1e-30
_INPUT_LOSS = 1e-4  # relative squared error of rounding an input to 8 bits over its range, of usual tensors
_LOOK = Effort(seconds=0.15, precision=0.02, rebuilds=1, resamples=100)
_Key = tuple[str, tuple[int, ...], tuple[int, ...]]  # operator, sizes of the input and of the weight
_SECONDS: EvidenceKey[dict[_Key, float]] = EvidenceKey("seconds saved by dynamic int8")
_NAN_INPUTS: EvidenceKey[frozenset[str]] = EvidenceKey("nodes whose inputs hold NaN")
_LOOKED_AT = 4  # samples
PRODUCTS = ("exact", "saturating")


@dataclass(frozen=True)
class DynamicOptions(TargetCpuOptions):
    """Which nodes run in dynamic int8."""

    exclude: tuple[str, ...] = option((), help="Nodes to keep in float; can be repeated.", metavar="NODE")


class Dynamic:
    """Dynamic int8 of MatMul and Gemm: no samples are needed, the range of each input is computed at run time."""

    name = "dynamic"
    exact = False
    needs_data = False
    extra = None
    Options = DynamicOptions

    def propose(self, evidence: Evidence) -> Iterable[Proposal | Refusal]:
        """Each MatMul and Gemm with a constant weight; the local loss is the relative error of weight and input."""
        undefined = _nan_inputs(evidence)
        for node in evidence.model.graph:
            if node.op_type not in ("MatMul", "Gemm") or why_not(node) is not None or node.name in undefined:
                continue
            columns = _columns(node)
            codes, scale = rounded(columns, evidence.machine.int8_exact)
            lost = float(((codes * scale - columns) ** 2).sum() / max(float((columns**2).sum()), _TINY))
            smaller = 3.0 * columns.size - 4 * len(scale) if _alone(node) else 0.0
            saving = Saving(weight_bytes=max(smaller, 0.0), seconds=_seconds_saved(evidence, node))
            touches = frozenset(n for n in (node.name, node.inputs[1].name if node.inputs[1] is not None else "") if n)
            loss = predicted_loss(evidence, node.name or "", lost + _INPUT_LOSS)
            yield Proposal(node.name or "", {"node": node.name}, touches, saving, loss)
        yield from refusals(evidence)
        yield from _nan_refusals(evidence)

    def plan(self, evidence: Evidence, options: DynamicOptions) -> Planned:
        """Every MatMul and Gemm that has a dynamic integer kernel, but the excluded ones."""
        names = {n.name or "" for n in evidence.model.graph}
        unknown = [name for name in options.exclude if name not in names]
        if unknown:
            raise InputProblem(
                "no such node to exclude", f"`exclude`: {unknown[0]}", "", "the names are those of `inspect`"
            )
        actions = plan_dynamic(evidence, options.exclude)
        notes = [] if actions else ["the model has no MatMul or Gemm that can run in dynamic int8"]
        return Planned(actions, notes, [*refusals(evidence), *_nan_refusals(evidence)])

    def apply(self, evidence: Evidence, actions: Sequence[Action]) -> Applied:
        """actions: [{"node": name}, …] and optionally {"products": "exact" | "saturating"} (default: as the evidence's
        machine computes them)."""
        names = {str(d["node"]) for d in actions if "node" in d}
        if not names:
            return Applied(evidence.model.clone())
        products = next((d["products"] for d in actions if "products" in d), products_of(evidence))
        if products not in PRODUCTS:
            raise InputProblem("unknown kind of products", str(products), "", f"one of {', '.join(PRODUCTS)}")
        work = evidence.model.clone()
        nodes = {n.name: n for n in work.graph}
        for name in sorted(names):
            reason = why_not(nodes[name]) if name in nodes else "the model does not have it"
            if reason is not None:
                raise InputProblem(
                    "the plan names a node that cannot run in dynamic int8", name, reason,
                    "use the plan with the model it was made for",
                )  # fmt: skip
        tables = _tied_tables(work, names)
        writer = _Writer(work, products == "exact")
        for node in list(work.graph):
            if node.name in names:
                writer.put(node)
        count = quantize_tables(work, tables)
        edit.drop_dead(work)
        edit.forget_shapes(work)
        kept = "" if products == "exact" else ", weights as large as pairs of products hold"
        notes = [f"{len(names)} nodes in dynamic int8{kept}"]
        notes += [f"{count} tied embedding tables in int8"] if count else []
        return Applied(work, notes, refusals(evidence))


def plan_dynamic(evidence: Evidence, exclude: Sequence[str] = ()) -> list[Action]:
    """Decisions for every MatMul and Gemm that can, but the excluded names."""
    undefined = _nan_inputs(evidence)
    found: list[Action] = [
        {"node": n.name} for n in evidence.model.graph
        if n.op_type in ("MatMul", "Gemm") and n.name not in {*exclude, *undefined} and why_not(n) is None
    ]  # fmt: skip
    return [*found, {"products": products_of(evidence)}] if found else []


def _tied_tables(model: ir.Model, names: Collection[str]) -> list[str]:
    """Look-ups whose table is the weight of some of the nodes and of no other: else the file would hold it in float as
    well."""
    tied = tied_to(model)
    found = {name: products_of_table(n, tied) for n in model.graph if (name := n.name) and n.op_type == "Gather"}
    able = quantizable_lookups(model)
    return [name for name, products in found.items() if name in able and products and products <= set(names)]


def _nan_refusals(evidence: Evidence) -> list[Refusal]:
    reason = "its input holds NaN in masked rows, which would spread to all of them"
    return [Refusal(name, reason) for name in sorted(_nan_inputs(evidence))]


def _nan_inputs(evidence: Evidence) -> frozenset[str]:
    """Nodes whose inputs hold NaN on samples, or where half of a mask is taken away: their range would be NaN, too."""
    return evidence.derive(_NAN_INPUTS, lambda: _find_nan_inputs(evidence))


def _find_nan_inputs(evidence: Evidence) -> frozenset[str]:
    nodes = [n for n in evidence.model.graph if why_not(n) is None]
    read_by = {n.name or "": n.inputs[0].name or "" for n in nodes if n.inputs[0] is not None}
    names = sorted({v for v in read_by.values() if v not in evidence.signature.input_names})
    if not names:
        return frozenset()
    feeds = [b.inputs for b in evidence.data.take(_LOOKED_AT).batches(1)] if evidence.data is not None else []
    session, undefined = tap(evidence.model, names), set[str]()
    for one in (*feeds, evidence.probe, _half_masked(evidence.probe)):
        try:
            values = run(session, one)
        except InputProblem:  # no mask after all
            continue
        undefined |= {n for n, v in zip(names, values, strict=True) if v.dtype.kind == "f" and np.isnan(v).any()}
    return frozenset(name for name, value in read_by.items() if value in undefined)


def _half_masked(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The feeds with zeros in the second half of every mask (a boolean, or whole numbers under that name)."""
    changed = {}
    for name, value in feeds.items():
        if value.ndim and (value.dtype.kind == "b" or (value.dtype.kind in "iu" and "mask" in name.lower())):
            value = value.copy()
            value[..., value.shape[-1] // 2 :] = 0
        changed[name] = value
    return changed


def products_of(evidence: Evidence) -> str:
    return PRODUCTS[0] if evidence.machine.int8_exact else PRODUCTS[1]


def refusals(evidence: Evidence) -> list[Refusal]:
    """Weighted nodes that stay in float, and why."""
    return [
        Refusal(n.name or "", why)
        for n in evidence.model.graph
        if n.op_type in read.WEIGHTED and (why := why_not(n)) is not None
    ]


def why_not(node: ir.Node) -> str | None:
    """None where a node can run in dynamic int8; else why not."""
    if node.op_type not in ("MatMul", "Gemm") or not read.standard(node):
        return f"{node.op_type} has no dynamic integer kernel worth it"
    weight = read.constant(node.inputs[1])
    if weight is None or node.inputs[0] is None or read.constant(node.inputs[0]) is not None:
        return read.why_not_constant(node.inputs[1]) if weight is None else "its input is a constant"
    if weight.dtype != np.float32 or node.inputs[0].dtype not in (None, ir.DataType.FLOAT):
        return f"its weight is {weight.dtype.name}" if weight.dtype != np.float32 else "its input is not float32"
    if weight.ndim != 2 or not weight.size:
        return "its weight is not a matrix"
    if not np.isfinite(weight).all():
        return "its weight is not finite"
    if read.node_opset(node) < _OPSET:
        return f"operator set below {_OPSET} has no DynamicQuantizeLinear"
    if node.op_type == "Gemm":
        if read.int_attribute(node, "transA", 0) or read.float_attribute(node, "alpha", 1.0) != 1.0:
            return "its Gemm flags have no integer kernel"
        if read.column_bias(node, weight.shape[0 if read.int_attribute(node, "transB", 0) else 1]) is None:
            return "its bias is not one constant a column"
    return None


def _seconds_saved(evidence: Evidence, node: ir.Node) -> float:
    """Seconds that a node saves in dynamic int8, timed alone at the size of the trace; 0 where it is not faster.

    Nodes of equal sizes are timed once.
    """
    source = node.inputs[0]
    shape = evidence.trace.shape(source.name) if source is not None else None
    if shape is None:
        return 0.0
    known = evidence.derive(_SECONDS, dict)
    key = (node.op_type, tuple(shape), _columns(node).shape)
    if key not in known:
        base = submodels.single_node_model(evidence.model, node, ir.DataType.FLOAT)
        other = base.clone()
        _Writer(other, evidence.machine.int8_exact).put(next(n for n in other.graph if n.op_type == node.op_type))
        edit.drop_dead(other)
        feeds = {"input": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
        timed = compare_latency({"float": base, "int8": other}, [feeds], _LOOK)
        known[key] = max(timed.timings[0].median - timed.timings[1].median, 0.0) if timed.ratios[0].low > 1 else 0.0
    return known[key]


def _columns(node: ir.Node) -> np.ndarray:
    """The weight [K, N]."""
    weight = read.constant(node.inputs[1])
    assert weight is not None
    return weight.T if node.op_type == "Gemm" and read.int_attribute(node, "transB", 0) else weight


def _alone(node: ir.Node) -> bool:
    value = node.inputs[1]
    return value is not None and len(list(value.uses())) == 1


def rounded(columns: np.ndarray, exact: bool) -> tuple[np.ndarray, np.ndarray]:
    """(s8 codes [K, N], scale [N]) of a weight [K, N], each column to its own largest. exact: products do not
    saturate."""
    rows, peaks = columns.T.astype(np.float64), np.full(len(columns), 255.0)  # an input's range is used whole
    top = np.maximum(np.abs(rows).max(axis=1), _TINY)
    most = (
        np.full(len(rows), float(MAX_WEIGHT))
        if exact
        else vpmaddubsw_saturation.max_weight_codes(np.rint(rows / (top / MAX_WEIGHT)[:, None]), peaks)
    )
    scale = (top / most).astype(np.float32)
    codes = symmetric_integers(rows, scale[:, None], most[:, None])
    return (codes if exact else vpmaddubsw_saturation.clamp_pairs(codes, peaks)).T.astype(np.int8), scale


@dataclass
class _Writer:
    """Writes nodes into one model; inputs that several read are quantized once, and weights that several share once."""

    work: ir.Model
    exact: bool
    inputs: dict[str, Sequence[ir.Value]] = field(default_factory=dict)
    weights: dict[str, tuple[ir.Value, ir.Value, ir.Value]] = field(default_factory=dict)

    def put(self, node: ir.Node) -> None:
        source = node.inputs[0]
        assert source is not None
        bias = read.column_bias(node, _columns(node).shape[1]) if node.op_type == "Gemm" else None
        codes, scale, zero = self._input(node, source)
        weight, factor, origin = self._weight(node)
        stem = node.name or "matmul"
        whole = edit.insert_before(self.work, node, "MatMulInteger", [codes, weight, zero, origin], f"{stem}_int")
        real = edit.insert_before(self.work, node, "Cast", [whole], f"{stem}_cast", {"to": ir.DataType.FLOAT.value})
        both = edit.insert_before(self.work, node, "Mul", [scale, factor], f"{stem}_scales")
        made = edit.insert_before(self.work, node, "Mul", [real, both], f"{stem}_scaled")
        if bias is not None and bias.any():
            add = edit.add_constant(self.work, bias.astype(np.float32), f"{stem}_bias")
            made = edit.insert_before(self.work, node, "Add", [made, add], f"{stem}_biased")
        edit.replace_value(self.work, node.outputs[0], made)

    def _input(self, node: ir.Node, source: ir.Value) -> Sequence[ir.Value]:
        name = source.name or ""
        if name not in self.inputs:
            self.inputs[name] = edit.insert_many(
                self.work, node, "DynamicQuantizeLinear", [source], f"{name}_dynamic", 3
            )
        return self.inputs[name]

    def _weight(self, node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
        value = node.inputs[1]
        assert value is not None
        key = f"{value.name} {read.int_attribute(node, 'transB', 0) if node.op_type == 'Gemm' else 0}"
        if key not in self.weights:
            codes, scale = rounded(_columns(node), self.exact)
            parts = {"int8": codes, "scale": scale, "zero": np.zeros((), np.int8)}
            made = [edit.add_constant(self.work, a, f"{value.name}_{kind}") for kind, a in parts.items()]
            self.weights[key] = (made[0], made[1], made[2])
        return self.weights[key]


DYNAMIC = Dynamic()
