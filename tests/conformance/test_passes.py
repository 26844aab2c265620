"""What every pass must pass, on nets by hand and on random ones (design section 8).

A new pass joins by being registered; nothing here names one, except for its reference semantics.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper, numpy_helper

from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.model import edit, read
from onnxpress.model.channels import removal as rm
from onnxpress.model.counts import macs
from onnxpress.model.files import to_bytes
from onnxpress.model.signature import signature
from onnxpress.passes.core.contract import Action, Pass, proposals
from onnxpress.passes.int8.static_int8 import quantizable, quantize_actions
from onnxpress.passes.registry import all_passes
from onnxpress.plan import result_contract
from onnxpress.plan.plan import apply_plan, new_plan
from onnxpress.runtime.session import SessionSettings, open_session
from tests import nets

NETS: dict[str, Callable[[], ir.Model]] = {
    "residual": lambda: nets.residual(width=32),
    "residual-bn": lambda: nets.residual(width=32, norm=True),
    "mobile": lambda: nets.mobile(width=32),
    "padded": nets.padded_shortcut,
    "mlp": nets.mlp,
    "post-norm": nets.transformer,
    "pre-norm": lambda: nets.transformer(post=False),
    "shared": lambda: shared_weights(),
    "subgraph": lambda: with_if(),
    "int8": lambda: quantized(),
    "conv-output": lambda: conv_output(),
    "opset-11": lambda: opset_11(),
    "broadcast-add": lambda: broadcast_add(),
    "minus-infinity": lambda: masked(),
}
PASSES = sorted(all_passes())
_OFTEN = {
    "residual-bn",
    "mobile",
    "pre-norm",
    "int8",
}  # nets of the fast tests where each costs as much as a whole command
HEAVY = [pytest.param(b, id=n, marks=() if n in _OFTEN else pytest.mark.slow) for n, b in NETS.items()]


def shared_weights() -> ir.Model:
    net = nets.image_net()
    x = net.relu(net.conv("image", 32))
    weight = net.constant((net.rng.standard_normal((32, 32, 1, 1)) / 6).astype(np.float32))
    for _ in range(2):
        x = net.relu(net.op("Conv", [x, weight], 32))
    return net.model(net.head(x), nets.IMAGE, ["N", 10])


def with_if() -> ir.Model:
    """A branch that reads an outer value: its channels must stay."""
    net = nets.image_net()
    x = net.relu(net.conv("image", 32))
    y = net.relu(net.conv(x, 32))

    def branch(name: str, op: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, [y], [name])], name, [], [out])

    flag = net.constant(np.array(True), "flag")
    z = net.name("if")
    net.nodes.append(
        helper.make_node("If", [flag], [z], name=z, then_branch=branch("a", "Relu"), else_branch=branch("b", "Neg"))
    )
    net.widths[z] = 32
    return net.model(net.head(z), nets.IMAGE, ["N", 10])


def conv_output() -> ir.Model:
    """A picture to a picture: the graph's output is a Conv, which integer passes must hand over to a DQ."""
    net = nets.image_net()
    x = net.relu(net.conv("image", 32))
    scales = net.constant(np.array([1, 1, 2, 2], np.float32), "scales")
    x = net.op("Resize", [x, "", scales], 32, mode="nearest")
    return net.model(net.conv(net.relu(net.conv(x, 32)), 3), nets.IMAGE, ["N", 3, 16, 16])


def opset_11() -> ir.Model:
    net = nets.Net(opset=11)
    net.widths["image"] = 3
    x = net.relu(net.conv("image", 32))
    x = net.relu(net.add(net.conv(net.relu(net.conv(x, 32)), 32), x))
    return net.model(net.head(x), nets.IMAGE, ["N", 10])


