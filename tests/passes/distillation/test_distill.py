"""distill: closed form without torch, training with it; plans that replay, teachers that fit or are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxpress.api.distill import distill
from onnxpress.api.distillation_session import DistillationOptions
from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.measure.score import Scorer
from onnxpress.model import edit, files
from onnxpress.model.channels import removal as rm
from onnxpress.model.files import to_bytes
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.passes.distillation.distill import DISTILL, closed_form, teacher_evidence
from onnxpress.plan.plan import Plan, apply_plan, new_plan, read_plan
from onnxpress.train.distillation.feature_matching import (
    cut_values,
    match_by_name,
    match_features,
    match_layers,
    parse_match,
)
from onnxpress.train.distillation.output_heads import check_compatible
from onnxpress.train.settings import TrainingSettings
from tests import nets

FAST = TrainingSettings(steps=40, batch=16, lr=3e-3, evaluations=4, ema=0.8)


def teacher() -> ir.Model:
    return nets.residual(width=16)


def data(count: int = 60) -> Dataset:
    return nets.samples(teacher(), count)


def cut(
    model: ir.Model, share: float = 0.25, samples: Dataset | None = None
) -> tuple[ir.Model, Evidence, dict[str, list[int]]]:
    """Some channels of every group simply taken out, none of them the last ones, so that places matter."""
    evidence = evidence_for(model, samples or data())
    removal = {g.name: list(range(0, g.size, round(1 / share))) for g in evidence.channels.groups}
    return rm.remove(evidence.model, evidence.channels, removal), evidence, removal


def error(model: ir.Model, samples: Dataset) -> float:
    wanted = nets.outputs(teacher(), samples)
    return float(((nets.outputs(model, samples) - wanted) ** 2).mean() / wanted.var())


def test_cut_points_are_between_the_blocks() -> None:
    evidence = evidence_for(nets.residual(width=8, blocks=3), nets.samples(nets.residual(width=8, blocks=3), 2))
    found = cut_values(evidence.model, evidence.trace)
    relus = [n.outputs[0].name for n in evidence.model.graph if n.op_type == "Relu"]
    assert found == [relus[0], relus[2], relus[4], relus[6]], "the stem, and every block's end; no branch"


def test_channels_are_found_again_by_correlation() -> None:
    student, evidence, removal = cut(teacher())
    small = evidence_for(student, data())
    given = match_features(small, evidence, lambda v: evidence.channels.kept(v, removal))
    found = match_features(small, evidence)
    assert given and all(p.kept is not None for p in given)
    agree = [
        a == b for p, q in zip(given, found, strict=True) for a, b in zip(p.kept or (), q.kept or (), strict=False)
    ]
    assert np.mean(agree) > 0.8


def test_another_export_is_matched_by_order() -> None:
    other = canonical(teacher())
    for node in other.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.name = f"other_{value.name}"
    first, second = evidence_for(teacher(), data()), evidence_for(other, data())
    assert [(p.student, p.teacher) for p in match_features(first, second)] == [
        (c, f"other_{c}") for c in cut_values(first.model, first.trace)
    ]
    matched = [p for p in match_layers(first, second) if p.teacher != p.student]
    assert len(matched) >= 4
    assert all(p.teacher == f"other_{p.student}" for p in matched)
    changed, fits = closed_form(evidence_for(nets.residual(seed=3, width=16), data()), second)
    assert len(fits) >= 4
    assert error(changed, nets.samples(teacher(), 30, seed=9)) < 0.5 * error(
        nets.residual(seed=3, width=16), nets.samples(teacher(), 30, seed=9)
    )


def test_named_matches_are_checked() -> None:
    first = evidence_for(teacher(), data())
    name = cut_values(first.model, first.trace)[0]
    assert [p.student for p in match_by_name([(name, name)], first, first)] == [name]
    with pytest.raises(InputProblem, match="ghost"):
        match_by_name([("ghost", name)], first, first)
    with pytest.raises(InputProblem, match="cannot be matched"):
        match_by_name([(name, first.model.graph.outputs[0].name or "")], first, first)
    with pytest.raises(InputProblem, match="T=S"):
        parse_match(["relu"])


def test_closed_form_brings_the_outputs_closer() -> None:
    student, evidence, _ = cut(teacher())
    fresh = nets.samples(teacher(), 40, seed=7)
    changed, fits = closed_form(evidence_for(student, data()), evidence)
    assert fits
    assert error(changed, fresh) < 0.6 * error(student, fresh)


def test_closed_form_replays_to_the_same_bytes(tmp_path: Path) -> None:
    student, _, _ = cut(teacher())
    files.save(teacher(), tmp_path / "teacher.onnx")
    samples = data()
    done = distill(
        student,
        tmp_path / "teacher.onnx",
        samples,
        DistillationOptions(closed_form=True),
        select=nets.samples(teacher(), 20, seed=4),
        output=tmp_path / "out.onnx",
        plan=tmp_path / "plan.json",
    )
    assert done.improved
    again = apply_plan(read_plan(tmp_path / "plan.json"), student, samples)
    assert to_bytes(again.model) == (tmp_path / "out.onnx").read_bytes()


def test_another_teacher_than_the_plan_s_is_refused(tmp_path: Path) -> None:
    student, _, _ = cut(teacher())
    path = tmp_path / "teacher.onnx"
    files.save(teacher(), path)
    action = {"mode": "closed-form", "teacher": {"file": str(path), "sha256": "0" * 64}}
    with pytest.raises(InputProblem, match="another file"):
        DISTILL.apply(evidence_for(student, data()), [action])
    with pytest.raises(InputProblem, match="names no teacher"):
        DISTILL.apply(evidence_for(student, data()), [{"mode": "closed-form", "teacher": 3}])


def test_models_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputProblem, match="inputs"):
        check_compatible(nets.mlp(), teacher())


def test_ports_of_other_names_are_no_obstacle() -> None:
    other = canonical(teacher())
    edit.rename_ports(other, ["picture"], ["scores"])
    evidence = evidence_for(teacher(), data())
    found = teacher_evidence(other, evidence)
    assert [v.name for v in found.model.graph.inputs] == ["image"]
    np.testing.assert_array_equal(nets.outputs(found.model, data()), nets.outputs(evidence.model, data()))


def test_a_worse_result_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def worse(student: Evidence, master: Evidence, matched: object = None) -> tuple[ir.Model, list[object]]:
        return nets.residual(seed=8, width=16), []

    monkeypatch.setattr("onnxpress.api.distillation_session.closed_form", worse)
    done = distill(teacher(), teacher(), data(), DistillationOptions(closed_form=True))
    assert not done.improved
    assert not any(s.pass_name == "distill" for s in done.plan.steps)
    assert error(done.model, data()) < 1e-9
    assert "worse" in done.notes[-1]


# with torch


def train(samples: Dataset, student: ir.Model, **more: object) -> object:
    pytest.importorskip("torch")
    settings = TrainingSettings(**{**FAST.as_dict(), "augment": (), **more})  # type: ignore[arg-type]
    return distill(
        student,
        teacher(),
        samples,
        DistillationOptions(settings, steps=settings.steps, augment="none"),
        select=nets.samples(teacher(), 30, seed=4),
    )


@pytest.mark.parametrize("features", ["none", "mse", "cosine", "attention", "relational"])
@pytest.mark.parametrize("loss", ["kd", "dkd", "mse"])
def test_training_improves_a_cut_student(loss: str, features: str) -> None:
    student, _, _ = cut(teacher())
    done = train(data(), student, loss=loss, features=features)
    assert done.improved
    assert done.score.nmse < done.start.nmse
    assert done.best in {p.step for p in done.curve}


def test_a_learning_rate_that_improves_is_found() -> None:
    """The found rate is recorded, and training with it helps."""
    student, _, _ = cut(teacher())
    done = train(data(), student, lr=0.0)
    assert done.settings.lr in (1e-4, 3e-4, 1e-3, 3e-3)
    assert done.improved
    assert done.plan.steps[-1].actions[-1]["settings"]["lr"] == done.settings.lr


def test_rates_are_tried_until_one_is_too_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from onnxpress.train.distillation.runner import Distillation

    evidence = evidence_for(teacher(), data())
    job = Distillation(evidence, evidence, data(), FAST)
    for losses, wanted in (
        ([2, 1, 1.5, 9], 1e-3),
        ([1, 2, 0, 0], 1e-4),
        ([4, 3, 2, 1], 3e-3),
        ([1, np.nan, 0, 0], 1e-4),
    ):
        left = iter(losses)
        monkeypatch.setattr(job, "_trial_loss", lambda steps, left=left: next(left))
        assert job.find_learning_rate(steps=1000) == wanted
    assert job.settings == FAST


@pytest.mark.parametrize(("steps", "rate", "rates"), [(100, 1e-3, 4), (30, 3e-4, 3)])
def test_with_few_steps_a_rate_must_hardly_increase_the_loss(
    steps: int, rate: float, rates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a third at most, and with very few not at all: they cannot make up for it."""
    pytest.importorskip("torch")
    from onnxpress.train.distillation.runner import Distillation

    evidence = evidence_for(teacher(), data())
    job = Distillation(evidence, evidence, data(), FAST)
    asked: list[int] = []
    losses = {0: iter([1.0]), 8: iter([0.9, 0.8, 0.85, 1.2])}  # before, and after eight steps of each rate

    def trial(steps: int) -> float:
        asked.append(steps)
        return next(losses[steps])

    monkeypatch.setattr(job, "_trial_loss", trial)
    assert job.find_learning_rate(steps=steps, fraction=0.2) == rate
    assert asked == [0, *[8] * rates]


