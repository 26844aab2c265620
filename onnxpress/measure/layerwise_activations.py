"""Intermediate values of a model whose layers change one after the other, from the inputs to the outputs.

A method that visits layers in order, and changes each by what reaches it, would run the model once per layer. Here the
values at the border between what is final and what may change are kept, so that each part of the model runs once or
twice in all. Where they take too much memory, the last border that did not is kept, and what follows it runs again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from onnxpress.data.dataset import Dataset
from onnxpress.data.layout import batch_layout
from onnxpress.model import read, submodels
from onnxpress.runtime.session import all_cores, open_session, run

KEPT_BYTES = 512 * 2**20  # of the values at the border
Border = dict[str, list[np.ndarray]]  # by the name of a value: one array per batch, with the padding of a fixed batch


class LayerwiseActivations:
    """model: may be changed between two calls, but only at nodes that are not final. data: samples.

    batch: samples per batch. changing: nodes that will change; no value behind one is kept before it is final.
    kept_bytes: largest size of the kept values.
    """

    def __init__(
        self,
        model: ir.Model,
        data: Dataset,
        batch: int,
        changing: Collection[ir.Node] = (),
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self._model, self._data, self._batch, self._kept_bytes = model, data, batch, kept_bytes
        self._changing = {id(node) for node in changing}
        self._fixed = batch_layout(data.signature).batch or 1
        self._border: Border = {}
        self._done: set[int] = set()  # ids of nodes in front of the border

    def finalize(self, nodes: Collection[ir.Node]) -> None:
        """From now on these nodes stay as they are."""
        self._changing -= {id(node) for node in nodes}

    def values(self, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """The named values, batch by batch, without the padding of a fixed batch."""
        wanted = list(dict.fromkeys(names))
        segment = [name for name in wanted if name not in self._border]
        done = self._done | self._final_ancestors(segment)
        handed = self._border_of(done)
        border = handed or []
        added = [name for name in border if name not in self._border and name not in segment]
        kept: Border = {name: self._border.get(name, []) for name in border}
        fresh = [name for name in border if name not in self._border]
        session = open_session(self._after_border([*segment, *added]), all_cores()) if segment else None
        inputs = [port.name for port in session.get_inputs()] if session is not None else []
        fits, size = handed is not None, sum(a.nbytes for name in border for a in self._border.get(name, ()))
        for index, part in enumerate(self._data.batches(self._batch)):
            known = {name: arrays[index] for name, arrays in self._border.items()}
            if session is not None:
                feeds = {name: known[name] if name in known else part.inputs[name] for name in inputs}
                found = run(session, feeds, where=part.keys[0])
                known |= dict(zip([*segment, *added], found, strict=True))
            size += sum(known[name].nbytes for name in fresh)
            fits = fits and size <= self._kept_bytes
            for name in fresh if fits else ():
                kept[name].append(known[name])
            padded = part.count < self._fixed
            yield {
                name: value[: part.count] if padded and value.ndim and value.shape[0] == self._fixed else value
                for name, value in ((name, known[name]) for name in wanted)
            }
        if fits:
            self._border, self._done = kept, done

    def _final_ancestors(self, names: Sequence[str]) -> set[int]:
        """Ids of the nodes that the named values need behind the border, and that no changing node reaches.

        Not among them: nodes that read nothing but constants, which onnxruntime folds.
        """
        moved: set[str] = set()  # values behind a changing node
        computed: set[str] = {v.name or "" for v in self._model.graph.inputs}  # values that depend on the inputs
        producers: dict[str, ir.Node] = {}
        for node in self._model.graph:
            reads, outputs = _reads(node), [v.name or "" for v in node.outputs]
            if id(node) in self._changing or reads & moved:
                moved.update(outputs)
            if reads & computed:
                computed.update(outputs)
                producers |= dict.fromkeys(outputs, node)
        found: set[int] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            producer = None if name in self._border else producers.get(name)
            if producer is not None and id(producer) not in found:
                found.add(id(producer))
                waiting.extend(_reads(producer))
        unmoved = {id(node) for name, node in producers.items() if name not in moved}
        return found & unmoved

    def _border_of(self, done: set[int]) -> list[str] | None:
        """Values that the nodes in `done` hand on to others; None where some are no tensors.

        In place of the output of a DequantizeLinear stands its input: it takes a quarter of the memory, and integer
        kernels need the node beside them.
        """
        nodes = [node for node in self._model.graph if id(node) in done]
        read_outside = {name for n in self._model.graph if id(n) not in done for name in _reads(n)}
        for node in reversed(nodes):
            if node.op_type == "DequantizeLinear" and node.outputs[0].name in read_outside:
                done.discard(id(node))
                read_outside |= _reads(node)
        handed = [v for n in nodes if id(n) in done for v in n.outputs if v.name in read_outside]
        if any(v.type is not None and not isinstance(v.type, ir.TensorType) for v in handed):  # sequences, optionals
            return None
        return [v.name or "" for v in handed]

    def _after_border(self, outputs: Sequence[str]) -> ir.Model:
        """The part of the model from the border to the named values."""
        ports = [
            ir.Value(
                name=name,
                type=ir.TensorType(ir.DataType.from_numpy(arrays[0].dtype)),
                shape=_common_shape(arrays),
            )
            for name, arrays in self._border.items()
        ]
        return submodels.part(self._model, ports, outputs)


def _reads(node: ir.Node) -> set[str]:
    """Names of the values that a node reads, its sub-graphs included."""
    return {v.name for v in node.inputs if v is not None and v.name} | read.captured(node)


def _common_shape(arrays: Sequence[np.ndarray]) -> ir.Shape | None:
    """The sizes that all arrays share, the first free; None where their ranks differ."""
    ranks = {a.ndim for a in arrays}
    if len(ranks) != 1:
        return None
    sizes = [{a.shape[axis] for a in arrays} for axis in range(ranks.pop())]
    return ir.Shape([next(iter(s)) if axis and len(s) == 1 else None for axis, s in enumerate(sizes)])
