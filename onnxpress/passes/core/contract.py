"""What a pass is: it names options and it carries out decisions; it never judges the result.

A decision is plain JSON that a person can read, edit and commit.  `apply` is deterministic: the same model, decisions
and evidence give the same bytes.  Passes from other packages register under the entry point `onnxpress.passes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import onnx_ir as ir

from onnxpress.measure.evidence import Evidence

Decision = dict[str, Any]


@dataclass(frozen=True)
class Saving:
    """What an option saves: predicted multiply-accumulates a sample, weight bytes, or measured seconds."""

    macs: float = 0.0
    weight_bytes: float = 0.0
    seconds: float | None = None


@dataclass(frozen=True)
class Option:
    """One thing that could be done.  harm: predicted rise of a surrogate loss, 0 for exact options."""

    pass_name: str
    unit: str
    decision: Decision
    saving: Saving = Saving()
    harm: float = 0.0


@dataclass(frozen=True)
class Refused:
    """A unit left alone, and why."""

    unit: str
    reason: str


@dataclass
class Applied:
    """A new model, what was said while making it, and what was left alone."""

    model: ir.Model
    notes: list[str] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)


@runtime_checkable
class Pass(Protocol):
    """name: as in plans; exact: keeps the function for every input; needs_data: decisions need samples to be applied."""

    name: str
    exact: bool
    needs_data: bool

    def options(self, model: ir.Model, evidence: Evidence) -> list[Option]: ...

    def apply(self, model: ir.Model, decisions: Sequence[Decision], evidence: Evidence) -> Applied: ...
