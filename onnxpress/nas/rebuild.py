"""A candidate's record beside its file, and the file made again from it: the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxpress.data.dataset import Splits
from onnxpress.errors import InputProblem
from onnxpress.model.files import model_hash, write_atomic
from onnxpress.nas.evaluation.candidate_training import finished
from onnxpress.nas.evaluation.evaluator import Look
from onnxpress.nas.request import Request
from onnxpress.passes.core.contract import Action
from onnxpress.plan.plan import versions_here
from onnxpress.result import document
from onnxpress.runtime.machine import Machine, this_machine

_KIND = "nas-candidate"


@dataclass(frozen=True)
class Rebuilt:
    """same: whether the bytes are those of the search; else `versions` are the search's that differ here."""

    model: ir.Model
    same: bool
    versions: dict[str, str]


def write_record(
    path: Path, look: Look, choices: Mapping[str, Any], lessons: Sequence[Action], model: ir.Model
) -> None:
    """choices: of the space; lessons: the trainings, as a plan holds them; model: what came of them."""
    request = look.request
    body = document(
        _KIND, space=request.space, seed=request.seed, teach=look.school.teacher is not None, parts=look.parts,
        choices=dict(choices), lessons=list(lessons), model=model_hash(model), versions=_versions(),
    )  # fmt: skip
    write_atomic(path, (json.dumps(body, indent=1) + "\n").encode())


def rebuilt(record: str | Path, like: ir.Model, splits: Splits, machine: Machine | None = None) -> Rebuilt:
    """The candidate of a record, built and trained again.  like, splits: as the search had them.

    Raises InputProblem where the record cannot be read or the files are not those of the search.
    """
    body = _read(Path(record))
    look = Look(like, splits, Request(body["space"], seed=body["seed"]), body["teach"], machine or this_machine())
    wrong = [k for k, v in body["parts"].items() if k != "proxy" and look.parts.get(k) != v]
    if wrong:
        raise InputProblem(
            "these are not the search's files", record, f"other: {', '.join(wrong)}", "give those it had"
        )
    model = look.school.repeat(look.model(body["choices"]), body["lessons"])
    done = finished(model, look.learn.take(1), look.machine)
    here, there = _versions(), body.get("versions", {})
    same = body.get("model") in (None, model_hash(done))
    return Rebuilt(done, same, {k: v for k, v in there.items() if here.get(k) != v})


def earlier(folder: str | Path) -> list[Mapping[str, Any]]:
    """What the networks on an earlier search's front chose.  Raises InputProblem where the folder holds none."""
    records = sorted(Path(folder).glob("front/*.json"))
    if not records:
        raise InputProblem(
            "no earlier search is there",
            "--warm",
            str(folder),
            "give the folder that a search wrote, with front/ in it",
        )
    return [_read(r)["choices"] for r in records]


def _versions() -> dict[str, str]:
    import torch

    return versions_here() | {"torch": str(torch.__version__)}


def _read(path: Path) -> dict[str, Any]:
    try:
        body: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputProblem("no such record", path, "", "give front/candidate-N.json of a search") from error
    except (OSError, ValueError) as error:
        raise InputProblem("the record cannot be read", path, str(error).splitlines()[0]) from error
    needed = ("space", "seed", "teach", "parts", "choices", "lessons")
    missing = [k for k in needed if k not in body] if isinstance(body, dict) else list(needed)
    if missing:
        raise InputProblem("this is no record of a candidate", path, f"without {', '.join(missing)}")
    return body