def test_batches_are_halved_where_the_time_allows_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of 64 samples takes 0.64 s here: 40 s are enough for 62 of them, and for 250 of 16."""
    pytest.importorskip("torch")
    from onnxpress.api.distillation_session import _final_settings
    from onnxpress.train.distillation.runner import Distillation

    evidence = evidence_for(teacher(), data(100))
    job = Distillation(evidence, evidence, data(100), FAST)
    monkeypatch.setattr(Distillation, "step_seconds", lambda self: 0.01 * self.settings.batch)
    options = DistillationOptions(TrainingSettings(batch=64, lr=1e-3), time_budget=40)
    judge, silent = Scorer(teacher(), data(20)), lambda stage, share: None
    assert _final_settings(job, options, judge, silent).batch == 16
    assert _final_settings(job, replace(options, time_budget=400.0), judge, silent).batch == 64


def test_a_wider_distance_needs_a_projection() -> None:
    pytest.importorskip("torch")
    student = nets.residual(seed=5, width=8)
    done = train(data(), student, steps=120)
    assert "learned projection" in " ".join(done.notes)
    assert done.improved


@pytest.mark.parametrize("mode", ["end-to-end", "blockwise"])
def test_a_trained_plan_replays_to_the_same_bytes(mode: str, tmp_path: Path) -> None:
    student, _, _ = cut(teacher())
    pytest.importorskip("torch")
    files.save(teacher(), tmp_path / "teacher.onnx")
    samples = data()
    settings = TrainingSettings(**{**FAST.as_dict(), "augment": (), "mode": mode})
    done = distill(
        student,
        tmp_path / "teacher.onnx",
        samples,
        DistillationOptions(settings, steps=40),
        select=nets.samples(teacher(), 30, seed=4),
        output=tmp_path / "out.onnx",
        plan=tmp_path / "plan.json",
    )
    assert done.improved
    first = (tmp_path / "out.onnx").read_bytes()
    assert to_bytes(apply_plan(read_plan(tmp_path / "plan.json"), student, samples).model) == first
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"teacher.onnx", "out.onnx", "plan.json", "out.run"}
    assert json.loads((tmp_path / "out.run" / "run.json").read_text())["best"] == done.best


@pytest.mark.parametrize("mode", ["end-to-end", "blockwise"])
def test_an_interrupted_run_resumes_to_the_same_file(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at step 23: end to end from the checkpoint of that step, block by block from the blocks that are
    finished."""
    pytest.importorskip("torch")
    from onnxpress.train import trainer

    student, _, _ = cut(teacher())
    select = nets.samples(teacher(), 30, seed=4)
    options = DistillationOptions(
        TrainingSettings(**{**FAST.as_dict(), "augment": (), "mode": mode}), steps=40, augment="noise"
    )
    whole = distill(student, teacher(), data(), replace(options, run=tmp_path / "whole"), select=select)
    real = trainer.Trainer.step
    steps: list[int] = []

    def counted(self: trainer.Trainer) -> float:
        if mode == "end-to-end":
            self.save(tmp_path / "part" / "checkpoint.pt")
        if len(steps) == 23:
            raise KeyboardInterrupt
        steps.append(self.steps_done)
        return real(self)

    monkeypatch.setattr("onnxpress.train.distillation.runner.Distillation.step_seconds", lambda self: 1.0)
    monkeypatch.setattr(trainer.Trainer, "step", counted)
    with pytest.raises(KeyboardInterrupt):
        distill(student, teacher(), data(), replace(options, run=tmp_path / "part"), select=select)
    assert list((tmp_path / "part").glob("checkpoint*"))
    steps[:] = []
    resumed = distill(student, teacher(), data(), replace(options, run=tmp_path / "part", resume=True), select=select)
    assert 0 < len(steps) < 23
    assert to_bytes(resumed.model) == to_bytes(whole.model)
    assert resumed.curve == whole.curve


