"""half: weights kept as float16 or bfloat16, half the bytes; a Cast that onnxruntime folds at load makes float32 of
them.

The arithmetic stays float32: onnxruntime's CPU kernels gain nothing from 16 bits (it computes them as float32 between
Casts), so that only the file gets smaller.  A tensor whose values 16 bits cannot hold stays as it is: float16 ends at
65504 and holds nothing below 6e-8; bfloat16 reaches as far as float32 but has 8 bits of precision, where float16 has
11.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence
from onnxpress.measure.output_gain import summed_predicted_loss
from onnxpress.model import edit, read
from onnxpress.model.normal_forms.float_types import sixteen_bit_type
from onnxpress.passes.core.contract import Action, Applied, Planned, Proposal, Refusal, Saving
from onnxpress.passes.core.options import PassOptions, option

TYPES: dict[str, np.dtype] = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_PRECISION = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
_OPSET = {"float16": 6, "bfloat16": 13}  # from which on Cast knows the type
_LEAST = 64  # elements from which a Cast costs less than it saves
_NODE = 80  # bytes of a Cast and its names


@dataclass(frozen=True)
class HalfOptions(PassOptions):
    """Which 16-bit type weights are stored in."""

    type: str = option(
        "float16", help="float16 is more precise, bfloat16 has the range of float32.", choices=tuple(TYPES)
    )


class Half:
    """Weights stored as float16 or bfloat16: half the file. The arithmetic stays float32, so the speed stays the
    same."""

    name = "half"
    exact = False
    needs_data = False
    saves_time = False
    extra = None
    Options = HalfOptions

    def propose(self, evidence: Evidence) -> Iterable[Proposal | Refusal]:
        """Each tensor that a type can represent, in float16 and in bfloat16."""
        for kind in TYPES:
            able, refused = halvable(evidence.model, kind)
            for value in able:
                array, name = _array(value), value.name or ""
                readers = [use.node.name or "" for use in value.uses()]
                loss = summed_predicted_loss(evidence, readers, _lost(array, kind))
                saving = Saving(weight_bytes=array.nbytes / 2 - _NODE)
                yield Proposal(name, {"tensor": name, "type": kind}, frozenset({name, *readers}), saving, loss)
            yield from refused

    def plan(self, evidence: Evidence, options: HalfOptions) -> Planned:
        """Every tensor that the type can represent."""
        actions, refused = plan_half(evidence, options.type)
        notes = [] if actions else ["no float32 tensor is large enough to be worth a Cast"]
        return Planned(actions, notes, refused)

    def apply(self, evidence: Evidence, actions: Sequence[Action]) -> Applied:
        """actions: [{"tensor": initializer name, "type": "float16" | "bfloat16"}, …]; the last for a tensor counts."""
        if not actions:
            return Applied(evidence.model.clone())
        wanted = {str(d.get("tensor")): str(d.get("type")) for d in actions}
        able = {
            kind: {v.name for v in halvable(evidence.model, kind)[0]} for kind in set(wanted.values()) & TYPES.keys()
        }
        for name, kind in wanted.items():
            if kind not in TYPES:
                raise InputProblem("unknown type", name, kind, f"one of {', '.join(TYPES)}")
            if name not in able[kind]:
                raise InputProblem(
                    f"the plan names a tensor that the model does not have, or that {kind} cannot hold", name, "",
                    "use the plan with the model it was made for",
                )  # fmt: skip
        work = evidence.model.clone()
        store(work, wanted)
        edit.forget_floats(work)
        kinds = ", ".join(
            f"{list(wanted.values()).count(kind)} tensors in {kind}" for kind in sorted(set(wanted.values()))
        )
        refused = halvable(evidence.model, next(iter(wanted.values())))[1]
        return Applied(work, [f"{kinds}; the arithmetic stays float32 (the CPU gains no speed from 16 bits)"], refused)


def store(work: ir.Model, wanted: Mapping[str, str]) -> None:
    """Keep initializers in 16 bits, in place, behind a Cast. wanted: the type by name."""
    first = next(iter(work.graph))
    for name, kind in wanted.items():
        value = work.graph.initializers[name]
        short = edit.add_constant(work, _array(value).astype(TYPES[kind]), "half")
        wide = edit.insert_before(work, first, "Cast", [short], "wide", {"to": ir.DataType.FLOAT.value})
        edit.reroute(work, value, wide)
    edit.drop_dead(work)


def store_again(work: ir.Model, original: ir.Model) -> None:
    """Where the original's file keeps weights in 16 bits, keep those of a result so as well, in place."""
    kind = sixteen_bit_type(original)
    if kind is not None:
        name = kind.name.lower()
        store(work, {v.name or "": name for v in halvable(work, name)[0]})


