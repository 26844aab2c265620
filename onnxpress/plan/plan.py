"""A plan: the actions that turn one model into another, as JSON a person can read, edit, diff and commit.

`apply` replays it: the same plan, model and data give the same bytes.  Steps name passes; each pass sees the model as
the steps before it left it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

import onnxpress
from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.model.files import model_hash, write_atomic
from onnxpress.model.normal_forms.tied_weights import store_once
from onnxpress.passes.core.contract import Action, Applied, Refusal
from onnxpress.passes.registry import find_pass
from onnxpress.passes.weights.half import store_again
from onnxpress.runtime.machine import Machine, this_machine

SCHEMA = 1
CALIBRATION = 128  # samples at most that feed statistics
# calibrate, select, validate: from one source; with the validation or the selection samples named apart; to train on.
SPLITS = ((0.4, 0.3, 0.3), (0.6, 0.39, 0.01), (0.6, 0.01, 0.39), (0.8, 0.19, 0.01))


@dataclass(frozen=True)
class PlanStep:
    """samples: of the plan's data, at most so many feed this step (None: all), as `Dataset.take` draws them."""

    pass_name: str
    actions: tuple[Action, ...]
    samples: int | None = None

    def part(self, data: Dataset | None) -> Dataset | None:
        return data if data is None or self.samples is None else data.take(self.samples)

    def plain(self) -> dict[str, Any]:
        limit = {} if self.samples is None else {"samples": self.samples}
        return {"pass": self.pass_name, **limit, "actions": list(self.actions)}


@dataclass(frozen=True)
class Plan:
    """steps in order; hashes of what the plan was made for ("" where nothing was), and its number of samples; seed for
    anything random."""

    steps: tuple[PlanStep, ...]
    model_hash: str = ""
    data_hash: str = ""
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    samples: int = 0

    def then(self, pass_name: str, actions: Sequence[Action], samples: int | None = None) -> Plan:
        """This plan with one step more (none where there is nothing to do)."""
        if not actions:
            return self
        step = PlanStep(pass_name, tuple(actions), samples)
        return replace(self, steps=(*self.steps, step))

    @property
    def needs_data(self) -> bool:
        return any(find_pass(s.pass_name).needs_data for s in self.steps)

    def to_json(self) -> str:
        body: dict[str, Any] = {
            "schema": SCHEMA,
            "model": self.model_hash,
            "data": self.data_hash,
            "samples": self.samples,
            "seed": self.seed,
            "versions": self.versions,
            "steps": [s.plain() for s in self.steps],
        }
        return json.dumps(body, indent=1) + "\n"


def versions_here() -> dict[str, str]:
    """Of what decides the bytes."""
    import onnx
    import onnxruntime

    return {
        "onnxpress": onnxpress.__version__,
        "onnx": onnx.__version__,
        "onnx_ir": ir.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def new_plan(model: ir.Model, data: Dataset | None, seed: int = 0) -> Plan:
    """An empty plan for a model and its calibration samples."""
    versions = versions_here()
    if data is None:
        return Plan((), model_hash(model), "", seed, versions)
    return Plan((), model_hash(model), data.hash, seed, versions, len(data))


def read_plan(path: str | Path) -> Plan:
    """A plan from its file; raises InputProblem with the place of the first mistake.

    >>> result = onnxpress.half("model.onnx", plan="plan.json")
    >>> plan = onnxpress.read_plan("plan.json")
    """
    path = Path(path)
    try:
        body = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputProblem("no such plan", path, "", "a run folder holds plan.json") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputProblem(
            "the plan is not readable JSON", path, str(error), "compare it with the plan.json of a run"
        ) from error
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        found = body.get("schema") if isinstance(body, dict) else type(body).__name__
        raise InputProblem(
            "not a plan this version reads",
            path,
            f"schema {found}, expected {SCHEMA}",
            "make the plan with this version",
        )
    steps = []
    for number, step in enumerate(body.get("steps") or [], 1):
        good = (
            isinstance(step, dict)
            and isinstance(step.get("actions"), list)
            and all(isinstance(d, dict) for d in step["actions"])
            and isinstance(step.get("samples", 1), int)
        )
        if not good or "pass" not in step:
            raise InputProblem(
                "a step of the plan is malformed",
                f"{path}, step {number}",
                'expected {"pass": name, "actions": [{…}]}',
                "compare it with the plan.json of a run",
            )
        find_pass(step["pass"])
        steps.append(PlanStep(str(step["pass"]), tuple(step["actions"]), step.get("samples")))
    return Plan(
        tuple(steps),
        str(body.get("model", "")),
        str(body.get("data", "")),
        int(body.get("seed", 0)),
        dict(body.get("versions") or {}),
        int(body.get("samples", 0)),
    )


def write_plan(plan: Plan, path: str | Path) -> None:
    """Write a plan as JSON, atomically.

    >>> onnxpress.write_plan(onnxpress.half("model.onnx").plan, "plan.json")
    """
    write_atomic(path, plan.to_json().encode())


def apply_plan(plan: Plan, model: ir.Model, data: Dataset | None, machine: Machine | None = None) -> Applied:
    """Replay a plan.  Raises InputProblem where the plan was made for another model, or needs samples it was not
    given."""
    if plan.model_hash and plan.model_hash != model_hash(model):
        raise InputProblem(
            "the plan was made for another model",
            "",
            f"expected sha256 {plan.model_hash[:12]}…",
            "use the plan with the file it was made for",
        )
    if data is None and plan.needs_data:
        raise InputProblem(
            "the plan needs samples",
            "",
            "a step reads calibration samples",
            "give `data`, the same as when it was made",
        )
    if data is not None and plan.data_hash:
        data = calibration_part(data, plan.data_hash, plan.samples)
    if data is not None and plan.data_hash and plan.data_hash != data.hash:
        raise InputProblem(
            "the plan was made with other samples",
            "",
            f"expected sha256 {plan.data_hash[:12]}…",
            "use the calibration data it was made with",
        )
    notes: list[str] = []
    refused: list[Refusal] = []
    current = model
    for step in plan.steps:
        evidence = evidence_for(current, step.part(data), machine or this_machine(), plan.seed, model)
        done = take_step(step, evidence)
        current = done.model
        notes += done.notes
        refused = done.refused or refused
    return Applied(current, notes, refused)


def calibration_part(data: Dataset, wanted: str, count: int = CALIBRATION) -> Dataset:
    """The samples a plan was made with, found in what the user gives: the set itself, or the part the tool takes of it.

    The parts are what `optimize` and the one-lever commands draw: the calibration part of a split (all three parts
    from one source, or one of them named apart), and at most `count` samples of it.
    """
    parts = [data]
    if len(data) >= 3:
        with contextlib.suppress(InputProblem):
            halves = data.parts()
            parts += [halves.calibrate, halves.select]
        for fractions in SPLITS:
            with contextlib.suppress(InputProblem):
                parts.append(data.split(fractions).calibrate)
    for part in parts:
        for found in (part, part.take(count or CALIBRATION)):
            if found.hash == wanted:
                return found
    return data


def take_step(step: PlanStep, evidence: Evidence) -> Applied:
    """One step on the model of its evidence, as a file holds it (`as_stored`)."""
    done = find_pass(step.pass_name).apply(evidence, step.actions)
    as_stored(done.model, evidence.original or evidence.model)
    return done


def as_stored(model: ir.Model, original: ir.Model) -> None:
    """Make a result as a file holds it, in place: matrices that are one another turned once, and weights in 16 bits
    where the original's are."""
    store_once(model)
    store_again(model, original)
