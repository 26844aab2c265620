"""The metric that is chosen: a table of output signatures, and what an engineer would pick for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from onnxpress.measure.metrics.choice import Choices, choose_metrics
from onnxpress.measure.metrics.output_facts import InputFacts, LabelFacts, OutputFacts

pytestmark = pytest.mark.unit

COUNT = 12
IMAGE = np.zeros((3, 64, 64), np.float32)
GRAY = np.zeros((1, 64, 64), np.float32)
TOKENS = np.zeros(16, np.int64)
WAVE = np.zeros((1, 16000), np.float32)
SPECTRUM = np.zeros((40, 100), np.float32)
NOISE = np.zeros(100, np.float32)
LINE = np.zeros((1, 32, 100), np.float32)
TABLE = np.zeros(13, np.float32)
Make = Callable[[np.random.Generator], Any]


def soft(x: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def tenth(x: np.ndarray) -> np.ndarray:
    return 0.1 * x


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def logits(*shape: int, axis: int = -1, gap: float = 8.0) -> Make:
    """Scores of a trained classifier: one class far above the others."""

    def make(rng: np.random.Generator) -> np.ndarray:
        x = rng.standard_normal(shape)
        best = rng.integers(0, shape[axis], [s for i, s in enumerate(shape) if i != axis % len(shape)])
        np.put_along_axis(x, np.expand_dims(best, axis), gap, axis)
        return x - x.mean(axis, keepdims=True)

    return make


def normal(*shape: int, scale: float = 1.0) -> Make:
    return lambda rng: scale * rng.standard_normal(shape)


def uniform(*shape: int) -> Make:
    return lambda rng: rng.random(shape)


def whole(top: int, *shape: int) -> Make:
    return lambda rng: rng.integers(0, top, shape)


def mapped(function: Callable[..., np.ndarray], make: Make, **more: Any) -> Make:
    return lambda rng: function(make(rng), **more)


def ctc(steps: int, classes: int, blank: int) -> Make:
    def make(rng: np.random.Generator) -> np.ndarray:
        answers = np.where(rng.random(steps) < 0.6, blank, rng.integers(0, classes, steps))
        return np.log(soft(8 * np.eye(classes)[answers] + rng.standard_normal((steps, classes))))

    return make


def boxes_yolov8(classes: int, anchors: int) -> Make:
    def make(rng: np.random.Generator) -> np.ndarray:
        scores = rng.random((classes, anchors)) ** 40
        return np.concatenate([rng.uniform(0, 640, (2, anchors)), rng.uniform(10, 100, (2, anchors)), scores])

    return make


def boxes_yolov5(classes: int, anchors: int) -> Make:
    return lambda rng: np.concatenate(
        [boxes_yolov8(1, anchors)(rng)[:4].T, rng.random((anchors, 1)) ** 4, rng.random((anchors, classes))], axis=1
    )


def rows_of_boxes(width: int) -> Make:
    """What suppression inside of the file left: a number of rows that differs."""

    def make(rng: np.random.Generator) -> np.ndarray:
        n = int(rng.integers(0, 6))
        low = rng.uniform(0, 100, (n, 2))
        box, score, kind = (
            np.concatenate([low, low + 20], 1),
            0.3 + 0.7 * rng.random((n, 1)),
            rng.integers(0, 9, (n, 1)),
        )
        return np.concatenate([np.zeros((n, 1)), box, kind, score] if width == 7 else [box, score, kind], axis=1)

    return make


def corner_boxes(anchors: int) -> Make:
    def make(rng: np.random.Generator) -> np.ndarray:
        low = rng.uniform(0, 0.7, (anchors, 2))
        return np.concatenate([low, low + rng.uniform(0.05, 0.3, (anchors, 2))], axis=1)

    return make


def absent(make: Make) -> Make:
    """Nothing in every third sample, the first among them."""
    calls = iter(range(10_000))
    return lambda rng: (lambda found: found[:0] if next(calls) % 3 == 0 else found)(make(rng))


def ssd_rows(count: int) -> Make:
    """Sample, class, score, corners; the rest of the rows is zeros."""

    def make(rng: np.random.Generator) -> np.ndarray:
        rows = np.zeros((1, count, 7))
        n = count // 2
        rows[0, :n, 1], rows[0, :n, 2], rows[0, :n, 3:] = rng.integers(1, 9, n), rng.random(n), corner_boxes(n)(rng)
        return rows

    return make


def scored_corners(count: int) -> Make:
    return lambda rng: np.concatenate([300 * corner_boxes(count)(rng), rng.random((count, 1))], axis=1)


def shifted(make: Make, by: Sequence[float]) -> Make:
    return lambda rng: make(rng) + np.array(by)


def grid(classes: int, side: int) -> Make:
    return lambda rng: np.concatenate(
        [
            rng.random((1, side, side)) ** 4,
            rng.standard_normal((4, side, side)),
            soft(logits(classes, side, side, axis=0)(rng), 0),
        ]
    )


@dataclass(frozen=True)
class Row:
    """One model: outputs by name (with the last operators), inputs, labels; the metrics in order."""

    outputs: dict[str, Make | tuple[Make, tuple[str, ...]]]
    metrics: Sequence[str]
    inputs: Sequence[np.ndarray] = (IMAGE,)
    label: Make | None = None
    unjudged: Sequence[str] = field(default=())


GEMM, SIGMOID = ("Gemm", "Relu"), ("Sigmoid", "Gemm")
TABLE_OF_SIGNATURES: dict[str, Row] = {
    "classifier, Softmax": Row({"probs": mapped(soft, logits(1000))}, ["agreement"]),
    "classifier, logits": Row({"output": (logits(1000), GEMM)}, ["agreement"]),
    "classifier, ten logits without a name": Row({"495": (logits(10), GEMM)}, ["agreement"]),
    "classifier, labels": Row({"output": (logits(10), GEMM)}, ["top-1"], label=whole(10)),
    "classifier, [K, 1, 1] as SqueezeNet": Row(
        {"y": (logits(1000, 1, 1, axis=0), ("GlobalAveragePool",))}, ["agreement"]
    ),
    "classifier, log probabilities": Row({"y": mapped(lambda x: np.log(soft(x)), logits(35))}, ["agreement"], (WAVE,)),
    "classifier of sentences, two logits": Row({"logits": (logits(2), GEMM)}, ["agreement"], (TOKENS, TOKENS)),
    "classifier of sentences, labels": Row({"logits": (logits(2), GEMM)}, ["top-1"], (TOKENS, TOKENS), whole(2)),
    "sklearn: label and probabilities": Row(
        {"label": whole(3), "probabilities": mapped(soft, logits(3))}, ["agreement", "agreement"], (TABLE,)
    ),
    "sklearn: label alone, labels": Row({"label": whole(3)}, ["top-1"], (TABLE,), whole(3)),
    "binary, one sigmoid": Row({"y": (mapped(sigmoid, normal(1, scale=4)), SIGMOID)}, ["agreement"], (TABLE,)),
    "binary, one sigmoid, labels": Row(
        {"y": (mapped(sigmoid, normal(1, scale=4)), SIGMOID)}, ["top-1"], (TABLE,), whole(2)
    ),
    "binary, one logit, labels": Row({"y": (normal(1, scale=4), GEMM)}, ["top-1"], (TABLE,), whole(2)),
    "wake word, one score by name": Row({"probability": uniform(1)}, ["agreement"], (SPECTRUM,)),
    "several labels a sample": Row({"y": (mapped(sigmoid, normal(80, scale=4)), SIGMOID)}, ["f1"]),
    "several labels a sample, labels": Row({"y": (uniform(80), SIGMOID)}, ["f1"], label=whole(2, 80)),
    "sentence encoder of norm 1": Row(
        {"sentence_embedding": mapped(lambda x: x / np.linalg.norm(x), normal(384))}, ["cosine"], (TOKENS, TOKENS)
    ),
    "sentence encoder without a name": Row({"1650": (normal(384), ("Div", "ReduceSum"))}, ["cosine"], (TOKENS, TOKENS)),
    "face vectors, norm 1, no name": Row({"683": mapped(lambda x: x / np.linalg.norm(x), normal(512))}, ["cosine"]),
    "image features behind pooling": Row({"output": (normal(2048), ("GlobalAveragePool", "Relu"))}, ["cosine"]),
    "face vectors with one person a sample": Row(
        {"embedding": mapped(lambda x: x / np.linalg.norm(x), normal(512))}, ["retrieval"], label=whole(40)
    ),
    "vectors as labels": Row(
        {"vector": mapped(lambda x: x / np.linalg.norm(x), normal(64))}, ["cosine"], label=normal(64)
    ),
    "BERT: hidden states and pooled": Row(
        {"last_hidden_state": (normal(16, 128), ("LayerNormalization",)), "pooler_output": (normal(128), ("Tanh",))},
        ["cosine", "cosine"], (TOKENS, TOKENS),
    ),
    "encoder with hidden states beside its vector": Row(
        {"sentence_embedding": normal(64), "last_hidden_state": (normal(16, 64), ("LayerNormalization",))},
        ["cosine"], (TOKENS,), unjudged=["last_hidden_state"],
    ),
    "classifier with attentions beside it": Row(
        {"logits": logits(3), "attentions.0": uniform(4, 16, 16), "hidden_states.1": normal(16, 64)},
        ["agreement"], (TOKENS,), unjudged=["attentions.0", "hidden_states.1"],
    ),
    "tokens, logits": Row({"logits": (logits(16, 9), GEMM)}, ["position-agreement"], (TOKENS,)),
    "tokens, labels": Row({"logits": (logits(16, 9), GEMM)}, ["position-agreement"], (TOKENS,), whole(9, 16)),
    "tokens, answers": Row({"tags": whole(9, 16)}, ["position-agreement"], (TOKENS,)),
    "language model": Row({"logits": (logits(16, 5000), GEMM)}, ["position-agreement"], (TOKENS,)),
    "language model, next tokens": Row(
        {"logits": (logits(16, 5000), GEMM)}, ["perplexity"], (TOKENS,), whole(5000, 16)
    ),
    "language model with its cache": Row(
        {"logits": logits(16, 5000), "present.0.key": normal(4, 16, 32), "present.0.value": normal(4, 16, 32)},
        ["position-agreement"], (TOKENS,), unjudged=["present.0.key", "present.0.value"],
    ),
    "speech recognizer, CTC": Row({"y": ctc(80, 29, 0)}, ["error-rate"], (SPECTRUM,)),
    "text line recognizer, CTC, last class blank": Row({"save_infer_model/scale_0": ctc(40, 97, 96)}, ["error-rate"]),
    "text line recognizer, CTC, labels": Row(
        {"y": ctc(40, 37, 0)}, ["error-rate"], label=lambda rng: rng.integers(1, 37, int(rng.integers(3, 9)))
    ),
    "segmenter, logits": Row({"out": (logits(21, 64, 64, axis=0), ("Resize", "Conv"))}, ["iou"]),
    "segmenter, probabilities": Row({"y": mapped(soft, logits(5, 64, 64, axis=0), axis=0)}, ["iou"]),
    "segmenter, masks as labels": Row({"y": logits(5, 32, 32, axis=0)}, ["iou"], label=whole(5, 32, 32)),
    "segmenter, channels last": Row({"y": mapped(soft, logits(32, 32, 5))}, ["iou"], (IMAGE.transpose(1, 2, 0),)),
    "segmenter, answers": Row({"y": whole(19, 64, 64)}, ["iou"]),
    "text map, one score between 0 and 1": Row(
        {"maps": (mapped(sigmoid, normal(1, 64, 64, scale=9)), SIGMOID)}, ["iou"]
    ),
    "matte by name": Row({"alpha": mapped(sigmoid, normal(1, 64, 64, scale=9))}, ["iou"]),
    "super-resolution": Row({"output": (uniform(3, 128, 128), ("DepthToSpace",))}, ["psnr"]),
    "super-resolution of the luminance": Row({"output": (uniform(1, 192, 192), ("DepthToSpace",))}, ["psnr"], (GRAY,)),
    "super-resolution, true pictures": Row({"y": uniform(3, 128, 128)}, ["psnr"], label=uniform(3, 128, 128)),
    "denoiser": Row({"denoised": (uniform(3, 64, 64), ("Add",))}, ["psnr"]),
    "depth by name": Row({"depth": normal(1, 64, 64)}, ["r2"]),
    "optical flow by name": Row({"flow": normal(2, 64, 64)}, ["r2"], (IMAGE, IMAGE)),
    "feature maps": Row({"y": (normal(128, 8, 8), ("Relu",))}, ["r2"]),
    "regressor, one number": Row({"variable": (normal(1, scale=50), GEMM)}, ["r2"], (TABLE,)),
    "regressor, labels": Row({"variable": (normal(1, scale=50), GEMM)}, ["r2"], (TABLE,), normal()),
    "regressor, counts as labels": Row({"y": (normal(1, scale=9), GEMM)}, ["r2"], (TABLE,), whole(9)),
    "landmarks": Row({"landmarks": (uniform(136), GEMM)}, ["r2"]),
    "three coordinates": Row({"output": (uniform(3), GEMM)}, ["r2"], label=uniform(3)),
    "autoencoder": Row({"y": (normal(13), GEMM)}, ["r2"], (TABLE,)),
    "voice activity with a state": Row(
        {"output": (mapped(sigmoid, normal(1, scale=4)), SIGMOID), "stateN": normal(2, 1, 128)},
        ["agreement", "r2"], (WAVE, np.zeros((2, 1, 128), np.float32)),
    ),
    "YOLOv8": Row({"output0": boxes_yolov8(80, 2100)}, ["map50"]),
    "YOLOv8 of one class": Row({"output0": boxes_yolov8(1, 2100)}, ["map50"]),
    "YOLOv8, true boxes": Row(
        {"output0": boxes_yolov8(3, 500)}, ["map50"],
        label=lambda rng: np.concatenate([corner_boxes(2)(rng), rng.integers(0, 3, (2, 1))], axis=1),
    ),
    "YOLOv5": Row({"output": boxes_yolov5(80, 1575)}, ["map50"]),
    "boxes behind suppression, six columns": Row({"output0": rows_of_boxes(6)}, ["map50"]),
    "boxes behind suppression, seven columns": Row({"output": rows_of_boxes(7)}, ["map50"]),
    "torchvision detector": Row(
        {"boxes": corner_boxes(7), "labels": whole(9, 7), "scores": uniform(7)}, ["map50"]
    ),
    "TensorFlow detector": Row(
        {"detection_boxes": corner_boxes(10), "detection_classes": mapped(np.float64, whole(9, 10)),
         "detection_scores": uniform(10), "num_detections": whole(10)},
        ["map50"], unjudged=["num_detections"],
    ),
    "SSD with decoded boxes": Row(
        {"scores": mapped(soft, logits(300, 2)), "boxes": corner_boxes(300)}, ["map50"]
    ),
    "DETR": Row(
        {"logits": logits(100, 92), "pred_boxes": mapped(lambda b: b * 0.5 + 0.2, corner_boxes(100))}, ["map50"]
    ),
    "a detector whose first sample has no boxes": Row(
        {"boxes": absent(corner_boxes(7)), "labels": absent(whole(9, 7)), "scores": absent(uniform(7))}, ["map50"]
    ),
    "SSD of Caffe and OpenVINO": Row({"detection_out": ssd_rows(40)}, ["map50"]),
    "mmdetection": Row({"dets": scored_corners(30), "labels": whole(80, 30)}, ["map50"]),
    "raw heads beside decoded boxes": Row(
        {"output0": boxes_yolov5(80, 1575), "stride8": normal(3, 8, 8, 85)}, ["map50"], unjudged=["stride8"]
    ),
    "disparity between 0 and 0.3": Row({"disp": (mapped(lambda x: 0.3 * x, uniform(1, 64, 64)), SIGMOID)}, ["psnr"]),
    "a mask of 0 and 255": Row({"mask": mapped(lambda x: (255 * x).astype(np.uint8), whole(2, 64, 64))}, ["iou"]),
    "a picture in 8 bits": Row({"y": mapped(lambda x: x.astype(np.uint8), whole(256, 3, 64, 64))}, ["psnr"]),
    "scores in 8 bits": Row({"y": mapped(lambda x: x.astype(np.uint8), whole(256, 1001))}, ["agreement"]),
    "scores in 8 bits, labels": Row(
        {"y": mapped(lambda x: x.astype(np.uint8), whole(256, 1001))}, ["top-1"], label=whole(1001)
    ),
    "face scores, hardly any is one": Row({"conf": mapped(soft, shifted(normal(4200, 2), [6.0, -6.0]))}, ["r2"]),
    "wake word, negative samples only": Row({"y": (mapped(tenth, uniform(1)), SIGMOID)}, ["r2"], (SPECTRUM,)),
    "gaze, two angles": Row({"output": (normal(2), GEMM)}, ["r2"]),
    "a quaternion": Row({"q": (mapped(lambda x: x / np.linalg.norm(x), normal(4)), ("Div",))}, ["r2"]),
    "six numbers of a pose": Row({"output": (normal(6), GEMM)}, ["r2"]),
    "a generator of pictures": Row({"y": (mapped(np.tanh, normal(3, 64, 64)), ("Tanh",))}, ["psnr"], (NOISE,)),
    "colours of a grey picture": Row({"ab": normal(2, 64, 64, scale=40)}, ["r2"], (GRAY,)),
    "text recognizer, steps first": Row({"y": mapped(lambda x: x[:, None], ctc(24, 37, 0))}, ["error-rate"], (LINE,)),
    "classes as floats": Row({"output": (logits(10), GEMM)}, ["top-1"], label=mapped(np.float64, whole(10))),
    "one class marked in each label": Row(
        {"output": (logits(10), GEMM)}, ["top-1"], label=lambda rng: np.eye(10)[whole(10)(rng)]
    ),
    "segmenter at a quarter of its masks": Row({"logits": logits(5, 16, 16, axis=0)}, ["iou"], label=whole(5, 64, 64)),
    "a mask of scores, true masks of 0 and 255": Row(
        {"y": (mapped(sigmoid, normal(1, 64, 64, scale=9)), SIGMOID)}, ["iou"],
        label=mapped(lambda x: 255 * x, whole(2, 64, 64)),
    ),
    "as many classes as features": Row({"p": mapped(soft, logits(13))}, ["agreement"], (TABLE,)),
    "labels that belong to no output": Row(
        {"embedding": normal(64)}, ["cosine"], label=whole(3, 5), unjudged=["the labels"]
    ),
    "grid of cells": Row({"output": grid(80, 22)}, ["map50"]),
}  # fmt: skip


def chosen(row: Row) -> Choices:
    rng = np.random.default_rng(0)
    outputs = []
    for name, what in row.outputs.items():
        make, ops = what if isinstance(what, tuple) else (what, ())
        rows = [np.asarray(make(rng)) for _ in range(COUNT)]
        rows = [r.astype(np.float32) if r.dtype.kind == "f" else r for r in rows]
        outputs.append(OutputFacts(name, rows, ops))
    labels = [] if row.label is None else [row.label(rng) for _ in range(COUNT)]
    if row.label is not None and np.ndim(labels[0]) == 0:
        labels = [v.item() if isinstance(v, np.generic | np.ndarray) else v for v in labels]
    inputs = [InputFacts(f"input {i}", v) for i, v in enumerate(row.inputs)]
    return choose_metrics(outputs, inputs, LabelFacts(labels))


@pytest.mark.parametrize("what", TABLE_OF_SIGNATURES)
def test_the_metric_is_what_an_engineer_would_pick(what: str) -> None:
    row = TABLE_OF_SIGNATURES[what]
    found = chosen(row)
    assert [c.metric for c in found.chosen] == list(row.metrics), [(c.metric, c.reason) for c in found.chosen]
    assert all(c.reason for c in found.chosen)
    assert sorted(found.unjudged) == sorted(row.unjudged)
    by_label = [c.reading.by_label for c in found.chosen]
    assert by_label[0] == (row.label is not None and "the labels" not in row.unjudged)


def test_there_are_enough_signatures() -> None:
    assert len(TABLE_OF_SIGNATURES) >= 40
