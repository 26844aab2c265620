"""simplify: constant folding, graph clean-up and exact reductions.

onnxsim folds constants and cleans the graph up; it is native code and graphs come from strangers, so that it runs in a
child process under a time limit (`runtime/simplifier.py`). Where it fails, or its result is not valid or computes
something else, onnx-ir's own passes stand in, and the result says so. The reductions of `reduce.py` follow. With
`calibrated`, channels that are constant on all samples are removed, too, which is not exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.measure.score import Scorer
from onnxpress.model.checker import check_graph
from onnxpress.model.counts import macs
from onnxpress.model.files import is_large, to_bytes, weight_bytes
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.model.normal_forms.float_types import compute_in_float32, other_float_type
from onnxpress.model.signature import signature
from onnxpress.passes.core.contract import Action, Applied, Planned, Proposal, Refusal, Saving
from onnxpress.passes.core.options import PassOptions, option
from onnxpress.passes.exact.differences import changed_names
from onnxpress.passes.exact.inactive_channels import find_inactive_channels
from onnxpress.passes.exact.reduce import REDUCTIONS, reduce
from onnxpress.runtime.session import SessionSettings, open_session, run
from onnxpress.runtime.simplifier import onnxsim

WIDEN: Action = {"compute": "float32"}  # of a model in float16 or float64, so that other passes can work on it
EXACT: tuple[Action, ...] = ({"tool": "onnxsim"}, *REDUCTIONS)
_DIARY = "onnxsim."  # under what the tool notes in the file what it did: kilobytes of names that nobody reads


@dataclass(frozen=True)
class SimplifyOptions(PassOptions):
    """Whether samples may decide."""

    calibrated: bool = option(
        False, help="Also remove channels that are constant on all samples; not exact, needs `data`."
    )


class Simplify:
    """Constant folding, graph clean-up and exact reductions; the function stays the same."""

    name = "simplify"
    exact = True
    needs_data = False
    extra = None
    Options = SimplifyOptions

    def propose(self, evidence: Evidence) -> Iterable[Proposal | Refusal]:
        """The clean-up and each kind of reduction that changes this model, found by trying each on a copy."""
        for action in EXACT:
            tool = str(action.get("tool", ""))
            changed = _cleaned(evidence, tool) if tool else reduce(evidence, [action])
            if tool and changed[1]:
                yield Refusal("graph", changed[1][0])
                continue
            touches = changed_names(evidence.model, changed[0])
            if touches:
                saving = _saving(evidence, changed[0])
                yield Proposal(" ".join(str(v) for v in action.values()), dict(action), touches, saving)

    def plan(self, evidence: Evidence, options: SimplifyOptions) -> Planned:
        """The clean-up and all reductions; with samples the constant channels behind them."""
        actions = [dict(a) for a in EXACT]
        if not options.calibrated:
            return Planned(actions)
        if evidence.data is None:
            raise InputProblem("channels that are constant on samples need samples", "`calibrated`", "", "give `data`")
        exact = evidence_for(self.apply(evidence, actions).model, evidence.data, evidence.machine, evidence.seed)
        idle = find_inactive_channels(exact)
        if not idle:
            return Planned(actions, ["no channel is constant on all samples: nothing but exact reductions was done"])
        return Planned([*actions, *idle, {"remove": "idle"}], details=exact.model)

    def finish(self, evidence: Evidence, options: SimplifyOptions, planned: Planned, done: Applied) -> None:
        """Add the error of what is not exact."""
        if options.calibrated and planned.details is not None:
            error = Scorer(planned.details, evidence.samples()).nmse(done.model)
            done.notes.append(f"the outputs differ by an nmse of {error:.2g} on the samples; on others it may be more")

    def apply(self, evidence: Evidence, actions: Sequence[Action]) -> Applied:
        """actions: {"compute": "float32"} for a model in another float type, {"tool": "onnxsim" | "onnx-ir"} for the
        clean-up, some of REDUCTIONS, then (not exact) inactive channels of the reduced model and {"remove": "idle"}
        once more."""
        if not actions:
            return Applied(evidence.model.clone())
        current, notes = evidence, list[str]()
        if WIDEN in actions:
            current, notes = _widened(evidence)
        tool = next((str(a["tool"]) for a in actions if "tool" in a), "")
        if tool:
            cleaned, more_notes = _cleaned(current, tool)
            current = evidence_for(cleaned, evidence.data, evidence.machine, evidence.seed)
            notes = notes + more_notes
        rest = [a for a in actions if "tool" not in a and a != WIDEN]
        first = next((i for i, a in enumerate(rest) if "inactive" in a), len(rest))
        for stage in (rest[:first], rest[first:]):
            if stage:
                model, more_notes = reduce(current, stage)
                current = evidence_for(model, evidence.data, evidence.machine, evidence.seed)
                notes = notes + more_notes
        return Applied(current.model, notes)


def _widened(evidence: Evidence) -> tuple[Evidence, list[str]]:
    """The evidence of the model in float32, and a remark; as it is where it is in float32, or cannot be."""
    kind = other_float_type(evidence.model)
    if kind is None:
        return evidence, []
    try:
        wide = compute_in_float32(evidence.model, kind)
    except ValueError as error:
        return evidence, [f"the model stays in {kind.name.lower()}: {error}"]
    note = f"computed in float32, with the inputs and outputs in {kind.name.lower()} as they were"
    return evidence_for(wide, evidence.data, evidence.machine, evidence.seed), [note]


def _saving(evidence: Evidence, changed: ir.Model) -> Saving:
    """What is saved between the evidence's model and a changed copy."""
    after = evidence_for(changed, evidence.data, evidence.machine, evidence.seed)
    work = [sum(macs(e.model, e.trace).values()) for e in (evidence, after)]
    size = [weight_bytes(e.model) for e in (evidence, after)]
    return Saving(float(work[0] - work[1]), float(size[0] - size[1]))


