"""distill: a student's weights brought towards a teacher's answers, in closed form or by training.

A decision holds all there is to it: the teacher ("original": the model the plan began with; or a file and its hash),
which inner values are compared, and

- {"mode": "closed-form", "samples": at most so many}: every linear layer refitted by least squares to its twin in the
  teacher, front to back, with the error so far corrected (`passes/core/refit.py`; no torch);
- {"mode": "end-to-end" | "blockwise", "settings": …, "stop": step}: training with so many steps, ended at `stop`,
where the
  selection samples liked it best.  A replay trains again to that step and needs no selection samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.measure.linear import linear
from onnxpress.measure.score import Scorer
from onnxpress.model import edit
from onnxpress.model.files import load, model_hash
from onnxpress.passes.core.contract import Action, Applied, Planned, Proposal, Refusal
from onnxpress.passes.core.options import PassOptions
from onnxpress.passes.core.refit import RefitResult, refit_layers
from onnxpress.passes.core.refit_target import refit_target
from onnxpress.train.distillation.feature_matching import FeaturePair, match_features, match_layers, pair_from_dict
from onnxpress.train.distillation.output_heads import check_compatible
from onnxpress.train.optional_torch import has_torch, require_torch
from onnxpress.train.settings import TrainingSettings, settings_from_dict

ORIGINAL = "original"
CLOSED = "closed-form"
_COMPARED = 16  # samples on which the model is compared with its teacher
_SAME = 1e-8  # relative squared error of equal outputs
_SHORT = 8  # steps of the option, an example that costs little


@dataclass(frozen=True)
class Source:
    """The teacher as a plan names it: ORIGINAL, or a file with its hash."""

    file: str = ORIGINAL
    sha256: str = ""

    def plain(self) -> str | dict[str, str]:
        return ORIGINAL if self.file == ORIGINAL else {"file": self.file, "sha256": self.sha256}


@dataclass(frozen=True)
class DistillOptions(PassOptions):
    """The pass by itself refits in closed form; training runs are driven by `onnxpress.distill`."""


class Distill:
    """Knowledge distillation: the weights are brought towards a teacher's outputs, in closed form or by training."""

    name = "distill"
    exact = False
    needs_data = True
    extra = None
    Options = DistillOptions

    def propose(self, evidence: Evidence) -> Iterable[Proposal | Refusal]:
        """The closed form, and with torch a short training, towards the model that the plan began with.

        Nothing becomes smaller or faster by them, and what they lose is not known before they are tried.
        """
        reason = _nothing_to_learn(evidence)
        if reason:
            yield Refusal("model", reason)
            return
        touches = frozenset(layer.node for n in evidence.model.graph if (layer := linear(n)) is not None)
        yield Proposal("layers", {"mode": CLOSED, "teacher": ORIGINAL}, touches, loss=None)
        if not has_torch():
            yield Refusal("weights", "training needs the extra `train`")
        elif not _trainable(evidence):
            yield Refusal("weights", "the model has operators that cannot be trained")
        else:
            settings = TrainingSettings(steps=_SHORT, batch=16, lr=1e-4, features="none")
            action = training(settings, Source(), (), settings.steps)
            yield Proposal("weights", action, frozenset(evidence.model.graph.initializers), loss=None)

    def plan(self, evidence: Evidence, options: DistillOptions) -> Planned:
        """The closed form towards the model that the plan began with."""
        return Planned([{"mode": CLOSED, "teacher": ORIGINAL}])

    def apply(self, evidence: Evidence, actions: Sequence[Action]) -> Applied:
        """actions: as above, carried out one after the other."""
        if not actions:
            return Applied(evidence.model.clone())
        done = Applied(evidence.model.clone())
        for action in actions:
            data = evidence.samples()
            data = data.take(int(action["samples"])) if "samples" in action else data
            student = evidence_for(done.model, data, evidence.machine, evidence.seed, evidence.original)
            teacher = teacher_of(action, student)
            if action.get("mode") == CLOSED:
                done.model, fits = closed_form(student, teacher, _given(action))
                done.notes.append(fitted(fits))
            else:
                done.model, note = _trained(student, teacher, action)
                done.notes.append(note)
        edit.drop_dead(done.model)
        return done


def training(settings: TrainingSettings, source: Source, matched: Sequence[FeaturePair], stop: int) -> Action:
    """The decision of a training run that was best at step `stop`."""
    return {
        "mode": settings.mode,
        "teacher": source.plain(),
        "settings": {k: v for k, v in settings.as_dict().items() if k != "mode"},
        "pairs": [p.as_dict() for p in matched],
        "stop": stop,
    }


