"""What users say of quality: metrics, decoders and outputs by name or as functions, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem
from onnxpress.measure.quality import QualityOptions
from onnxpress.measure.score import Score, Scorer
from onnxpress.model.signature import signature
from tests import nets

pytestmark = pytest.mark.unit


def model_of(nodes: list[Any], outputs: dict[str, list[Any]], width: int = 8) -> ir.Model:
    """A graph with the input x [N, width]."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(n, kind, s) for n, s in outputs.items()]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", kind, ["N", width])], ends)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def scaled(factor: float, offset: float = 0.0) -> ir.Model:
    """y = factor * x + offset, and a second output z = x."""
    const = [onnx.helper.make_node("Constant", [], [n], value_float=v) for n, v in (("f", factor), ("o", offset))]
    nodes = [
        *const,
        onnx.helper.make_node("Mul", ["x", "f"], ["m"]),
        onnx.helper.make_node("Add", ["m", "o"], ["y"]),
        onnx.helper.make_node("Identity", ["x"], ["z"]),
    ]
    return model_of(nodes, {"y": ["N", 8], "z": ["N", 8]})


def data_for(model: ir.Model, labels: Any = None) -> Dataset:
    x = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    arrays = {"x": x} if labels is None else {"x": x, "labels": labels}
    return (
        Dataset.from_arrays(arrays, signature(model))
        if labels is None
        else Dataset.from_arrays({"x": x}, signature(model), labels=list(labels))
    )


def score(options: QualityOptions, other: ir.Model, labels: Any = None) -> Score:
    model = scaled(1.0)
    return Scorer(model, data_for(model, labels), quality=options).score(other)


def test_every_output_has_its_own_metric_and_the_worst_decides() -> None:
    found = score(QualityOptions(), scaled(2.0))
    assert [p.output for p in found.parts] == ["y", "z"]
    assert found.output == "y" and found.drop == max(p.drop for p in found.parts) > 0.5
    assert not found.keeps(None)
    assert "of y" in found.text()


def test_only_the_outputs_that_matter_are_judged() -> None:
    options = QualityOptions(outputs=("z",))
    model = scaled(1.0)
    scorer = Scorer(model, data_for(model), quality=options)
    found = scorer.score(scaled(2.0))
    assert found.drop == 0 and found.keeps(0.0)
    assert any(line.startswith("not judged: y") for line in scorer.judge.text())
    with pytest.raises(InputProblem, match="no such output"):
        score(QualityOptions(outputs=("w",)), scaled(2.0))


def test_a_named_metric_replaces_the_chosen_one() -> None:
    assert score(QualityOptions("cosine"), scaled(2.0)).value == pytest.approx(1.0)
    assert score(QualityOptions("mae", outputs=("y",)), scaled(1.0, 0.5)).value == pytest.approx(0.5)
    assert score(QualityOptions("top-1"), scaled(2.0), np.arange(20) % 8).drop == pytest.approx(0.0)
    with pytest.raises(InputProblem, match="no such metric"):
        score(QualityOptions("rouge"), scaled(1.0))
    with pytest.raises(InputProblem, match="not a metric"):
        QualityOptions(3).check()  # type: ignore[arg-type]


def test_functions_by_name_and_as_objects(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def near(outputs, label):\n    return -abs(float(outputs['y'][0]) - label)\n"
        "def share(outputs, labels):\n    return float(np.mean(outputs['y'][:, 0] > 0))\n"
    )
    model = scaled(1.0)
    labels = np.round(data_for(model).select(range(20)).batches(20).__next__().inputs["x"][:, 0], 6).astype(float)
    one = score(QualityOptions(f"{tmp_path / 'mine.py'}:near"), scaled(1.0, 0.5), labels)
    assert one.drop == pytest.approx(0.5, abs=1e-4)
    two = score(QualityOptions(f"{tmp_path / 'mine.py'}:share"), scaled(-1.0))
    assert two.reference == pytest.approx(1 - two.value)
    three = score(QualityOptions(lambda outputs, label: float(outputs["z"].sum())), scaled(2.0))
    assert three.drop == 0
    with pytest.raises(InputProblem, match="has no 'far'"):
        QualityOptions(f"{tmp_path / 'mine.py'}:far").check()


def test_what_stands_between_outputs_and_metric() -> None:
    def sign(outputs: dict[str, np.ndarray]) -> np.ndarray:
        return (outputs["y"] > 0).astype(np.int64)

    assert score(QualityOptions("position-agreement", sign), scaled(3.0)).drop == 0
    assert score(QualityOptions("position-agreement", sign), scaled(-1.0)).value == 0
    by_name = QualityOptions("mae", lambda outputs: {"first": outputs["y"][:1]}, ("y",))
    assert score(by_name, scaled(1.0, 0.25)).value == pytest.approx(0.25)

    def box(outputs: dict[str, np.ndarray]) -> np.ndarray:
        left = float(outputs["y"][0])
        return np.array([[left, 0, left + 1, 1, 0.9, 0]])

    found = score(QualityOptions(decode=box), scaled(1.0, 5.0))
    assert (found.metric, found.reference, found.value) == ("map50", 1.0, 0.0), "boxes, so their mean average precision"
    with pytest.raises(InputProblem, match="no such decoder"):
        QualityOptions(decode="yolo99").check()
    with pytest.raises(InputProblem, match="does not fit"):
        score(QualityOptions("map50", "yolov8"), scaled(1.0))
    with pytest.raises(InputProblem, match="the decoder failed"):
        score(QualityOptions("mae", lambda outputs: outputs["absent"]), scaled(1.0))


