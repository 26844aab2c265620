"""An ONNX graph as a torch module: the same results as onnxruntime, gradients for all weights, and conversion back to
ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common

from onnxpress.errors import InputProblem
from onnxpress.model import edit, read
from onnxpress.train import batchnorm
from onnxpress.train.graph import fakequant, fuse, weight_selection
from onnxpress.train.graph.compile import CompiledGraph, Compiler, Instruction, execute
from onnxpress.train.graph.tensors import Tensor, to_numpy, to_torch

_HALF = (torch.float16, torch.bfloat16)


class Program(torch.nn.Module):  # type: ignore[misc]
    """An onnx-ir model, or a region of it, as a differentiable module.

    outputs: names of the values to compute (default: the graph's outputs).
    inputs: names of the values that are fed (default: the graph's inputs).  With inner names only the nodes between
        inputs and outputs are compiled, whatever operators the rest of the graph uses.
    trainable: names of the initializers to train (default: all trainable float tensors, see weight_selection.py).
    fake_quant: compile QuantizeLinear and DequantizeLinear as learnable fake quantization.
    masters: float values of integer weights, by initializer name (default: the dequantized integers).
    from_scratch: batch normalization uses batch statistics; their running means become the stored statistics.

    Raises InputProblem for unknown names and for unsupported operators.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        outputs: Sequence[str] | None = None,
        inputs: Sequence[str] | None = None,
        trainable: Collection[str] | None = None,
        fake_quant: bool = True,
        masters: Mapping[str, np.ndarray] | None = None,
        from_scratch: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        work = model
        if model.functions:
            work = model.clone()
            common.InlinePass()(work)
        graph = work.graph
        self.outputs = list(outputs) if outputs is not None else [v.name or "" for v in graph.outputs]
        given = set(graph.initializers)
        self.inputs = (
            list(inputs) if inputs is not None else [v.name or "" for v in graph.inputs if v.name not in given]
        )
        nodes = region_nodes(graph, self.inputs, self.outputs)
        versions = {domain or "": v for domain, v in work.opset_imports.items()}
        versions.setdefault("", read.opset(work))
        self._tensors = weight_selection.stored_tensors(graph, nodes)
        reach = weight_selection.values_with_gradient(nodes, self.outputs, versions, fake_quant)
        self._quant = (
            fakequant.plan_fake_quantization(nodes, self._tensors, self.outputs, reach)
            if fake_quant
            else fakequant.FakeQuantPlan()
        )
        found = [
            *weight_selection.trainable_weights(graph, self._tensors, reach),
            *self._quant.weights,
            *self._quant.scales,
        ]
        self.names = self._trained_names(trainable, found)
        self.scales = [n for n in self.names if n in set(self._quant.scales)]
        self._parameter_rules: dict[str, Callable[[Tensor], Tensor]] = dict.fromkeys(self.scales, torch.abs)
        for index, name in enumerate(self.names):
            self.register_parameter(f"w{index}", torch.nn.Parameter(self._initial_value(name, masters or {})))
        norms = batchnorm.plan_batch_norm(nodes, self._tensors) if from_scratch else batchnorm.BatchNormPlan()
        self._running_statistics = norms.running
        for index, tensor in enumerate(norms.running.values()):
            self.register_buffer(f"s{index}", tensor)
        overrides = {
            **norms.overrides,
            **fuse.fuse_patterns(nodes, self.inputs, self._tensors, self.names),
            **self._quant.overrides,
        }
        compiler = Compiler(
            versions, [*self.inputs, *self.names], overrides=overrides, parameters=frozenset(self.names)
        )
        self._code: CompiledGraph = compiler.graph(graph.initializers.values(), nodes)
        self._schedules: dict[tuple[str, ...], list[Instruction]] = {}

    def _trained_names(self, trainable: Collection[str] | None, found: list[str]) -> list[str]:
        """The names to train: those given, else those found."""
        if trainable is None:
            return list(dict.fromkeys(found))
        for name in trainable:
            if name not in self._tensors:
                raise InputProblem("cannot train a value", name, "the region holds no initializer of that name")
        return [name for name in self._tensors if name in set(trainable)]

    def _initial_value(self, name: str, masters: Mapping[str, np.ndarray]) -> Tensor:
        """The initial value of a parameter; 16-bit floats are trained in 32 bits and rounded in the forward pass."""
        tensor = self._tensors[name]
        if name in self._quant.weights:
            return (
                to_torch(masters[name])
                if name in masters
                else fakequant.master_weight(self._quant.weights[name], self._tensors)
            )
        values = to_torch(tensor.numpy())
        if not values.dtype.is_floating_point:
            raise InputProblem("cannot train a value", name, f"it holds {tensor.dtype.name.lower()}, not floats")
        if values.dtype in _HALF:
            half = values.dtype
            self._parameter_rules[name] = lambda x: x.to(half)
            values = values.float()
        return values

    def to_float64(self) -> Program:
        """Convert weights and constants to 64 bits, in place; returns the program itself."""
        self.double()
        template = self._code.template
        self._code.template = [t.double() if torch.is_tensor(t) and t.dtype == torch.float32 else t for t in template]
        return self

    def parameter(self, name: str) -> Tensor:
        """The torch parameter of an initializer."""
        return getattr(self, f"w{self.names.index(name)}")

    def forward(self, feeds: Mapping[str, Tensor], extra_outputs: Sequence[str] = ()) -> dict[str, Tensor]:
        """Outputs and extra outputs (inner values) by name.

        Raises InputProblem for a missing input or an unknown extra output.
        """
        code = self._code
        key = tuple(extra_outputs)
        instructions = self._schedules.get(key)
        if instructions is None:
            instructions = self._schedules[key] = code.schedule({self._slot(n) for n in (*self.outputs, *key)})
        env = list(code.template)
        for name in self.inputs:
            if name not in feeds:
                raise InputProblem("an input is missing", name, f"given: {', '.join(feeds)}")
            env[code.slots[name]] = feeds[name]
        for name, parameter in zip(self.names, self._parameters.values(), strict=True):
            rule = self._parameter_rules.get(name)
            env[code.slots[name]] = parameter if rule is None else rule(parameter)
        execute(instructions, env)
        return {name: env[code.slots[name]] for name in (*self.outputs, *key)}

    def _slot(self, name: str) -> int:
        if name not in self._code.slots:
            raise InputProblem(
                "a value is not computed", name, "the region between inputs and outputs does not hold it"
            )
        return self._code.slots[name]

    def weights(self) -> dict[str, np.ndarray]:
        """The current weights by initializer name, in the types in which the model stores them.

        Integer weights are returned as rounded codes, together with the scales that depend on learned ones.
        """
        found = {}
        for name, parameter in zip(self.names, self._parameters.values(), strict=True):
            rule = self._parameter_rules.get(name, torch.Tensor.detach)
            found[name] = to_numpy(rule(parameter.detach())).copy()
        found.update({name: to_numpy(tensor).copy() for name, tensor in self._running_statistics.items()})
        for name, source in self._quant.tied_scales.items():
            if source in found:
                shape = tuple(int(d) for d in self._tensors[name].shape.numpy())
                found[name] = np.full(shape, found[source].reshape(()), found[source].dtype)
        for name, weight in self._quant.weights.items():
            if weight.product is not None and (name in found or any(n in found for n in weight.product)):
                found[weight.scale] = fakequant.bias_scale(*(self._current_value(n, found) for n in weight.product))
                shift = fakequant.master_weight(weight, self._tensors).numpy() if name not in found else found[name]
                found[name] = shift
        for name, weight in self._quant.weights.items():
            if name in found:
                found[name] = fakequant.quantize_master(
                    weight, found[name], self._current_value(weight.scale, found), self._tensors
                )
        return found

    def _current_value(self, name: str, found: Mapping[str, np.ndarray]) -> np.ndarray:
        return found[name] if name in found else self._tensors[name].numpy()

    def to_model(self, model: ir.Model | None = None) -> ir.Model:
        """A clone of the model with the current weights; nothing else changes."""
        clone = (model or self.model).clone()
        edit.set_numbers(clone, self.weights())
        return clone


def region_nodes(graph: ir.Graph, inputs: Sequence[str], outputs: Sequence[str]) -> list[ir.Node]:
    """The nodes between inputs and outputs, in the graph's order.

    Raises InputProblem where an output does not exist, or depends on a graph input that is not given.
    """
    made = {v.name: n for n in graph for v in n.outputs if v.name}
    free, stored = set(inputs), set(graph.initializers)
    known = {v.name for v in graph.inputs} | stored
    needed: set[int] = set()
    waiting = [(name, "") for name in outputs]
    while waiting:
        name, reader = waiting.pop()
        if name in free or name in stored:
            continue
        node = made.get(name)
        if node is None:
            why = f"{reader or 'an output'} needs it" if name in known else "the graph has no such value"
            raise InputProblem("a value is not given", name, why, "name it among the inputs")
        if id(node) not in needed:
            needed.add(id(node))
            label = read.node_label(node)
            waiting += [(v.name, label) for v in node.inputs if v is not None and v.name]
            waiting += [(outer, label) for outer in _captured(node)]
    return [n for n in graph if id(n) in needed]


def _captured(node: ir.Node) -> set[str]:
    """Outer values that the subgraphs of a node read."""
    if not read.has_subgraph(node):
        return set()
    own: set[str] = set()
    waiting = list(weight_selection.subgraphs(node))
    while waiting:
        graph = waiting.pop()
        own |= {v.name for v in graph.inputs if v.name} | set(graph.initializers)
        for inner in graph:
            own |= {v.name for v in inner.outputs if v.name}
            waiting += weight_selection.subgraphs(inner)
    return read.captured(node) - own
