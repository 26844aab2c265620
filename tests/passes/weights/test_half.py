"""Half precision: half the bytes, a Cast that is folded, and islands where 16 bits would lose what is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxpress.measure.evidence import evidence_for
from onnxpress.model.files import to_bytes
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.passes.weights.half import HALF, halvable, plan_half
from tests import nets
from tests.passes.weights.test_bit_packing import everything, operators

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("kind", "near"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_the_bytes_and_the_same_operators(kind: str, near: float, tmp_path: Path) -> None:
    model = everything()
    evidence = evidence_for(model, None)
    done = HALF.apply(evidence, plan_half(evidence, kind)[0]).model
    weights = sum(4 * v.const_value.size for v in halvable(canonical(model), kind)[0])
    assert len(to_bytes(model)) - len(to_bytes(done)) > 0.4 * weights
    data = nets.samples(model, 6)
    wanted = nets.outputs(model, data)
    assert np.abs(nets.outputs(done, data) - wanted).max() < near * np.abs(wanted).max()
    assert operators(done, tmp_path) == operators(model, tmp_path)


def test_weights_outside_the_range_of_float16_stay_with_a_reason() -> None:
    net = nets.Net()
    net.widths["rows"] = 32
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((32, 32)).astype(np.float32) for _ in range(4)]
    parts[1] *= 1e6
    parts[2] *= 1e-6
    parts[3][:, 5] *= 1e-7  # one column that is small beside the others
    x = "rows"
    for part in parts:
        x = net.op("MatMul", [x, net.constant(part)], 32)
    x = net.op("Div", [x, net.constant(np.full((1, 64), 1e-9, np.float32)[:, :32].repeat(2, 0))], 32)
    model = canonical(net.model(x, {"rows": [2, 32]}, [2, 32]))
    able, refused = halvable(model, "float16")
    assert [v.name for v in able] == ["w1"]
    assert ["reach" in r.reason for r in refused] == [True, False, False, False]
    assert all("smallest" in r.reason for r in refused[1:])
    assert len(halvable(model, "bfloat16")[0]) == 5


def test_a_word_of_an_embedding_may_have_small_numbers_beside_large_ones() -> None:
    net = nets.Net()
    net.widths["x"] = 40
    table = np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32)
    table[:, 0] = 1e-9
    index = net.op("ArgMax", ["x"], 1, axis=1, keepdims=0)
    out = net.op("Gather", [net.constant(table), index], 40)
    assert len(halvable(canonical(net.model(out, {"x": ["N", 40]}, ["N", 40])), "float16")[0]) == 1


def test_the_scales_of_an_int8_model_are_left_alone() -> None:
    from tests.conformance.test_passes import quantized

    model = canonical(quantized())
    scales = {v.name for v in model.graph.initializers.values() if v.name and v.name.endswith("_scale")}
    assert not scales & {v.name for v in halvable(model, "float16")[0]}
