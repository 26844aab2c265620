"""Latency baselines: a model's latency in a file, for comparison in a later run.

Times of two runs cannot be compared: the state of the machine differs by more than the differences of interest.  So a
baseline holds two things that can.  The path and hash of the model: while the file still exists, it is timed together
with the new model, and the stored numbers are not used.  And the ratio of the model's latency to that of a built-in
reference model, measured in one interleaved run: where the old file is gone, the new model's ratio is compared with it.
What slows both models equally cancels out, but not what slows one kind of work more than another (caches, memory
bandwidth, clock under vector load), so the interval is widened by how much such ratios differ between runs.

A baseline holds for one machine, one onnxruntime version and one set of conditions; elsewhere it is rejected.
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
BETWEEN_RUNS = 0.02  # relative; the placement of one session in memory alone shifts a median by 1.7 %


@dataclass(frozen=True)
class Baseline:
    """A stored latency.

    path, sha256:    of the model file
    median:          seconds, for information only
    speed, low, high: speed in units of the reference model's, and its 95 % interval
    machine:         see `machine_fingerprint`
    conditions:      of the measurement
    reference:       version of the reference model
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
        """The path of the baseline's model while the file is unchanged, else None."""
        path = Path(self.path)
        return path if path.is_file() and file_hash(path) == self.sha256 else None


def machine_fingerprint() -> dict[str, Any]:
    """The facts of the machine that must agree for latencies to be comparable."""
    own = this_machine().as_dict()
    return {key: own[key] for key in ("model", "arch", "isa", "system", "onnxruntime")}


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a model file and of its external data files."""
    state = hashlib.sha256(path.read_bytes())
    tensors = (value.const_value for value in load(path).graph.initializers.values())
    for data_file in sorted({str(t.path) for t in tensors if isinstance(t, ir.ExternalTensor)}):
        with Path(data_file).open("rb") as stream:
            state.update(hashlib.file_digest(stream, "sha256").digest())
    return state.hexdigest()


def write_baseline(found: Baseline, target: Path) -> None:
    """Write a baseline as JSON."""
    body = {"schema": SCHEMA, "kind": KIND, **asdict(found)}
    write_atomic(target, (json.dumps(body, indent=1) + "\n").encode())


def read_baseline(path: Path) -> Baseline:
    """Read a baseline.  Raises InputProblem for any other file, and for another version."""
    hint = "write one with `save_baseline`"
    try:
        body = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputProblem("cannot read the baseline", path, str(error), hint) from error
    if not isinstance(body, dict) or body.pop("kind", None) != KIND or body.pop("schema", None) != SCHEMA:
        raise InputProblem("not a baseline of this version", path, f"expected a {KIND} of schema {SCHEMA}", hint)
    try:
        found = Baseline(**body)
        numbers = (found.median, found.speed, found.low, found.high)
        sound = all(isinstance(n, float) and n > 0 and math.isfinite(n) for n in numbers) and isinstance(
            found.machine, dict
        )
    except TypeError as error:
        raise InputProblem("the baseline is damaged", path, str(error), hint) from error
    if not sound:
        raise InputProblem("the baseline is damaged", path, "its times are not positive numbers", hint)
    return found


def check_baseline(found: Baseline, path: Path, conditions: dict[str, Any], force: bool) -> None:
    """Check that a baseline applies here.

    Raises InputProblem for another machine, unless `force`, and for other conditions.
    """
    here = machine_fingerprint()
    other = [key for key in here if found.machine.get(key) != here[key]]
    if other and not force:
        key = other[0]
        why = f"its {key} is {_shown(found.machine.get(key))}, here it is {_shown(here[key])}"
        raise InputProblem("the baseline is from another machine", path, why, "write one here, or pass `force`")
    changed = [key for key in conditions if found.conditions.get(key) != conditions[key]]
    if changed:
        key = changed[0]
        why = f"{key} was {_shown(found.conditions.get(key))}, now it is {_shown(conditions[key])}"
        raise InputProblem(
            "the baseline was measured under other conditions",
            path,
            why,
            "use the same options, or write a new baseline",
        )
    if found.reference != REFERENCE_VERSION and found.same_file() is None:
        raise InputProblem("the baseline's reference model has another version", path, "", "write a new baseline")


def ratio_to_baseline(found: Baseline, own: Ratio) -> Ratio:
    """The new model's speed against the baseline's, from their ratios to the reference model in two runs.

    own: the new model against the reference model.  The errors of both ratios and between the runs add in quadrature.
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
    """The larger half-width of an interval, in logarithms."""
    return max(math.log(high / middle), math.log(middle / low) if low > 0 else math.inf)


def _shown(value: Any) -> str:
    return " ".join(str(v) for v in value) if isinstance(value, list) else str(value)