def broadcast_add() -> ir.Model:
    """A global context block: a pooled branch is added to every position."""
    net = nets.image_net()
    x = net.relu(net.conv("image", 32))
    pooled = net.op("GlobalAveragePool", [x], 32)
    context = net.conv(net.relu(net.conv(pooled, 32, 1)), 32, 1)
    return net.model(net.head(net.relu(net.add(x, context))), nets.IMAGE, ["N", 10])


def masked() -> ir.Model:
    """A computed tensor that holds -inf, as attention masks do."""
    net = nets.image_net()
    x = net.relu(net.conv("image", 32))
    low = net.op("Log", [net.op("Mul", [x, net.constant(np.float32(0).reshape(()))], 32)], 32)
    capped = net.op("Max", [net.add(low, x), net.constant(np.float32(-1).reshape(()))], 32)
    return net.model(net.head(net.relu(net.conv(capped, 32))), nets.IMAGE, ["N", 10])


@cache
def quantized() -> ir.Model:
    """An int8 model; made once, as no pass may change what it is given."""
    model = nets.residual(width=32, blocks=1)
    evidence = evidence_for(model, nets.samples(model, 8))
    return all_passes()["quantize"].apply(evidence, quantize_actions(quantizable(evidence), evidence)).model


def prepared(model: ir.Model, count: int = 12) -> Evidence:
    return evidence_for(model, nets.samples(model, count, sequence=24))


def at_home(name: str) -> ir.Model:
    """A model on which a pass has something to do."""
    return nets.transformer(post=False) if name == "attention" else nets.mobile(width=32)


def some(lever: Pass, evidence: Evidence) -> list[Action]:
    """Decisions a user could take: of every unit the middle option."""
    by_unit: dict[str, list[Action]] = {}
    for option in proposals(lever, evidence):
        by_unit.setdefault(option.unit, []).append(option.action)
    return [found[len(found) // 2] for found in by_unit.values()]


def assert_sound(original: ir.Model, result: ir.Model, evidence: Evidence) -> None:
    data = to_bytes(result)
    onnx.checker.check_model(data, full_check=True)
    assert not result_contract.same_shape_behaviour(original, data, evidence.samples())
    assert signature(result) == signature(original)


@pytest.mark.parametrize("build", NETS.values(), ids=NETS)
@pytest.mark.parametrize("name", PASSES)
def test_result_is_sound_and_the_given_model_untouched(name: str, build: Callable[[], ir.Model]) -> None:
    model = build()
    evidence = prepared(model)
    lever = all_passes()[name]
    before = to_bytes(evidence.model)
    done = lever.apply(evidence, some(lever, evidence))
    assert to_bytes(evidence.model) == before
    assert_sound(model, done.model, evidence)


@pytest.mark.parametrize("build", NETS.values(), ids=NETS)
@pytest.mark.parametrize("name", PASSES)
def test_no_decisions_is_the_identity(name: str, build: Callable[[], ir.Model]) -> None:
    evidence = prepared(build())
    assert to_bytes(all_passes()[name].apply(evidence, []).model) == to_bytes(evidence.model)


@pytest.mark.parametrize("build", NETS.values(), ids=NETS)
@pytest.mark.parametrize("name", [n for n in PASSES if all_passes()[n].exact])
def test_exact_passes_keep_the_function(name: str, build: Callable[[], ir.Model]) -> None:
    model = build()
    evidence = prepared(model)
    lever = all_passes()[name]
    done = lever.apply(evidence, some(lever, evidence))
    data = evidence.samples()
    np.testing.assert_allclose(nets.outputs(model, data), nets.outputs(done.model, data), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PASSES)
def test_every_option_applies_alone(name: str) -> None:
    model = at_home(name)
    evidence = prepared(model)
    lever = all_passes()[name]
    options = proposals(lever, evidence)
    assert options
    for option in options:
        assert_sound(model, lever.apply(evidence, [option.action]).model, evidence)


@pytest.mark.parametrize("build", HEAVY)
@pytest.mark.parametrize("name", PASSES)
def test_a_plan_replays_to_the_same_bytes(name: str, build: Callable[[], ir.Model]) -> None:
    model = build()
    evidence = prepared(model)
    lever = all_passes()[name]
    plan = new_plan(model, evidence.data).then(name, some(lever, evidence))
    first, second = (to_bytes(apply_plan(plan, model, prepared(model).data).model) for _ in range(2))
    assert first == second


def weight_bytes(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values())


@pytest.mark.parametrize("name", PASSES)
def test_savings_agree_in_sign_with_a_recount(name: str) -> None:
    evidence = prepared(at_home(name))
    lever = all_passes()[name]
    before = sum(macs(evidence.model, evidence.trace).values())
    for option in proposals(lever, evidence):
        done = evidence_for(lever.apply(evidence, [option.action]).model, evidence.data)
        if option.saving.macs > 0:
            assert sum(macs(done.model, done.trace).values()) < before
        if option.saving.weight_bytes > 0:
            assert weight_bytes(done.model) < weight_bytes(evidence.model)


def test_prune_before_repair_is_the_masked_original() -> None:

    evidence = prepared(nets.mobile(width=32))
    actions = some(all_passes()["prune"], evidence)
    removal = {d["group"]: d["remove"] for d in actions if d.get("remove")}
    assert removal
    done = all_passes()["prune"].apply(evidence, [*actions, {"refit": "none"}]).model
    masked = rm.mask(evidence.model, evidence.channels, removal)
    data = evidence.samples()
    np.testing.assert_allclose(nets.outputs(done, data), nets.outputs(masked, data), rtol=1e-4, atol=1e-5)


def without_branch(model: ir.Model, source: str, output: str) -> ir.Model:
    """The reference of a removed branch: what the Add gets besides the skip is times zero."""
    proto = ir.to_proto(model)
    add = next(n for n in proto.graph.node if output in n.output)
    place = 1 - list(add.input).index(source)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "nothing"))
    at = list(proto.graph.node).index(add)
    proto.graph.node.insert(at, helper.make_node("Mul", [add.input[place], "nothing"], [f"{output}_masked"]))
    proto.graph.node[at + 1].input[place] = f"{output}_masked"
    return ir.from_proto(proto)


