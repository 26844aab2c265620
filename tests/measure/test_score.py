"""The score of a changed model: metric, drop and its interval, with labels and without."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from onnxpress.measure.quality import QualityOptions
from onnxpress.measure.score import Scorer
from onnxpress.model import edit
from tests import nets

pytestmark = pytest.mark.unit


def test_scorer_uses_labels_where_there_are_some() -> None:
    model = nets.residual()
    labelled, bare = nets.samples(model, 20, labels=True), nets.samples(model, 20)
    score = Scorer(model, labelled).score(model)
    assert (score.metric, score.value, score.drop, score.nmse) == ("top-1", 1.0, 0.0, 0.0)
    other = nets.residual(seed=5)
    assert Scorer(model, bare, quality=QualityOptions("agreement")).score(other).metric == "agreement"
    assert Scorer(model, labelled).score(other).drop > 0.2
    sequence = nets.mlp()
    found = Scorer(sequence, nets.samples(sequence, 8), quality=QualityOptions("r2")).score(nets.mlp(seed=3))
    assert found.metric == "r2"
    assert found.drop > 0.1


def test_drop_interval_contains_the_drop() -> None:
    model = nets.residual()
    score = Scorer(model, nets.samples(model, 60, labels=True)).score(nets.residual(seed=1))
    assert score.low <= score.drop <= score.high


def test_integer_outputs_and_other_outputs_are_scored() -> None:
    """A changed ArgMax, and a destroyed second output, must count."""
    net = nets.image_net()
    x = net.relu(net.conv("image", 16))
    scores = net.head(x)
    best = net.op("ArgMax", [scores], 1, axis=1, keepdims=1)
    graph = ir.to_proto(net.model(scores, nets.IMAGE, ["N", 10])).graph
    made = []
    for outputs in ([best], [scores, x]):
        del graph.output[:]
        for name in outputs:
            kind = onnx.TensorProto.INT64 if name == best else onnx.TensorProto.FLOAT
            graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
        copy = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        made.append(ir.from_proto(copy))
    for model, rank in zip(made, (2, 4), strict=True):
        data = nets.samples(model, 20)
        wrong = model.clone()
        weight = next(v for v in wrong.graph.initializers.values() if v.const_value.numpy().ndim == rank)
        edit.set_constant(weight, -weight.const_value.numpy())
        score = Scorer(model, data).score(wrong)
        assert score.drop > 0.2, score.text()
        assert Scorer(model, data).score(model).drop == 0
