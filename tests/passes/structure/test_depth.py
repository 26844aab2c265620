"""Blocks taken out: the least harmful go, the work really goes, and what remains is repaired."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.measure.score import Scorer
from onnxpress.model import blocks as bl
from onnxpress.model import edit, read, submodels
from onnxpress.model.counts import macs
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.model.signature import signature
from onnxpress.passes.structure.depth import DEPTH, DepthOptions, plan_depth, removable
from tests import nets


def prepared(model: ir.Model, count: int = 24) -> Evidence:
    return evidence_for(model, nets.samples(model, count))


def work(model: ir.Model, evidence: Evidence) -> int:
    return sum(macs(model, evidence.trace).values())


def taken(actions: list[dict[str, str]]) -> list[str]:
    return [d["block"] for d in actions]


def weakened(model: ir.Model, block: bl.Block, factor: float) -> ir.Model:
    """The block's last Conv times a factor: a small one makes it the block to take."""
    work = canonical(model)
    node = next(n for n in reversed(list(work.graph)) if n.name in block.nodes and n.op_type == "Conv")
    for place in (1, 2):
        array = read.constant(node.inputs[place])
        assert array is not None
        edit.set_input(work, node, place, array * np.float32(factor), "weak")
    return work


def test_the_weakest_block_goes_first() -> None:
    model = nets.residual(width=8, blocks=4)
    blocks = removable(prepared(model))[0]
    assert len(blocks) == 4
    for block in blocks:
        evidence = prepared(weakened(model, block, 1e-3))
        assert taken(plan_depth(evidence, DepthOptions(remove=1))) == [block.name]


def test_keep_takes_the_share_of_the_removable_work() -> None:
    evidence = prepared(nets.residual(width=8, blocks=4))
    blocks = removable(evidence)[0]
    for keep, count in ((0.75, 1), (0.5, 2), (0.0, 4)):
        actions = plan_depth(evidence, DepthOptions(keep=keep))
        assert len(actions) == count
        done = DEPTH.apply(evidence, [*actions, {"refit": "none"}]).model
        assert work(evidence.model, evidence) - work(done, evidence) == count * blocks[0].macs


def test_more_than_there_is_takes_all() -> None:
    evidence = prepared(nets.residual(width=8, blocks=2))
    assert len(plan_depth(evidence, DepthOptions(remove=9))) == 2


def test_max_drop_takes_fewer() -> None:
    evidence = prepared(nets.transformer(layers=2), 48)
    free = plan_depth(evidence, DepthOptions(keep=0.0))
    judge = Scorer(evidence.model, evidence.samples())
    drops = [judge.score(DEPTH.apply(evidence, free[:end]).model).drop for end in range(1, len(free) + 1)]
    bound = plan_depth(evidence, DepthOptions(keep=0.0, max_drop=drops[0] + 1e-6))
    assert 1 <= len(bound) < len(free)
    assert bound == free[: len(bound)]
    assert drops[len(bound) - 1] <= drops[0] + 1e-6
    assert not plan_depth(evidence, DepthOptions(keep=0.0, max_drop=0.0))


def test_layers_go_whole() -> None:
    evidence = prepared(nets.transformer(layers=4))
    (action,) = plan_depth(evidence, DepthOptions(remove=1, units="layers"))
    block = next(b for b in removable(evidence)[0] if b.name == action["block"])
    assert block.kind == bl.LAYER
    only = plan_depth(evidence, DepthOptions(remove=2, units="branches"))
    kinds = {b.kind for b in removable(evidence)[0] if b.name in taken(only)}
    assert bl.LAYER not in kinds


def test_part_of_a_removed_block_is_not_removed_again() -> None:
    evidence = prepared(nets.transformer(layers=2))
    actions = plan_depth(evidence, DepthOptions(keep=0.0))
    blocks = {b.name: b for b in removable(evidence)[0]}
    left = len(bl.dead_nodes(evidence.model, []))
    for end in range(1, len(actions) + 1):
        gone = len(bl.dead_nodes(evidence.model, [blocks[n] for n in taken(actions[:end])]))
        assert gone > left
        left = gone


