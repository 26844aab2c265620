"""Operators by name: how a node becomes a Python callable, and which of its inputs carry gradients.

A builder reads the node's attributes once, at build time, and returns `run(*inputs) -> tensor | tuple`.  Absent optional
inputs arrive as None (trailing ones not at all), so that a step of a program costs one Python call beyond torch's own.
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
Builder = Callable[["Site"], Run]
Block = Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Operator:
    """One operator from one version of its set on.

    data:  positions of the inputs that carry gradients (None: every input; empty: not differentiable).
    fixed: whether equal inputs always give equal outputs, so that constant inputs can be folded.
    """

    name: str
    domain: str
    since: int
    build: Builder
    data: tuple[int, ...] | None
    fixed: bool


REGISTRY: dict[tuple[str, str], list[Operator]] = {}


def operator(
    *names: str, since: int = 1, domain: str = "", data: Sequence[int] | None = None, fixed: bool = True
) -> Callable[[Builder], Builder]:
    """Register a builder for operators (of the given domain, from version `since` on)."""

    def register(build: Builder) -> Builder:
        for name in names:
            entries = REGISTRY.setdefault((domain, name), [])
            entries.append(Operator(name, domain, since, build, None if data is None else tuple(data), fixed))
            entries.sort(key=lambda o: o.since)
        return build

    return register


def plain(name: str, run: Run, since: int = 1, domain: str = "", data: Sequence[int] | None = None) -> None:
    """Register an operator without attributes."""
    operator(name, since=since, domain=domain, data=data)(lambda site: run)


def find(domain: str, name: str, version: int) -> Operator | None:
    """The newest entry that a version of the operator set covers."""
    domain = "" if domain == "ai.onnx" else domain
    fitting = [o for o in REGISTRY.get((domain, name), ()) if o.since <= version]
    return fitting[-1] if fitting else None


@dataclass
class Site:
    """A node as a builder sees it: attributes (references resolved), constant inputs, sub-graphs.

    version:   of the node's operator set.  versions: of every set, for what is built inside.
    constants: tensors of the inputs that never change, by position.
    compile:   turns a sub-graph into a block and lists the outer values it reads.
    """

    node: ir.Node
    version: int
    versions: Mapping[str, int]
    attributes: Mapping[str, ir.Attr]
    constants: Mapping[int, Tensor]
    compile: Callable[[ir.Graph], tuple[Block, list[str]]]
    captured: list[str] = field(default_factory=list)

    def has(self, name: str) -> bool:
        return name in self.attributes

    def raw(self, name: str, default: Any = None) -> Any:
        found = self.attributes.get(name)
        return default if found is None or found.value is None else found.value

    def integer(self, name: str, default: int = 0) -> int:
        return int(self.raw(name, default))

    def number(self, name: str, default: float = 0.0) -> float:
        return float(self.raw(name, default))

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int] | None:
        value = self.raw(name, default)
        return None if value is None else [int(v) for v in value]

    def numbers(self, name: str, default: Sequence[float] | None = None) -> list[float] | None:
        value = self.raw(name, default)
        return None if value is None else [float(v) for v in value]

    def text(self, name: str, default: str = "") -> str:
        value = self.raw(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def tensor(self, name: str) -> Tensor:
        value = self.raw(name)
        return None if value is None else to_torch(value.numpy())

    def given(self, index: int) -> bool:
        """Whether an optional input is there."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def wanted(self, index: int) -> bool:
        """Whether an optional output is asked for."""
        return index < len(self.node.outputs) and bool(self.node.outputs[index].name)

    def rank(self, index: int) -> int | None:
        """The rank of an input where the graph states it."""
        if index in self.constants and self.constants[index] is not None:
            return int(self.constants[index].ndim)
        value = self.node.inputs[index] if self.given(index) else None
        if value is None:
            return None
        shape = value.shape if value.shape is not None else value.const_value.shape if value.const_value else None
        return None if shape is None else len(shape)

    def reader(self, index: int) -> Callable[[Tensor], list[Any] | None]:
        """Reads an input of integers (or numbers) as a list; a constant one is read once."""
        if not self.given(index):
            return lambda tensor: None
        if self.constants.get(index) is not None:
            known = self.constants[index].reshape(-1).tolist()
            return lambda tensor: known
        return lambda tensor: tensor.reshape(-1).tolist()

    def scalar(self, index: int) -> Any:
        """The number a constant one-element input holds, else None."""
        known = self.constants.get(index)
        return known.item() if known is not None and hasattr(known, "numel") and known.numel() == 1 else None

    def block(self, name: str) -> Block:
        """A sub-graph as `block(arguments, outer)`; outer: the values of `captured`, which follow the node's inputs."""
        run, names = self.compile(self.raw(name))
        where = []
        for outer in names:
            if outer not in self.captured:
                self.captured.append(outer)
            where.append(self.captured.index(outer))
        return lambda arguments, outer: run(arguments, [outer[i] for i in where])

    def problem(self, why: str, hint: str = "") -> InputProblem:
        return problem(self.node, why, hint)


def problem(node: ir.Node, why: str, hint: str = "") -> InputProblem:
    """A node that cannot be made differentiable, in one line."""
    return InputProblem(
        f"cannot train through {node.op_type}",
        f"node {node_label(node)}, domain {node.domain or 'ai.onnx'}",
        why,
        hint or "choose a region of the graph without this operator",
    )
