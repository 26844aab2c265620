"""One pass on one model: what every pass's command and Python function do.

The model is simplified first, so that a pass sees the graph that onnxruntime computes; the pass plans for its options,
the plan is carried out, and the result must load, keep the signature and run at every size the original runs at.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir

from onnxpress.data.any_data import DataSource, as_dataset
from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.measure.model_inputs import synthetic_samples
from onnxpress.measure.quality import QualityOptions
from onnxpress.measure.sample_doubts import first_doubts
from onnxpress.measure.score import Score, Scorer
from onnxpress.model.files import check_target, model_size, save
from onnxpress.model.parameter_count import parameters
from onnxpress.model.source import ModelSource, open_model, path_of
from onnxpress.passes.core.contract import AnyPass, Finishing, Planned, Refusal
from onnxpress.passes.core.options import PassOptions
from onnxpress.passes.registry import find_pass
from onnxpress.plan import result_contract
from onnxpress.plan.exact_base import exact_base, exact_step
from onnxpress.plan.plan import CALIBRATION, Plan, PlanStep, apply_plan, new_plan, take_step, write_plan
from onnxpress.plan.same_values import different_values
from onnxpress.result import Result, size_change_text
from onnxpress.runtime.machine import Machine, this_machine
from onnxpress.runtime.session import open_session, run

EXACT_PASS = "simplify"
_JUDGING_SECONDS, _LEAST_JUDGED, _MOST_JUDGED = 3.0, 4, 128  # of running the original on the samples of a pass's score


@dataclass(repr=False)
class PassResult(Result):
    """A new model, and how it was made.

    model: the new model. plan: the steps that make it again. bytes_before, bytes_after: sizes of the files. notes:
    remarks.
    refused: units that were left alone, with reasons. details: results of the pass, such as the sensitivity of layers.
    score: quality against the model as given, on some of the samples the pass has read (None: exact, or no samples).
    judged_by: the metrics of it, and why.
    """

    _hidden: ClassVar[frozenset[str]] = frozenset(("model", "plan"))

    name: str
    model: ir.Model
    plan: Plan
    bytes_before: int
    bytes_after: int
    notes: list[str] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    details: Any = None
    score: Score | None = None
    judged_by: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        """Number of elements of all weights."""
        return parameters(self.model)

    def save(self, path: str | Path) -> None:
        """Write the model; the file appears at once or not at all."""
        save(self.model, path)

    def facts(self) -> list[tuple[str, str]]:
        rows = [("pass", self.name), ("size", size_change_text(self.bytes_before, self.bytes_after))]
        rows.append(("parameters", f"{self.parameters:,}"))
        rows += [("quality", part.text()) for part in self.score.parts] if self.score is not None else []
        rows += [("note", note) for note in self.notes]
        return [*rows, ("left alone", f"{len(self.refused)} units")] if self.refused else rows


def run_pass(
    name: str,
    model: ModelSource,
    data: DataSource | None = None,
    options: PassOptions | None = None,
    *,
    output: str | Path | None = None,
    plan: str | Path | None = None,
    samples: int = CALIBRATION,
    seed: int = 0,
) -> PassResult:
    """Run one pass on a model.

    name: of the pass. data: samples, where the pass needs them. options: of the pass's Options class (None: its
    defaults).
    output: the file to write. plan: a file for the plan. samples: largest number of samples that feed statistics.
    seed: of anything random. Raises InputProblem on bad input, before anything is written, and EnvironmentProblem.

    >>> result = onnxpress.run_pass("prune", "model.onnx", "samples.npz", onnxpress.PruneOptions(ratio=0.3))
    """
    chosen = find_pass(name)
    options = _options_of(chosen, options)
    if samples < 1:
        raise InputProblem("the number of samples must be at least 1", "`samples`", f"got {samples}", "give 128")
    original = opened(model, output)
    if data is None and chosen.needs_data:
        raise InputProblem(f"{name} needs samples", "`data`", "no data was given", "give `data`")
    given = None if data is None else as_dataset(data, original)
    used = None if given is None else given.take(samples)
    evidence, made, notes = _prepared(name, original, used, options.target_machine(this_machine()), seed)
    notes = [*(first_doubts(original, given) if given is not None else []), *notes]
    evidence.quality = options.quality
    planned = _planned(chosen, evidence, options)
    keeps_values = chosen.exact and all("inactive" not in a for a in planned.actions)
    if name == EXACT_PASS and keeps_values:
        step, done = exact_step(evidence, planned.actions)
        planned.actions = list(step.actions)
    else:
        done = take_step(PlanStep(name, tuple(planned.actions)), evidence)
    done.notes = [*notes, *planned.notes, *done.notes]
    done.details = planned.details if done.details is None else done.details
    if isinstance(chosen, Finishing):
        chosen.finish(evidence, options, planned, done)
    result = PassResult(
        name,
        done.model,
        made.then(name, planned.actions),
        model_size(original),
        model_size(done.model),
        done.notes,
        planned.refused or done.refused,
        done.details,
    )
    if used is not None and planned.actions and not chosen.exact:
        _judge(original, result, used, options.quality)
    write_checked(original, result, used, output, plan, keeps_values)
    return result


def _planned(chosen: AnyPass, evidence: Evidence, options: PassOptions) -> Planned:
    """The actions of a pass. Raises InputProblem where there is nothing to do that the options ask for."""
    planned = chosen.plan(evidence, options)
    if planned.unchanged:
        hint = "`onnxpress inspect MODEL` shows what other passes offer"
        raise InputProblem("nothing was done", chosen.name, planned.unchanged, hint)
    return planned


def _prepared(
    name: str, original: ir.Model, data: Dataset | None, machine: Machine, seed: int
) -> tuple[Evidence, Plan, list[str]]:
    """What a pass acts on: the model as given for `simplify`, the simplified one for all others; plan and notes."""
    if name == EXACT_PASS:
        return evidence_for(original, data, machine, seed, original), new_plan(original, data, seed), []
    base = exact_base(original, data, machine, seed)
    return base.evidence, base.plan, base.notes


def _judge(original: ir.Model, result: PassResult, samples: Dataset, quality: QualityOptions) -> None:
    """Add the score of a result, on as many samples as take a few seconds, and the metrics of it.

    Raises InputProblem where what the user asks for does not fit; where nothing was asked for, a note says so.
    """
    start = time.perf_counter()
    run(open_session(original), next(iter(samples.batches(1))).inputs)
    count = int(_JUDGING_SECONDS / max(time.perf_counter() - start, 1e-6))
    try:
        scorer = Scorer(original, samples.take(min(max(count, _LEAST_JUDGED), _MOST_JUDGED)), quality=quality)
        result.score, result.judged_by = scorer.score(result.model), scorer.judge.text()
    except InputProblem as problem:
        if quality != QualityOptions():
            raise
        result.notes.append(f"not judged: {problem.line()}")


def _options_of(chosen: AnyPass, options: PassOptions | None) -> PassOptions:
    """The checked options of a pass, its defaults where none are given; raises InputProblem."""
    found = options if options is not None else chosen.Options()
    if not isinstance(found, chosen.Options):
        wanted = chosen.Options.__name__
        raise InputProblem(
            f"not options of {chosen.name}", "`options`", f"got {type(found).__name__}", f"give {wanted}"
        )
    found.checked()
    found.quality.check()
    return found


def opened(model: ModelSource, output: str | Path | None) -> ir.Model:
    """A model that onnxruntime opens; the output is checked first. Raises InputProblem."""
    path = path_of(model)
    if output is not None:
        check_target(output, *([path] if path is not None else []))
    found = open_model(model)
    open_session(found, where=str(path or ""))
    return found


def write_checked(
    original: ir.Model,
    result: PassResult,
    data: Dataset | None,
    output: str | Path | None = None,
    plan: str | Path | None = None,
    keeps_values: bool = False,
) -> None:
    """Check that a result behaves as the original at every size, then write it. Raises InputProblem where it does
    not. keeps_values: whether it must give the same outputs, too."""
    examples = data if data is not None else synthetic_samples(original, 1)
    problems = result_contract.same_shape_behaviour(original, result.model, examples)
    if not problems and keeps_values and (difference := different_values(original, result.model, examples)):
        problems = [difference]
    if problems:
        raise InputProblem(
            "the result would not keep the model's behaviour", "", problems[0], "report this model; nothing was written"
        )
    if output is not None:
        save(result.model, output)
    if plan is not None:
        write_plan(result.plan, plan)


def apply(
    plan: Plan,
    model: ModelSource,
    data: DataSource | None = None,
    *,
    output: str | Path | None = None,
    machine: Machine | None = None,
) -> PassResult:
    """Replay a plan; the bytes are those of the run that made it.

    >>> plan = onnxpress.prune("model.onnx", "samples.npz", ratio=0.3).plan
    >>> again = onnxpress.apply(plan, "model.onnx", "samples.npz")

    plan: see `read_plan`. data: the samples the plan was made with, where a step needs them. Raises InputProblem where
    model or samples are others.
    """
    original = opened(model, output)
    samples = None if data is None else as_dataset(data, original)
    done = apply_plan(plan, original, samples, machine)
    sizes = model_size(original), model_size(done.model)
    result = PassResult("apply", done.model, plan, *sizes, done.notes, done.refused)
    write_checked(original, result, samples, output)
    return result
