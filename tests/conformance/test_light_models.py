"""Well-known topologies from the onnx wheel (opset 9, weights made by ConstantOfShape): old files, as people have
them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxpress import prune, quantize, simplify
from onnxpress.api.inspection import inspect
from onnxpress.data.synthetic import synthetic
from onnxpress.model import edit
from onnxpress.model.files import load, to_bytes
from onnxpress.model.parameter_count import parameters
from onnxpress.model.signature import signature
from onnxpress.passes.pruning.options import PruneOptions
from onnxpress.plan import result_contract

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NAMES = sorted(p.stem.removeprefix("light_") for p in FOLDER.glob("*.onnx"))
SMALL = ["squeezenet", "shufflenet"]


def test_the_wheel_still_has_them() -> None:
    assert {*SMALL, "resnet50", "densenet121"} <= set(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_well_known_model_is_simplified_and_quantized(name: str) -> None:
    """simplify raises it to an operator set with integers a channel; the weights become real, and then quantize."""
    model = load(FOLDER / f"light_{name}.onnx")
    data = synthetic(signature(model), 4)
    simple = simplify(model)
    assert simple.model.opset_imports[""] >= 13
    int8 = quantize(model, data)
    for made in (simple, int8):
        assert not result_contract.same_shape_behaviour(model, to_bytes(made.model), data)
    makers = [n.inputs[1].producer() for n in int8.model.graph if n.op_type == "Conv" and n.inputs[1] is not None]
    assert len(makers) > 4
    assert all(m is not None and m.op_type == "DequantizeLinear" for m in makers)


def drawn(model: ir.Model) -> ir.Model:
    """With weights that differ: those of the wheel are all one number, so that one channel in sixteen does what all
    do."""
    rng = np.random.default_rng(0)
    model.ir_version = max(model.ir_version, 4)  # from there on initializers need not be inputs as well
    for node in [n for n in model.graph if n.op_type == "ConstantOfShape"]:
        assert node.inputs[0] is not None and node.inputs[0].const_value is not None
        shape = tuple(node.inputs[0].const_value.numpy())
        fan = np.prod(shape[1:]) if len(shape) > 1 else 1.0
        array = (
            np.abs(rng.standard_normal(shape)) + 0.5
            if len(shape) == 1
            else rng.standard_normal(shape) * np.sqrt(2 / fan)
        )
        edit.bypass(model, node, edit.add_constant(model, array.astype(np.float32), f"{node.outputs[0].name}_drawn"))
    return model


def test_equal_channels_of_a_well_known_model_are_one() -> None:
    """The wheel's weights are all one number: what is left answers the same."""
    model = load(FOLDER / "light_squeezenet.onnx")
    done = simplify(model)
    assert parameters(done.model) < 0.1 * parameters(simplify(drawn(load(FOLDER / "light_squeezenet.onnx"))).model)
    assert not result_contract.same_shape_behaviour(model, to_bytes(done.model), synthetic(signature(model), 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet", "resnet50"])
def test_a_well_known_model_is_pruned(name: str) -> None:
    model = drawn(load(FOLDER / f"light_{name}.onnx"))
    data = synthetic(signature(model), 4)
    done = prune(model, data, options=PruneOptions(0.3, allocation="uniform"))
    assert not result_contract.same_shape_behaviour(model, to_bytes(done.model), data)
    assert len(to_bytes(done.model)) < 0.8 * len(to_bytes(simplify(model).model))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_inspect_proposes_quantization_of_weights_made_by_nodes(name: str) -> None:
    found = inspect(FOLDER / f"light_{name}.onnx")
    assert found.failure == ""
    proposed = [n.proposed for n in found.nodes if n.op == "Conv"]
    assert len(proposed) > 4
    assert all("quantize" in p for p in proposed)
