"""depth: whole residual branches, and whole layers, taken out; what remains is refitted to the original's values.

Units are blocks (`model/blocks.py`) whose ends have equal type and shape at two input sizes.  Which go is decided by
the measured rise of the outputs' error on calibration samples, greedily, measured again after each removal, for the
multiply-accumulates that go.  The layers in front of a gap learn to say what the missing block said (its part is
theirs to play now), those behind it to read what they get (`repair.refit`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, EvidenceKey, repeat_feeds
from onnxpress.measure.model_inputs import synthetic_samples
from onnxpress.measure.score import Scorer
from onnxpress.model import blocks as bl
from onnxpress.model import read
from onnxpress.model.blocks import Block
from onnxpress.model.counts import macs
from onnxpress.passes.core.bisection import largest_allowed
from onnxpress.passes.core.contract import Action, Applied, Planned, Proposal, Refusal, Saving
from onnxpress.passes.core.loss_samples import loss_samples
from onnxpress.passes.core.options import PassOptions, check_between, only_one, option
from onnxpress.passes.core.refit import RefitResult, refit_layers
from onnxpress.passes.core.refit_option import LEAST_SQUARES, refit_mode, refit_note, with_refit
from onnxpress.passes.core.refit_target import refit_target
from onnxpress.runtime.session import all_cores, run, tap

UNITS = ("all", "branches", "layers")
_SYNTHETIC = 8  # samples where none are given
_SLACK = 0.02  # of the removable work: a goal missed by less is met
LOCAL = "local"  # repair: of the layers next to a gap alone, a small part of the cost; to look at many
_REFITS = (LEAST_SQUARES, LOCAL, "none")
_BLOCKS: EvidenceKey[tuple[list[Block], list[Refusal]]] = EvidenceKey("removable blocks")
_NEAR = 2  # layers behind a gap that a local repair refits


@dataclass(frozen=True)
class DepthOptions(PassOptions):
    """How many blocks to remove, by exactly one of keep and remove.

    Remove whole residual blocks or layers by measured loss, and refit the remaining layers by least squares.
    """

    example: ClassVar[dict[str, Any]] = {"remove": 1}

    keep: float | None = option(None, help="Share of the removable blocks' multiply-accumulates to keep, such as 0.5.")
    remove: int | None = option(None, help="Number of blocks to remove.")
    max_drop: float | None = option(
        None, help="Maximum drop on the samples, after the refit; as many blocks are removed as it allows."
    )
    units: str = option(
        "all",
        help="branches: residual branches; layers: the largest repeated blocks; all: both.",
        choices=UNITS,
    )
    refit: bool = option(True, help="Refit the layers around removed blocks by least squares.")

    def check(self) -> None:
        only_one(("keep", "remove"), (self.keep, self.remove), "`keep` 0.5")
        if self.keep is not None and self.keep != 0:
            check_between("keep", "the share to keep", self.keep, "0.5")
        if self.remove is not None and self.remove < 1:
            raise InputProblem("the number of blocks must be at least 1", "`remove`", f"got {self.remove}", "give 1")
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise InputProblem("the drop must lie between 0 and 1", "`max_drop`", f"got {self.max_drop}", "give 0.01")


class Depth:
    """Removal of whole residual blocks, layers or stretches of a chain, with least-squares refit."""

    name = "depth"
    exact = False
    needs_data = True
    extra = None
    Options = DepthOptions

    def propose(self, evidence: Evidence) -> Iterable[Proposal | Refusal]:
        """One proposal for each block; its loss is measured on the samples, before the refit of the remaining layers
        (for a link of a chain with the next layers refitted)."""
        blocks, refused = removable(evidence)
        scorer = Scorer(evidence.model, _samples(evidence)) if blocks else None
        for block in blocks:
            loss = scorer.nmse(_cut(evidence, [block], _NEAR)) if scorer is not None else 0.0
            saving = Saving(float(block.macs), float(block.weight_bytes))
            yield Proposal(block.name, {"block": block.name}, block.nodes | {block.name}, saving, loss)
        yield from refused

    def plan(self, evidence: Evidence, options: DepthOptions) -> Planned:
        """Blocks to remove, the least loss for the saved work first."""
        actions = plan_depth(evidence, options)
        blocks, refused = removable(evidence)
        unchanged = ""
        if not actions and blocks:
            unchanged = "no block can be removed: even one would lose more than `max_drop`"
        elif not actions:
            unchanged = "the model has no removable block: no residual branch and no layers between equal shapes"
        return Planned(
            with_refit(actions, options.refit), [unchanged] if unchanged else [], refused, unchanged=unchanged
        )

    def apply(self, evidence: Evidence, actions: Sequence[Action]) -> Applied:
        """actions: [{"block": name}, …, {"refit": "least-squares" | "local" | "none"}]."""
        if not actions:
            return Applied(evidence.model.clone())
        known, refused = removable(evidence)
        gone = _named(known, actions)
        if not gone:
            return Applied(evidence.model.clone(), [], refused)
        mode = refit_mode(actions, *_REFITS)
        near = _NEAR if mode == LOCAL else None
        result, fits = without(evidence, gone, mode != "none" and evidence.data is not None, near)
        before, after = (sum(macs(m, evidence.trace).values()) for m in (evidence.model, result))
        notes = [f"took out {', '.join(b.name for b in gone)}", f"{1 - after / before:.0%} of the work is gone"]
        notes += refit_note(fits)
        return Applied(result, notes, refused)


def _samples(evidence: Evidence) -> Dataset:
    """The samples to measure losses on; a few synthetic ones where there are none."""
    return evidence.data if evidence.data is not None else synthetic_samples(evidence.model, _SYNTHETIC, evidence.seed)


def _named(known: Sequence[Block], actions: Sequence[Action]) -> list[Block]:
    by_name = {b.name: b for b in known}
    names = list(dict.fromkeys(d["block"] for d in actions if "block" in d))
    for name in names:
        if name not in by_name:
            raise InputProblem(
                "the plan names a block the model does not have",
                str(name),
                "",
                "use the plan with the model it was made for",
            )
    return [by_name[n] for n in names]


def removable(evidence: Evidence) -> tuple[list[Block], list[Refusal]]:
    """The blocks whose two ends agree in type and shape at two input sizes; and those that do not."""
    return evidence.derive(_BLOCKS, lambda: _removable(evidence))


def _removable(evidence: Evidence) -> tuple[list[Block], list[Refusal]]:
    found = bl.find_blocks(evidence.model, evidence.trace)
    names = list(dict.fromkeys(n for b in found for n in (b.source, b.output)))
    looks = _looks(evidence, names) if names else {}
    good = [b for b in found if looks.get(b.source) == looks.get(b.output)]
    reason = "its two ends differ in type, or in shape at another input size"
    return good, [Refusal(b.name, reason) for b in found if b not in good]


def _looks(evidence: Evidence, names: Sequence[str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """(type, shape) of values at another size than the trace's; empty where the model runs at one size only."""
    session = tap(evidence.model, names, all_cores("none"))
    types = [o.type for o in session.get_outputs()]
    for feeds in _other_sizes(evidence):
        try:
            values = run(session, feeds)
        except InputProblem:
            continue
        return {n: (t, v.shape) for n, t, v in zip(names, types, values, strict=True)}
    return {}


