"""The contract of a pass: what it could do, what it does for given options, and doing it.

A pass has three methods. `propose` lists everything it could do to a model, unit by unit, with the saving and the loss
that it predicts; `plan` chooses actions for the options of its own command; `apply` carries actions out. No pass
judges its
result: latency and accuracy of the whole model are measured by the callers.

An action is plain JSON, so that a plan can be read, edited, committed and replayed. `apply` is deterministic: the same
model, samples and actions give the same bytes. A pass of another package is registered under the entry point
`onnxpress.passes`, and then is reached in the same way as the built-in ones (`passes/registry.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import onnx_ir as ir

from onnxpress.measure.evidence import Evidence
from onnxpress.passes.core.options import PassOptions

Action = dict[str, Any]
OptionsT = TypeVar("OptionsT", bound=PassOptions, contravariant=True)


@dataclass(frozen=True)
class Saving:
    """Predicted savings of one action.

    macs: multiply-accumulates for one sample. weight_bytes: bytes of the file. compressed_bytes: bytes of the
    compressed file where the file itself keeps its size. seconds: of one run on this machine (None: not predicted).
    """

    macs: float = 0.0
    weight_bytes: float = 0.0
    compressed_bytes: float = 0.0
    seconds: float | None = None

    @property
    def any(self) -> bool:
        """Whether anything is saved."""
        return max(self.macs, self.weight_bytes, self.compressed_bytes, self.seconds or 0.0) > 0


@dataclass(frozen=True)
class Proposal:
    """One thing a pass could do, with its predictions.

    unit:    the unit of the model that is changed, for people (a node, a weight, a channel group, a block).
    action:  what `apply` takes.
    touches: names of the nodes, initializers and channel groups that the action changes. Proposals of one model that
             share a name conflict.
    saving:  see Saving.
    loss:    predicted relative squared error of the model's outputs. 0 only where the function is kept exactly; None
             where it is not known before it is tried.
    """

    unit: str
    action: Action
    touches: frozenset[str] = frozenset()
    saving: Saving = Saving()
    loss: float | None = 0.0

    @property
    def assumed_loss(self) -> float:
        """The predicted loss, infinite where it is not known: for choices by loss."""
        return math.inf if self.loss is None else self.loss


@dataclass(frozen=True)
class Refusal:
    """A unit that the pass cannot change, and the reason."""

    unit: str
    reason: str


@dataclass
class Planned:
    """The actions that carry out the options of a command, in the order in which they are applied.

    notes: remarks for the user. refused: units left alone. details: results for `finish` and for reports, such as the
    sensitivity of every layer. unchanged: why the result would be the original though the options ask for less, ""
    where it is not: no file is written then.
    """

    actions: list[Action]
    notes: list[str] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    details: Any = None
    unchanged: str = ""


@dataclass
class Applied:
    """A new model, remarks for the user, units left alone, and details of the pass for reports."""

    model: ir.Model
    notes: list[str] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    details: Any = None


@runtime_checkable
class Pass(Protocol[OptionsT]):
    """A transformation of a model.

    name:       the command, the Python function and the step of a plan.
    Options:    a dataclass (see `passes/core/options.py`) from which the command line, the Python signature and the
                documentation are made.
    exact:      whether all proposals keep the function for every input, up to rounding.
    needs_data: whether `plan` and `apply` need samples.
    extra:      the optional dependency group that is needed, or None.

    A pass that only makes files smaller may say so by an attribute `saves_time = False`: a search for speed leaves it
    out.
    """

    @property
    def name(self) -> str: ...

    @property
    def exact(self) -> bool: ...

    @property
    def needs_data(self) -> bool: ...

    @property
    def extra(self) -> str | None: ...

    @property
    def Options(self) -> type[PassOptions]: ...

    def propose(self, evidence: Evidence) -> Iterable[Proposal | Refusal]:
        """Everything the pass could do to the evidence's model, and the units that it cannot change."""
        ...

    def plan(self, evidence: Evidence, options: OptionsT) -> Planned:
        """The actions that carry out the options; raises InputProblem where they cannot be met."""
        ...

    def apply(self, evidence: Evidence, actions: Sequence[Action]) -> Applied:
        """A new model with the actions carried out; the evidence's model is not changed."""
        ...


AnyPass = Pass[Any]


@runtime_checkable
class Finishing(Protocol):
    """A pass that adds remarks or details once the result is known, such as sizes and times of the whole model."""

    def finish(self, evidence: Evidence, options: Any, planned: Planned, done: Applied) -> None:
        """Add to `done.notes` and `done.details`."""
        ...


def proposals(offering: AnyPass, evidence: Evidence) -> list[Proposal]:
    """What a pass proposes, without the refusals."""
    return [p for p in offering.propose(evidence) if isinstance(p, Proposal)]


def refusals(offering: AnyPass, evidence: Evidence) -> list[Refusal]:
    """The units that a pass cannot change, without its proposals."""
    return [r for r in offering.propose(evidence) if isinstance(r, Refusal)]


def setting(actions: Sequence[Action], key: str, choices: Sequence[str]) -> str:
    """The value of a setting that one of the actions holds; the first of the choices where none does.

    Raises InputProblem for a value that is not one of the choices.
    """
    from onnxpress.errors import InputProblem

    value = next((str(a[key]) for a in actions if key in a), choices[0])
    if value not in choices:
        raise InputProblem(f"unknown {key}", value, "", f"one of {', '.join(choices)}")
    return value