def teacher_of(action: Mapping[str, Any], evidence: Evidence) -> Evidence:
    """The teacher's evidence, its inputs and outputs under the student's names.

    Where evidence knows no original the model as it stands is its own teacher.  Raises InputProblem for a file that is
    not there, is another one than the plan was made with, or does not take and give what the student does.
    """
    named = action.get("teacher", ORIGINAL)
    if named == ORIGINAL:
        model = evidence.original if evidence.original is not None else evidence.model
    elif isinstance(named, Mapping) and "file" in named:
        model = load(Path(str(named["file"])))
        if named.get("sha256") not in (None, "", model_hash(model)):
            raise InputProblem(
                "the teacher is another file than the plan was made with",
                named["file"],
                f"expected sha256 {str(named['sha256'])[:12]}…",
                "use the teacher it was made with",
            )
    else:
        raise InputProblem("the plan names no teacher", str(named), "", f'"{ORIGINAL}", or a file with its sha256')
    return teacher_evidence(model, evidence)


def teacher_evidence(model: ir.Model, student: Evidence) -> Evidence:
    """Evidence of a teacher on the student's samples; raises InputProblem where the two do not fit."""
    check_compatible(student.model, model)
    found = evidence_for(model, student.data, student.machine, student.seed)
    edit.rename_ports(
        found.model,
        [v.name or "" for v in student.model.graph.inputs],
        [v.name or "" for v in student.model.graph.outputs],
    )
    return found


def _given(action: Mapping[str, Any]) -> list[FeaturePair] | None:
    return [pair_from_dict(p) for p in action["pairs"]] if "pairs" in action else None


def _nothing_to_learn(evidence: Evidence) -> str:
    """Why nothing can be distilled into the model, or ""."""
    if evidence.data is None:
        return "it needs samples"
    if not _distillable(evidence):
        return "no output is a float tensor"
    teacher = evidence.original
    if teacher is None or Scorer(teacher, evidence.data.take(_COMPARED)).nmse(evidence.model) < _SAME:
        return "the model gives the outputs of its teacher, the original: there is nothing to learn"
    return ""


def _distillable(evidence: Evidence) -> bool:
    return any(v.dtype is not None and v.dtype.is_floating_point() for v in evidence.model.graph.outputs)


def _trainable(evidence: Evidence) -> bool:
    from onnxpress.train.graph.program import Program

    try:
        return bool(Program(evidence.model).names)
    except InputProblem:
        return False


def closed_form(
    student: Evidence, teacher: Evidence, matched: Sequence[FeaturePair] | None = None
) -> tuple[ir.Model, list[RefitResult]]:
    """A clone of the student, each linear layer with a twin refitted to what the teacher's gives.

    matched: values of the student and their twins (default: found by name and, where narrower, by correlation).
    """
    known = match_layers(student, teacher) if matched is None else matched
    twins = {p.student: p for p in known if not p.project}
    roles = {s: p.teacher for s, p in twins.items() if p.teacher != s}
    kept = {p.teacher: np.array(p.kept) for p in twins.values() if p.kept is not None}
    changed = student.model.clone()
    known_values = set(teacher.trace.shapes)
    names = []
    for node in changed.graph:
        layer = linear(node)
        if layer is not None and layer.output in twins and len(student.trace.shapes.get(layer.output, ())) >= 2:
            target = refit_target(node, teacher, kept.get, roles)
            if {target.own, target.output} <= known_values:
                names.append(layer.node)
    return changed, refit_layers(teacher, changed, names, kept.get, roles)


def fitted(fits: Sequence[RefitResult]) -> str:
    """What a closed form did, in one line."""
    if not fits:
        return "no layer of the student has a twin in the teacher: nothing was refitted"
    before, after = (float(np.mean(v)) for v in ([f.before for f in fits], [f.after for f in fits]))
    return f"{len(fits)} layers refitted to the teacher's, held-out error {before:.4f} -> {after:.4f}"


def _trained(student: Evidence, teacher: Evidence, action: Mapping[str, Any]) -> tuple[ir.Model, str]:
    """Train again, to the recorded step."""
    require_torch("distill")
    from onnxpress.train.distillation.runner import Distillation, RunOptions

    body = dict(action.get("settings") or {})
    settings = settings_from_dict({**body, "mode": action.get("mode", "end-to-end")})
    given = _given(action)
    matched = match_features(student, teacher) if given is None else given
    stop = int(action.get("stop", settings.steps))
    job = Distillation(student, teacher, student.samples(), settings, matched)
    model, _ = job.run(RunOptions(stop=stop))
    return model, f"distilled for {stop} of {settings.steps} steps"


DISTILL = Distill()
