"""A graph as a list of steps over numbered slots: constants folded, values dropped after their last use.

Names are resolved once, at build.  A sub-graph is compiled the same way; the outer values it reads become further
inputs of the node that holds it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch

from onnxpress.errors import EnvironmentProblem, InputProblem
from onnxpress.train import operators
from onnxpress.train.graph import expand
from onnxpress.train.graph.registry import Block, Builder, Operator, Run, Site, problem
from onnxpress.train.graph.tensors import Tensor, to_torch

NOTHING = 0  # the slot of absent optional inputs, always None
_FOLD_LIMIT = 1 << 26  # elements; a larger folded constant would only cost memory


@dataclass(frozen=True)
class Override:
    """Another meaning for one node: its builder and the values it reads."""

    build: Builder
    inputs: tuple[str | None, ...]


@dataclass(frozen=True)
class Step:
    """run(*slots of ins) -> outs (one slot, or several when `many`); drops: slots no later step reads."""

    run: Run
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    drops: tuple[int, ...]
    many: bool
    node: ir.Node


@dataclass
class Code:
    """What a graph compiles to.  template: the slots before a run (constants in place)."""

    steps: list[Step]
    template: list[Tensor]
    slots: dict[str, int]
    outer: list[str]

    def planned(self, keep: Collection[int]) -> list[Step]:
        """The steps that the kept slots need, each with the slots that nothing reads after it."""
        live, last, chosen = set(keep), set(keep), []
        for step in reversed(self.steps):
            if not live.intersection(step.outs):
                continue
            live.update(step.ins)
            drops = tuple({i for i in (*step.ins, *step.outs) if i not in last and i != NOTHING})
            last.update(step.ins)
            chosen.append(Step(step.run, step.ins, step.outs, drops, step.many, step.node))
        return chosen[::-1]


def execute(steps: Sequence[Step], env: list[Tensor]) -> None:
    """Run the steps in place.  Raises InputProblem (node named) where torch refuses, EnvironmentProblem without memory."""
    step = None
    try:
        for step in steps:
            result = step.run(*[env[i] for i in step.ins])
            if step.many:
                for slot, value in zip(step.outs, result, strict=False):
                    env[slot] = value
            else:
                env[step.outs[0]] = result
            for slot in step.drops:
                env[slot] = None
    except (RuntimeError, TypeError, IndexError, ValueError, AttributeError) as error:
        assert step is not None
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "allocate memory" in text:
            raise EnvironmentProblem(
                "not enough memory to train", step.node.name, text, "use smaller batches"
            ) from error
        raise problem(step.node, text, "compare the shapes and types of its inputs") from error


@dataclass
class Compiler:
    """One graph (or function body) being compiled.

    versions:   of the operator sets, by domain.    bound: values of attribute references (function bodies).
    given:      names whose values come from outside at run time (inputs and parameters).
    overrides:  other meanings of nodes, by id.      nested: unknown names are read from an outer graph.
    """

    versions: Mapping[str, int]
    given: Sequence[str]
    bound: Mapping[str, ir.Attr] | None = None
    overrides: Mapping[int, Override] = field(default_factory=dict)
    parameters: frozenset[str] = frozenset()
    nested: bool = False

    def __post_init__(self) -> None:
        self.code = Code([], [None], {}, [])
        self.known: set[int] = {NOTHING}
        for name in self.given:
            self.slot(name)

    def slot(self, name: str) -> int:
        """The slot of a value, made on first sight."""
        if name not in self.code.slots:
            self.code.slots[name] = len(self.code.template)
            self.code.template.append(None)
        return self.code.slots[name]

    def constant(self, name: str, tensor: Tensor) -> None:
        place = self.slot(name)
        self.code.template[place] = tensor
        self.known.add(place)

    def graph(self, initializers: Iterable[ir.Value], nodes: Iterable[ir.Node]) -> Code:
        """Compile nodes in order.  Raises InputProblem for an operator that is not known."""
        for value in initializers:
            name, tensor = value.name, value.const_value
            if name and tensor is not None and name not in self.parameters and name not in self.code.slots:
                self.constant(name, to_torch(tensor.numpy()))
        for node in nodes:
            self.node(node)
        return self.code

    def read(self, name: str | None) -> int:
        if not name:
            return NOTHING
        if name in self.code.slots:
            return self.code.slots[name]
        if not self.nested:
            raise InputProblem("a value has no source", name, "no node, input or initializer of the region gives it")
        self.code.outer.append(name)
        return self.slot(name)

    def node(self, node: ir.Node) -> None:
        override = self.overrides.get(id(node))
        names: Sequence[str | None] = (
            override.inputs if override else [v.name if v is not None else None for v in node.inputs]
        )
        if node.op_type == "Constant" and node.outputs[0].name in self.parameters:
            return
        ins = [self.read(name) for name in names]
        while ins and ins[-1] == NOTHING:
            ins.pop()
        site = self.site(node, ins)
        entry = resolve(site)
        run = (override.build if override else entry.build)(site)
        ins += [self.read(name) for name in site.captured]
        outs = [self.slot(v.name) if v.name else -1 for v in node.outputs]
        if (
            outs
            and not override
            and entry.fixed
            and all(i in self.known for i in ins)
            and self.fold(node, run, ins, outs)
        ):
            return
        if len(outs) == 1:
            self.code.steps.append(Step(run, tuple(ins), (outs[0],), (), False, node))
        else:
            spare = self.slot("")  # outputs nobody asked for share one slot
            where = tuple(spare if o < 0 else o for o in outs)
            self.code.steps.append(Step(run, tuple(ins), where, (), True, node))

    def fold(self, node: ir.Node, run: Run, ins: Sequence[int], outs: Sequence[int]) -> bool:
        """Compute a node of constants now; False where the result is too large to keep or fails (it fails again at run)."""
        env = list(self.code.template)
        with torch.no_grad():
            try:
                execute([Step(run, tuple(ins), tuple(outs), (), len(outs) > 1, node)], env)
            except InputProblem:
                return False
        results = [(o, env[o]) for o in outs if o >= 0]
        if any(isinstance(t, torch.Tensor) and t.numel() > _FOLD_LIMIT for _, t in results):
            return False
        for place, tensor in results:
            self.code.template[place] = tensor
            self.known.add(place)
        return True

    def site(self, node: ir.Node, ins: Sequence[int]) -> Site:
        attributes = {}
        for name, attr in node.attributes.items():
            if not attr.is_ref():
                attributes[name] = attr
            elif self.bound is not None and (attr.ref_attr_name or "") in self.bound:
                attributes[name] = self.bound[attr.ref_attr_name or ""]
        domain = "" if node.domain == "ai.onnx" else node.domain
        version = self.versions.get(domain, self.versions.get("ai.onnx", 1) if not domain else 1)
        constants = {i: self.code.template[s] for i, s in enumerate(ins) if s in self.known and s != NOTHING}
        return Site(node, version, self.versions, attributes, constants, self.sub)

    def sub(self, graph: ir.Graph) -> tuple[Block, list[str]]:
        """A sub-graph as a block, and the outer names it reads."""
        inner = Compiler(
            self.versions, [v.name or "" for v in graph.inputs], self.bound, self.overrides, self.parameters, True
        )
        code = inner.graph(graph.initializers.values(), graph)
        results = [inner.read(v.name) for v in graph.outputs]
        return block(code, [v.name or "" for v in graph.inputs], results), code.outer


def block(code: Code, inputs: Sequence[str], results: Sequence[int]) -> Block:
    """Compiled steps as a function of arguments (missing ones are None) and outer values."""
    steps = code.planned(set(results))
    places = [code.slots[name] for name in inputs]
    outer = [code.slots[name] for name in code.outer]

    def run(arguments: Sequence[Tensor], captured: Sequence[Tensor]) -> list[Tensor]:
        env = list(code.template)
        for place, value in zip(places, arguments, strict=False):
            env[place] = value
        for place, value in zip(outer, captured, strict=True):
            env[place] = value
        execute(steps, env)
        return [env[i] for i in results]

    return run


def resolve(site: Site) -> Operator:
    """The entry for a node: an operator of ours, else the function body that the standard gives."""
    node = site.node
    domain = "" if node.domain == "ai.onnx" else node.domain
    if not domain and site.version < 7 and site.integer("broadcast"):
        raise problem(node, "it broadcasts as before version 7", "convert the model to a newer operator set")
    found = operators.find(domain, node.op_type, site.version)
    if found is not None:
        return found
    if expand.has_body(domain, node.op_type, site.version):
        return Operator(node.op_type, domain, 1, expand.builder(_body), None, False)
    raise problem(node, f"the operator {node.op_type} of version {site.version} is not known")


def _body(function: ir.Function, bound: Mapping[str, Any]) -> Block:
    inputs = [v.name or "" for v in function.inputs]
    compiler = Compiler(dict(function.opset_imports), inputs, bound)
    code = compiler.graph((), function)
    return block(code, inputs, [compiler.read(v.name) for v in function.outputs])