def test_the_allowed_drop_is_that_of_the_metric() -> None:
    model = scaled(1.0)
    data = data_for(model)
    assert Scorer(model, data).allowed_drop(None) == 0.01
    assert Scorer(model, data).allowed_drop(0.2) == 0.2
    assert Scorer(model, data, quality=QualityOptions("psnr")).allowed_drop(None) == 0.3
    assert Scorer(model, data, quality=QualityOptions("psnr")).allowed_drop(2.0) == 2.0
    with pytest.raises(InputProblem, match="`max_drop`"):
        Scorer(model, data).allowed_drop(2.0)


def test_a_judge_is_handed_on() -> None:
    """Parts of the samples are judged alike, whatever their values look like."""
    model = scaled(1.0)
    first = Scorer(model, data_for(model), quality=QualityOptions("cosine"))
    assert Scorer(model, data_for(model).take(2), quality=first.judge).metric == "cosine"


def test_a_larger_drop_of_one_metric_scales_the_others() -> None:
    found = score(QualityOptions(), scaled(1.05))
    assert 0 < found.used(None) < 1 and found.used(found.default_drop / 10) > found.used(None)
    assert found.keeps(None) and not found.keeps(0.0)
    assert found.equivalent_drop == pytest.approx(max(p.drop for p in found.parts))


def test_nets_of_the_tests_are_judged() -> None:
    model = nets.residual()
    lines = Scorer(model, nets.samples(model, 8)).judge.text()
    assert len(lines) == 1 and lines[0].startswith("judged by ")


def boxes_model(shift: float = 0.0) -> ir.Model:
    """Rows of x with x[0] > 0 as boxes [n, 6]: their number depends on the sample, and may be 0 or 1."""
    helper, kind = onnx.helper, onnx.TensorProto
    values = [
        np.array([shift, shift, shift, shift, 0, 0], np.float32),
        np.array([1], np.int64),
        np.array([-1], np.int64),
    ]
    constants = [onnx.numpy_helper.from_array(v, n) for n, v in zip(("shift", "one", "flat"), values, strict=True)]
    constants += [onnx.numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("limit", 0.3),)]
    constants.append(onnx.numpy_helper.from_array(np.array([4], np.int64), "column"))
    nodes = [
        helper.make_node("Squeeze", ["x", "zero"], ["rows"]),
        helper.make_node("Gather", ["rows", "column"], ["scores"], axis=1),
        helper.make_node("Reshape", ["scores", "flat"], ["line"]),
        helper.make_node("Greater", ["line", "limit"], ["use"]),
        helper.make_node("Compress", ["rows", "use"], ["some"], axis=0),
        helper.make_node("Add", ["some", "shift"], ["dets"]),
    ]
    constants.append(onnx.numpy_helper.from_array(np.array([0], np.int64), "zero"))
    ends = [
        [helper.make_tensor_value_info("x", kind.FLOAT, [1, 5, 6])],
        [helper.make_tensor_value_info("dets", kind.FLOAT, ["n", 6])],
    ]
    graph = helper.make_graph(nodes, "g", *ends, constants)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_a_detector_that_finds_nothing_or_one_box_is_judged_by_boxes() -> None:
    rng = np.random.default_rng(0)
    x = np.zeros((12, 5, 6), np.float32)
    x[..., :2] = 40 * np.arange(5)[None, :, None]
    x[..., 2:4] = x[..., :2] + 20
    x[..., 4] = (rng.random((12, 5)) < 0.5) * 0.9
    x[0, :, 4], x[1, :, 4], x[2, :, 4] = 0, [0.9, 0, 0, 0, 0], 0.9
    model = boxes_model()
    scorer = Scorer(model, Dataset.from_arrays({"x": x}, signature(model)))
    assert scorer.metric == "map50"
    assert scorer.score(model).drop == 0
    assert scorer.score(boxes_model(30.0)).value < 0.1
    assert scorer.score(boxes_model(1.0)).keeps(None)


def test_labels_that_the_original_cannot_answer_are_doubted() -> None:
    """A folder of three classes numbered 0, 1, 2 for a model of eight: judged by them any candidate would do."""
    model = scaled(1.0)
    scorer = Scorer(model, data_for(model, np.arange(20) % 2))
    assert not scorer.labelled
    text = "\n".join(scorer.judge.text())
    assert "no more than a guess" in text and "judged by the original's answers" in text
    right = data_for(model).select(range(20)).batches(20).__next__().inputs["x"].argmax(1)
    assert Scorer(model, data_for(model, right)).labelled
    asked = Scorer(model, data_for(model, np.arange(20) % 2), quality=QualityOptions("top-1"))
    assert asked.labelled and asked.judge.warnings, "what the user asks for is kept"


def test_samples_without_any_label_are_one_line() -> None:
    model = scaled(1.0)
    right = data_for(model).batches(20).__next__().inputs["x"].argmax(1)
    judge = Scorer(model, data_for(model, right)).judge
    with pytest.raises(InputProblem, match="no sample has a label"):
        Scorer(model, data_for(model), quality=judge).score(model)


def test_answers_that_are_none_are_wrong() -> None:
    found = score(QualityOptions("agreement", outputs=("y",)), scaled(float("nan")))
    assert found.value == 0.0
    assert score(QualityOptions("r2"), scaled(float("nan"))).drop >= 0.5


def test_a_collapsed_encoder_is_seen() -> None:
    """Vectors in a narrow cone: their mean has a cosine of 0.99 with each of them."""
    rng = np.random.default_rng(0)
    x = (10 + rng.standard_normal((30, 8))).astype(np.float32)
    model = scaled(1.0)
    data = Dataset.from_arrays({"x": x}, signature(model))
    scorer = Scorer(model, data, quality=QualityOptions("cosine", outputs=("y",)))
    assert scorer.score(scaled(0.0, 10.0)).drop > 0.3
    assert scorer.score(scaled(1.001)).keeps(None)