def _other_sizes(evidence: Evidence) -> Iterator[dict[str, np.ndarray]]:
    """Feeds at sizes to try: free axes halved (those of size 1: doubled) and the batch doubled, either, neither."""
    resized = {}
    for spec in evidence.signature.inputs:
        value = evidence.probe[spec.name]
        for axis, dim in enumerate((spec.shape or ())[: value.ndim]):
            if axis and isinstance(dim, str):
                size = value.shape[axis]
                value = np.take(value, np.arange((size + 1) // 2) if size > 1 else [0, 0], axis=axis)
        resized[spec.name] = value
    for feeds in (resized, evidence.probe):
        for count in (2, 1):
            yield repeat_feeds(feeds, evidence.signature, count)


def without(
    evidence: Evidence, gone: Sequence[Block], refit: bool, near: int | None = None
) -> tuple[ir.Model, list[RefitResult]]:
    """The model without the blocks; with `repair` the layers around the gaps are refitted to the original's values.

    near: so many layers behind each gap at most (None: all that depend on it).
    """
    result = bl.remove_blocks(evidence.model, gone)
    if not refit:
        return result, []
    roles = _roles(evidence.model, gone)
    names = _behind_gaps(result, set(roles)) if near is None else {
        name for source in roles for name in _behind_gaps(result, {source}, near)
    }  # fmt: skip
    for node in result.graph:
        target = refit_target(node, evidence, lambda _: None, roles) if node.op_type in read.WEIGHTED else None
        if target is not None and {target.own, target.output} & set(roles.values()):
            names.add(node.name or "")
    fits = refit_layers(evidence, result, names, None, roles)
    return result, fits


def _roles(model: ir.Model, gone: Sequence[Block]) -> dict[str, str]:
    """What stands before a gap -> the value of the original that stood behind it.

    Where that value went through an operator that does nothing twice (Relu), what stands before the operator plays,
    too.
    """
    order = {v.name or "": i for i, n in enumerate(model.graph) for v in n.outputs}
    values = {v.name or "": v for n in model.graph for v in n.outputs}
    roles: dict[str, str] = {}
    for output, source in sorted(bl.resolve(model, gone).items(), key=lambda pair: order[pair[0]]):
        roles[source] = output
        made = values[source].producer() if source in values else None
        readers = {u.node.op_type for u in values[output].uses()}
        ends = values[output].producer()
        if made is None or made.op_type not in ("Relu", "Clip") or made.inputs[0] is None:
            continue
        if made.op_type == "Relu" and readers == {"Relu"}:
            roles[made.inputs[0].name or ""] = output
        elif ends is not None and ends.op_type == made.op_type and ends.inputs[0] is not None:
            roles[made.inputs[0].name or ""] = ends.inputs[0].name or ""
    return roles


def _behind_gaps(model: ir.Model, sources: set[str], most: int | None = None) -> set[str]:
    """Layers with weights or statistics whose inputs depend on what stands before a gap: all, or the first of them."""
    reached = set(sources)
    names = set[str]()
    for node in model.graph:
        if most is not None and len(names) >= most:
            break
        if node.op_type in ("Shape", "Size") or not any(v is not None and v.name in reached for v in node.inputs):
            continue
        reached.update(v.name for v in node.outputs if v.name)
        if node.op_type in read.WEIGHTED or node.op_type == "BatchNormalization":
            names.add(node.name or "")
    return names


def plan_depth(evidence: Evidence, options: DepthOptions, more_time: Callable[[], bool] = lambda: True) -> list[Action]:
    """Decisions that carry out a wish, in the order of removal; empty where nothing can go.

    more_time: asked before every block; without, what was found by then.
    """
    options.checked()
    candidates = _candidates(removable(evidence)[0], options.units)
    if not candidates:
        return []
    few = evidence.part(loss_samples(evidence))
    order = _greedy(few, Scorer(few.model, few.samples()), candidates, options, more_time)
    if options.max_drop is not None:
        scorer = Scorer(evidence.model, evidence.samples(), quality=evidence.quality)
        order = order[: _longest(evidence, scorer, order, options.max_drop)]
    return [{"block": b.name} for b in order]


def _candidates(blocks: Sequence[Block], units: str) -> list[Block]:
    layers = [b for b in blocks if b.kind == bl.LAYER]
    if units == "all" or (units == "layers" and not layers):
        return list(blocks)
    return layers if units == "layers" else [b for b in blocks if b.kind != bl.LAYER]


def _greedy(
    evidence: Evidence,
    scorer: Scorer,
    candidates: Sequence[Block],
    options: DepthOptions,
    more_time: Callable[[], bool],
) -> list[Block]:
    """Block by block what harms least for the work it saves, until enough is gone.

    The harm of a candidate is measured on top of those already gone; what was measured before an earlier removal only
    orders the candidates, and the first whose new value still leads is taken.
    """
    costs = macs(evidence.model, evidence.trace)

    def work(blocks: Sequence[Block]) -> int:
        return sum(costs.get(n, 0) for n in bl.dead_nodes(evidence.model, blocks))

    whole = work(candidates)
    goal = whole * (1 - options.keep) if options.keep is not None else float(whole)
    taken: list[Block] = []
    base, saved = 0.0, 0
    price = dict.fromkeys((b.name for b in candidates), -1.0)  # harm for the saved work, as last measured; -1: never
    left = list(candidates)
    while saved < goal - _SLACK * whole and (options.remove is None or len(taken) < options.remove):
        fresh: dict[str, tuple[float, int]] = {}
        left = [b for b in left if work([*taken, b]) > saved]
        if not left or not more_time():
            break
        while (best := min(left, key=lambda b: price[b.name])).name not in fresh:
            total = work([*taken, best])
            loss = scorer.nmse(_cut(evidence, [*taken, best]))
            fresh[best.name] = loss, total
            price[best.name] = max(loss - base, 1e-9) / min(total - saved, max(goal - saved, 1.0))
        base, saved = fresh[best.name]
        taken.append(best)
        left.remove(best)
    return taken


def _cut(evidence: Evidence, gone: Sequence[Block], near: int | None = None) -> ir.Model:
    """The model without the blocks, as its loss is measured: as it is where a skip connection remains, refitted where a
    chain lost a link, which it does not compute without. near: so many layers behind each gap at most."""
    return without(evidence, gone, not all(b.skip for b in gone), near)[0]


def _longest(evidence: Evidence, scorer: Scorer, order: Sequence[Block], allowed: float) -> int:
    """Number of removals, in order, with which the refitted model keeps the allowed drop."""

    def keeps_drop(count: int) -> bool:
        return scorer.score(without(evidence, order[:count], True)[0], intervals=False).keeps(allowed)

    return largest_allowed(0, len(order), keeps_drop)


DEPTH = Depth()
