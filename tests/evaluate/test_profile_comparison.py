"""Time and width by layer, whatever a layer is fused with."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxpress import depth, prune, quantize
from onnxpress.evaluate.profile_comparison import channel_widths, profile_compare
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.passes.pruning.options import PruneOptions
from onnxpress.passes.structure.depth import DepthOptions
from tests import nets


def feeds(model: ir.Model) -> dict[str, np.ndarray]:
    return next(iter(nets.samples(model, 1).batches(1))).inputs


@pytest.mark.slow
@pytest.mark.alone
def test_every_layer_has_a_time_in_both_models() -> None:
    model = canonical(nets.residual(width=32))
    done = quantize(model, nets.samples(model, 8)).model
    found = profile_compare(model, done, feeds(model), 0.4)
    weighted = [n.name for n in model.graph if n.op_type in ("Conv", "Gemm")]
    assert [p.name for p in found.layers] == weighted == [p.name for p in found.widths]
    assert all(p.before > 0 and p.after > 0 for p in found.layers)
    ops = {p.name: p for p in found.operators}
    assert ops["QLinearConv"].before == 0 < ops["QLinearConv"].after
    total = sum(p.before for p in found.operators)
    assert sum(p.before for p in found.layers) <= total


@pytest.mark.slow
def test_widths_follow_pruning_and_removed_layers() -> None:
    model = nets.residual(width=32)
    data = nets.samples(model, 8)
    narrow = channel_widths(model, prune(model, data, options=PruneOptions(0.5, allocation="uniform")).model)
    assert any(p.after < p.before for p in narrow)
    assert all(p.after > 0 for p in narrow)
    shallow = channel_widths(model, depth(model, data, options=DepthOptions(remove=1)).model)
    assert sum(p.after == 0 for p in shallow) == 2, "a block of two convolutions"
    assert all(p.after in (0, p.before) for p in shallow)
    assert channel_widths(model, quantize(model, data).model) == channel_widths(model, model), "integers are as wide"


def test_a_layer_fused_from_two_nodes_keeps_its_name() -> None:
    """MatMul and Add become one Gemm with the name of the MatMul."""
    net = nets.Net()
    net.widths["x"] = 8
    weight = net.constant(np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32))
    product = net.op("MatMul", ["x", weight], 4)
    model = net.model(net.op("Add", [product, net.constant(np.ones(4, np.float32))], 4), {"x": ["N", 8]}, ["N", 4])
    (matmul,) = [n.name for n in canonical(model).graph if n.op_type == "MatMul"]
    done = quantize(model, nets.samples(model, 8)).model
    assert [n.name for n in done.graph if n.op_type == "Gemm"] == [matmul]