@pytest.mark.parametrize("build", [lambda: nets.residual(width=16, blocks=4), lambda: nets.transformer(layers=4)])
def test_refit_reduces_the_error_on_unseen_samples(build: Callable[[], ir.Model]) -> None:
    model = build()
    evidence = prepared(model, 64)
    actions = plan_depth(evidence, DepthOptions(keep=0.6))
    judge = Scorer(evidence.model, nets.samples(model, 32, seed=7))
    found = {
        mode: judge.score(DEPTH.apply(evidence, [*actions, {"refit": mode}]).model).nmse
        for mode in ("none", "least-squares")
    }
    assert found["least-squares"] < 0.8 * found["none"]


def test_batchnorm_statistics_are_those_of_the_original() -> None:
    """Pre-activation blocks: the normalization behind a gap sees another spread and is set right."""
    net = nets.image_net()
    x = net.conv("image", 8)
    for _ in range(3):
        y = net.conv(net.relu(net.batchnorm(x)), 8)
        x = net.add(y, x)
    last = net.batchnorm(x)
    model = net.model(net.head(net.relu(last)), nets.IMAGE, ["N", 10])
    evidence = prepared(model, 32)
    block = removable(evidence)[0][1]
    done = DEPTH.apply(evidence, [{"block": block.name}]).model
    found = submodels.outputs_only(done, [last]), submodels.outputs_only(evidence.model, [last])
    now, then = (nets.outputs(m, evidence.samples()).transpose(0, 2, 3, 1).reshape(-1, 8) for m in found)
    np.testing.assert_allclose(now.mean(0), then.mean(0), atol=1e-3)
    np.testing.assert_allclose(now.std(0), then.std(0), rtol=1e-3)


def test_equal_by_chance_is_refused() -> None:
    """A column added to every column of a picture: the same shape only where the picture has one."""
    net = nets.image_net()
    x = net.relu(net.conv("image", 4))
    column = net.op("ReduceMean", [x], 4, axes=[3], keepdims=1)
    spread = net.op("Mul", [net.conv(column, 4, 1), x], 4)
    model = net.model(net.head(net.add(spread, column)), {"image": ["N", 3, "H", "W"]}, ["N", 10])
    for width in (1, 6):
        arrays = {"image": np.random.default_rng(0).standard_normal((4, 3, 8, width)).astype(np.float32)}
        evidence = evidence_for(model, Dataset.from_arrays(arrays, signature(model)))
        blocks, refused = removable(evidence)
        assert not blocks
        assert len(refused) == (width == 1)


def test_a_plan_of_another_model_is_refused() -> None:
    evidence = prepared(nets.residual(width=8, blocks=1))
    with pytest.raises(InputProblem, match="block"):
        DEPTH.apply(evidence, [{"block": "ghost"}])
    name = removable(evidence)[0][0].name
    with pytest.raises(InputProblem, match="refit"):
        DEPTH.apply(evidence, [{"block": name}, {"refit": "unknown"}])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(nets.random_nets(), st.data())
def test_any_blocks_of_random_nets_can_be_removed_and_save_what_is_predicted(
    model: ir.Model, data: st.DataObject
) -> None:
    """Whatever is taken: exactly the dead nodes go, and the outputs are those of zeroed branches."""
    evidence = prepared(model, 4)
    blocks = [b for b in removable(evidence)[0] if b.kind == bl.BRANCH]
    assume(blocks)
    gone = data.draw(st.lists(st.sampled_from(blocks), min_size=1, unique=True))
    actions = [{"block": b.name} for b in gone]
    done = DEPTH.apply(evidence, [*actions, {"refit": "none"}]).model
    left = {n.name for n in evidence.model.graph} - bl.dead_nodes(evidence.model, gone)
    assert {n.name for n in done.graph} == left
    zeroed = evidence.model.clone()
    for node in list(zeroed.graph):
        for block in gone:
            if node.outputs[0].name == block.output:
                place = next(i for i, v in enumerate(node.inputs) if v is not None and v.name != block.source)
                nothing = edit.add_constant(zeroed, np.array(0, np.float32), "nothing")
                masked = edit.insert_before(zeroed, node, "Mul", [node.inputs[place], nothing], "masked")
                node.replace_input_with(place, masked)
    np.testing.assert_allclose(
        nets.outputs(done, evidence.samples()), nets.outputs(zeroed, evidence.samples()), rtol=1e-4, atol=1e-4
    )
