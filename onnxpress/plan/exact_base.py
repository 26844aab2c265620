"""The start of every lossy pass: the model after the exact rewrites, as steps of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxpress.data.dataset import Dataset
from onnxpress.errors import Problem
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.measure.model_inputs import synthetic_samples
from onnxpress.model.normal_forms.float_types import other_float_type
from onnxpress.passes.core.contract import Action, Applied
from onnxpress.passes.exact.simplify import EXACT, WIDEN
from onnxpress.plan.plan import Plan, PlanStep, new_plan, take_step
from onnxpress.plan.same_values import different_values
from onnxpress.runtime.machine import Machine

_BLOCKED = "com.microsoft.nchwc"  # domain of onnxruntime's blocked operators
FALLBACK: tuple[Action, ...] = ({"tool": "onnx-ir"},)  # where the exact rewrites fail on a model


@dataclass
class ExactBase:
    """original: the model as given. plan: the exact steps. evidence: of the rewritten model. model: that, as it is
    stored. notes: remarks of the steps."""

    original: ir.Model
    plan: Plan
    evidence: Evidence
    model: ir.Model
    notes: list[str] = field(default_factory=list)


def exact_base(
    original: ir.Model,
    data: Dataset | None,
    machine: Machine,
    seed: int = 0,
    *,
    samples: int | None = None,
    actions: tuple[Action, ...] = EXACT,
) -> ExactBase:
    """Simplify a model, in float32 where it is in float16 or float64.

    samples: of the plan's data that the step may read, where that is less than all (see PlanStep).
    """
    start = evidence_for(original, data, machine, seed, original)
    if other_float_type(start.model) is not None:
        actions = (WIDEN, *actions)
    step, done = exact_step(start, actions, samples)
    plan = new_plan(original, data, seed).then(step.pass_name, step.actions, samples)
    return ExactBase(original, plan, evidence_for(done.model, data, machine, seed, original), done.model, done.notes)


def exact_step(
    start: Evidence, actions: Sequence[Action] = EXACT, samples: int | None = None
) -> tuple[PlanStep, Applied]:
    """The exact rewrites that keep the values of the original, as a step and what it makes.

    Where the outputs of all together differ, which is a defect of one of them, only the clean-up is used, then only
    that of onnx-ir; a note says so.
    """
    original = start.original if start.original is not None else start.model
    data = start.data if start.data is not None and len(start.data) else synthetic_samples(start.model, 1, start.seed)
    notes: list[str] = []
    for tried in (tuple(actions), tuple(a for a in actions if "tool" in a), FALLBACK):
        step = PlanStep("simplify", tuple(dict(a) for a in tried), samples)
        done = take_step(step, start)
        difference = _difference(original, done.model, data)
        if not difference or tried == FALLBACK:
            break
        notes.append(f"rewrites were left out, as with them {difference}")
    done.notes = [*_saved_for_one_cpu(original), *notes, *done.notes]
    return step, done


def _saved_for_one_cpu(model: ir.Model) -> list[str]:
    """A remark on a file that onnxruntime's optimizer saved with the blocked convolutions of one CPU."""
    count = sum(node.domain == _BLOCKED for node in model.graph)
    if not count:
        return []
    return [
        f"{count} operators are in the layout of the CPU that the file was optimized on ({_BLOCKED}), which no pass "
        "can change: start from the model before, or save it with onnxruntime's optimizations at level extended"
    ]


def _difference(original: ir.Model, result: ir.Model, data: Dataset) -> str:
    try:
        return different_values(original, result, data)
    except Problem as problem:
        return f"the model does not load: {problem.what}"