def with_identity(model: ir.Model, source: str, output: str) -> ir.Model:
    """The reference of a removed run: its output is its input."""
    proto = ir.to_proto(model)
    at = next(i for i, n in enumerate(proto.graph.node) if output in n.output)
    proto.graph.node[at].output[list(proto.graph.node[at].output).index(output)] = f"{output}_unused"
    proto.graph.node.insert(at + 1, helper.make_node("Identity", [source], [output]))
    return ir.from_proto(proto)


@pytest.mark.parametrize("build", NETS.values(), ids=NETS)
def test_depth_before_repair_is_the_model_with_branches_masked_and_runs_passed_by(
    build: Callable[[], ir.Model],
) -> None:
    from onnxpress.passes.structure.depth import removable

    evidence = prepared(build())
    data = evidence.samples()
    for block in removable(evidence)[0]:
        actions = [{"block": block.name}, {"refit": "none"}]
        done = all_passes()["depth"].apply(evidence, actions).model
        reference = without_branch if block.kind == "branch" else with_identity
        wanted = nets.outputs(reference(evidence.model, block.source, block.output), data)
        np.testing.assert_allclose(nets.outputs(done, data), wanted, rtol=1e-5, atol=1e-5)


def product(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...], transposed: bool) -> np.ndarray:
    """The weight that two factors stand for."""
    if len(shape) < 4:
        return (first @ second.T).T if transposed else first @ second
    return np.einsum("rcij,mrkl->mcikjl", first, second).reshape(shape)  # one of i, k and one of j, l is 1