def _cleaned(evidence: Evidence, tool: str) -> tuple[ir.Model, list[str]]:
    """The model cleaned up by a tool, and remarks."""
    if tool == "onnxsim":
        done = _checked(evidence.model, evidence)
        if not isinstance(done, str):
            return canonical(done), []
        return canonical(evidence.model), [f"onnxsim was not used ({done}); onnx-ir's passes were"]
    return canonical(evidence.model), []


def _checked(model: ir.Model, evidence: Evidence) -> ir.Model | str:
    """onnxsim's result if it is valid, keeps the signature and answers a sample as the original does."""
    if is_large(model):
        return "it takes no more than 2 GB"
    data = onnxsim(to_bytes(model))
    if isinstance(data, str):
        return data
    try:
        proto = onnx.load_from_string(data)
        check_graph(proto)
    except Exception as error:  # whatever a misbehaving native library left behind
        return f"its result is not valid: {type(error).__name__}"
    done: ir.Model = ir.from_proto(proto)
    inputs = ([v.name for v in g.inputs if not v.is_initializer()] for g in (done.graph, model.graph))
    if (
        [v.name for v in done.graph.outputs] != [v.name for v in model.graph.outputs]
        or len({tuple(i) for i in inputs}) > 1
        or signature(done).defaults != signature(model).defaults
    ):
        return "it changed the signature"
    before = {v.name: v for v in (*model.graph.inputs, *model.graph.outputs)}
    for port in (*done.graph.inputs, *done.graph.outputs):  # names of free sizes, too
        if (old := before.get(port.name)) is not None:
            port.shape, port.type = old.shape, old.type
    for key in [k for k in done.metadata_props if k.startswith(_DIARY) and k not in model.metadata_props]:
        done.metadata_props.pop(key)
    try:
        return done if _same(model, done, evidence) else "it changed the answers"
    except InputProblem as error:
        return f"its result does not run: {error.what}"


def _same(model: ir.Model, done: ir.Model, evidence: Evidence) -> bool:
    plain = SessionSettings(level="basic")
    old, new = (run(open_session(m, plain), evidence.probe) for m in (model, done))
    return all(
        a.shape == b.shape and (a.dtype.kind not in "fiub" or np.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True))
        for a, b in zip(old, new, strict=True)
    )


SIMPLIFY = Simplify()
