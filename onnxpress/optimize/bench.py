"""Measuring models on this machine, as a function: latency side by side, and what else is asked for.

`bench` returns a Bench, which is a Comparison with room for the rest; `--json` prints the same dataclass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxpress.data.dataset import Dataset
from onnxpress.data.synthetic import synthetic
from onnxpress.errors import InputProblem
from onnxpress.model.files import load, to_bytes
from onnxpress.model.signature import Signature, signature
from onnxpress.runtime.builtin import measured_peak
from onnxpress.runtime.latency import Comparison, Effort, compare_latency
from onnxpress.runtime.profile import Profile, profile
from onnxpress.runtime.session import Settings

ModelLike = str | Path | ir.Model
_PROFILE_SECONDS = 4.0


@dataclass(frozen=True)
class Ask:
    """What to look at besides the latency.  profile: where the time goes, kernel by kernel."""

    profile: bool = False


@dataclass(frozen=True)
class Bench(Comparison):
    """Latencies, and of what was asked for besides: profiles, one a model."""

    profiles: tuple[Profile, ...] = ()


def bench(
    models: Mapping[str, ModelLike],
    data: Dataset | None = None,
    effort: Effort | None = None,
    progress: Callable[[float], None] | None = None,
    ask: Ask | None = None,
) -> Bench:
    """Latency of one model, or of several against the first, on the same inputs in one interleaved run."""
    effort, ask = effort or Effort(), ask or Ask()
    opened = {name: m if isinstance(m, ir.Model) else load(m) for name, m in models.items()}
    first = _same_inputs(opened)
    samples = data if data is not None else synthetic(first, 4)
    feeds = [b.inputs for b in samples.take(8).batches(1)]
    settings = Settings(threads=effort.threads)
    seen = compare_latency({name: to_bytes(m) for name, m in opened.items()}, feeds, effort, settings, progress)
    profiles: list[Profile] = []
    if ask.profile:
        peak, seconds = measured_peak(settings), min(effort.seconds, _PROFILE_SECONDS)
        profiles = [profile(m, feeds[0], settings, seconds, name, peak) for name, m in opened.items()]
    return Bench(**seen.__dict__, profiles=tuple(profiles))


def _same_inputs(opened: Mapping[str, ir.Model]) -> Signature:
    """The first model's signature.  Raises InputProblem where another takes other inputs."""
    signatures = {name: signature(m) for name, m in opened.items()}
    first = next(iter(signatures.values()))
    for name, own in signatures.items():
        if own.inputs != first.inputs and {(s.name, s.dtype) for s in own.inputs} != {
            (s.name, s.dtype) for s in first.inputs
        }:
            raise InputProblem(
                "the models take different inputs",
                name,
                f"{[s.name for s in own.inputs]} and {[s.name for s in first.inputs]}",
                "bench models with the same inputs together",
            )
    return first
