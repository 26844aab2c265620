"""What a model took, kept in a file, for a later run to be compared with.

Times of two runs cannot be compared: the machine's state differs by more than what one wants to see.  So a baseline holds two
things that can.  The model's path and hash: where the file is still there, it is timed beside the new one, and the old numbers are
not used at all.  And the ratio of the model's time to a built-in reference model's, taken in one interleaved run: where the old file
is gone, the new model's ratio is held against it.  What slows both alike then cancels, but not what slows one kind of work more
(caches, memory bandwidth, clock under vector load), so that the interval is widened by what such ratios were allowed to
differ between runs.

A baseline holds for one machine, one onnxruntime and one set of conditions; elsewhere it is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.model.files import load, write_atomic
from onnxpress.runtime.builtin_models import REFERENCE_VERSION
from onnxpress.runtime.latency import Ratio
from onnxpress.runtime.machine import this_machine

SCHEMA = 1
KIND = "bench baseline"
BETWEEN_RUNS = 0.02  # relative: one session's placement in memory alone moves a median by 1.7 %


@dataclass(frozen=True)
class Baseline:
    """A model's time as kept: who, where, under which conditions, and how it stood to the reference model.

    speed: the model's speed in units of the reference model's, low and high its 95 % interval; median: seconds, for information
    """

    path: str
    sha256: str
    median: float
    speed: float
    low: float
    high: float
    machine: dict[str, Any]
    conditions: dict[str, Any]
    reference: int = REFERENCE_VERSION

    @property
    def name(self) -> str:
        return f"baseline {Path(self.path).name}"

    def same_file(self) -> Path | None:
        """The baseline's model where it still lies as it was."""
        path = Path(self.path)
        return path if path.is_file() and file_hash(path) == self.sha256 else None


def machine_fingerprint() -> dict[str, Any]:
    """What must be the same for times to be comparable at all."""
    own = this_machine().as_dict()
    return {key: own[key] for key in ("model", "arch", "isa", "system", "onnxruntime")}


def file_hash(path: Path) -> str:
    """sha256 of a model's file and of the files beside it that hold its weights."""
    state = hashlib.sha256(path.read_bytes())
    tensors = (value.const_value for value in load(path).graph.initializers.values())
    for beside in sorted({str(t.path) for t in tensors if isinstance(t, ir.ExternalTensor)}):
        with Path(beside).open("rb") as stream:
            state.update(hashlib.file_digest(stream, "sha256").digest())
    return state.hexdigest()


def write_baseline(found: Baseline, target: Path) -> None:
    body = {"schema": SCHEMA, "kind": KIND, **asdict(found)}
    write_atomic(target, (json.dumps(body, indent=1) + "\n").encode())


def read_baseline(path: Path) -> Baseline:
    """Raises InputProblem for a file that is none, or of another version."""
    again = "make one with `onnxpress bench MODEL --save-baseline FILE`"
    try:
        body = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputProblem("cannot read the baseline", path, str(error), again) from error
    if not isinstance(body, dict) or body.pop("kind", None) != KIND or body.pop("schema", None) != SCHEMA:
        raise InputProblem(
            "this is no baseline of this version", path, f"it must be a {KIND} of schema {SCHEMA}", again
        )
    try:
        found = Baseline(**body)
        numbers = (found.median, found.speed, found.low, found.high)
        sound = all(isinstance(n, float) and n > 0 and math.isfinite(n) for n in numbers) and isinstance(
            found.machine, dict
        )
    except TypeError as error:
        raise InputProblem("the baseline is damaged", path, str(error), again) from error
    if not sound:
        raise InputProblem("the baseline is damaged", path, "its times are not positive numbers", again)
    return found


def check_baseline(found: Baseline, path: Path, conditions: dict[str, Any], force: bool) -> None:
    """Raises InputProblem where the baseline is of another machine (unless forced), or of other conditions."""
    here = machine_fingerprint()
    other = [key for key in here if found.machine.get(key) != here[key]]
    if other and not force:
        key = other[0]
        why = f"its {key} is {_shown(found.machine.get(key))}, here it is {_shown(here[key])}"
        raise InputProblem("the baseline is of another machine", path, why, "make one here, or add --force")
    changed = [key for key in conditions if found.conditions.get(key) != conditions[key]]
    if changed:
        key = changed[0]
        why = f"{key} was {_shown(found.conditions.get(key))}, now it is {_shown(conditions[key])}"
        raise InputProblem("the baseline is of other conditions", path, why, "give the same options, or make it anew")
    if found.reference != REFERENCE_VERSION and found.same_file() is None:
        raise InputProblem("the baseline's reference model is of another version", path, "", "make it anew")


def ratio_to_baseline(found: Baseline, own: Ratio) -> Ratio:
    """The new model's speed against the baseline's, both in units of the reference model's, of two runs.

    own: the new model against the reference model.  Errors of both and of two runs add up in squares.
    """
    middle = math.log(own.speedup / found.speed)
    parts = [
        _reach(own.speedup, own.low, own.high),
        _reach(found.speed, found.low, found.high),
        BETWEEN_RUNS * math.sqrt(2) * 1.96,
    ]
    reach = math.sqrt(sum(p * p for p in parts))
    return Ratio(own.name, found.name, math.exp(middle), math.exp(middle - reach), math.exp(middle + reach))


def _reach(middle: float, low: float, high: float) -> float:
    """The half-width of an interval in logarithms, to the farther side."""
    return max(math.log(high / middle), math.log(middle / low) if low > 0 else math.inf)


def _shown(value: Any) -> str:
    return " ".join(str(v) for v in value) if isinstance(value, list) else str(value)
