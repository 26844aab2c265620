"""Candidates, and the shelf of a run folder that keeps them: a killed run goes on where it was.

A candidate is put on the shelf when it is finished (model, plan, score); the next run of the same command takes it
from there instead of making it again.  When a run ends, the models go and the plans stay: `onnxpress apply` makes
any of them again.
"""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.score import Score
from onnxpress.model.files import write_atomic
from onnxpress.plan.plan import Plan, read_plan, write_plan


@dataclass
class Candidate:
    """name: short, for tables; score: on the selection samples; quick: speed-up of a short timing (None: untimed)."""

    name: str
    plan: Plan
    data: bytes
    score: Score
    notes: list[str] = field(default_factory=list)
    quick: float | None = None
    seconds: float = 0.0

    @property
    def size(self) -> int:
        return len(self.data)


def model_of(candidate: Candidate) -> ir.Model:
    return ir.from_proto(onnx.load_from_string(candidate.data))


class CandidateStore:
    """folder: of the run; None keeps nothing."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._facts: dict[str, Any] = {}
        if folder is not None:
            with suppress(OSError, json.JSONDecodeError):
                self._facts = dict(json.loads((folder / "work" / "facts.json").read_text()))

    def clear(self) -> None:
        """Forget everything: another model, other samples or another request."""
        self._facts = {}
        if self.folder is not None:
            for part in ("work", "plans"):
                shutil.rmtree(self.folder / part, ignore_errors=True)

    def finish(self) -> None:
        """The run has ended: its models go, its plans stay."""
        if self.folder is not None:
            shutil.rmtree(self.folder / "work", ignore_errors=True)

    def keep(self, candidate: Candidate) -> None:
        if self.folder is None:
            return
        plan, model, body = self._paths(candidate.name)
        for path in (plan, model):
            path.parent.mkdir(exist_ok=True)
        write_plan(candidate.plan, plan)
        write_atomic(model, candidate.data)
        facts = {"score": asdict(candidate.score), "notes": candidate.notes, "seconds": candidate.seconds}
        write_atomic(body, json.dumps(facts).encode())  # last: a candidate without it was not finished

    def recall(self, name: str) -> Candidate | None:
        """A candidate that an earlier, unfinished run of the same command made."""
        if self.folder is None:
            return None
        plan, model, body = self._paths(name)
        try:
            facts = json.loads(body.read_text())
            score = Score(**facts["score"])
            return Candidate(
                name, read_plan(plan), model.read_bytes(), score, list(facts["notes"]), None, facts["seconds"]
            )
        except (OSError, ValueError, KeyError, TypeError, InputProblem):
            return None

    def room(self, name: str) -> Path | None:
        """A folder for the work on one candidate, which goes with the models."""
        return None if self.folder is None else self._paths(name)[1].with_suffix("")

    def fact(self, name: str) -> Any:
        """A fact noted before, None where there is none."""
        return self._facts.get(name)

    def note(self, name: str, fact: Any) -> None:
        """Keep a fact (plain JSON) for a run that goes on after this one was killed."""
        self._facts[name] = fact
        if self.folder is not None:
            path = self.folder / "work" / "facts.json"
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, json.dumps(self._facts).encode())

    def _paths(self, name: str) -> tuple[Path, Path, Path]:
        """(plan, model, score and notes)."""
        assert self.folder is not None
        stem = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
        work = self.folder / "work"
        return self.folder / "plans" / f"{stem}.json", work / f"{stem}.onnx", work / f"{stem}.json"
