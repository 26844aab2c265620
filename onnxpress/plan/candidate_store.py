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
from enum import StrEnum
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.score import Score, score_of
from onnxpress.model.files import write_atomic
from onnxpress.plan.plan import Plan, read_plan, write_plan


class Stage(StrEnum):
    """The stage of a search that made a candidate."""

    EXACT = "exact"
    INT8 = "int8"
    LOW_BIT = "low-bit"
    PASS = "pass"  # a pass without a stage of its own
    BLOCKS = "blocks"
    PRUNING = "pruning"
    REPLACEMENTS = "replacements"
    TRAINING = "training"


@dataclass(frozen=True)
class Prediction:
    """What was expected of a candidate before it was made; None where it was not predicted.

    loss: relative squared error of the outputs. speedup: over the original.
    """

    loss: float | None = None
    speedup: float | None = None


@dataclass
class Candidate:
    """A model that a search made.

    id:      stable over runs of the same command; names its files and is the key in records of timings.
    name:    short, for tables.
    stage:   that made it.
    score:   on the selection samples.
    quick:   speed-up of a short timing (None: untimed).
    parent:  id of the candidate that this is the int8 or the trained form of ("": none).
    seconds: that it took to make.
    predicted: before it was made.
    """

    id: str
    name: str
    stage: Stage
    plan: Plan
    data: bytes
    score: Score
    notes: list[str] = field(default_factory=list)
    quick: float | None = None
    parent: str = ""
    seconds: float = 0.0
    predicted: Prediction = Prediction()

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.data)

    @property
    def passes(self) -> frozenset[str]:
        """Names of the passes in its plan."""
        return frozenset(step.pass_name for step in self.plan.steps)

    @property
    def last_pass(self) -> str:
        """Name of the last pass in its plan."""
        return self.plan.steps[-1].pass_name if self.plan.steps else ""

    @property
    def blocks_out(self) -> int:
        """Number of blocks that its plan takes out."""
        return sum("block" in action for step in self.plan.steps for action in step.actions)

    @property
    def exact(self) -> bool:
        """Whether it is the model after the exact rewrites."""
        return self.stage == Stage.EXACT

    @property
    def int8(self) -> bool:
        """Whether static int8 is part of its plan."""
        return "quantize" in self.passes


def candidate_id(name: str) -> str:
    """An id for a candidate's first name: lower-case words with hyphens."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-").lower()


def model_of(candidate: Candidate) -> ir.Model:
    return ir.from_proto(onnx.load_from_string(candidate.data))


class CandidateStore:
    """Finished candidates and facts of a run. folder: of the run; None keeps nothing."""

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
        plan, model, body = self._paths(candidate.id)
        for path in (plan, model):
            path.parent.mkdir(exist_ok=True)
        write_plan(candidate.plan, plan)
        write_atomic(model, candidate.data)
        kept = ("name", "stage", "notes", "parent", "seconds")
        facts = {"score": asdict(candidate.score), **{name: getattr(candidate, name) for name in kept}}
        write_atomic(body, json.dumps(facts).encode())  # last: a candidate without it was not finished

    def get(self, identifier: str) -> Candidate | None:
        """A candidate that an earlier, unfinished run of the same command made."""
        if self.folder is None:
            return None
        plan, model, body = self._paths(identifier)
        try:
            facts = json.loads(body.read_text())
            return Candidate(
                identifier,
                facts["name"],
                Stage(facts["stage"]),
                read_plan(plan),
                model.read_bytes(),
                score_of(facts["score"]),
                list(facts["notes"]),
                parent=facts["parent"],
                seconds=facts["seconds"],
            )
        except (OSError, ValueError, KeyError, TypeError, InputProblem):
            return None

    def workdir(self, identifier: str) -> Path | None:
        """A folder for the work on one candidate, which goes with the models."""
        return None if self.folder is None else self._paths(identifier)[1].with_suffix("")

    def get_meta(self, name: str) -> Any:
        """A fact that was set before, None where there is none."""
        return self._facts.get(name)

    def set_meta(self, name: str, value: Any) -> None:
        """Keep a fact (plain JSON) for a run that goes on after this one was killed."""
        self._facts[name] = value
        if self.folder is not None:
            path = self.folder / "work" / "facts.json"
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, json.dumps(self._facts).encode())

    def _paths(self, stem: str) -> tuple[Path, Path, Path]:
        """(plan, model, score and notes)."""
        assert self.folder is not None
        work = self.folder / "work"
        return self.folder / "plans" / f"{stem}.json", work / f"{stem}.onnx", work / f"{stem}.json"
