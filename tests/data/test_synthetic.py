"""Synthetic inputs."""

from __future__ import annotations

import numpy as np
import pytest

from onnxpress.data.synthetic import sample_shapes, synthetic
from tests.data.helpers import refused, sig

pytestmark = pytest.mark.unit


def test_transformer_inputs() -> None:
    model = sig(
        "input_ids int64 B L",
        "attention_mask int64 B L",
        "token_type_ids int64 B L",
        "position_ids int64 B L",
        "mask4 float32 B 1 L L",
        "lengths int64 B",
        "rate int64",
        "use bool",
    )
    first = synthetic(model, 2)[1].inputs
    assert first["input_ids"].shape == (1, 16)
    assert first["mask4"].shape == (1, 1, 16, 16)
    assert 0 <= first["input_ids"].min() <= first["input_ids"].max() < 100
    assert first["attention_mask"].all()
    assert not first["token_type_ids"].any()
    assert first["position_ids"][0].tolist() == list(range(16))
    assert first["mask4"].all()
    assert first["lengths"].tolist() == [16]
    assert first["use"]
    small = synthetic(model, 1, sizes={"L": 5}, vocabulary=7)[0].inputs
    assert small["input_ids"].shape == (1, 5)
    assert small["input_ids"].max() < 7


def test_images_and_others() -> None:
    model = sig(
        "x float32 N 3 H W",
        "raw uint8 N 4 4 3",
        "f float16 N 7",
        "h float64 N T 2",
        "s string N 1",
    )
    value = synthetic(model, 3)[2].inputs
    assert value["x"].shape == (1, 3, 64, 64)
    assert 0 <= value["x"].min() < 0.1 < 0.9 < value["x"].max() < 1
    assert value["raw"].max() > 100
    assert value["f"].dtype == np.float16
    assert abs(value["f"]).max() <= 3
    assert value["h"].shape == (1, 16, 2)
    assert isinstance(value["s"][0, 0], str)


def test_seeded_and_re_readable() -> None:
    model = sig("x float32 N 3 8 8")
    data = synthetic(model, 4, seed=3)
    np.testing.assert_array_equal(data[2].inputs["x"], list(data)[2].inputs["x"])
    assert data.hash == synthetic(model, 4, seed=3).hash != synthetic(model, 4, seed=4).hash
    assert len({d.inputs["x"].tobytes() for d in data}) == 4
    assert data.assumed == ("synthetic values",)


def test_fixed_batch_and_unknown_rank() -> None:
    batch = next(synthetic(sig("x float32 4 2", outputs=("y float32 4 2",)), 1).batches(1))
    assert batch.inputs["x"].shape == (4, 2)
    assert batch.count == 1
    assert synthetic(sig("x float32 ..."), 1)[0].inputs["x"].shape == (1,)
    assert synthetic(sig("x float32 N"), 1)[0].inputs["x"].shape == (1,)


@pytest.mark.parametrize("kind", ["int4", "uint4", "bfloat16", "float8_e4m3fn", "int8", "uint64", "complex64", "bool"])
def test_every_element_type(kind: str) -> None:
    import ml_dtypes

    from onnxpress.model.signature import Signature, TensorSpec

    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    value = synthetic(Signature((TensorSpec("x", dtype, ("N", 6)),), ()), 2)[1].inputs["x"]
    assert value.dtype == dtype
    assert value.shape == (1, 6)


def test_misuse() -> None:
    refused(lambda: synthetic(sig("x float32 N 2"), 0), "count is 0")
    refused(lambda: synthetic(sig(), 1), "no inputs")
    refused(lambda: synthetic(sig("x float32 N L"), 1, sizes={"L": 0}), "1 or more")


def test_shapes_determine_symbols_and_the_batch() -> None:
    model = sig("ids int64 B L", "mask int64 B L", "image float32 B 3 H W")
    shapes, batch = sample_shapes(model, {"ids": (4, 9), "image": (4, 3, 20, 24)})
    assert (shapes, batch) == ({"ids": (1, 9), "image": (1, 3, 20, 24)}, 4)
    rows = next(synthetic(model, 4, shapes=shapes).batches(4)).inputs
    assert [rows[n].shape for n in ("ids", "mask", "image")] == [(4, 9), (4, 9), (4, 3, 20, 24)]