def plan_half(evidence: Evidence, kind: str) -> tuple[list[Action], list[Refusal]]:
    """Decisions for every tensor that the type holds, and those left in float32 with the reason."""
    able, refused = halvable(evidence.model, kind)
    return [{"tensor": v.name, "type": kind} for v in able], refused


def halvable(model: ir.Model, kind: str) -> tuple[list[ir.Value], list[Refusal]]:
    """The float32 initializers that can be kept in a type, in the model's order, and the large ones that cannot."""
    inner = {name for node in model.graph if read.has_subgraph(node) for name in read.captured(node)}
    found, refused = [], []
    for value in model.graph.initializers.values():
        tensor = read.constant_tensor(value)
        if tensor is None or tensor.size < _LEAST:
            continue
        if tensor.dtype != ir.DataType.FLOAT:
            if tensor.dtype.is_floating_point():
                refused.append(Refusal(value.name or "", f"it is {tensor.dtype.name.lower()}, not float32"))
            continue
        reason = _why_not(value, inner, kind)
        if reason is None:
            found.append(value)
        else:
            refused.append(Refusal(value.name or "", reason))
    return found, refused


def _why_not(value: ir.Value, inner: set[str], kind: str) -> str | None:
    nodes = [use.node for use in value.uses()]
    if not nodes or value.is_graph_output():
        return "it is an output"
    if value.name in inner or any(read.has_subgraph(n) for n in nodes):
        return "it is read by a sub-graph"
    if read.node_opset(nodes[0]) < _OPSET[kind]:
        return f"operator set below {_OPSET[kind]} has no Cast from {kind}"
    if any("Quantize" in n.op_type or n.op_type.startswith("QLinear") for n in nodes):
        return "it is a scale, which kernels want to see as it is"
    array = _array(value)
    with np.errstate(over="ignore"):
        short = array.astype(TYPES[kind]).astype(np.float64)
    if not np.isfinite(short).all():
        return f"{kind} cannot hold its values, which reach {np.abs(array).max():.1e}"
    gap, size = np.abs(short - array), np.abs(array).astype(np.float64)
    if any((gap > _PRECISION[kind] * _beside(size, use.node, use.idx)).any() for use in value.uses()):
        return f"{kind} would lose its smallest values"
    return None


def _beside(size: np.ndarray, node: ir.Node, operand: int) -> np.ndarray:
    """Beside what the rounding error of each number counts where an operator reads them, to broadcast.

    size: the absolute values. What is added up counts beside the largest of its row and of its column, a number of a
    vector beside the largest of the vector; what is multiplied elementwise counts alone.
    """
    rank = size.ndim
    if rank == 0:
        return size
    weighted = operand == 1 and node.op_type in (*read.WEIGHTED, "Attention")
    rows: tuple[tuple[int, ...], ...] = ()  # axes along which the largest is taken
    if (weighted or (node.op_type == "MatMul" and operand == 0)) and rank > 1:
        kernels = node.op_type in ("Conv", "ConvTranspose")
        rows = tuple(tuple(a for a in range(rank) if a != i) for i in (0, 1)) if kernels else ((rank - 1,), (rank - 2,))
    elif node.op_type in read.RECURRENT and operand in (1, 2):
        rows = ((2,), (1,))
    elif node.op_type == "Einsum" and rank > 1:
        rows = tuple(tuple(a for a in range(rank) if a != i) for i in range(rank))
    elif _is_added(node, operand) or (node.op_type == "Gather" and operand == 0 and rank > 1):
        rows = ((rank - 1,),)
    return functools.reduce(np.minimum, [size.max(axis=axes, keepdims=True) for axes in rows]) if rows else size


def _is_added(node: ir.Node, operand: int) -> bool:
    """Whether an operator adds what it reads there: a bias, or a table of positions."""
    biased = {"LayerNormalization": 2, "InstanceNormalization": 2, "GroupNormalization": 2, "BatchNormalization": 2}
    if node.op_type in (*read.WEIGHTED, "Attention"):
        return operand == 2
    if node.op_type in read.RECURRENT:
        return operand == 3
    return node.op_type in ("Add", "Sub") or biased.get(node.op_type) == operand


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


def _lost(array: np.ndarray, kind: str) -> float:
    gap = array.astype(TYPES[kind]).astype(np.float64) - array
    return float((gap * gap).sum() / max(float((array.astype(np.float64) ** 2).sum()), 1e-30))


HALF = Half()
