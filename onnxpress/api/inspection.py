"""inspect: what a file holds, and what every pass of the registry could do to it, with predictions and refusals."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar

import onnx_ir as ir

from onnxpress.data.any_data import DataSource, as_dataset
from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem, Problem
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.measure.model_inputs import synthetic_samples
from onnxpress.model import read
from onnxpress.model.counts import macs
from onnxpress.model.files import file_size, model_hash, model_size
from onnxpress.model.parameter_count import parameters
from onnxpress.model.signature import Signature, signature
from onnxpress.model.source import ModelSource, open_model, path_of, source_name
from onnxpress.passes.core.contract import AnyPass, Proposal, Refusal
from onnxpress.passes.exact.simplify import SIMPLIFY
from onnxpress.passes.registry import all_passes, package_of
from onnxpress.passes.rewriting.rewrite import FamilyGain, measured_gains
from onnxpress.plan.exact_base import exact_base
from onnxpress.progress import Progress, no_progress
from onnxpress.result import Result, size_text
from onnxpress.runtime.latency import Ratio
from onnxpress.runtime.machine import this_machine
from onnxpress.runtime.session import trace
from onnxpress.runtime.time_limit import OutOfTime, check_time, time_limit

_SAMPLES = 64  # of the given data
_SYNTHETIC = 8  # inputs where no data is given
_MOST = 100_000  # proposals of one pass
_TIMED = 0.25  # share of the time, for timing what can be written faster
_FIRST_ROUND = 0.3  # share of the time for a first round of all passes
_FAILURES = (Problem, ValueError, LookupError, ArithmeticError, RuntimeError)


@dataclass(frozen=True)
class NodeFacts:
    """One node with weights. proposed: passes with a proposal that touches it; refused: reasons of passes that cannot
    change it."""

    name: str
    op: str
    macs: int
    parameters: int
    proposed: tuple[str, ...]
    refused: dict[str, str]


@dataclass(frozen=True)
class PassReport:
    """What one pass proposes.

    units, proposals: their numbers. macs, weight_bytes, compressed_bytes: the largest saving of proposals that do not
    overlap. loss: the smallest and the largest predicted relative squared error of the outputs by one proposal (None:
    nothing is proposed, or the loss is not known before it is tried). refused: number of units by reason. note: why
    there is no complete list, "" where there is.
    """

    name: str
    package: str
    exact: bool
    units: int = 0
    proposals: int = 0
    macs: float = 0.0
    weight_bytes: float = 0.0
    compressed_bytes: float = 0.0
    loss: tuple[float, float] | None = None
    refused: dict[str, int] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, repr=False)
class Inspection(Result):
    """Facts of a model.

    bytes: with weights outside of the file. sha256: of the file, as `sha256sum` has it; of a model in memory that of
    its contents. macs: multiply-accumulates at the sizes in `counted_for`. passes: what every pass proposes. samples:
    how many the predictions are based on, synthetic: whether those are synthetic inputs. failure: "" where onnxruntime
    runs the model, else why not. rewrites: what is written slowly, by family; rewritten: the speed without that.
    """

    _hidden: ClassVar[frozenset[str]] = frozenset(("signature",))

    file: str
    bytes: int
    sha256: str
    opset: int
    producer: str
    signature: Signature
    operators: dict[str, int]
    parameters: int
    macs: int = 0
    nodes: tuple[NodeFacts, ...] = ()
    passes: tuple[PassReport, ...] = ()
    samples: int = 0
    synthetic: bool = False
    failure: str = ""
    counted_for: str = "one sample"
    rewrites: tuple[FamilyGain, ...] = ()
    rewritten: Ratio | None = None

    def facts(self) -> list[tuple[str, str]]:
        rows = [
            ("file", f"{self.file}, {size_text(self.bytes)}"),
            ("parameters", f"{self.parameters:,}"),
            ("multiply-accumulates", f"{self.macs:,} for {self.counted_for}"),
        ]
        if self.rewritten is not None:
            rows.append(("written faster", f"{self.rewritten.speedup:.2f}x as fast"))
        return [*rows, *((p.name, f"{p.proposals} proposals for {p.units} units") for p in self.passes if p.proposals)]


def inspect(
    model: ModelSource,
    data: DataSource | None = None,
    *,
    time_budget: float = 120.0,
    progress: Progress = no_progress,
) -> Inspection:
    """Facts of a model, and what every pass proposes.

    data: samples for the predictions (None: synthetic inputs, which make predicted losses rough). time_budget: seconds
    for the proposals; passes for which no time is left are listed as such (0: no proposals). progress: called with the
    name of the pass and the share that is done. Raises InputProblem on bad input.

    >>> facts = onnxpress.inspect("model.onnx", "samples.npz")
    """
    opened = open_model(model)
    path = path_of(model)
    common = (
        source_name(model),
        file_size(path) if path is not None else model_size(opened),
        model_hash(opened) if path is None else hashlib.sha256(path.read_bytes()).hexdigest(),
        read.opset(opened),
        f"{opened.producer_name or '?'} {opened.producer_version or ''}".strip(),
        signature(opened),
        dict(Counter(n.op_type for n in opened.graph).most_common()),
        parameters(opened),
    )
    samples = as_dataset(data, opened).take(_SAMPLES) if data is not None else None
    try:
        used = samples if samples is not None else synthetic_samples(opened, _SYNTHETIC)
        given, evidence = _evidence(opened, used)
        costs = macs(evidence.model, evidence.trace)
    except InputProblem as problem:
        return Inspection(*common, failure=problem.line())
    end = time.monotonic() + time_budget
    reports, by_node = _ask_passes(given, evidence, (1 - _TIMED) * time_budget, progress)
    gains, rewritten = _timed_rewrites(evidence, min(end - time.monotonic(), _TIMED * time_budget), progress)
    nodes = tuple(_node_facts(n, costs, by_node) for n in evidence.model.graph if n.op_type in read.WEIGHTED)
    sizes = ", ".join(f"{name} {'x'.join(map(str, value.shape))}" for name, value in evidence.probe.items())
    return Inspection(
        *common,
        sum(costs.values()),
        nodes,
        tuple(reports),
        len(used),
        samples is None,
        counted_for=sizes,
        rewrites=gains,
        rewritten=rewritten,
    )


def _timed_rewrites(
    evidence: Evidence, seconds: float, progress: Progress
) -> tuple[tuple[FamilyGain, ...], Ratio | None]:
    """What is written slowly, by the clock; nothing where there is no time, or it cannot be rewritten."""
    if seconds <= 0:
        return (), None
    progress("timing what can be written faster", 1 - _TIMED)
    try:
        with time_limit(seconds):
            return measured_gains(evidence, 0.5 * seconds)
    except (OutOfTime, *_FAILURES):
        return (), None


def _evidence(model: ir.Model, data: Dataset) -> tuple[Evidence, Evidence]:
    """Of the model as given, and of the simplified one, which is what passes see behind `simplify`.

    Twice the first where the model cannot be simplified. Raises InputProblem where onnxruntime does not run the model.
    """
    given = evidence_for(model, data)
    trace(model, given.probe)
    try:
        return given, exact_base(model, data, this_machine()).evidence
    except _FAILURES:
        return given, given


@dataclass
class _Touched:
    """What passes say of one node."""

    proposed: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def _ask_passes(
    given: Evidence, simplified: Evidence, time_budget: float, progress: Progress
) -> tuple[list[PassReport], dict[str, _Touched]]:
    """The report of every pass, and what they say by node name; `simplify` is asked about the model as given."""
    passes = all_passes() if time_budget > 0 else {}
    answers = _answers(passes, {SIMPLIFY.name: given}, simplified, time_budget, progress)
    reports = []
    by_node: dict[str, _Touched] = {}
    for name, asked in passes.items():
        found, note = answers[name]
        offers = [f for f in found if isinstance(f, Proposal)]
        refusals = [f for f in found if isinstance(f, Refusal)]
        reports.append(_report(name, asked, offers, refusals, note))
        for offer in offers:
            for unit in offer.touches:
                touched = by_node.setdefault(unit, _Touched())
                if name not in touched.proposed:
                    touched.proposed.append(name)
        for refusal in refusals:
            by_node.setdefault(refusal.unit, _Touched()).refused[name] = refusal.reason
    return reports, by_node


def _answers(
    passes: Mapping[str, AnyPass],
    special: Mapping[str, Evidence],
    evidence: Evidence,
    time_budget: float,
    progress: Progress,
) -> dict[str, tuple[list[Proposal | Refusal], str]]:
    """What each pass proposes, and why that is not all ("" where it is).

    A first round gives each pass a small part of the time, so that none uses up that of the others. Of those that need
    more each gets half of what is left: with equal parts none might finish. special: evidence by pass, for those that
    are asked about another model.
    """
    end = time.monotonic() + time_budget
    found: dict[str, tuple[list[Proposal | Refusal], str]] = {}
    waiting = list(passes)
    for first in (True, False):
        unfinished = []
        for place, name in enumerate(waiting):
            progress(name, (len(passes) - len(waiting) + place) / len(passes))
            left = max(end - time.monotonic(), 0.0)
            others = len(waiting) - place - 1
            seconds = _FIRST_ROUND * left / (others + 1) if first else 0.5 * left if others else left
            answer, note, finished = _collect(passes[name], special.get(name, evidence), seconds)
            if name not in found or len(answer) >= len(found[name][0]):
                found[name] = answer, note
            if not finished:
                unfinished.append(name)
        waiting = unfinished
    return found


def _collect(asked: AnyPass, evidence: Evidence, seconds: float) -> tuple[list[Proposal | Refusal], str, bool]:
    """What a pass proposes in so many seconds, why that is not all, and whether more time would change nothing."""
    found: list[Proposal | Refusal] = []
    try:
        with time_limit(seconds):
            for one in islice(asked.propose(evidence), _MOST):
                found.append(one)
                check_time()
    except OutOfTime:
        return found, "not all: no time left" if found else "no time left", False
    except _FAILURES as error:
        return found, error.line() if isinstance(error, Problem) else f"{type(error).__name__}: {error}", True
    return found, "", True


def _report(
    name: str, asked: AnyPass, offers: Sequence[Proposal], refusals: Iterable[Refusal], note: str
) -> PassReport:
    most = {what: _largest(offers, what) for what in ("macs", "weight_bytes", "compressed_bytes")}
    losses = [p.loss for p in offers if p.loss is not None]
    return PassReport(
        name,
        package_of(name),
        asked.exact,
        len({p.unit for p in offers}),
        len(offers),
        **most,
        loss=(min(losses), max(losses)) if losses else None,
        refused=dict(Counter(r.reason for r in refusals).most_common()),
        note=note,
    )


def _largest(offers: Sequence[Proposal], what: str) -> float:
    """The saving of proposals that do not overlap, the largest first."""
    taken: set[str] = set()
    total = 0.0
    for offer in sorted(offers, key=lambda p: -getattr(p.saving, what)):
        if getattr(offer.saving, what) > 0 and not offer.touches & taken:
            taken |= offer.touches
            total += getattr(offer.saving, what)
    return total


def _node_facts(node: ir.Node, costs: dict[str, int], by_node: dict[str, _Touched]) -> NodeFacts:
    weight = read.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    reports = by_node.get(node.name or "", _Touched())
    size = 0 if weight is None else weight.size
    return NodeFacts(
        node.name or "", node.op_type, costs.get(node.name or "", 0), size, tuple(reports.proposed), reports.refused
    )
