"""rewrite: the same function, in the operators and layouts that onnxruntime runs fastest on this machine.

The families of `families.py` are proved to keep the function; which of them make a model faster only the clock can
tell (`family_selection.py`). A family that gains nothing on this machine, with these threads and this provider, is not
applied.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.passes.core.contract import Action, Applied, Planned, Proposal, Refusal
from onnxpress.passes.core.options import PassOptions, option
from onnxpress.passes.exact.differences import changed_names
from onnxpress.passes.rewriting.families import BY_NAME, FAMILIES, Family, apply_families, apply_in_place
from onnxpress.passes.rewriting.family_selection import choose
from onnxpress.runtime.latency import Ratio
from onnxpress.runtime.session import default_settings, find_provider, sessions_with

FASTER, ALL = "faster", "all"
_SECONDS = 1.5  # of timing, for each family


@dataclass(frozen=True)
class RewriteOptions(PassOptions):
    """Which rewrites are kept, and for which sessions."""

    keep: str = option(
        FASTER,
        help="faster: families that are measured to be faster here; all: whatever applies.",
        choices=(FASTER, ALL),
    )
    family: tuple[str, ...] = option(
        (),
        help=f"Only this family, of {', '.join(BY_NAME)}; can be repeated (default: all).",
        choices=tuple(BY_NAME),
        metavar="NAME",
    )
    threads: int = option(1, help="Threads of the sessions that are timed.")
    provider: str = option("CPU", help="onnxruntime's execution provider of the sessions that are timed.")

    def check(self) -> None:
        if self.threads < 1:
            raise InputProblem("there must be at least one thread", "`threads`", f"got {self.threads}", "give 1")
        find_provider(self.provider)


class Rewrite:
    """The same function in the operators and layouts that onnxruntime runs fastest; the clock decides which."""

    name = "rewrite"
    exact = True
    needs_data = False
    extra = None
    Options = RewriteOptions

    def propose(self, evidence: Evidence) -> Iterable[Proposal | Refusal]:
        """One proposal for each family that finds a place; what it gains is not known before it is timed."""
        for family in FAMILIES:
            changed, found = apply_families(evidence.model, evidence.probe, [family.name], evidence.trace)
            if found:
                touches = changed_names(evidence.model, changed)
                yield Proposal(family.summary, {"rewrite": family.name}, touches)

    def plan(self, evidence: Evidence, options: RewriteOptions) -> Planned:
        """The families that apply, or those of them that the clock keeps."""
        names = options.family or tuple(BY_NAME)
        if options.keep == ALL:
            return Planned(_actions(list(apply_families(evidence.model, evidence.probe, names, evidence.trace)[1])))
        forms = _forms(evidence, names)
        if not forms:
            return Planned([], ["no rewrite applies to this model"])
        settings = replace(default_settings(), threads=options.threads, provider=find_provider(options.provider))
        with sessions_with(settings):
            times = choose(evidence, forms, _SECONDS * (len(forms) + 1))
        notes = [_line(ratio) for ratio in times.families]
        if times.together is not None and len(times.kept) > 1:
            notes.append(_line(times.together, "all that is kept"))
        return Planned(_actions(times.kept), notes, details=times)

    def apply(self, evidence: Evidence, actions: Sequence[Action]) -> Applied:
        """actions: [{"rewrite": name of a family}, ...]."""
        if not actions:
            return Applied(evidence.model.clone())
        names = [str(a.get("rewrite")) for a in actions]
        for name in names:
            if name not in BY_NAME:
                raise InputProblem("unknown family of rewrites", name, "", f"one of {', '.join(BY_NAME)}")
        model, found = apply_families(evidence.model, evidence.probe, names, evidence.trace)
        return Applied(model, [_places_line(BY_NAME[name], count) for name, count in found.items()])


def rewritable_nodes(evidence: Evidence) -> dict[str, str]:
    """Names of the nodes that are written in a form that a family changes, with the family: the first that does."""
    nodes = {n.name or "" for n in evidence.model.graph}
    found: dict[str, str] = {}
    for name, form in _forms(evidence, tuple(BY_NAME)).items():
        for node in changed_names(evidence.model, form) & nodes:
            found.setdefault(node, name)
    return found


@dataclass(frozen=True)
class FamilyGain:
    """What one family does for a model, measured.

    family, summary: its name, and what it does. nodes: number of nodes that it changes. alone: speed of the model with
    this family only. kept: whether it is one of those that together are the fastest.
    """

    family: str
    summary: str
    nodes: int
    alone: Ratio
    kept: bool


def measured_gains(evidence: Evidence, seconds: float) -> tuple[tuple[FamilyGain, ...], Ratio | None]:
    """What is written slowly in a model: the families that find a place, and the speed with all that are kept (None
    where none is).

    seconds: of timing at most. The settings are those of `sessions_with`.
    """
    forms = _forms(evidence, tuple(BY_NAME))
    if not forms:
        return (), None
    times = choose(evidence, forms, min(seconds, _SECONDS * (len(forms) + 1)))
    nodes = {n.name or "" for n in evidence.model.graph}
    gains = [
        FamilyGain(r.name, BY_NAME[r.name].summary, len(changed_names(evidence.model, forms[r.name]) & nodes), r,
                   r.name in times.kept)
        for r in times.families
    ]  # fmt: skip
    return tuple(gains), times.together


def fastest_rewrites(evidence: Evidence, seconds: float) -> tuple[list[Action], list[str]]:
    """The families that make a model faster, as actions, and remarks: for searches.

    seconds: of timing at most. The settings are those of `sessions_with`.
    """
    forms = _forms(evidence, tuple(BY_NAME))
    if not forms:
        return [], []
    times = choose(evidence, forms, min(seconds, _SECONDS * (len(forms) + 1)))
    return _actions(times.kept), [_line(times.together, "rewrites")] if times.together is not None else []


def _forms(evidence: Evidence, names: Sequence[str]) -> dict[str, ir.Model]:
    """The model rewritten by each family that applies."""
    forms = {}
    work = canonical(evidence.model)
    for name in names:
        if apply_in_place(work, evidence.probe, [name], evidence.trace):
            forms[name], work = work, canonical(evidence.model)
    return forms


def _places_line(family: Family, count: int) -> str:
    places = "1 place" if count == 1 else f"{count} places"
    return f"{family.summary}: {places}" + (", exact for finite values" if family.finite else "")


def _actions(names: Sequence[str]) -> list[Action]:
    return [{"rewrite": family.name} for family in FAMILIES if family.name in names]


def _line(ratio: Ratio, name: str = "") -> str:
    return f"{name or ratio.name}: {ratio.speedup:.3f}x [{ratio.low:.3f}, {ratio.high:.3f}] as fast, {ratio.verdict}"


REWRITE = Rewrite()
