"""The conformance suite on every pass of the registry, and the reference semantics of single passes.

A new pass joins the suite by being registered.
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

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.model import edit, read
from onnxpress.model.channels import removal as rm
from onnxpress.model.files import to_bytes
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.model.parameter_count import parameters
from onnxpress.passes.core.contract import proposals
from onnxpress.passes.core.options import PassOptions
from onnxpress.passes.int8.static_int8 import quantizable, quantize_actions
from onnxpress.passes.pruning.options import PruneOptions
from onnxpress.passes.registry import all_passes, find_pass
from onnxpress.passes.rewriting.families import BY_NAME, apply_families
from onnxpress.passes.rewriting.rewrite import RewriteOptions
from onnxpress.passes.structure.depth import DepthOptions
from onnxpress.passes.structure.lowrank import LowRankOptions
from onnxpress.plan.plan import apply_plan, new_plan
from onnxpress.runtime.session import SessionSettings, open_session
from onnxpress.testing import PassConformance
from onnxpress.testing.conformance import assert_replays, assert_sound, degraded, prepared, some_actions
from onnxpress.testing.networks import NETWORKS
from tests import nets

# Where the defaults of a pass name no goal.
OPTIONS: dict[str, PassOptions] = {
    "prune": PruneOptions(0.5),
    "depth": DepthOptions(remove=1),
    "rewrite": RewriteOptions(keep="all"),
    "lowrank": LowRankOptions(0.2, goal="size"),
}
SAVE_NOTHING = {"equalize", "distill", "rewrite"}
HOMES = {"attention": "pre-norm", "simplify": "residual-bn"}
_OFTEN = {"residual-bn", "mobile", "pre-norm"}  # the other networks replay in the slow tests
REPLAYED = [pytest.param(n, marks=() if n in _OFTEN else pytest.mark.slow) for n in NETWORKS]


def asked(name: str, model: ir.Model, count: int = 12) -> Evidence:
    """What a pass is asked about: distillation about a copy that has lost something."""
    return degraded(model, count) if name == "distill" else prepared(model, count)


for _name, _pass in all_passes().items():
    _members = {
        "subject": _pass,
        "options": OPTIONS.get(_name),
        "saves_nothing": _name in SAVE_NOTHING,
        "home": HOMES.get(_name, ""),
        "evidence": lambda self, model: asked(self.subject.name, model),
    }
    globals()[f"Test{_name.title()}"] = type(f"Test{_name.title()}", (PassConformance,), _members)


@pytest.mark.parametrize("network", REPLAYED)
@pytest.mark.parametrize("name", all_passes())
def test_plans_replay_on_every_network(name: str, network: str) -> None:
    assert_replays(find_pass(name), asked(name, NETWORKS[network]()))


@pytest.mark.parametrize("name", all_passes())
def test_an_int8_model_is_handled(name: str) -> None:
    model = quantized()
    evidence = asked(name, model)
    done = find_pass(name).apply(evidence, some_actions(find_pass(name), evidence))
    assert_sound(model, done.model, evidence.samples())


@pytest.mark.parametrize("name", all_passes())
def test_a_rewritten_model_is_handled(name: str) -> None:
    model = rewritten()
    evidence = asked(name, model)
    done = find_pass(name).apply(evidence, some_actions(find_pass(name), evidence))
    assert_sound(model, done.model, evidence.samples())
    assert_replays(find_pass(name), evidence)


@pytest.mark.parametrize("name", ["prune", "depth", "lowrank", "kernels", "attention", "share", "sparsify"])
def test_an_unknown_refit_is_refused(name: str) -> None:
    evidence = prepared(NETWORKS[HOMES.get(name, "mobile")]())
    actions = some_actions(find_pass(name), evidence)
    with pytest.raises(InputProblem, match="unknown refit"):
        find_pass(name).apply(evidence, [*actions, {"refit": "unknown"}])


@cache
def quantized() -> ir.Model:
    """An int8 model; made once, as no pass may change what it is given."""
    model = nets.residual(width=32, blocks=1)
    evidence = evidence_for(model, nets.samples(model, 8))
    return find_pass("quantize").apply(evidence, quantize_actions(quantizable(evidence), evidence)).model


@cache
def rewritten() -> ir.Model:
    """A model in the forms that `rewrite` makes: gates as copies, a sum with a convolution by one, a selection of
    channels, padded channels."""
    net = nets.image_net()
    x = net.relu(net.conv("image", 32))
    pads = net.constant(np.array([0, 0, 0, 0, 0, 8, 0, 0]))
    x = net.relu(net.add(net.conv(x, 32), net.op("Pad", [net.conv(x, 24, k=1), pads], 32)))
    gate = net.op("HardSigmoid", [net.conv(net.op("GlobalAveragePool", [x], 32), 32, k=1)], 32)
    x = net.conv(net.op("Mul", [x, gate], 32), 32)
    split, whole = (net.constant(np.array(s)) for s in ([-1, 2, 16, 8, 8], [-1, 32, 8, 8]))
    swapped = net.op("Transpose", [net.op("Reshape", [x, split], 32)], 32, perm=[0, 2, 1, 3, 4])
    x = net.conv(net.relu(net.conv(net.op("Reshape", [swapped, whole], 32), 18)), 32, k=1)
    model = net.model(net.head(x), nets.IMAGE, ["N", 10])
    evidence = evidence_for(model, nets.samples(model, 8))
    done, found = apply_families(evidence.model, evidence.probe, list(BY_NAME), evidence.trace)
    assert {"gates", "sums", "shuffle", "padding"} <= set(found)
    return done


def test_prune_without_refit_is_the_masked_original() -> None:

    evidence = prepared(nets.mobile(width=32))
    actions = some_actions(all_passes()["prune"], evidence)
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


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_depth_without_refit_is_the_model_with_branches_masked_and_runs_bypassed(
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


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_lowrank_without_refit_is_the_model_with_the_products_as_weights(build: Callable[[], ir.Model]) -> None:
    evidence = prepared(build())
    subject = all_passes()["lowrank"]
    actions = some_actions(subject, evidence)
    done = subject.apply(evidence, [*actions, {"refit": "none"}]).model
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


def test_refit_reduces_the_error() -> None:
    evidence = prepared(nets.residual(width=32), 48)
    prune = all_passes()["prune"]
    actions = some_actions(prune, evidence)
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
    model = canonical(nets.residual(width=32, blocks=1))
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


@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(nets.random_nets())
def test_random_nets_come_out_sound(model: ir.Model) -> None:
    for name, subject in all_passes().items():
        evidence = asked(name, model, 6)
        done = subject.apply(evidence, some_actions(subject, evidence))
        assert_sound(model, done.model, evidence.samples())


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(nets.random_nets())
def test_random_nets_replay(model: ir.Model) -> None:
    evidence = prepared(model, 6)
    plan = new_plan(model, evidence.data)
    plan = plan.then("simplify", some_actions(all_passes()["simplify"], evidence))
    first, second = (to_bytes(apply_plan(plan, model, nets.samples(model, 6)).model) for _ in range(2))
    assert first == second
    assert parameters(ir.from_proto(onnx.load_from_string(first))) > 0
