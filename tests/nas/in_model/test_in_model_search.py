"""Search inside a model: replacements of sections, and the whole search from model to file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxpress.cli.main import run as cli
from onnxpress.data.dataset import Splits
from onnxpress.measure.evidence import evidence_for
from onnxpress.measure.score import Scorer
from onnxpress.model import submodels
from onnxpress.model.cut_points import sections
from onnxpress.model.files import load, to_bytes
from onnxpress.model.structural_hash import structural_hash
from onnxpress.nas.in_model import replacement_survey
from onnxpress.nas.in_model.in_model_search import in_model_search
from onnxpress.nas.in_model.replacements import plan_steps, section_replacements, shared_width_replacements
from onnxpress.nas.report import in_model_report
from onnxpress.passes.int8 import node_selection
from onnxpress.plan.plan import apply_plan, read_plan, take_step
from onnxpress.runtime.machine import this_machine
from onnxpress.search.candidate_factory import CandidateFactory
from onnxpress.search.front import front_candidates, write_front
from onnxpress.search.request import OptimizeOptions
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


@pytest.fixture(scope="module")
def parts() -> Splits:
    model = nets.residual(width=64)
    return Splits(*(nets.samples(model, count, seed) for seed, count in enumerate((96, 48, 48))))


@pytest.mark.slow
def test_the_plan_repeats_the_result(parts: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        node_selection,
        "select_int8_by_latency",
        lambda evidence, feeds, start, more, *rest: (start, node_selection.SelectionStats()),
    )
    model = nets.residual(width=64)
    request = OptimizeOptions(max_drop=0.9, time_budget=60, speedup=1.2)
    outcome = in_model_search(model, parts, request, tmp_path / "out.onnx")
    candidates = [c for c in outcome.candidates if c.name.startswith("replaced for") and not c.name.endswith("int8")]
    assert candidates
    best = max(candidates, key=lambda c: c.quick or 0.0)
    assert to_bytes(apply_plan(best.plan, model, parts.calibrate).model) == best.data
    files = write_front(outcome, tmp_path / "front")
    assert len(files) == len(front_candidates(outcome))
    for file in files:
        plan = read_plan(file.with_suffix(".json"))
        assert to_bytes(apply_plan(plan, model, parts.calibrate).model) == file.read_bytes()
    text = in_model_report(outcome, this_machine(), "model.onnx", "--data samples.npz")
    for candidate in outcome.candidates:
        assert f"- {candidate.name}: " in text
    assert f"onnxpress apply front/{files[0].stem}.json model.onnx --data samples.npz" in text
    assert outcome.met
    assert outcome.speedup is not None
    assert outcome.speedup.low >= 1.2
    assert (tmp_path / "out.onnx").read_bytes() == outcome.data
    plan = read_plan(tmp_path / "out.run" / "plan.json")
    assert to_bytes(apply_plan(plan, model, parts.calibrate).model) == outcome.data


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--speedup", "0.5"], "above 1"),
        (["--speedup", "2", "--latency-ms", "3"], "mutually exclusive"),
        (["--max-drop", "7"], "between 0 and 1"),
    ],
)
def test_invalid_requests_are_one_line(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from onnxpress.data.shipped import calibration_folder

    digits = calibration_folder() / "digits"
    assert load(digits / "digits.onnx")
    command = [
        "nas",
        "--from",
        str(digits / "digits.onnx"),
        "-d",
        str(digits / "train.npz"),
        "-o",
        str(tmp_path / "o.onnx"),
    ]
    assert cli([*command, *arguments]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
