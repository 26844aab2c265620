"""Tied weights: one matrix that two operators read, one of them turned (a tied embedding, a tied autoencoder).

Exporters write it as an initializer behind a Transpose, or as two initializers, and constant folding makes two of the
first form. Passes see two matrices (`fold_transposes`), know which belong together (`tied_pairs`), and a file holds
them once where they still are the same (`store_once`); onnxruntime folds the Transpose when it loads the file.
"""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read

_LEAST = 256  # elements from which a matrix is worth a Transpose
_LARGEST = 2**28  # bytes of a matrix in external data that is not brought into memory for this
_LOOKS = 64  # elements compared before all are


def fold_transposes(model: ir.Model) -> None:
    """Make initializers of transposed initializers, in place."""
    for node in list(model.graph):
        if node.op_type != "Transpose" or not read.standard(node) or node.outputs[0].is_graph_output():
            continue
        value = node.inputs[0]
        tensor = None if value is None or value.is_graph_input() else read.constant_tensor(value)
        if value is None or tensor is None or (isinstance(tensor, ir.ExternalTensor) and tensor.nbytes > _LARGEST):
            continue
        order = read.ints_attribute(node, "perm") or list(reversed(range(len(tensor.shape))))
        turned = edit.add_constant(model, tensor.numpy().transpose(order), node.outputs[0].name or "turned")
        edit.bypass(model, node, turned)
    edit.drop_dead(model)


def tied_pairs(model: ir.Model) -> list[tuple[ir.Value, ir.Value]]:
    """Pairs of initializers of which the second holds the same numbers as the first, turned.

    The first is the one that a look-up reads, if one does. No initializer is in two pairs.
    """
    seen: dict[tuple[object, ...], list[ir.Value]] = {}
    found: list[tuple[ir.Value, ir.Value]] = []
    for value in model.graph.initializers.values():
        tensor = read.constant_tensor(value)
        if tensor is None or len(tensor.shape) != 2 or tensor.size < _LEAST or _fixed(value):
            continue
        rows, columns = tensor.shape.numpy()
        others = seen.setdefault((columns, rows, tensor.dtype), [])
        twin = next((o for o in others if _is_turned(o, value)), None)
        if twin is None:
            seen.setdefault((rows, columns, tensor.dtype), []).append(value)
            continue
        others.remove(twin)
        found.append((value, twin) if is_table(value) and not is_table(twin) else (twin, value))
    return found


def tied_to(model: ir.Model) -> dict[str, str]:
    """The twin of each initializer that has one, by name."""
    pairs = [(a.name or "", b.name or "") for a, b in tied_pairs(model)]
    return dict(itertools.chain.from_iterable(((a, b), (b, a)) for a, b in pairs))


def store_once(model: ir.Model) -> None:
    """Keep one initializer of each pair, in place, and a Transpose for the readers of the other."""
    first = next(iter(model.graph), None)
    for kept, other in tied_pairs(model):
        assert first is not None
        turned = edit.insert_before(model, first, "Transpose", [kept], f"{other.name}_tied", {"perm": [1, 0]})
        turned.type, turned.shape = other.type, other.shape
        edit.reroute(model, other, turned)
        del model.graph.initializers[other.name or ""]


def is_table(value: ir.Value) -> bool:
    """Whether a look-up of rows reads the value."""
    return any(
        u.node.op_type == "Gather" and u.idx == 0 and read.int_attribute(u.node, "axis", 0) == 0 for u in value.uses()
    )


def _fixed(value: ir.Value) -> bool:
    """Whether an initializer must stay under its name: it is an output, an input, or nothing reads it."""
    return value.is_graph_output() or value.is_graph_input() or not list(value.uses())


def _is_turned(one: ir.Value, other: ir.Value) -> bool:
    a, b = read.constant(one), read.constant(other)
    if a is None or b is None:
        return False
    step = max(a.size // _LOOKS, 1)
    rows, columns = np.unravel_index(np.arange(0, a.size, step), a.shape)
    same = (a[rows, columns] == b[columns, rows]).all()
    return bool(same and a.any() and np.array_equal(a, b.T))
