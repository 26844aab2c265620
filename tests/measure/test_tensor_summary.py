"""Statistics computed inside the graph, against all values of the tensors."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxpress.data.dataset import Dataset
from onnxpress.measure.evidence import evidence_for
from onnxpress.measure.ranges import Histogram, collect_histograms
from onnxpress.measure.tensor_summary import sample_rows, summarize_tensors
from onnxpress.model.signature import signature
from onnxpress.passes.int8.qdq.write import histograms_for
from tests import nets

pytestmark = pytest.mark.unit


def wide_net(opset: int, side: int, batch: int | str = "N") -> ir.Model:
    net = nets.Net(opset=opset)
    net.widths["image"] = 3
    x = net.relu(net.add(net.conv(net.relu(net.conv("image", 24)), 24), net.conv("image", 24, 1)))
    return net.model(net.head(x), {"image": [batch, 3, side, side]}, [batch, 10])


@pytest.mark.parametrize(
    ("opset", "side", "batch"),
    [(10, 8, "N"), (13, 8, "N"), (18, 8, "N"), (13, 5, "N"), (18, 80, "N"), (13, 80, "N"), (13, 5, 4), (18, 16, 4)],
)
def test_statistics_inside_the_graph_equal_those_of_the_values(opset: int, side: int, batch: int | str) -> None:
    """Extremes and mean squares by channel, of every tensor, against all values; by reductions, by
    pooling on grids, and in numpy."""
    model = wide_net(opset, side, batch)
    evidence = evidence_for(model, nets.samples(model, 18))
    names = [v.name or "" for n in evidence.model.graph for v in n.outputs]
    axes = dict.fromkeys(names[: len(names) // 2 + 1], 1)
    relus = {n.outputs[0].name or "" for n in evidence.model.graph if n.op_type == "Relu"}
    found: dict[str, Histogram] = {n: Histogram() for n in names}
    for _, taken in summarize_tensors(evidence, names, axes, nonnegative=relus):
        for name, summary in taken.items():
            found[name].add_summary(summary)
    everything = {n: np.concatenate([v[n] for v in evidence.stream([n])]) for n in names}
    for name, x_all in everything.items():
        histogram = found[name]
        assert (histogram.low, histogram.high) == pytest.approx(
            (min(0, x_all.min()), max(0, x_all.max())), rel=1e-5, abs=1e-6
        )
        assert np.sum(histogram.counts * histogram.bin_centers**2) / histogram.counts.sum() == pytest.approx(
            float(np.square(x_all).mean()), rel=0.2
        )
        if name in axes and x_all.ndim > 1:
            others = tuple(a for a in range(x_all.ndim) if a != 1)
            assert (
                histogram.channel_low is not None
                and histogram.channel_square_sums is not None
                and histogram.channel_high is not None
            )
            floor = opset > 10 and name in relus
            np.testing.assert_allclose(
                histogram.channel_low, 0 if floor else x_all.min(axis=others), rtol=1e-4, atol=1e-5
            )
            np.testing.assert_allclose(histogram.channel_high, x_all.max(axis=others), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(
                histogram.channel_square_sums / histogram.batches,
                np.square(x_all).mean(axis=others),
                rtol=0.3,
                atol=1e-5,
            )


@pytest.mark.parametrize(("opset", "side"), [(10, 16), (13, 16), (13, 80), (18, 5)])
def test_rows_of_channels_are_rows_of_the_tensor(opset: int, side: int) -> None:
    model = wide_net(opset, side)
    evidence = evidence_for(model, nets.samples(model, 5))
    conv, last = (
        next(n.outputs[0].name or "" for n in evidence.model.graph if n.op_type == op) for op in ("Conv", "Gemm")
    )
    rows: dict[str, list[np.ndarray]] = {}
    for taken in sample_rows(evidence, [conv, last, "image"], {conv: 1, last: -1}, 5, 2048):
        for name, values in taken.items():
            rows.setdefault(name, []).append(values)
    maps, scores, numbers = (np.concatenate(rows[name]) for name in (conv, last, "image"))
    whole = np.concatenate([v[conv] for v in evidence.stream([conv])])
    every = np.moveaxis(whole, 1, -1).reshape(-1, 24)
    assert maps.shape[1] == 24 and 5 * min(1024, every.size // 5) <= maps.size <= 5 * 2048 * 1.2
    nearest = np.abs(every[:, None, :3] - maps[None, ::9, :3]).max(axis=-1).min(axis=0)  # each row is one of them
    assert nearest.max() < 1e-5
    np.testing.assert_allclose(np.square(maps).mean(axis=0), np.square(whole).mean(axis=(0, 2, 3)), rtol=0.3)
    assert scores.shape == (5, 10)
    assert numbers.shape[1] == 1 and float(np.square(numbers).mean()) == pytest.approx(1, rel=0.2)


def test_channels_in_the_middle_become_rows() -> None:
    net = nets.Net(opset=17)
    net.widths["sound"] = 6
    weight = net.constant(np.random.default_rng(0).standard_normal((8, 6, 3)).astype(np.float32))
    x = net.op("Conv", ["sound", weight], 8, pads=[1, 1])
    model = net.model(net.op("GlobalMaxPool", [x], 8), {"sound": ["N", 6, 500]}, ["N", 8, 1])
    evidence = evidence_for(model, nets.samples(model, 3))
    rows = np.concatenate([taken[x] for taken in sample_rows(evidence, [x], {x: 1}, 3, 1000)])
    whole = np.concatenate([v[x] for v in evidence.stream([x])])
    assert rows.shape[1] == 8 and 1000 <= rows.size <= 3300
    np.testing.assert_allclose(np.square(rows).mean(axis=0), np.square(whole).mean(axis=(0, 2)), rtol=0.3)


def test_batching_is_checked_once_for_both_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wide_net(13, 8)
    evidence = evidence_for(model, nets.samples(model, 6))
    calls: list[int] = []
    monkeypatch.setattr("onnxpress.measure.evidence.batching_agrees", lambda *_: calls.append(1) or True)
    histograms_for(evidence)
    assert evidence.halves is not None
    assert [half.batchable for half in evidence.halves] == [True, True] and evidence.batchable and len(calls) == 1
    assert evidence.halves[0].trace is evidence.trace


def test_sequences_of_any_length_are_summarized_inside_the_graph() -> None:
    model = nets.transformer()
    evidence = evidence_for(model, nets.samples(model, 6, sequence=9))
    name = next(n.outputs[0].name or "" for n in evidence.model.graph if n.op_type == "LayerNormalization")
    histogram = collect_histograms(evidence, [name], {name: -1})[name]
    values = [v[name].reshape(-1, v[name].shape[-1]) for v in evidence.stream([name])]
    assert histogram.channel_high is not None
    np.testing.assert_allclose(histogram.channel_high, np.concatenate(values).max(axis=0), rtol=1e-5)


@pytest.mark.parametrize("count", [1, 100_000])
def test_nan_is_found(count: int) -> None:
    """onnxruntime's reductions ignore NaN, and a single one may lie between the sampled values."""
    net = nets.image_net()
    ratio = net.op("Div", ["image", "image"], 3)
    x = np.ones((2, 3, 160, 160), np.float32)
    x.reshape(2, -1)[:, 1 : 1 + count] = 0
    wide = net.model(net.head(net.relu(net.conv(ratio, 8))), {"image": ["N", 3, 160, 160]}, ["N", 10])
    evidence = evidence_for(wide, Dataset.from_arrays({"image": x}, signature(wide)))
    assert not collect_histograms(evidence, [ratio], {ratio: 1})[ratio].finite
