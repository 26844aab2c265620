"""Label rules of matrix products: MatMul, Gemm and Einsum, by constant weights or of two computed tensors.

Each is treated as an Einsum.  With a weight, channels on the summed axes are read, and those on the weight's own axes
are produced.  Of two computed tensors (attention), channels on a summed axis are shared by both sides and can be
removed together (`Product`), those on a batched axis (heads) are removed as whole slices on both sides, and those of
one side only pass on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxpress.model import read
from onnxpress.model.channels.compute_rules import bias_slot, join_labels
from onnxpress.model.channels.labels import (
    Flow,
    Labels,
    Product,
    freeze_inputs,
    labels_along,
    stored_array,
    varying_axes,
)

_BATCH = "ABCDEFGHIJKLMNOPQRSTUVW"


def _matmul(flow: Flow, node: ir.Node) -> None:
    ranks = [len(s) if (s := _shape(flow, v)) is not None else 0 for v in node.inputs]
    if min(ranks) < 1:
        return freeze_inputs(flow, node, f"MatMul ({node.name}) of unknown shape")
    most = max(max(ranks) - 2, 0)
    first = _BATCH[most - max(ranks[0] - 2, 0) : most] + ("mk" if ranks[0] > 1 else "k")
    second = _BATCH[most - max(ranks[1] - 2, 0) : most] + ("kn" if ranks[1] > 1 else "k")
    out = _BATCH[:most] + ("m" if ranks[0] > 1 else "") + ("n" if ranks[1] > 1 else "")
    return _product(flow, node, [first, second], out)


def _einsum(flow: Flow, node: ir.Node) -> None:
    text = read.attribute(node, "equation", "")
    equation = re.sub(r"\s", "", text.decode() if isinstance(text, bytes) else str(text))
    terms, arrow, out = equation.partition("->")
    letters = terms.split(",")
    plain = arrow and "." not in equation and all(len(set(t)) == len(t) for t in letters)
    if not plain or len(letters) != 2 or any(_shape(flow, v) is None for v in node.inputs):
        return freeze_inputs(flow, node, f"Einsum ({node.name}) that is no matrix product")
    return _product(flow, node, letters, out)


def _shape(flow: Flow, value: ir.Value | None) -> tuple[int, ...] | None:
    constant = stored_array(value)
    return constant.shape if constant is not None else flow.shape(value)


def _product(flow: Flow, node: ir.Node, letters: Sequence[str], out: str) -> None:
    held = [stored_array(v) is not None for v in node.inputs]
    if all(held) or any(flow.read(v) is None for v, known in zip(node.inputs, held, strict=True) if not known):
        return freeze_inputs(flow, node, f"{node.op_type} ({node.name}) of constants, or of a tensor without channels")
    if not any(held):
        return _of_two(flow, node, letters, out)
    place = held.index(True)
    return _by_weight(flow, node, 1 - place, letters[1 - place], letters[place], out)


def _by_weight(flow: Flow, node: ir.Node, data: int, own: str, weight: str, out: str) -> None:
    """Operand number `data`, with axes `own`, is computed; the other one, with axes `weight`, is a constant."""
    labels = flow.read(node.inputs[data])
    array = stored_array(node.inputs[1 - data])
    assert labels is not None and array is not None
    made_axes = [c for c in out if c in weight and c not in own]
    both = [c for c in out if c in weight and c in own]
    if any(array.shape[weight.index(c)] > 1 for c in both):
        return freeze_inputs(flow, node, f"{node.op_type} ({node.name}) has a weight for every batch")
    passing = [c for c in own if c in out and own.index(c) in varying_axes(labels)]
    if passing and made_axes:
        flow.freeze(labels, f"{node.op_type} ({node.name}) mixes channels with other axes")
        labels, passing = np.zeros((1,) * labels.ndim, np.int64), []
    for letter in (c for c in own if c not in out and c in weight):
        size = array.shape[weight.index(letter)]
        flow.slice(node, 1 - data, weight.index(letter), "in", labels_along(labels, own.index(letter), size))
    made = flow.new_labels(*(array.shape[weight.index(c)] for c in made_axes))
    for place, letter in enumerate(made_axes):
        flow.slice(node, 1 - data, weight.index(letter), "out", labels_along(made, place, made.shape[place]))
    if made.ndim > 1:
        flow.boxes.append(made)
    result = _expand_axes(made, "".join(made_axes), out) if made_axes else _expand_axes(labels, own, out)
    return flow.write(node.outputs[0], result)


def _expand_axes(labels: Labels, letters: str, out: str) -> Labels:
    """Labels with axes `letters` as labels with axes `out`; they must not vary along axes that are not in `out`."""
    index = tuple(slice(None) if c in out else 0 for c in letters)
    kept = [c for c in letters if c in out]
    order = sorted(range(len(kept)), key=lambda i: out.index(kept[i]))
    found = labels[index].transpose(order)
    sizes = dict(zip(sorted(kept, key=out.index), found.shape, strict=True))
    return found.reshape([sizes.get(c, 1) for c in out])


def _of_two(flow: Flow, node: ir.Node, letters: Sequence[str], out: str) -> None:
    """Both operands are computed."""
    reason = f"{node.op_type} ({node.name}) of two computed tensors"
    parts: list[Labels] = []
    shapes: list[tuple[int, ...]] = []
    for value in node.inputs:
        labels, shape = flow.read(value), flow.shape(value)
        assert labels is not None and shape is not None
        parts.append(labels)
        shapes.append(shape)
    summed = [c for c in letters[0] if c in letters[1] and c not in out]
    batched = [c for c in out if c in letters[0] and c in letters[1]]
    alone = [[c for c in t if c not in summed and c not in batched] for t in letters]
    for place, (labels, term) in enumerate(zip(parts, letters, strict=True)):
        # what is summed over and varies along an axis of its own, too, is no plain sum of channels
        if _varies(labels, term, summed) and _varies(labels, term, alone[place]):
            parts[place] = flow.mix(
                labels, tuple(term.index(c) for c in summed), f"{reason} sums over channels of two axes"
            )
        lost = tuple(term.index(c) for c in alone[place] if c not in out)
        parts[place] = flow.mix(parts[place], lost, f"{reason} sums over channels")
    if all(_varies(labels, term, own) for labels, term, own in zip(parts, letters, alone, strict=True)):
        for labels in parts:
            flow.freeze(labels, f"{reason} has channels on both sides")
        return flow.write(node.outputs[0], flow.blank(node.outputs[0]))
    shared = "".join([*batched, *summed])
    if any(_varies(labels, term, summed) for labels, term in zip(parts, letters, strict=True)):
        views = []
        for place, (labels, term) in enumerate(zip(parts, letters, strict=True)):
            if _varies(labels, term, alone[place]):  # and not along what is summed: channels of one side meet none
                flow.freeze(labels, f"{reason} sums over channels of one side alone")
                parts[place] = labels = np.zeros((1,) * labels.ndim, np.int64)
            sizes = tuple(shapes[place][term.index(c)] for c in shared)
            views.append((_expand_axes(labels, term, shared), sizes))
            flow.products.append(Product(node.name or "", place, labels))
        join_labels(flow, views, reason)
    rows = [_slices(flow, labels, term, batched) for labels, term in zip(parts, letters, strict=True)]
    heads = join_labels(
        flow,
        [(r, tuple(s[t.index(c)] for c in batched)) for r, s, t in zip(rows, shapes, letters, strict=True)],
        reason,
    )
    result = _expand_axes(heads, "".join(batched), out)
    for place, (labels, term) in enumerate(zip(parts, letters, strict=True)):
        if _varies(labels, term, alone[place]):
            result = _crossed(flow, _expand_axes(labels, term, out), result)
    return flow.write(node.outputs[0], result)


def _crossed(flow: Flow, own: Labels, heads: Labels) -> Labels:
    """Labels by head and channel of one operand whose channels differ between heads.

    Where its labels do not vary by head (keys and values shared by all heads), new labels are linked to both.
    """
    more = tuple(a for a in varying_axes(heads) if own.shape[a] == 1)
    if not more:
        return own
    shape = np.broadcast_shapes(own.shape, heads.shape)
    found = flow.new_labels(*shape)
    for labels in (own, heads):
        rest = tuple(a for a, size in enumerate(shape) if labels.shape[a] == 1 and size > 1)
        rows = np.moveaxis(found, rest, range(-len(rest), 0)).reshape(labels.size, -1)
        flow.link(labels.reshape(-1), rows)
    return found


def _varies(labels: Labels, term: str, letters: Sequence[str]) -> bool:
    return any(term.index(c) in varying_axes(labels) for c in letters if c in term)


def _slices(flow: Flow, labels: Labels, term: str, batched: Sequence[str]) -> Labels:
    """One label per slice of the batched axes, removed where the whole slice is: one axis for each of `batched`."""
    places = [term.index(c) for c in batched]
    moved = np.moveaxis(labels, places, range(len(places)))
    shape = moved.shape[: len(places)]
    rows = moved.reshape(int(np.prod(shape)), -1)
    if rows.shape[1] == 1:
        return rows.reshape(shape)
    if len(rows) == 1:  # no axis of it is batched: nothing can vanish there
        return np.zeros((1,) * len(places), np.int64)
    found = flow.new_labels(len(rows))
    flow.link(found, rows)
    return found.reshape(shape)


def _gemm(flow: Flow, node: ir.Node) -> None:
    labels, weight = flow.read(node.inputs[0]), stored_array(node.inputs[1])
    if weight is None or labels is None or read.int_attribute(node, "transA", 0):
        return freeze_inputs(flow, node, f"Gemm ({node.name}) has no constant weight on the right")
    turned = bool(read.int_attribute(node, "transB", 0))
    reads, makes = (1, 0) if turned else (0, 1)
    if 0 in varying_axes(labels):
        flow.freeze(labels, f"Gemm ({node.name}) mixes channels with other axes")
        labels = np.zeros((1, 1), np.int64)
    made = flow.new_labels(weight.shape[makes])
    flow.slice(node, 1, reads, "in", labels_along(labels, 1, weight.shape[reads]))
    flow.slice(node, 1, makes, "out", made)
    bias_slot(flow, node, 2, made)
    return flow.write(node.outputs[0], made.reshape(1, -1))


RULES: dict[str, Callable[[Flow, ir.Node], None]] = {"MatMul": _matmul, "Einsum": _einsum, "Gemm": _gemm}
