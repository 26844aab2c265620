"""Registry of operators: how a node becomes a Python callable, and which of its inputs carry gradients.

A builder reads the node's attributes once, at build time, and returns `run(*inputs) -> tensor | tuple`.  Absent
optional inputs are passed as None (trailing ones are omitted), so that an instruction costs one Python call beyond
torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.model.read import node_label
from onnxpress.train.graph.tensors import Tensor, to_torch

Run = Callable[..., Any]
Builder = Callable[["NodeContext"], Run]
Subgraph = Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Operator:
    """An operator, from one version of its operator set on.

    since: first version.
    build: the builder.
    grad_inputs: positions of the inputs that carry gradients (None: all; empty: not differentiable).
    deterministic: whether equal inputs give equal outputs, so that constant inputs can be folded.
    """

    name: str
    domain: str
    since: int
    build: Builder
    grad_inputs: tuple[int, ...] | None
    deterministic: bool


REGISTRY: dict[tuple[str, str], list[Operator]] = {}


def operator(
    *names: str, since: int = 1, domain: str = "", grad_inputs: Sequence[int] | None = None, deterministic: bool = True
) -> Callable[[Builder], Builder]:
    """Register a builder for operators of the given domain, from version `since` on."""

    def register(build: Builder) -> Builder:
        for name in names:
            entries = REGISTRY.setdefault((domain, name), [])
            entries.append(
                Operator(name, domain, since, build, None if grad_inputs is None else tuple(grad_inputs), deterministic)
            )
            entries.sort(key=lambda o: o.since)
        return build

    return register


def simple_operator(
    name: str, run: Run, since: int = 1, domain: str = "", grad_inputs: Sequence[int] | None = None
) -> None:
    """Register an operator without attributes."""
    operator(name, since=since, domain=domain, grad_inputs=grad_inputs)(lambda context: run)


def find_operator(domain: str, name: str, version: int) -> Operator | None:
    """The newest entry for a version of the operator set; None where there is none."""
    domain = "" if domain == "ai.onnx" else domain
    fitting = [o for o in REGISTRY.get((domain, name), ()) if o.since <= version]
    return fitting[-1] if fitting else None


@dataclass
class NodeContext:
    """A node as a builder sees it: attributes (references resolved), constant inputs, subgraphs.

    version: of the node's operator set.
    versions: of all operator sets, for subgraphs.
    attributes: by name.
    constants: constant input tensors by position.
    compile: compiles a subgraph, and lists the outer values that it reads.
    captured: names of outer values that follow the node's inputs.
    """

    node: ir.Node
    version: int
    versions: Mapping[str, int]
    attributes: Mapping[str, ir.Attr]
    constants: Mapping[int, Tensor]
    compile: Callable[[ir.Graph], tuple[Subgraph, list[str]]]
    captured: list[str] = field(default_factory=list)

    def has_attribute(self, name: str) -> bool:
        """Whether the node sets an attribute."""
        return name in self.attributes

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute."""
        found = self.attributes.get(name)
        return default if found is None or found.value is None else found.value

    def integer(self, name: str, default: int = 0) -> int:
        return int(self.attribute(name, default))

    def number(self, name: str, default: float = 0.0) -> float:
        return float(self.attribute(name, default))

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int] | None:
        value = self.attribute(name, default)
        return None if value is None else [int(v) for v in value]

    def numbers(self, name: str, default: Sequence[float] | None = None) -> list[float] | None:
        value = self.attribute(name, default)
        return None if value is None else [float(v) for v in value]

    def text(self, name: str, default: str = "") -> str:
        value = self.attribute(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def tensor(self, name: str) -> Tensor:
        value = self.attribute(name)
        return None if value is None else to_torch(value.numpy())

    def has_input(self, index: int) -> bool:
        """Whether an optional input is present."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def has_output(self, index: int) -> bool:
        """Whether an optional output is used."""
        return index < len(self.node.outputs) and bool(self.node.outputs[index].name)

    def rank(self, index: int) -> int | None:
        """The rank of an input where the graph states it."""
        if index in self.constants and self.constants[index] is not None:
            return int(self.constants[index].ndim)
        value = self.node.inputs[index] if self.has_input(index) else None
        if value is None:
            return None
        shape = value.shape if value.shape is not None else value.const_value.shape if value.const_value else None
        return None if shape is None else len(shape)

    def list_reader(self, index: int) -> Callable[[Tensor], list[Any] | None]:
        """A function that reads an input of integers (or numbers) as a list; a constant input is read once."""
        if not self.has_input(index):
            return lambda tensor: None
        if self.constants.get(index) is not None:
            known = self.constants[index].reshape(-1).tolist()
            return lambda tensor: known
        return lambda tensor: tensor.reshape(-1).tolist()

    def scalar(self, index: int) -> Any:
        """The value of a constant input of one element, else None."""
        known = self.constants.get(index)
        return known.item() if known is not None and hasattr(known, "numel") and known.numel() == 1 else None

    def subgraph(self, name: str) -> Subgraph:
        """A subgraph as a function of (arguments, values of `captured`)."""
        run, names = self.compile(self.attribute(name))
        where = []
        for outer in names:
            if outer not in self.captured:
                self.captured.append(outer)
            where.append(self.captured.index(outer))
        return lambda arguments, outer: run(arguments, [outer[i] for i in where])

    def problem(self, why: str, hint: str = "") -> InputProblem:
        """InputProblem for this node."""
        return operator_problem(self.node, why, hint)


def operator_problem(node: ir.Node, why: str, hint: str = "") -> InputProblem:
    """InputProblem for a node that cannot be made differentiable."""
    return InputProblem(
        f"cannot train through {node.op_type}",
        f"node {node_label(node)}, domain {node.domain or 'ai.onnx'}",
        why,
        hint or "choose a region of the graph without this operator",
    )
