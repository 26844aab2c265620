"""Compilation of a graph into a list of instructions on numbered slots.

Names are resolved, constants folded, and values released after their last use.  A subgraph is compiled in the same
way; the outer values that it reads become additional inputs of the node that holds it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir
import torch

from onnxpress.errors import EnvironmentProblem, InputProblem
from onnxpress.train import operators
from onnxpress.train.graph import expand
from onnxpress.train.graph.registry import Builder, NodeContext, Operator, Run, Subgraph, operator_problem
from onnxpress.train.graph.tensors import Tensor, to_torch

ABSENT = 0  # slot of absent optional inputs, always None
_FOLD_LIMIT = 1 << 26  # elements of a folded constant


@dataclass(frozen=True)
class Override:
    """Another implementation of a node: its builder, and the names of the values that it reads."""

    build: Builder
    inputs: tuple[str | None, ...]


@dataclass(frozen=True)
class Instruction:
    """One call: run(*values of the input slots) -> values of the output slots.

    released: slots that no later instruction reads.
    multiple_outputs: whether `run` returns a sequence.
    """

    run: Run
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    released: tuple[int, ...]
    multiple_outputs: bool
    node: ir.Node


@dataclass
class CompiledGraph:
    """A compiled graph.

    template: initial values of the slots, with constants filled in.
    slots: slot by value name.
    outer: names of values read from an outer graph.
    """

    instructions: list[Instruction]
    template: list[Tensor]
    slots: dict[str, int]
    outer: list[str]

    def schedule(self, keep: Collection[int]) -> list[Instruction]:
        """The instructions that the kept slots need, each with the slots to release after it."""
        live, last, selected = set(keep), set(keep), []
        for instruction in reversed(self.instructions):
            if not live.intersection(instruction.outputs):
                continue
            live.update(instruction.inputs)
            released = tuple({i for i in (*instruction.inputs, *instruction.outputs) if i not in last and i != ABSENT})
            last.update(instruction.inputs)
            selected.append(replace(instruction, released=released))
        return selected[::-1]


def execute(instructions: Sequence[Instruction], env: list[Tensor]) -> None:
    """Run the instructions on the slots `env`, in place.

    Raises InputProblem, which names the node, where torch raises an error, and EnvironmentProblem where memory is
    exhausted.
    """
    instruction = None
    try:
        for instruction in instructions:
            result = instruction.run(*[env[i] for i in instruction.inputs])
            if instruction.multiple_outputs:
                for slot, value in zip(instruction.outputs, result, strict=False):
                    env[slot] = value
            else:
                env[instruction.outputs[0]] = result
            for slot in instruction.released:
                env[slot] = None
    except (RuntimeError, TypeError, IndexError, ValueError, AttributeError) as error:
        assert instruction is not None
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "allocate memory" in text:
            raise EnvironmentProblem(
                "not enough memory to train", instruction.node.name, text, "use smaller batches"
            ) from error
        raise operator_problem(instruction.node, text, "compare the shapes and types of its inputs") from error


@dataclass
class Compiler:
    """Compiles one graph or function body.

    versions: of the operator sets, by domain.
    given: names of values that are set at run time (inputs and parameters).
    bound: values of attribute references (function bodies).
    overrides: by node id.
    parameters: names of trained values.
    nested: whether unknown names are read from an outer graph.
    """

    versions: Mapping[str, int]
    given: Sequence[str]
    bound: Mapping[str, ir.Attr] | None = None
    overrides: Mapping[int, Override] = field(default_factory=dict)
    parameters: frozenset[str] = frozenset()
    nested: bool = False

    def __post_init__(self) -> None:
        self.code = CompiledGraph([], [None], {}, [])
        self.known: set[int] = {ABSENT}
        for name in self.given:
            self.slot(name)

    def slot(self, name: str) -> int:
        """The slot of a value; created on first use."""
        if name not in self.code.slots:
            self.code.slots[name] = len(self.code.template)
            self.code.template.append(None)
        return self.code.slots[name]

    def constant(self, name: str, tensor: Tensor) -> None:
        """Set a value that is known at build time."""
        place = self.slot(name)
        self.code.template[place] = tensor
        self.known.add(place)

    def graph(self, initializers: Iterable[ir.Value], nodes: Iterable[ir.Node]) -> CompiledGraph:
        """Compile nodes in order.  Raises InputProblem for an unsupported operator."""
        for value in initializers:
            name, tensor = value.name, value.const_value
            if name and tensor is not None and name not in self.parameters and name not in self.code.slots:
                self.constant(name, to_torch(tensor.numpy()))
        for node in nodes:
            self.node(node)
        return self.code

    def input_slot(self, name: str | None) -> int:
        """The slot of an input; ABSENT where the input is absent."""
        if not name:
            return ABSENT
        if name in self.code.slots:
            return self.code.slots[name]
        if not self.nested:
            raise InputProblem("a value has no source", name, "no node, input or initializer of the region defines it")
        self.code.outer.append(name)
        return self.slot(name)

    def node(self, node: ir.Node) -> None:
        """Compile one node."""
        override = self.overrides.get(id(node))
        names: Sequence[str | None] = (
            override.inputs if override else [v.name if v is not None else None for v in node.inputs]
        )
        if node.op_type == "Constant" and node.outputs[0].name in self.parameters:
            return
        inputs = [self.input_slot(name) for name in names]
        while inputs and inputs[-1] == ABSENT:
            inputs.pop()
        context = self.node_context(node, inputs)
        entry = find_implementation(context)
        run = (override.build if override else entry.build)(context)
        inputs += [self.input_slot(name) for name in context.captured]
        outputs = [self.slot(v.name) if v.name else -1 for v in node.outputs]
        if (
            outputs
            and not override
            and entry.deterministic
            and all(i in self.known for i in inputs)
            and self.fold(node, run, inputs, outputs)
        ):
            return
        if len(outputs) == 1:
            self.code.instructions.append(Instruction(run, tuple(inputs), (outputs[0],), (), False, node))
        else:
            unused = self.slot("")  # shared by all unused outputs
            slots = tuple(unused if o < 0 else o for o in outputs)
            self.code.instructions.append(Instruction(run, tuple(inputs), slots, (), True, node))

    def fold(self, node: ir.Node, run: Run, inputs: Sequence[int], outputs: Sequence[int]) -> bool:
        """Evaluate a node with constant inputs; False where the result is too large or the evaluation fails (as it
        will at run time).
        """
        env = list(self.code.template)
        with torch.no_grad():
            try:
                execute([Instruction(run, tuple(inputs), tuple(outputs), (), len(outputs) > 1, node)], env)
            except InputProblem:
                return False
        results = [(o, env[o]) for o in outputs if o >= 0]
        if any(isinstance(t, torch.Tensor) and t.numel() > _FOLD_LIMIT for _, t in results):
            return False
        for place, tensor in results:
            self.code.template[place] = tensor
            self.known.add(place)
        return True

    def node_context(self, node: ir.Node, inputs: Sequence[int]) -> NodeContext:
        """The node with resolved attributes, its operator set version and its constant inputs."""
        attributes = {}
        for name, attr in node.attributes.items():
            if not attr.is_ref():
                attributes[name] = attr
            elif self.bound is not None and (attr.ref_attr_name or "") in self.bound:
                attributes[name] = self.bound[attr.ref_attr_name or ""]
        domain = "" if node.domain == "ai.onnx" else node.domain
        version = self.versions.get(domain, self.versions.get("ai.onnx", 1) if not domain else 1)
        constants = {i: self.code.template[s] for i, s in enumerate(inputs) if s in self.known and s != ABSENT}
        return NodeContext(node, version, self.versions, attributes, constants, self.subgraph)

    def subgraph(self, graph: ir.Graph) -> tuple[Subgraph, list[str]]:
        """A compiled subgraph, and the outer names that it reads."""
        inner = Compiler(
            self.versions, [v.name or "" for v in graph.inputs], self.bound, self.overrides, self.parameters, True
        )
        code = inner.graph(graph.initializers.values(), graph)
        results = [inner.input_slot(v.name) for v in graph.outputs]
        return make_subgraph(code, [v.name or "" for v in graph.inputs], results), code.outer


def make_subgraph(code: CompiledGraph, inputs: Sequence[str], results: Sequence[int]) -> Subgraph:
    """Compiled instructions as a function of (arguments, outer values); missing arguments are None."""
    instructions = code.schedule(set(results))
    places = [code.slots[name] for name in inputs]
    outer = [code.slots[name] for name in code.outer]

    def run(arguments: Sequence[Tensor], captured: Sequence[Tensor]) -> list[Tensor]:
        env = list(code.template)
        for place, value in zip(places, arguments, strict=False):
            env[place] = value
        for place, value in zip(outer, captured, strict=True):
            env[place] = value
        execute(instructions, env)
        return [env[i] for i in results]

    return run


def find_implementation(context: NodeContext) -> Operator:
    """The implementation of a node: a registered operator, else the function body that the ONNX standard defines."""
    node = context.node
    domain = "" if node.domain == "ai.onnx" else node.domain
    if not domain and context.version < 7 and context.integer("broadcast"):
        raise operator_problem(
            node, "it has the broadcasting of version 6 and before", "convert the model to a newer operator set"
        )
    found = operators.find_operator(domain, node.op_type, context.version)
    if found is not None:
        return found
    if expand.has_body(domain, node.op_type, context.version):
        return Operator(node.op_type, domain, 1, expand.builder(_body), None, False)
    raise operator_problem(node, f"{node.op_type} version {context.version} is not supported")


def _body(function: ir.Function, bound: Mapping[str, Any]) -> Subgraph:
    inputs = [v.name or "" for v in function.inputs]
    compiler = Compiler(dict(function.opset_imports), inputs, bound)
    code = compiler.graph((), function)
    return make_subgraph(code, inputs, [compiler.input_slot(v.name) for v in function.outputs])
