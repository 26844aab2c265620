"""The record of a found network, and rebuilding the network from it, byte for byte."""

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
from onnxpress.nas.evaluation.candidate_training import fold_for_inference
from onnxpress.nas.evaluation.evaluator import JUDGED_BY, Evaluator
from onnxpress.nas.request import NasRequest
from onnxpress.passes.core.contract import Action
from onnxpress.plan.plan import versions_here
from onnxpress.result import document
from onnxpress.runtime.machine import Machine, this_machine

_KIND = "nas-candidate"


@dataclass(frozen=True)
class RebuildResult:
    """A rebuilt network.

    model: the network.
    same: whether it has the bytes of the search.
    versions: versions of packages at the search, where they differ from the installed ones.
    """

    model: ir.Model
    same: bool
    versions: dict[str, str]


def write_record(
    path: Path, evaluator: Evaluator, choices: Mapping[str, Any], trainings: Sequence[Action], model: ir.Model
) -> None:
    """Write the record of a network.

    choices: made in the search space.
    trainings: decisions that repeat its trainings.
    model: the trained network.
    """
    request = evaluator.request
    body = document(
        _KIND, space=request.space, seed=request.seed, use_teacher=evaluator.trainer.teacher is not None,
        hashes=evaluator.hashes, choices=dict(choices), trainings=list(trainings), model=model_hash(model),
        versions=_versions(),
    )  # fmt: skip
    write_atomic(path, (json.dumps(body, indent=1) + "\n").encode())


def rebuild(record: str | Path, reference: ir.Model, splits: Splits, machine: Machine | None = None) -> RebuildResult:
    """Build and train the network of a record again.

    record: path of the record.
    reference: the model with which the search was begun.
    splits: the samples with which the search was begun.
    machine: default: this machine.
    Raises InputProblem where the record cannot be read or the files differ from those of the search.
    """
    body = _read(Path(record))
    request = NasRequest(body["space"], seed=body["seed"])
    evaluator = Evaluator(reference, splits, request, body["use_teacher"], machine or this_machine())
    different = [
        k for k, v in body["hashes"].items() if k not in ("proxy", *JUDGED_BY) and evaluator.hashes.get(k) != v
    ]
    if different:
        raise InputProblem(
            "the files differ from the search's",
            record,
            f"different: {', '.join(different)}",
            "use those of the search",
        )
    trained = evaluator.trainer.repeat(evaluator.model(body["choices"]), body["trainings"])
    model = fold_for_inference(trained, evaluator.data.take(1), evaluator.machine)
    here, there = _versions(), body.get("versions", {})
    same = body.get("model") in (None, model_hash(model))
    return RebuildResult(model, same, {k: v for k, v in there.items() if here.get(k) != v})


def load_front_choices(folder: str | Path) -> list[Mapping[str, Any]]:
    """The choices of the networks on an earlier search's Pareto front.  Raises InputProblem where there are none."""
    records = sorted(Path(folder).glob("front/*.json"))
    if not records:
        raise InputProblem(
            "no earlier search", "`warm`", str(folder), "give the output folder of a search, which contains front/"
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
    needed = ("space", "seed", "use_teacher", "hashes", "choices", "trainings")
    missing = [k for k in needed if k not in body] if isinstance(body, dict) else list(needed)
    if missing:
        raise InputProblem("not a record of a candidate", path, f"missing: {', '.join(missing)}")
    return body
