"""Fewer bits and zeros, one lever at a time: what the commands of the same names do, as functions (see one_pass.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from onnxpress.api.one_pass import ModelLike, Result, _Begun, _exact, _finish, _opened
from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence
from onnxpress.model.files import compressed_size, model_size
from onnxpress.passes.core.contract import Decision, Refused
from onnxpress.passes.int8.dynamic import plan_dynamic, refusals
from onnxpress.passes.weights.half import TYPES, plan_half
from onnxpress.passes.weights.share import Wish as ShareWish
from onnxpress.passes.weights.share import plan_sharing
from onnxpress.passes.weights.sparsify import Wish as ZerosWish
from onnxpress.passes.weights.sparsify import plan_zeros
from onnxpress.passes.weights.weights import Wish as WeightsWish
from onnxpress.passes.weights.weights import plan_weights
from onnxpress.plan.plan import CALIBRATION, Plan, Step, take_step
from onnxpress.runtime.machine import Machine, this_machine


def _decided(
    planned: tuple[list[Decision], list[Refused]], begun: _Begun, nothing: str, repair: bool
) -> tuple[list[Decision], list[Refused]]:
    """What was planned, with whether it is repaired; a note where it is nothing."""
    decisions, refused = planned
    if not decisions:
        begun.notes.append(nothing)
    elif not repair:
        decisions = [*decisions, {"repair": "none"}]
    return decisions, refused


def _nothing(smaller: float | None, what: str) -> str:
    return (
        f"no weight is large enough to be worth {what}"
        if smaller is None
        else "the simplified file is small enough as it is"
    )


def share(
    model: ModelLike,
    data: Dataset,
    wish: ShareWish | None = None,
    *,
    output: str | Path | None = None,
    plan_path: str | Path | None = None,
    repair: bool = True,
    samples: int = CALIBRATION,
    machine: Machine | None = None,
    seed: int = 0,
) -> Result:
    """Weights as codebooks and codes.  samples: at most so many feed statistics."""
    wish = wish or ShareWish()
    wish.check()
    begun = _Begun.on(model, data.take(samples), output, machine, seed)
    planned = plan_sharing(begun.evidence, wish, model_size(begun.original))
    decisions, refused = _decided(planned, begun, _nothing(wish.smaller, "a codebook"), repair)
    return begun.finish("share", decisions, None, refused, output, plan_path)


def weights(
    model: ModelLike,
    data: Dataset,
    wish: WeightsWish | None = None,
    *,
    output: str | Path | None = None,
    plan_path: str | Path | None = None,
    repair: bool = True,
    samples: int = CALIBRATION,
    machine: Machine | None = None,
    seed: int = 0,
) -> Result:
    """Weights as integers and scales, activations in float.  samples: at most so many feed statistics."""
    wish = wish or WeightsWish()
    wish.check()
    begun = _Begun.on(model, data.take(samples), output, machine, seed)
    planned = plan_weights(begun.evidence, wish, model_size(begun.original))
    decisions, refused = _decided(planned, begun, _nothing(wish.smaller, "unpacking"), repair)
    return begun.finish("weights", decisions, None, refused, output, plan_path)


def sparsify(
    model: ModelLike,
    data: Dataset,
    wish: ZerosWish | None = None,
    *,
    output: str | Path | None = None,
    plan_path: str | Path | None = None,
    repair: bool = True,
    samples: int = CALIBRATION,
    machine: Machine | None = None,
    seed: int = 0,
) -> Result:
    """Weights with zeros; the notes say what a compressed file takes.  samples: at most so many feed statistics."""
    wish = wish or ZerosWish()
    wish.check()
    begun = _Begun.on(model, data.take(samples), output, machine, seed)
    decisions, refused = _decided(
        plan_zeros(begun.evidence, wish), begun, "no weight is large enough to be worth zeros", repair
    )
    done = begun.finish("sparsify", decisions, None, refused, output, plan_path)
    before, after = (compressed_size(m) for m in (begun.original, done.model))
    size = f"{before / 1e3:,.0f} kB -> {after / 1e3:,.0f} kB ({before / max(after, 1):.2f}x)"
    done.notes.append(f"compressed by gzip: {size}; onnxruntime takes as long as before")
    return done


def half(
    model: ModelLike,
    *,
    kind: str = "float16",
    output: str | Path | None = None,
    plan_path: str | Path | None = None,
    machine: Machine | None = None,
) -> Result:
    """Weights in float16 or bfloat16, arithmetic in float32.  Needs no samples."""
    if kind not in TYPES:
        raise InputProblem("unknown type", "--type", kind, f"one of {', '.join(TYPES)}")
    original, plan, base, notes, evidence = _bare(model, output, machine)
    decisions, refused = plan_half(evidence, kind)
    if not decisions:
        notes.append("no float32 tensor is large enough to be worth a Cast")
    done = take_step(Step("half", tuple(decisions)), evidence, base)
    plan, notes = plan.then("half", decisions), notes + done.notes
    return _finish(original, done.model, plan, notes, refused, output, plan_path, None)


def dynamic(
    model: ModelLike,
    *,
    exclude: Sequence[str] = (),
    output: str | Path | None = None,
    plan_path: str | Path | None = None,
    machine: Machine | None = None,
) -> Result:
    """Dynamic int8 of every MatMul and Gemm with a constant weight, but the excluded names.  Needs no samples."""
    original, plan, base, notes, evidence = _bare(model, output, machine)
    names = {n.name or "" for n in evidence.model.graph}
    unknown = [name for name in exclude if name not in names]
    if unknown:
        raise InputProblem("no such node to exclude", unknown[0], "", "see the names with `onnxpress inspect --nodes`")
    decisions = plan_dynamic(evidence, exclude)
    if not decisions:
        notes.append("the model has no MatMul or Gemm that can run in dynamic int8")
    done = take_step(Step("dynamic", tuple(decisions)), evidence, base)
    plan, notes = plan.then("dynamic", decisions), notes + done.notes
    return _finish(original, done.model, plan, notes, refusals(evidence), output, plan_path, None)


def _bare(
    model: ModelLike, output: str | Path | None, machine: Machine | None
) -> tuple[ir.Model, Plan, ir.Model, list[str], Evidence]:
    """A model after the exact passes, without samples: original, plan, model, notes, evidence."""
    original = _opened(model, output)
    return original, *_exact(original, None, machine or this_machine(), 0)
