"""The Pareto front as files: models, plans that make them again, and facts; nothing of others is replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxpress.data.dataset import Splits
from onnxpress.errors import InputProblem
from onnxpress.model.files import to_bytes
from onnxpress.plan.plan import apply_plan, read_plan
from onnxpress.search.front import FACTS, check_front_folder, file_stem, front_candidates, write_front
from onnxpress.search.optimize import optimize
from onnxpress.search.request import OptimizeOptions
from tests import nets


@pytest.mark.alone
def test_every_model_of_the_front_is_written_with_the_plan_that_makes_it_again(tmp_path: Path) -> None:
    model = nets.residual(width=64)
    parts = Splits(*(nets.samples(model, count, seed) for seed, count in enumerate((64, 48, 48))))
    found = optimize(model, parts, OptimizeOptions(max_drop=0.9, time_budget=8), front=tmp_path / "front")
    facts = json.loads((tmp_path / "front" / FACTS).read_text())
    assert [m["name"] for m in facts["models"]] == [c.name for c in front_candidates(found)]
    assert facts["models"], "the original alone is no front"
    for entry, candidate in zip(facts["models"], front_candidates(found), strict=True):
        data = (tmp_path / "front" / entry["model"]).read_bytes()
        assert data == candidate.data and entry["bytes"] == len(data)
        plan = read_plan(tmp_path / "front" / entry["plan"])
        assert to_bytes(apply_plan(plan, model, parts.calibrate).model) == data
        assert entry["selection_score"]["metric"] == found.candidates[0].score.metric
    speeds = [m["speedup"] for m in facts["models"]]
    assert speeds == sorted(speeds, reverse=True)
    (tmp_path / "front" / "note.txt").write_text("mine")
    with pytest.raises(InputProblem, match="not empty"):
        write_front(found, tmp_path / "front")
    (tmp_path / "front" / "note.txt").unlink()
    assert write_front(found, tmp_path / "front"), "an earlier front is replaced"


@pytest.mark.unit
def test_folders_that_hold_something_are_refused_before_the_search(tmp_path: Path) -> None:
    check_front_folder(tmp_path / "new")
    (tmp_path / "full").mkdir()
    check_front_folder(tmp_path / "full")
    (tmp_path / "full" / "front.json").write_text("[1]")
    with pytest.raises(InputProblem, match="not empty"):
        check_front_folder(tmp_path / "full")
    with pytest.raises(InputProblem, match="a file"):
        check_front_folder(tmp_path / "full" / "front.json")
    with pytest.raises(InputProblem, match="cannot be made"):
        check_front_folder(tmp_path / "no" / "front")


@pytest.mark.unit
def test_names_become_names_of_files() -> None:
    assert file_stem("prune 20% all + int8") == "prune-20-all-int8"
