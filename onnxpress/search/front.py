"""The Pareto front of a search as files: each model, the plan that makes it again, and what is known of it.

Scores are those on the selection samples. Speed-ups have an interval where the candidate was among the finalists, which
were timed together; the others were timed for a short time only.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from onnxpress.errors import InputProblem
from onnxpress.model.files import write_atomic
from onnxpress.plan.candidate_store import Candidate
from onnxpress.result import document
from onnxpress.search.finalists import OptimizeResult

FACTS = "front.json"
_KIND = "front"


def front_candidates(result: OptimizeResult) -> list[Candidate]:
    """Candidates that no other beats in speed, drop and size at once, the fastest first.

    Without those that are slower than the original, unless they are smaller than it.
    """
    final = {r.name: r.speedup for r in result.final.ratios} if result.final is not None else {}
    speeds = {c.id: final.get(c.id, c.quick or 0.0) for c in result.candidates}
    front = result.front
    able = [c for c in result.candidates if c.id in front and (speeds[c.id] >= 1 or c.size < result.original_size)]
    return sorted(able, key=lambda c: -speeds[c.id])


def check_front_folder(folder: str | Path) -> Path:
    """The folder for a front, checked.  Raises InputProblem where it holds anything but an earlier front."""
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise InputProblem("the front needs a folder", path, "this is a file", "name a new folder")
    if not path.exists() and not path.parent.is_dir():
        raise InputProblem("the folder of the front cannot be made", path.parent, "it does not exist", "make it first")
    strange = sorted(set(_contents(path)) - _written(path)) if path.exists() else []
    if strange:
        raise InputProblem("the folder of the front is not empty", path, f"it holds {strange[0]}", "name a new folder")
    return path


def write_front(result: OptimizeResult, folder: str | Path) -> list[Path]:
    """Write the models of the front, their plans and front.json; returns the models' files.

    The files of an earlier front are replaced.
    """
    path = check_front_folder(folder)
    path.mkdir(exist_ok=True)
    for name in _written(path):
        (path / name).unlink(missing_ok=True)
    final = {r.name: r for r in result.final.ratios} if result.final is not None else {}
    models, facts = [], []
    for candidate in front_candidates(result):
        stem, timed = file_stem(candidate.name), final.get(candidate.id)
        models.append(path / f"{stem}.onnx")
        write_atomic(models[-1], candidate.data)
        write_atomic(path / f"{stem}.json", candidate.plan.to_json().encode())
        facts.append({
            "name": candidate.name,
            "model": f"{stem}.onnx",
            "plan": f"{stem}.json",
            "chosen": candidate.id == result.chosen_id,
            "speedup": timed.speedup if timed else candidate.quick,
            "interval": [timed.low, timed.high] if timed else None,
            "bytes": candidate.size,
            "selection_score": candidate.score,
        })  # fmt: skip
    text = json.dumps(document(_KIND, original_bytes=result.original_size, models=facts), indent=1)
    write_atomic(path / FACTS, text.encode())
    return models


def file_stem(name: str) -> str:
    """The name of a candidate as a file name without suffix."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")


def _contents(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def _written(folder: Path) -> set[str]:
    """Names of the files that an earlier front left in a folder."""
    try:
        facts = json.loads((folder / FACTS).read_text())
        models = facts["models"] if facts["kind"] == _KIND else []
        return {FACTS, *(str(m[key]) for m in models for key in ("model", "plan"))} if facts["kind"] == _KIND else set()
    except (OSError, ValueError, LookupError, TypeError):
        return set()
