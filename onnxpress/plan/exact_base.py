"""The start of every lossy pass: the model after the exact rewrites, as steps of a plan."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from onnxpress.data.dataset import Dataset
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.passes.core.contract import Action
from onnxpress.passes.exact.simplify import EXACT
from onnxpress.plan.plan import Plan, PlanStep, new_plan, take_step
from onnxpress.runtime.machine import Machine

FALLBACK: tuple[Action, ...] = ({"tool": "onnx-ir"},)  # where the exact rewrites fail on a model


@dataclass
class ExactBase:
    """original: the model as given. plan: the exact steps. evidence: of the rewritten model. notes: remarks of the
    steps."""

    original: ir.Model
    plan: Plan
    evidence: Evidence
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
    """Simplify a model. samples: of the plan's data that the step may read, where that is less than all (see Step)."""
    start = evidence_for(original, data, machine, seed, original)
    step = PlanStep("simplify", tuple(dict(a) for a in actions), samples)
    done = take_step(step, start)
    plan = new_plan(original, data, seed).then(step.pass_name, step.actions, samples)
    return ExactBase(original, plan, evidence_for(done.model, data, machine, seed, original), done.notes)
