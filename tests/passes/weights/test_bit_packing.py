"""Stored low-bit weights represent their codebook, and onnxruntime folds them into constants at load."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxpress.model import edit
from onnxpress.model.files import to_bytes
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.passes.core.weight_matrix import find_weights
from onnxpress.passes.weights.bit_packing import BitPacker, code_width, packed_bytes
from onnxpress.passes.weights.codebook import Codebook, fit_centroids, fit_grid
from onnxpress.passes.weights.low_bit import LEVELS
from tests import nets

pytestmark = pytest.mark.unit


def operators(model: ir.Model, folder: Path) -> Counter[str]:
    """Operator types that onnxruntime runs after its optimizations."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(folder / "optimized.onnx").graph.node)


def everything(opset: int = 17) -> ir.Model:
    """A Conv, a Gemm of either layout, a MatMul and an embedding."""
    net = nets.Net(opset=opset)
    net.widths["image"] = 4
    x = net.relu(net.conv("image", 16))
    x = net.op("Flatten", [net.op("GlobalAveragePool", [x], 16)], 16)
    rng = net.rng
    first, second, third = (
        net.constant(rng.standard_normal(s).astype(np.float32)) for s in ((16, 32), (24, 32), (24, 40))
    )
    bias = net.constant(rng.standard_normal(32).astype(np.float32))
    x = net.relu(net.op("Gemm", [x, first, bias], 32))
    x = net.op("MatMul", [net.relu(net.op("Gemm", [x, second], 24, transB=1)), third], 40)
    table = net.constant(rng.standard_normal((50, 40)).astype(np.float32))
    best = net.op("ArgMax", [x], 1, axis=1, keepdims=0)
    return net.model(net.add(x, net.op("Gather", [table, best], 40)), {"image": ["N", 4, 8, 8]}, ["N", 40])


def forms(rows: np.ndarray) -> dict[str, Codebook]:
    scaled = {f"{count} centres": fit_centroids(rows, None, count, True) for count in (4, 8, 16, 256)}
    grids = {f"{bits} bits": fit_grid(rows, None, levels) for bits, levels in LEVELS.items()}
    return {
        **scaled,
        **grids,
        "unscaled": fit_centroids(rows, None, 16, False),
        "blocks": fit_grid(rows, None, LEVELS[4], 4),
    }


@pytest.mark.parametrize(
    ("form", "opset"), [*((form, 11) for form in forms(np.eye(8))), ("16 centres", 21), ("3 bits", 17)]
)
def test_every_form_represents_its_codebook_and_is_folded_at_load(form: str, opset: int, tmp_path: Path) -> None:
    model = canonical(everything(opset))
    wanted = operators(model, tmp_path)
    work, reference = model.clone(), model.clone()
    packer = BitPacker(work)
    estimate = 0
    for weight in find_weights(model)[0]:
        codebook = forms(weight.matrix)[form].compact()
        packer.write(weight, codebook)
        estimate += packed_bytes(weight, codebook) - weight.array.nbytes
        expected = weight.from_matrix(codebook.dequantized).astype(np.float32)
        edit.set_constant(reference.graph.initializers[weight.name], expected)
    edit.drop_dead(work)
    onnx.checker.check_model(to_bytes(work), full_check=True)
    data = nets.samples(model, 6)
    np.testing.assert_allclose(nets.outputs(work, data), nets.outputs(reference, data), rtol=1e-4, atol=1e-3)
    assert operators(work, tmp_path) == wanted
    assert abs(len(to_bytes(work)) - len(to_bytes(model)) - estimate) < 3000


def test_codes_that_do_not_fill_bytes_take_eight_bits() -> None:
    assert [code_width(c, 24) for c in (3, 8, 16, 200)] == [2, 3, 4, 8]
    assert [code_width(c, 7) for c in (3, 8, 16, 200)] == [8, 8, 8, 8]
    assert code_width(8, 12) == 4


def test_groups_of_rows_have_codebooks_of_their_own(tmp_path: Path) -> None:
    from onnxpress.passes.weights.low_bit import LowBitWeight

    model = canonical(everything())
    work, reference = model.clone(), model.clone()
    packer = BitPacker(work)
    for weight in find_weights(model)[0]:
        parts = np.split(weight.matrix, 2)
        low_bit = LowBitWeight(tuple(fit_centroids(p, None, 16, False).compact() for p in parts), 0.0)
        packer.write(weight, low_bit.codebook, 2)
        edit.set_constant(
            reference.graph.initializers[weight.name], weight.from_matrix(low_bit.dequantized).astype(np.float32)
        )
    edit.drop_dead(work)
    data = nets.samples(model, 6)
    np.testing.assert_allclose(nets.outputs(work, data), nets.outputs(reference, data), rtol=1e-4, atol=1e-3)
    assert operators(work, tmp_path) == operators(model, tmp_path)