def test_shrink_learns_from_the_plan_s_original(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model = nets.residual(width=32)
    samples = nets.samples(model, 60)
    settings = TrainingSettings(**{**FAST.as_dict(), "augment": (), "lr": 1e-3})
    done = distill(
        None,
        model,
        samples,
        DistillationOptions(settings, steps=80, augment="none", shrink=0.5),
        select=nets.samples(model, 30, seed=4),
    )
    assert [s.pass_name for s in done.plan.steps][-2:] == ["prune", "distill"]
    assert done.plan.steps[-1].actions[0]["teacher"] == "original"
    assert done.bytes_after < done.bytes_before / 2
    (tmp_path / "p.json").write_text(done.plan.to_json())
    again: Plan = read_plan(tmp_path / "p.json")
    assert to_bytes(apply_plan(again, model, samples).model) == to_bytes(done.model)


def test_a_plan_without_a_teacher_file_uses_the_model_itself() -> None:
    samples = data()
    plan = new_plan(teacher(), samples).then("distill", [{"mode": "closed-form", "teacher": "original"}])
    assert error(apply_plan(plan, teacher(), samples).model, samples) < 1e-3


def test_labels_alone_train_too() -> None:
    pytest.importorskip("torch")
    samples = nets.samples(teacher(), 80, labels=True)
    settings = TrainingSettings(
        **{**FAST.as_dict(), "augment": (), "loss": "none", "features": "none", "labels_weight": 1.0}
    )
    student, _, _ = cut(teacher(), 0.5)
    done = distill(student, teacher(), samples, DistillationOptions(settings, steps=80, augment="none"), select=samples)
    assert done.improved
    assert done.score is not None and done.start is not None
    assert done.score.value > done.start.value
