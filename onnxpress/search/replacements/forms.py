"""Replacements of a section, or of a width that several sections share, as actions of passes that a plan can hold.

A block is removed, channels pruned, layers factored, kernels made smaller or separable, attention made linear.  All
are made in closed form with the passes' refit, so that they can be measured without training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxpress.measure.evidence import Evidence
from onnxpress.model.channels.groups import ChannelGroup
from onnxpress.model.cut_points import Section, section_holds
from onnxpress.passes.core.contract import Action, Proposal, proposals
from onnxpress.passes.core.refit_option import LEAST_SQUARES
from onnxpress.passes.pruning.prune import PRUNE
from onnxpress.passes.structure.attention import ATTENTION
from onnxpress.passes.structure.depth import DEPTH, LOCAL, removable
from onnxpress.passes.structure.kernels import KERNELS
from onnxpress.passes.structure.lowrank import LOWRANK
from onnxpress.plan.plan import PlanStep

PASS_ORDER = ("depth", "kernels", "attention", "lowrank", "prune")  # in which a plan carries them out
_KEPT_FRACTIONS = (0.75, 0.5, 0.25)  # of the width, or of a factored layer's work, that is left


@dataclass(frozen=True)
class Replacement:
    """A replacement.

    name: what is done.
    pass_name, actions: how.
    """

    name: str
    pass_name: str
    actions: tuple[Action, ...]

    def step(self, refit: str = LOCAL) -> PlanStep:
        """The replacement as a plan step; refitted locally where the pass supports it, which is fast."""
        return PlanStep(self.pass_name, (*self.actions, {"refit": _refit_of(self.pass_name, refit)}))


def section_replacements(evidence: Evidence, found: Sequence[Section]) -> list[list[Replacement]]:
    """The replacements of each section."""
    narrow = proposals(PRUNE, evidence)
    factored = proposals(LOWRANK, evidence)
    kernels = proposals(KERNELS, evidence)
    attentions = proposals(ATTENTION, evidence)
    return [
        [
            *_blocks(evidence, section),
            *_narrower(evidence, section, narrow),
            *_kernels(section, kernels),
            *_linear(section, attentions),
            *_factored(section, factored, evidence),
        ]
        for section in found
    ]


def plan_steps(replacements: Sequence[Replacement], refit: str = LEAST_SQUARES) -> list[PlanStep]:
    """The replacements as steps of one plan.  refit: LEAST_SQUARES, LOCAL or "none"."""
    made = []
    for name in PASS_ORDER:
        actions = [d for r in replacements if r.pass_name == name for d in r.actions]
        if actions:
            made.append(PlanStep(name, (*actions, {"refit": _refit_of(name, refit)})))
    return made


def _refit_of(pass_name: str, refit: str) -> str:
    """The refit of a pass: only for removed blocks does a local refit differ."""
    return LEAST_SQUARES if refit == LOCAL and pass_name != DEPTH.name else refit


def _blocks(evidence: Evidence, section: Section) -> Iterator[Replacement]:
    """Removal of each block of the section, the largest first."""
    mine = [b for b in removable(evidence)[0] if b.nodes and section_holds(b.nodes, section)]
    seen: set[frozenset[str]] = set()
    for block in sorted(mine, key=lambda b: -b.macs):
        if block.nodes not in seen:
            seen.add(block.nodes)
            yield Replacement(f"without {block.name}", DEPTH.name, ({"block": block.name},))


def shared_width_replacements(evidence: Evidence, found: Sequence[Section]) -> list[tuple[Section, list[Replacement]]]:
    """Replacements of each width that several sections share, with the range from the first to the last of them."""
    options = proposals(PRUNE, evidence)
    made = []
    for group in evidence.channels.groups:
        nodes = {p.node for p in group.slices}
        touched = [i for i, s in enumerate(found) if nodes & s.nodes]
        if len(touched) < 2:
            continue
        stretch = found[touched[0] : touched[-1] + 1]
        whole = frozenset().union(*(s.nodes for s in stretch))
        place = Section(group.name, stretch[0].source, stretch[-1].output, whole, sum(s.macs for s in stretch))
        offers = list(_at_shares([group], options, f"of the width of {group.name}"))
        if offers:
            made.append((place, offers))
    return made


def _narrower(evidence: Evidence, section: Section, options: Sequence[Proposal]) -> Iterator[Replacement]:
    """All internal widths at a fraction; and fewer attention heads, or groups, which are slices of several axes."""
    groups = [g for g in evidence.channels.groups if g.internal and section_holds({p.node for p in g.slices}, section)]
    yield from _at_shares([g for g in groups if not g.sliced], options, "of the inner width")
    sliced = [g for g in groups if g.sliced]
    largest = max((g.block for g in sliced), default=0)
    yield from _at_shares([g for g in sliced if g.block == largest], options, "of the heads")


def _at_shares(groups: Sequence[ChannelGroup], options: Sequence[Proposal], what: str) -> Iterator[Replacement]:
    """All groups at a fraction of their width, rounded to widths that are fast on this CPU."""
    seen = set()
    for share in _KEPT_FRACTIONS:
        actions = []
        for group in groups:
            able = [o for o in options if o.unit == group.name]
            if able:
                actions.append(
                    min(able, key=lambda o: abs(group.size - len(o.action["remove"]) - share * group.size)).action
                )
        key = str(actions)
        if actions and key not in seen:
            seen.add(key)
            yield Replacement(f"{share:.0%} {what}", PRUNE.name, tuple(actions))


def _kernels(section: Section, options: Sequence[Proposal]) -> Iterator[Replacement]:
    """Smaller and separable kernels."""
    for form in ("smaller", "separable"):
        mine = [o for o in options if o.unit in section.nodes and o.action["form"] == form]
        if mine:
            yield Replacement(f"{form} kernels", KERNELS.name, tuple(o.action for o in mine))


def _linear(section: Section, options: Sequence[Proposal]) -> Iterator[Replacement]:
    """Attention of linear cost."""
    mine = [o for o in options if o.unit in section.nodes]
    if mine:
        yield Replacement("attention of linear cost", ATTENTION.name, tuple(o.action for o in mine))


def _factored(section: Section, options: Sequence[Proposal], evidence: Evidence) -> Iterator[Replacement]:
    """Each layer at a fraction of its MACs, in the form with the lowest loss increase."""
    mine = [o for o in options if o.unit in section.nodes]
    seen = set()
    for share in _KEPT_FRACTIONS:
        actions = []
        for unit in dict.fromkeys(o.unit for o in mine):
            able = [o for o in mine if o.unit == unit and o.saving.macs >= (1 - share) * _layer_macs(o, evidence)]
            if able:
                actions.append(min(able, key=lambda o: o.assumed_loss).action)
        key = str(actions)
        if actions and key not in seen:
            seen.add(key)
            yield Replacement(f"factors with {share:.0%} of the work", LOWRANK.name, tuple(actions))


def _layer_macs(option: Proposal, evidence: Evidence) -> float:
    """Multiply-accumulates of the layer of an option."""
    from onnxpress.model.counts import node_macs

    node = next(n for n in evidence.model.graph if n.name == option.unit)
    return float(np.float64(node_macs(node, evidence.trace)))
