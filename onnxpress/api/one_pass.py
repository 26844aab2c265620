"""One lever at a time, and the measuring tools: what the commands of the same names do, as functions.

Each takes a model (a path or an onnx-ir model) and returns plain results; writing files is the caller's choice through
`output`, and then happens at once or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from onnxpress.data.dataset import Dataset
from onnxpress.data.synthetic import synthetic
from onnxpress.errors import InputProblem
from onnxpress.evaluate.profile_comparison import ProfileComparison, profile_compare
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.measure.score import Scorer
from onnxpress.model.files import check_target, load, model_size, save
from onnxpress.model.signature import signature
from onnxpress.passes.core.contract import Decision, Refused
from onnxpress.passes.exact.inactive_channels import inactive
from onnxpress.passes.exact.reduce import REDUCE
from onnxpress.passes.int8.calibration import Rule
from onnxpress.passes.int8.calibration_file import read_ranges, write_ranges
from onnxpress.passes.int8.quantization_recipe import Recipe
from onnxpress.passes.int8.quantization_recipe import Wish as RecipeWish
from onnxpress.passes.int8.quantize import FORMATS, decisions_for
from onnxpress.passes.int8.sensitivity import Layer, candidates, sensitivity
from onnxpress.passes.pruning.allocation import Wish, plan_pruning
from onnxpress.passes.pruning.prune_to_speedup import fast_enough
from onnxpress.passes.structure.depth import Wish as DepthWish
from onnxpress.passes.structure.depth import plan_depth, removable
from onnxpress.passes.structure.lowrank import Wish as LowRankWish
from onnxpress.passes.structure.lowrank import plan_lowrank
from onnxpress.plan import result_contract
from onnxpress.plan.plan import CALIBRATION, Plan, Step, apply_plan, new_plan, take_step, write_plan
from onnxpress.runtime.machine import Machine, this_machine
from onnxpress.runtime.session import open_session

ModelLike = str | Path | ir.Model
_PROFILED = 1.0  # seconds of looking where the time goes, before and after together


@dataclass
class Result:
    """A new model with its plan; before and after in bytes; what was said and what was left alone; layers: what each harms in
    int8, profile_comparison: where the time goes before and after, both where that was asked for."""

    model: ir.Model
    plan: Plan
    before: int
    after: int
    notes: list[str] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    profile_comparison: ProfileComparison | None = None


def _opened(model: ModelLike, output: str | Path | None) -> ir.Model:
    if output is not None:
        check_target(output, *([model] if not isinstance(model, ir.Model) else []))
    opened = model if isinstance(model, ir.Model) else load(model)
    open_session(opened, where=model if not isinstance(model, ir.Model) else "")
    return opened


def _finish(
    original: ir.Model,
    model: ir.Model,
    plan: Plan,
    notes: list[str],
    refused: list[Refused],
    output: str | Path | None,
    plan_path: str | Path | None,
    data: Dataset | None,
) -> Result:
    """Check the result as the contract does, then write it."""
    samples = data if data is not None else synthetic(signature(original), 1)
    problems = result_contract.same_shape_behaviour(original, model, samples)
    if problems:
        raise InputProblem(
            "the result would not keep the model's behaviour", "", problems[0], "report this model; nothing was written"
        )
    before, after = model_size(original), model_size(model)
    if output is not None:
        save(model, output)
    if plan_path is not None:
        write_plan(plan, plan_path)
    return Result(model, plan, before, after, notes, refused)


def _exact(
    original: ir.Model, data: Dataset | None, machine: Machine, seed: int
) -> tuple[Plan, ir.Model, list[str], Evidence]:
    """simplify and reduce, as a start for the lossy passes."""
    plan, model = new_plan(original, data, seed), original
    notes: list[str] = []
    for name in ("simplify", "reduce"):
        evidence = evidence_for(model, data, machine, seed)
        decisions = (
            [{"tool": "onnxsim"}] if name == "simplify" else [o.decision for o in REDUCE.options(model, evidence)]
        )
        done = take_step(Step(name, tuple(decisions)), evidence, model)
        plan, model, notes = plan.then(name, decisions), done.model, notes + done.notes
    return plan, model, notes, evidence_for(model, data, machine, seed)


def simplify(
    model: ModelLike,
    data: Dataset | None = None,
    *,
    output: str | Path | None = None,
    plan_path: str | Path | None = None,
    machine: Machine | None = None,
) -> Result:
    """Exact passes only, which need no samples; with data, what no sample moves goes, too, and how far that goes is said."""
    original = _opened(model, output)
    used = None if data is None else data.take(CALIBRATION)
    plan, result, notes, evidence = _exact(original, used, machine or this_machine(), 0)
    if used is not None:
        idle = inactive(evidence)
        if idle:
            decisions = [*idle, {"remove": "idle"}]
            done = take_step(Step("reduce", tuple(decisions)), evidence, result)
            far = Scorer(result, used).score(done.model).nmse
            plan, result = plan.then("reduce", decisions), done.model
            notes = [
                *notes,
                *done.notes,
                f"on the samples the outputs differ by an nmse of {far:.2g}; others may differ more",
            ]
        else:
            notes = [*notes, "every channel is moved by some sample: nothing lossy was done"]
    return _finish(original, result, plan, notes, [], output, plan_path, used)


@dataclass
class _Begun:
    """A model after the exact passes, from which a lever that repairs starts."""

    original: ir.Model
    plan: Plan
    base: ir.Model
    notes: list[str]
    evidence: Evidence
    used: Dataset

    @classmethod
    def on(
        cls, model: ModelLike, used: Dataset, output: str | Path | None, machine: Machine | None, seed: int
    ) -> _Begun:
        original = _opened(model, output)
        return cls(original, *_exact(original, used, machine or this_machine(), seed), used)

    def finish(
        self,
        name: str,
        decisions: list[Decision],
        repair: bool | None,
        refused: list[Refused],
        output: str | Path | None,
        plan_path: str | Path | None,
    ) -> Result:
        """Carry the decisions of one pass out, with or without refitting (None: as they say themselves), and write."""
        if decisions and repair is not None:
            decisions = [*decisions, {"repair": "least-squares" if repair else "none"}]
        done = take_step(Step(name, tuple(decisions)), self.evidence, self.base)
        plan, notes = self.plan.then(name, decisions), self.notes + done.notes
        return _finish(self.original, done.model, plan, notes, refused, output, plan_path, self.used)


def prune(
    model: ModelLike,
    data: Dataset,
    wish: Wish,
    *,
    output: str | Path | None = None,
    plan_path: str | Path | None = None,
    repair: bool = True,
    samples: int = CALIBRATION,
    machine: Machine | None = None,
    seed: int = 0,
) -> Result:
    """Remove channels and refit.  samples: at most so many feed statistics."""
    wish.check()
    begun = _Begun.on(model, data.take(samples), output, machine, seed)
    evidence = begun.evidence
    decisions = (
        fast_enough(evidence, wish, begun.original, begun.notes) if wish.speedup else plan_pruning(evidence, wish)
    )
    if not decisions:
        begun.notes.append("no channel group can be narrowed by this ratio on this CPU's kernel widths")
    refused = [Refused(r.node, r.reason) for r in evidence.channels.refused]
    return begun.finish("prune", decisions, repair, refused, output, plan_path)


def depth(
    model: ModelLike,
    data: Dataset,
    wish: DepthWish,
    *,
    output: str | Path | None = None,
    plan_path: str | Path | None = None,
    repair: bool = True,
    samples: int = CALIBRATION,
    machine: Machine | None = None,
    seed: int = 0,
) -> Result:
    """Take whole blocks out and refit the rest.  samples: at most so many feed statistics and choices."""
    wish.check()
    begun = _Begun.on(model, data.take(samples), output, machine, seed)
    evidence = begun.evidence
    decisions = plan_depth(evidence, wish)
    if not decisions and removable(evidence)[0]:
        begun.notes.append("no block can go: even one would lose more than --max-drop")
    elif not decisions:
        begun.notes.append("the model has no block that can go: no residual branch and no run between equal shapes")
    refused = removable(evidence)[1]
    return begun.finish("depth", decisions, repair, refused, output, plan_path)


def lowrank(
    model: ModelLike,
    data: Dataset,
    wish: LowRankWish,
    *,
    output: str | Path | None = None,
    plan_path: str | Path | None = None,
    repair: bool = True,
    samples: int = CALIBRATION,
    machine: Machine | None = None,
    seed: int = 0,
) -> Result:
    """Factor weights, for latency only where this CPU is faster so.  samples: at most so many feed statistics."""
    wish.check()
    begun = _Begun.on(model, data.take(samples), output, machine, seed)
    decisions, refused = plan_lowrank(begun.evidence, wish)
    if not decisions:
        begun.notes.append("no layer gains from being factored this far on this CPU")
    return begun.finish("lowrank", decisions, repair, refused, output, plan_path)


def quantize(
    model: ModelLike,
    data: Dataset,
    *,
    method: Rule | Path = "auto",
    equalize: bool | None = None,
    rounding: str | None = None,
    form: str = FORMATS[0],
    activations: int = 8,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    max_drop: float | None = None,
    report: bool = False,
    output: str | Path | None = None,
    plan_path: str | Path | None = None,
    samples: int = CALIBRATION,
    machine: Machine | None = None,
    seed: int = 0,
) -> Result:
    """Static int8 of every node with an integer kernel that `include` means (nothing: all) and `exclude` does not.

    method: how ranges are found, or [low, high] by tensor; a path: of a file that is read, or written where it is not there;
    equalize: bring channels to like ranges first; rounding: of weights, "nearest" or "output"; None: where it harms less on the samples;
    form: "qdq", or "qoperator" for integer operators in place of pairs; activations: their bits, 8 or 16 (no CPU kernels);
    max_drop: as few layers as need be stay in float for the drop on the samples to be within it, all of them if it must be;
    report: say what each layer harms.
    """
    file = method if isinstance(method, Path) else None
    wish = RecipeWish("auto" if isinstance(method, Path) else method, equalize, rounding, bits=activations)
    wish.check()
    if activations > 8 and form != FORMATS[0]:
        raise InputProblem("no integer operators of 16 bits", "--format, --activations", "", "use pairs (qdq) for them")
    if file is not None and not file.exists():
        check_target(file)
    original = _opened(model, output)
    used = data.take(samples)
    plan, base, notes, evidence = _exact(original, used, machine or this_machine(), seed)
    if file is not None and file.exists():
        wish = read_ranges(file, evidence, wish)
    chosen, looked_up = candidates(evidence, tuple(include), tuple(exclude))
    looking = (chosen or looked_up) and (report or max_drop is not None)
    found = sensitivity(evidence, chosen, max_drop, wish, looked_up) if looking else None
    if found is not None:
        chosen, looked_up = found.chosen, found.looked_up
        floats = [layer.node for layer in found.layers if not layer.int8]
        if max_drop is not None:
            notes.append(
                f"drop {found.drop:.4f} on the samples; {len(floats)} of {len(found.layers)} layers stay in float"
            )
    decisions = decisions_for(chosen, evidence, wish, looked_up=looked_up)
    if decisions and form != FORMATS[0]:
        decisions.append({"format": form})
    if file is not None and not file.exists():
        write_ranges(file, evidence, Recipe.said(decisions))
    if not decisions and found is None:
        notes.append("no operator of the model has an integer kernel, or all are quantized already or excluded")
    done = take_step(Step("quantize", tuple(decisions)), evidence, base)
    plan, notes = plan.then("quantize", decisions), notes + done.notes
    result = _finish(original, done.model, plan, notes, done.refused, output, plan_path, used)
    if found is not None:
        result.layers = found.layers
    if report and machine in (None, this_machine()):
        result.profile_comparison = profile_compare(
            original, result.model, next(iter(used.batches(1))).inputs, _PROFILED
        )
        spent = {p.name: p for p in result.profile_comparison.layers}
        result.layers = [
            replace(x, before=spent[x.node].before or None, after=spent[x.node].after or None) if x.node in spent else x
            for x in result.layers
        ]
    return result


def apply(
    plan: Plan,
    model: ModelLike,
    data: Dataset | None = None,
    *,
    output: str | Path | None = None,
    machine: Machine | None = None,
) -> Result:
    """Replay a plan; the bytes are those of the run that made it."""
    original = _opened(model, output)
    done = apply_plan(plan, original, data, machine)
    return _finish(original, done.model, plan, done.notes, done.refused, output, None, data)
