"""Helpers of the tests of channel groups and their removal."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxpress.measure.evidence import evidence_for
from onnxpress.model.channels import groups as ch
from onnxpress.model.channels import removal as rm
from onnxpress.model.parameter_count import parameters
from tests import grammar, nets


def random_removal(channels: ch.Channels, share: float, seed: int = 0) -> dict[str, list[int]]:
    """A share of the channels of each group, drawn at random.

    Groups of slices may overlap on an axis of a weight. A group whose channels are the last ones of an axis loses none.
    """
    rng = np.random.default_rng(seed)
    removal: dict[str, list[int]] = {}
    for group in channels.groups:
        if group.size == 1:
            continue
        count = max(1, min(group.size - 1, round(group.size * share)))
        more = removal | {group.name: sorted(rng.choice(group.size, count, replace=False).tolist())}
        keep = channels.keep_mask(more)
        if all(slot.stays(keep).any() for slot in channels.flow.slots):
            removal = more
    return removal


def assert_masked_parity(model: ir.Model, share: float, seed: int = 0, sequence: int = 5) -> None:
    """sequence: size of free axes."""
    data = nets.samples(model, 4, sequence=sequence)
    evidence = evidence_for(model, data)
    facts = evidence.channels
    removal = random_removal(facts, share, seed)
    cut, masked = rm.remove(evidence.model, facts, removal), rm.mask(evidence.model, facts, removal)
    np.testing.assert_allclose(nets.outputs(cut, data), nets.outputs(masked, data), rtol=1e-4, atol=1e-5)
    if removal:
        assert parameters(cut) < parameters(evidence.model)


def heads(heads: int = 3, inner: int = 4, scale: str = "constant") -> ir.Model:
    """Multi-head self-attention between two layers; scale: a constant, or computed from a size."""
    net = nets.Net(0)
    net.widths["tokens"], width = 6, heads * inner
    q, k, v = (
        net.op(
            "Transpose",
            [net.op("Reshape", [grammar.dense(net, "tokens", width), grammar.ints(net, 0, 0, heads, inner)], 0)],
            0,
            perm=p,
        )
        for p in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    )
    by = net.constant(np.array(inner, np.float32))
    if scale != "constant":
        size = net.op("Gather", [net.op("Shape", [q], 0), net.constant(np.array(3))], 0)
        by = net.op("Sqrt", [net.op("Cast", [size], 0, to=1)], 0)
    scores = net.op("Softmax", [net.op("Div", [net.op("MatMul", [q, k], 0), by], 0)], 0, axis=-1)
    mixed = net.op("Transpose", [net.op("MatMul", [scores, v], 0)], 0, perm=[0, 2, 1, 3])
    flat = net.op("Reshape", [mixed, grammar.ints(net, 0, 0, width)], width)
    return net.model(grammar.dense(net, flat, 5), {"tokens": ["N", "L", 6]}, ["N", "L", 5])
