"""Blocks: parts of a graph that can be removed whole."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxpress.measure.evidence import evidence_for
from onnxpress.model.blocks import BRANCH, LAYER, LINK, RUN, Block, dead_nodes, find_blocks, remove_blocks, resolve
from onnxpress.model.normal_forms.canonical import canonical
from tests import nets

pytestmark = pytest.mark.unit


def blocks(model: ir.Model) -> list[Block]:
    evidence = evidence_for(model, nets.samples(model, 2))
    return find_blocks(evidence.model, evidence.trace)


def kinds(model: ir.Model) -> dict[str, int]:
    found = [b.kind for b in blocks(model)]
    return {kind: found.count(kind) for kind in (BRANCH, RUN, LAYER)}


def test_residual_blocks_are_branches() -> None:
    found = blocks(nets.residual(width=8, blocks=3))
    assert [b.kind for b in found] == [BRANCH] * 3
    assert all(b.macs == 2 * 8 * 8 * 9 * 64 and b.weight_bytes == 2 * 4 * (8 * 8 * 9 + 8) for b in found)


def test_normalization_in_the_branch_belongs_to_it() -> None:
    """Attention and feed-forward of two layers, and the two layers; a run would equal a branch."""
    assert kinds(nets.transformer(post=False)) == {BRANCH: 4, RUN: 0, LAYER: 2}


def test_normalization_after_the_add_makes_runs() -> None:
    """Runs from norm to norm (4) and from sum to sum (3: nothing is added before the first), and layers of both."""
    found = kinds(nets.transformer(post=True))
    assert found[BRANCH] == 4
    assert found[RUN] == 7
    assert found[LAYER] == 2


def test_a_projected_skip_is_not_an_identity() -> None:
    net = nets.image_net()
    x = net.relu(net.conv("image", 8))
    y = net.add(net.conv(net.relu(net.conv(x, 8)), 8), net.conv(x, 8, 1))
    assert not blocks(net.model(net.head(y), nets.IMAGE, ["N", 10]))
    (whole,) = blocks(net.model(net.head(net.relu(y)), nets.IMAGE, ["N", 10]))
    assert whole.kind == LINK
    assert not whole.skip
    assert whole.macs == (2 * 8 * 8 * 9 + 8 * 8) * 64


def test_a_plain_chain_consists_of_links() -> None:
    """From activation to activation; from convolution to convolution would be the same."""
    net = nets.image_net()
    x = net.relu(net.conv("image", 8))
    for _ in range(3):
        x = net.relu(net.conv(x, 8))
    found = blocks(net.model(net.head(x), nets.IMAGE, ["N", 10]))
    assert [(b.kind, b.macs) for b in found] == [(LINK, 8 * 8 * 9 * 64)] * 3


def test_links_that_repeat_in_pairs_are_layers() -> None:
    net = nets.image_net()
    x = net.relu(net.conv("image", 8))
    for _ in range(3):
        x = net.relu(net.conv(net.relu(net.conv(x, 8, group=8)), 8, 1))
    found = blocks(net.model(net.head(x), nets.IMAGE, ["N", 10]))
    layers = [b for b in found if b.kind == LAYER]
    assert len(layers) == 3
    assert not any(b.skip for b in layers)
    assert len({frozenset(b.nodes) for b in found}) == len(found)


def test_a_branch_without_macs_is_not_a_block() -> None:
    """As in the cubic form of GELU: there is nothing to save."""
    net = nets.image_net()
    x = net.relu(net.conv("image", 8))
    x = net.add(x, net.op("Mul", [net.op("Mul", [x, x], 8), x], 8))
    assert not blocks(net.model(net.head(x), nets.IMAGE, ["N", 10]))


def test_nodes_of_a_branch_with_other_readers_stay() -> None:
    """A branch whose middle feeds another output saves only what nothing else needs."""
    net = nets.image_net()
    x = net.relu(net.conv("image", 8))
    middle = net.relu(net.conv(x, 8))
    y = net.add(net.conv(middle, 8, 1), x)
    found = blocks(net.model(net.head(net.concat(y, middle)), nets.IMAGE, ["N", 10]))
    assert [b.macs for b in found] == [8 * 8 * 64]


def test_adjacent_and_overlapping_blocks_resolve_to_the_furthest_source() -> None:
    model = canonical(nets.transformer(post=False, layers=2))
    found = blocks(model)
    branches = [b for b in found if b.kind == BRANCH]
    layer = next(b for b in found if b.kind == LAYER)
    together = resolve(model, [*branches[:2], layer])
    assert together[layer.output] == layer.source
    assert dead_nodes(model, branches[:2]) == dead_nodes(model, [layer])
    two, one = remove_blocks(model, branches[:2]), remove_blocks(model, [layer])
    data = nets.samples(model, 3)
    np.testing.assert_array_equal(nets.outputs(two, data), nets.outputs(one, data))


def test_a_block_at_the_graphs_output_keeps_the_signature() -> None:
    net = nets.image_net()
    x = net.relu(net.conv("image", 3))
    y = net.add(net.conv(x, 3), x)
    model = canonical(net.model(y, nets.IMAGE, ["N", 3, 8, 8]))
    done = remove_blocks(model, blocks(model))
    assert [n.op_type for n in done.graph] == ["Conv", "Relu", "Identity"]
    assert done.graph.outputs[0].name == model.graph.outputs[0].name
