"""A search inside a given model: what can stand for a section, and the whole from model to file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from onnxpress.cli.main import run as cli
from onnxpress.data.dataset import Splits
from onnxpress.measure.evidence import evidence_for
from onnxpress.measure.score import Judge
from onnxpress.model import submodels
from onnxpress.model.cut_points import sections
from onnxpress.model.files import load, to_bytes
from onnxpress.model.structural_hash import structural_hash
from onnxpress.nas.in_model import replacement_survey
from onnxpress.nas.in_model.in_model_search import in_model_search
from onnxpress.nas.in_model.replacements import plan_steps, section_replacements, shared_width_replacements
from onnxpress.nas.report import file_stem, in_model_report, pareto_front, write_front
from onnxpress.passes.int8 import node_selection
from onnxpress.plan.plan import apply_plan, read_plan, take_step
from onnxpress.runtime.machine import this_machine
from onnxpress.search.candidate_factory import Workshop
from onnxpress.search.request import Request
from tests import nets


@pytest.mark.parametrize(
    ("model", "passes"),
    [
        (nets.residual(width=32, blocks=2), {"depth", "prune", "kernels", "lowrank"}),
        (nets.transformer(post=False), {"depth", "prune", "attention", "lowrank"}),
    ],
    ids=["residual", "transformer"],
)
def test_every_replacement_can_be_made_and_touches_its_section_only(model: ir.Model, passes: set[str]) -> None:
    evidence = evidence_for(model, nets.samples(model, 12, sequence=24))
    parts = sections(evidence.model, evidence.trace)
    offers = section_replacements(evidence, parts)
    levers = {r.pass_name for options in offers for r in options}
    assert levers == passes
    before = {n.name: n for n in evidence.model.graph}
    for section, options in zip(parts, offers, strict=True):
        assert len({r.name for r in options}) == len(options)
        for offer in options:
            made = take_step(offer.step(), evidence, evidence.model).model
            after = {n.name for n in made.graph}
            gone = {n for n in before if n not in after}
            assert gone <= section.nodes


def test_replacements_of_several_sections_are_one_plan() -> None:
    model = nets.residual(width=32, blocks=2)
    evidence = evidence_for(model, nets.samples(model, 12))
    offers = section_replacements(evidence, sections(evidence.model, evidence.trace))
    narrow = [
        next(r for r in options if r.pass_name == "prune")
        for options in offers
        if any(r.pass_name == "prune" for r in options)
    ]
    gone = next(r for options in offers for r in options if r.pass_name == "depth")
    made = plan_steps([*narrow[1:], gone])
    assert [s.pass_name for s in made] == ["depth", "prune"]
    current = evidence
    for step in made:
        current = evidence_for(take_step(step, current, current.model).model, evidence.samples())


@pytest.mark.parametrize("build", [lambda: nets.mobile(width=16), lambda: nets.transformer(post=False), nets.residual])
def test_a_section_without_its_block_can_be_timed(build: Callable[[], ir.Model]) -> None:
    """Also where the block ends on the cut, so that the value of that name is gone."""
    model = build()
    evidence = evidence_for(model, nets.samples(model, 4))
    found = sections(evidence.model, evidence.trace)
    timed = 0
    for section, options in zip(found, section_replacements(evidence, found), strict=True):
        for offer in (o for o in options if o.pass_name == "depth"):
            whole = take_step(offer.step(), evidence, evidence.model).model
            part = submodels.between(
                whole, section.source, replacement_survey.output_name(evidence, whole, section, offer)
            )
            assert replacement_survey._seconds({"part": part}, evidence, section)["part"] >= 0
            timed += 1
    assert timed


def test_a_packing_s_channels_are_those_of_the_model_it_pruned() -> None:
    model = nets.residual(width=32, blocks=2)
    data = nets.samples(model, 12)
    shop = Workshop(model, data, Judge(model, data), this_machine())
    shop.exact()
    offers = section_replacements(shop.base, sections(shop.base.model, shop.base.trace))
    narrow = next(r for r in offers[1] if r.pass_name == "prune")
    gone = next(r for r in offers[2] if r.pass_name == "depth")
    kept = shop._kept(shop.changed("some", plan_steps([narrow, gone])))
    group = narrow.decisions[0]["group"]
    value = next(n for n in shop.base.model.graph if n.name == group).outputs[0].name or ""
    left = kept(value)
    assert left is not None
    assert sorted({*range(32)} - {*left.tolist()}) == narrow.decisions[0]["remove"]


def test_a_width_that_sections_share_is_a_place_of_its_own() -> None:
    """In a plain chain every width is made by one section and read by the next."""
    model = nets.mobile(width=16)
    evidence = evidence_for(model, nets.samples(model, 12))
    found = sections(evidence.model, evidence.trace)
    shared = shared_width_replacements(evidence, found)
    inner = {
        d["group"]
        for options in section_replacements(evidence, found)
        for r in options
        for d in r.decisions
        if "group" in d
    }
    assert {g.name for g in evidence.channels.groups if g.hidden} <= inner | {p.name for p, _ in shared}
    for place, offers in shared:
        group = evidence.channels.group(place.name)
        assert {p.node for p in group.places} <= place.nodes
        for offer in offers:
            assert {d["group"] for d in offer.decisions} == {place.name}
            part = submodels.between(
                take_step(offer.step(), evidence, evidence.model).model, place.source, place.output
            )
            assert replacement_survey._seconds({"part": part}, evidence, place)["part"] >= 0


def test_places_of_equal_work_are_timed_once_and_each_has_its_dearest_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nets.residual(width=32, blocks=3)
    ground = replacement_survey.ReplacementEvaluator(evidence_for(model, nets.samples(model, 24)))
    timed: list[int] = []
    real = replacement_survey._seconds

    def counted(models: dict[str, ir.Model], *rest: Any) -> dict[str, float]:
        timed.append(len(models))
        return real(models, *rest)

    monkeypatch.setattr(replacement_survey, "_seconds", counted)
    looks = iter(range(1000))
    parts = sections(ground.base.model, ground.base.trace)
    found = replacement_survey.survey(
        ground, 30.0, lambda: next(looks) < len(parts) + len(parts) + 2, lambda stage: None
    )
    equal = [
        structural_hash(submodels.between(model, s.source, s.output), named=False)
        for s in sections(model, ground.base.trace)
    ]
    assert len(set(equal)) < len(equal)
    assert len(timed) <= 2 * len(set(equal)) + len(found.choices) - len(parts)
    assert max(len(c) for c in found.choices) <= 1 + 2, (
        "breadth first: no place is looked at a third time before all are once"
    )
    assert found.seconds > 0


@pytest.fixture(scope="module")
def parts() -> Splits:
    model = nets.residual(width=64)
    return Splits(*(nets.samples(model, count, seed) for seed, count in enumerate((96, 48, 48))))


@pytest.mark.alone
def test_from_a_model_to_a_file_that_a_plan_makes_again(
    parts: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        node_selection, "fastest", lambda evidence, feeds, start, more, *rest: (start, node_selection.Tried())
    )
    model = nets.residual(width=64)
    request = Request(max_drop=0.9, time_budget=30, speedup=1.2)
    outcome = in_model_search(model, parts, request, tmp_path / "out.onnx")
    packings = [c for c in outcome.candidates if c.name.startswith("packed for") and not c.name.endswith("int8")]
    assert packings
    best = max(packings, key=lambda c: c.quick or 0.0)
    assert to_bytes(apply_plan(best.plan, model, parts.calibrate).model) == best.data
    write_front(outcome, tmp_path / "out.run")
    files = sorted((tmp_path / "out.run" / "front").glob("*.onnx"))
    assert sorted(f.stem for f in files) == sorted(file_stem(c.name) for c in pareto_front(outcome))
    for file in files:
        plan = read_plan(file.with_suffix(".json"))
        assert to_bytes(apply_plan(plan, model, parts.calibrate).model) == file.read_bytes()
    text = in_model_report(outcome, this_machine(), "model.onnx", "--data samples.npz")
    for candidate in outcome.candidates:
        assert f"- {candidate.name}: " in text
    assert f"onnxpress apply front/{files[0].stem}.json model.onnx --data samples.npz" in text
    if outcome.met:
        assert outcome.speedup is not None
        assert outcome.speedup.low >= 1.2
        assert (tmp_path / "out.onnx").read_bytes() == outcome.data
        plan = read_plan(tmp_path / "out.run" / "plan.json")
        assert to_bytes(apply_plan(plan, model, parts.calibrate).model) == outcome.data


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--speedup", "0.5"], "above 1"),
        (["--speedup", "2", "--latency-ms", "3"], "two goals"),
        (["--max-drop", "7"], "between 0 and 1"),
    ],
)
def test_bad_wishes_are_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
