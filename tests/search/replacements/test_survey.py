"""Replacements of the parts of a model, and their survey."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxpress.measure.evidence import evidence_for
from onnxpress.measure.score import Scorer
from onnxpress.model import submodels
from onnxpress.model.cut_points import sections
from onnxpress.model.structural_hash import structural_hash
from onnxpress.plan.plan import take_step
from onnxpress.runtime.machine import this_machine
from onnxpress.search.candidate_factory import CandidateFactory
from onnxpress.search.replacements import survey as replacement_survey
from onnxpress.search.replacements.forms import plan_steps, section_replacements, shared_width_replacements
from tests import nets


@pytest.mark.parametrize(
    ("model", "passes"),
    [
        (nets.residual(width=32, blocks=2), {"depth", "prune", "kernels", "lowrank"}),
        (nets.transformer(post=False), {"depth", "prune", "attention", "lowrank"}),
    ],
    ids=["residual", "transformer"],
)
def test_replacements_change_their_section_only(model: ir.Model, passes: set[str]) -> None:
    evidence = evidence_for(model, nets.samples(model, 12, sequence=24))
    parts = sections(evidence.model, evidence.trace)
    replacements = section_replacements(evidence, parts)
    levers = {r.pass_name for options in replacements for r in options}
    assert levers == passes
    before = {n.name: n for n in evidence.model.graph}
    for section, options in zip(parts, replacements, strict=True):
        assert len({r.name for r in options}) == len(options)
        for replacement in options:
            made = take_step(replacement.step(), evidence).model
            after = {n.name for n in made.graph}
            removed = {n for n in before if n not in after}
            assert removed <= section.nodes


def test_replacements_of_several_sections_are_one_plan() -> None:
    model = nets.residual(width=32, blocks=2)
    evidence = evidence_for(model, nets.samples(model, 12))
    replacements = section_replacements(evidence, sections(evidence.model, evidence.trace))
    narrow = [
        next(r for r in options if r.pass_name == "prune")
        for options in replacements
        if any(r.pass_name == "prune" for r in options)
    ]
    removed = next(r for options in replacements for r in options if r.pass_name == "depth")
    made = plan_steps([*narrow[1:], removed])
    assert [s.pass_name for s in made] == ["depth", "prune"]
    current = evidence
    for step in made:
        current = evidence_for(take_step(step, current).model, evidence.samples())


@pytest.mark.parametrize("build", [lambda: nets.mobile(width=16), lambda: nets.transformer(post=False), nets.residual])
def test_a_section_without_its_block_can_be_timed(build: Callable[[], ir.Model]) -> None:
    """Also where the block ends at the cut point, so that the value of that name is removed."""
    model = build()
    evidence = evidence_for(model, nets.samples(model, 4))
    found = sections(evidence.model, evidence.trace)
    timed = 0
    for section, options in zip(found, section_replacements(evidence, found), strict=True):
        for replacement in (o for o in options if o.pass_name == "depth"):
            whole = take_step(replacement.step(), evidence).model
            part = submodels.between(
                whole, section.source, replacement_survey.output_name(evidence, whole, section, replacement)
            )
            assert np.isfinite(replacement_survey._seconds({"part": part}, evidence, section)["part"])
            timed += 1
    assert timed


def test_kept_channels_after_replacements() -> None:
    model = nets.residual(width=32, blocks=2)
    data = nets.samples(model, 12)
    factory = CandidateFactory(model, data, Scorer(model, data), this_machine())
    factory.exact()
    replacements = section_replacements(factory.base, sections(factory.base.model, factory.base.trace))
    narrow = next(r for r in replacements[1] if r.pass_name == "prune")
    removed = next(r for r in replacements[2] if r.pass_name == "depth")
    kept = factory._kept(factory.changed("some", plan_steps([narrow, removed])))
    group = narrow.actions[0]["group"]
    value = next(n for n in factory.base.model.graph if n.name == group).outputs[0].name or ""
    left = kept(value)
    assert left is not None
    assert sorted({*range(32)} - {*left.tolist()}) == narrow.actions[0]["remove"]


@pytest.mark.slow
def test_a_shared_width_is_a_place() -> None:
    """In a chain every width is produced by one section and read by the next."""
    model = nets.mobile(width=16)
    evidence = evidence_for(model, nets.samples(model, 12))
    found = sections(evidence.model, evidence.trace)
    shared = shared_width_replacements(evidence, found)
    inner = {
        d["group"]
        for options in section_replacements(evidence, found)
        for r in options
        for d in r.actions
        if "group" in d
    }
    assert {g.name for g in evidence.channels.groups if g.internal} <= inner | {p.name for p, _ in shared}
    assert any(replacements for _, replacements in shared)
    for place, replacements in shared:
        group = evidence.channels.group(place.name)
        assert {p.node for p in group.slices} <= place.nodes
        for replacement in replacements:
            assert {d["group"] for d in replacement.actions} == {place.name}
            part = submodels.between(take_step(replacement.step(), evidence).model, place.source, place.output)
            assert np.isfinite(replacement_survey._seconds({"part": part}, evidence, place)["part"])


def test_equal_places_are_timed_once_and_surveyed_breadth_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nets.residual(width=32, blocks=3)
    evaluator = replacement_survey.ReplacementEvaluator(evidence_for(model, nets.samples(model, 24)))
    timed: list[int] = []
    real = replacement_survey._seconds

    def counted(models: dict[str, ir.Model], *rest: Any) -> dict[str, float]:
        timed.append(len(models))
        return real(models, *rest)

    monkeypatch.setattr(replacement_survey, "_seconds", counted)
    calls = iter(range(1000))
    parts = sections(evaluator.base.model, evaluator.base.trace)
    found = replacement_survey.survey(
        evaluator, 30.0, lambda: next(calls) < len(parts) + len(parts) + 2, lambda stage: None
    )
    equal = [
        structural_hash(submodels.between(model, s.source, s.output), named=False)
        for s in sections(model, evaluator.base.trace)
    ]
    assert len(set(equal)) < len(equal)
    assert len(timed) <= 2 * len(set(equal)) + len(found.options) - len(parts)
    assert max(len(c) for c in found.options) <= 1 + 2, (
        "breadth first: no third option of a place before the first option of all"
    )
    assert found.seconds > 0
