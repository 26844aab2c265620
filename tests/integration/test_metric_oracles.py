"""Metrics beside torchmetrics and pycocotools (oracles), on random answers and labels."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest

from onnxpress.measure.metrics.boxes.box_matching import match_detections, mean_average_precision
from tests.measure.metrics.test_catalogue import measured

torch = pytest.importorskip("torch")
oracle = pytest.importorskip("torchmetrics.functional")

pytestmark = pytest.mark.unit


def _tensor(values: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(values))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_classes(rng: np.random.Generator) -> None:
    scores, labels = rng.normal(size=(200, 12)), rng.integers(0, 12, 200)
    scores[np.arange(200), labels] += 1.5
    given = _tensor(scores), _tensor(labels)

    def value(name: str, values: np.ndarray = scores, true: np.ndarray = labels, **more: Any) -> float:
        return measured(name, values, values, list(true), **more).value

    found = oracle.classification.multiclass_accuracy(*given, 12, top_k=5, average="micro")
    assert value("top-5") == pytest.approx(float(found), abs=1e-6)
    found = oracle.classification.multiclass_f1_score(*given, 12, average="macro")
    assert value("f1") == pytest.approx(float(found), abs=1e-6)
    shares = torch.softmax(given[0], 1)
    found = oracle.classification.multiclass_auroc(shares, given[1], 12, average="macro")
    ranked = value("auc", shares.numpy())
    assert ranked == pytest.approx(float(found), abs=1e-6)
    one, two = rng.random(300), rng.integers(0, 2, 300)
    found = oracle.classification.binary_auroc(_tensor(one), _tensor(two))
    assert value("auc", one[:, None], two, threshold=0.5) == pytest.approx(float(found), abs=1e-6)


def test_several_labels(rng: np.random.Generator) -> None:
    scores, labels = rng.random((100, 7)), rng.integers(0, 2, (100, 7))
    found = oracle.classification.multilabel_f1_score(_tensor(scores), _tensor(labels), 7, average="micro")
    own = measured("f1", scores, scores, list(labels), several=True, threshold=0.5)
    assert own.value == pytest.approx(float(found), abs=1e-6)


def test_numbers(rng: np.random.Generator) -> None:
    true = rng.normal(size=(60, 3))
    answers = true + 0.5 * rng.normal(size=true.shape) * [1, 2, 0.3]
    found = oracle.r2_score(_tensor(answers), _tensor(true), multioutput="uniform_average")
    assert measured("r2", answers, answers, list(true)).value == pytest.approx(float(found), abs=1e-6)
    for name, by in (("mae", oracle.mean_absolute_error), ("mse", oracle.mean_squared_error)):
        found = by(_tensor(answers), _tensor(true))
        assert measured(name, answers, answers, list(true)).value == pytest.approx(float(found), abs=1e-6)
    for name, by in (("pearson", oracle.pearson_corrcoef), ("spearman", oracle.spearman_corrcoef)):
        found = by(_tensor(answers[:, 0]), _tensor(true[:, 0]))
        own = measured(name, answers[:, :1], answers[:, :1], list(true[:, 0]))
        assert own.value == pytest.approx(float(found), abs=1e-6)


def test_vectors(rng: np.random.Generator) -> None:
    true = rng.normal(size=(40, 16))
    answers = true + rng.normal(size=true.shape)
    found = oracle.cosine_similarity(_tensor(answers), _tensor(true), "mean")
    assert measured("cosine", answers, answers, list(true)).value == pytest.approx(float(found), abs=1e-6)


def test_masks(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 5, (20, 16, 16))
    scores = rng.normal(size=(20, 5, 16, 16)) + 2 * np.moveaxis(np.eye(5)[labels], -1, 1)
    given = _tensor(scores.argmax(1)), _tensor(labels)

    def value(name: str) -> float:
        return measured(name, scores, scores, list(labels), class_axis=0).value

    assert value("iou") == pytest.approx(float(oracle.jaccard_index(*given, "multiclass", num_classes=5)), abs=1e-6)
    dice = oracle.classification.multiclass_f1_score(*given, 5, average="macro")  # the same over pixels
    assert value("dice") == pytest.approx(float(dice), abs=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torchmetrics
def test_pictures(rng: np.random.Generator) -> None:
    true = np.clip(np.cumsum(rng.normal(size=(6, 3, 64, 64)), axis=-1) / 20 + 0.5, 0, 1)
    answers = np.clip(true + 0.05 * rng.normal(size=true.shape), 0, 1)
    each = [
        float(oracle.peak_signal_noise_ratio(_tensor(a), _tensor(b), 1.0)) for a, b in zip(answers, true, strict=True)
    ]
    own = measured("psnr", answers, answers, list(true), span=1.0)
    assert own.value == pytest.approx(np.mean(each), abs=1e-4)
    found = oracle.structural_similarity_index_measure(
        _tensor(answers), _tensor(true), gaussian_kernel=False, kernel_size=7, data_range=1.0
    )
    own = measured("ssim", answers, answers, list(true), span=1.0)
    assert own.value == pytest.approx(float(found), abs=0.01), "the edges count otherwise"


def test_texts(rng: np.random.Generator) -> None:
    logits, tokens = rng.normal(size=(10, 9, 20)), rng.integers(0, 20, (10, 9))
    found = oracle.text.perplexity(_tensor(logits), _tensor(tokens))
    own = measured("perplexity", logits, logits, list(tokens))
    assert own.value == pytest.approx(float(found), rel=1e-5)
    other = logits + 0.3 * rng.normal(size=logits.shape)
    shares = [torch.softmax(_tensor(v), -1).reshape(-1, 20) for v in (logits, other)]
    found = oracle.kl_divergence(*shares)
    assert measured("kl", logits, other).value == pytest.approx(float(found), rel=1e-5)
    words = [[" ".join(map(str, row)) for row in part] for part in (logits.argmax(-1), tokens)]
    found = oracle.text.word_error_rate(*words)
    assert measured("error-rate", logits, logits, list(tokens), class_axis=-1).value == pytest.approx(
        float(found), abs=1e-6
    )


@pytest.mark.parametrize("seed", range(5))
def test_boxes(seed: int) -> None:
    pycocotools = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(seed)
    trues, founds = [], []
    for _ in range(8):
        low = rng.uniform(0, 60, (int(rng.integers(1, 9)), 2))
        true = np.concatenate([low, low + rng.uniform(6, 30, low.shape), rng.integers(0, 3, (len(low), 1))], axis=1)
        seen = np.concatenate([true, true[: len(true) // 2]])  # some twice
        boxes = seen[:, :4] + rng.normal(size=(len(seen), 4)) * 2
        wrong = rng.random(len(seen)) < 0.2
        classes = np.where(wrong, rng.integers(0, 3, len(seen)), seen[:, 4])
        trues.append(true)
        founds.append(np.concatenate([boxes, rng.random((len(seen), 1)), classes[:, None]], axis=1))
    truth = [
        {"image_id": i, "category_id": int(c), "bbox": [a, b, x - a, y - b], "area": (x - a) * (y - b), "iscrowd": 0}
        for i, rows in enumerate(trues)
        for a, b, x, y, c in rows
    ]
    detected = [
        {"image_id": i, "category_id": int(c), "bbox": [a, b, x - a, y - b], "score": s}
        for i, rows in enumerate(founds)
        for a, b, x, y, s, c in rows
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = pycocotools.COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(len(trues))],
            "categories": [{"id": c} for c in range(3)],
            "annotations": [{"id": n + 1, **one} for n, one in enumerate(truth)],
        }
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(detected), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()

    matched = [match_detections(found, true) for found, true in zip(founds, trues, strict=True)]

    assert mean_average_precision(matched) == pytest.approx(judge.stats[0], abs=1e-6)
    assert mean_average_precision(matched, 1) == pytest.approx(judge.stats[1], abs=1e-6)