@pytest.mark.parametrize("build", NETS.values(), ids=NETS)
def test_lowrank_before_repair_is_the_model_with_the_products_as_weights(build: Callable[[], ir.Model]) -> None:
    evidence = prepared(build())
    lever = all_passes()["lowrank"]
    actions = some(lever, evidence)
    done = lever.apply(evidence, [*actions, {"refit": "none"}]).model
    reference = evidence.model.clone()
    after = {n.name: n for n in done.graph}
    for node in reference.graph:
        now = after[node.name]
        inner = now.inputs[0].producer() if now.inputs and now.inputs[0] is not None else None
        if node.op_type not in read.WEIGHTED or inner is None or inner.name in {n.name for n in reference.graph}:
            continue
        weight = read.constant(node.inputs[1])
        parts = [read.constant(n.inputs[1]) for n in (inner, now)]
        assert weight is not None and parts[0] is not None and parts[1] is not None
        whole = product(parts[0], parts[1], weight.shape, bool(read.int_attribute(node, "transB", 0)))
        edit.set_input(reference, node, 1, whole.astype(np.float32), "product")
    data = evidence.samples()
    wanted = nets.outputs(reference, data)
    scale = max(float(np.abs(wanted).max()), 1.0)
    np.testing.assert_allclose(nets.outputs(done, data), wanted, rtol=1e-4, atol=1e-5 * scale)


def test_repair_brings_the_outputs_closer() -> None:
    evidence = prepared(nets.residual(width=32), 48)
    prune = all_passes()["prune"]
    actions = some(prune, evidence)
    data = nets.samples(evidence.model, 24, seed=5)
    wanted = nets.outputs(evidence.model, data)
    error = {}
    for mode in ("none", "least-squares"):
        done = prune.apply(evidence, [*actions, {"refit": mode}]).model
        error[mode] = float(((nets.outputs(done, data) - wanted) ** 2).mean())
    assert error["least-squares"] < 0.8 * error["none"]


def test_quantize_runs_as_its_fake_quantized_values() -> None:
    """The fused integer kernels must give what the Q/DQ graph means in float arithmetic."""
    evidence = prepared(nets.residual(width=32))
    done = all_passes()["quantize"].apply(evidence, quantize_actions(quantizable(evidence), evidence)).model
    data = evidence.samples()
    meant, fused = nets.outputs(done, data, "none"), nets.outputs(done, data, "all")
    wanted = nets.outputs(evidence.model, data)
    assert np.abs(fused - meant).max() < 0.05 * np.abs(meant).max()
    assert ((fused - wanted) ** 2).mean() < 0.02 * (wanted**2).mean()


def test_float16_is_refused_with_reasons() -> None:
    model = edit.canonical(nets.residual(width=32, blocks=1))
    proto = ir.to_proto(model)
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    del proto.graph.value_info[:]
    half = ir.from_proto(proto)
    evidence = evidence_for(half, nets.samples_like(half, np.float16))
    quantize = all_passes()["quantize"]
    assert not proposals(quantize, evidence)
    done = all_passes()["simplify"].apply(evidence, [{"fold": "batchnorm"}])
    open_session(done.model, SessionSettings(level="none"))


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(nets.random_nets())
def test_random_nets_come_out_sound(model: ir.Model) -> None:
    evidence = prepared(model, 6)
    for lever in all_passes().values():
        done = lever.apply(evidence, some(lever, evidence))
        assert_sound(model, done.model, evidence)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(nets.random_nets())
def test_random_nets_replay(model: ir.Model) -> None:
    evidence = prepared(model, 6)
    plan = new_plan(model, evidence.data)
    for name in ("reduce", "prune"):
        plan = plan.then(name, some(all_passes()[name], prepared(model, 6))) if name == "reduce" else plan
    first, second = (to_bytes(apply_plan(plan, model, nets.samples(model, 6)).model) for _ in range(2))
    assert first == second
    assert read.parameters(ir.from_proto(onnx.load_from_string(first))) > 0
