"""Metrics of pictures and masks: intersection over union, Dice, PSNR and SSIM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxpress.errors import InputProblem
from onnxpress.measure.metrics.metric import AdditiveMetric, Outputs, label_array

_IGNORED = 255  # of integer masks, as in Pascal VOC; negative numbers are ignored, too
_ASSUMED_PSNR = 30.0  # dB between the original's picture and the true one, where there are no labels
_MOST_PSNR = 100.0  # dB of equal pictures


class Overlap(AdditiveMetric):
    """Of masks: the mean over classes of intersection over union ("iou") or of Dice's coefficient ("dice").

    Scores of classes along `class_axis` are answered by the largest; a map of one score by a threshold, and then only
    what lies above it counts; integers are classes.
    """

    def __init__(
        self, name: str, output: str, by_label: bool, class_axis: int | None = None, threshold: float = 0.5
    ) -> None:
        super().__init__(name)
        self.output, self.by_label, self.class_axis, self.threshold = output, by_label, class_axis, threshold

    def default_drop(self, reference: float, originals: Sequence[Any]) -> float:
        """One point of true masks; without labels three, as the edges of masks differ where both are wrong, too."""
        return 0.01 if self.by_label else 0.03

    def _answer(self, outputs: Outputs) -> np.ndarray:
        values = outputs[self.output]
        if values.dtype.kind in "iub" and (self.class_axis is None or values.ndim < 3):
            found = np.squeeze(values).astype(np.int64)
            return (found > self.threshold).astype(np.int64) if self.threshold > 1 else found
        if self.class_axis is None:
            return np.squeeze(values > self.threshold).astype(np.int64)
        return np.asarray(values.argmax(self.class_axis))

    def truth(self, original: Outputs, label: Any, key: str) -> np.ndarray:
        own = self._answer(original)
        if not self.by_label:
            return own
        true = np.squeeze(label_array(self.name, label, key, "give the class of each pixel, or no labels"))
        if true.shape != own.shape and true.ndim == own.ndim == 2:  # models often answer at a fraction of the size
            rows, columns = (
                np.minimum((np.arange(o) + 0.5) * t // o, t - 1).astype(int)
                for o, t in zip(own.shape, true.shape, strict=True)
            )
            true = true[rows][:, columns]
        if true.shape != own.shape:
            raise InputProblem(
                f"the metric {self.name} needs a class for each pixel",
                f"the label of {key}",
                f"its shape is {list(true.shape)}, the masks are {list(own.shape)}",
                "resize the label masks",
            )
        if self.class_axis is None and original[self.output].dtype.kind == "f":
            return (true > 0.5 * max(float(true.max()), 1.0)).astype(np.int64)
        return true.astype(np.int64)

    def sample_value(self, outputs: Outputs, truth: np.ndarray, key: str) -> np.ndarray:
        """[3, classes]: pixels in both, in the truth, in the answer."""
        found = self._answer(outputs)
        if found.shape != truth.shape:
            found = np.full(truth.shape, -1)
        use = (truth >= 0) & (truth != _IGNORED) if self.by_label else np.ones(truth.shape, bool)
        a, b = found[use], truth[use]
        size = int(max(a.max(initial=0), b.max(initial=0))) + 1
        return np.stack([np.bincount(v[v >= 0], minlength=size) for v in (a[a == b], b, a)])

    def statistics(self, values: Sequence[Any]) -> np.ndarray:
        size = max(v.shape[1] for v in values)
        rows = np.stack([np.pad(v, ((0, 0), (0, size - v.shape[1]))) for v in values]).astype(np.float64)
        if self.class_axis is None and size == 2:  # a mask: the background is no class
            rows = rows[:, :, 1:]
        return rows.reshape(len(rows), -1)

    def value(self, sums: np.ndarray, count: int) -> np.ndarray:
        both, true, found = np.split(sums, 3, axis=1)
        whole = true + found - both
        shares = both / np.maximum(whole, 1) if self.name == "iou" else 2 * both / np.maximum(true + found, 1)
        seen = (whole > 0).sum(axis=1)
        return np.asarray(np.where(seen > 0, shares.sum(axis=1) / np.maximum(seen, 1), 1.0))


class PictureMetric(AdditiveMetric):
    """A metric of pictures against the true ones."""

    def __init__(self, name: str, output: str, by_label: bool, span: float = 0.0) -> None:
        """span: between black and white; 0: told from each true picture."""
        super().__init__(name)
        self.output, self.by_label, self.span = output, by_label, span

    def truth(self, original: Outputs, label: Any, key: str) -> np.ndarray:
        own = original[self.output]
        if not self.by_label:
            return own.astype(np.float64)
        true = label_array(self.name, label, key, "give the true picture of each sample, or no labels")
        if true.size != own.size:
            raise InputProblem(
                f"the metric {self.name} needs a picture as label",
                f"the label of {key}",
                f"its shape is {list(true.shape)}, the output's {list(own.shape)}",
                "give pictures of that size",
            )
        return true.reshape(own.shape).astype(np.float64)

    def _found(self, outputs: Outputs, truth: np.ndarray) -> np.ndarray:
        found = outputs[self.output].astype(np.float64)
        return found if found.shape == truth.shape else np.full(truth.shape, np.nan)


class PeakSignalToNoise(PictureMetric):
    """Mean PSNR in dB.

    Without labels, what the answers lose against true pictures from which the original's are 30 dB away, with an error
    that does not depend on what was changed: a model 40 dB from its original loses 0.4 dB.
    """

    def sample_value(self, outputs: Outputs, truth: np.ndarray, key: str) -> float:
        found = self._found(outputs, truth)
        error = float(((found - truth) ** 2).mean()) / (self.span or picture_range(truth)) ** 2
        error = error + (0.0 if self.by_label else 10 ** (-_ASSUMED_PSNR / 10))
        if not np.isfinite(error):
            return 0.0
        return min(-10 * float(np.log10(max(error, 1e-30))), _MOST_PSNR)

    def default_drop(self, reference: float, originals: Sequence[Any]) -> float:
        return 0.3


class StructuralSimilarity(PictureMetric):
    """Mean SSIM over windows of 7 x 7 and channels.

    Source: Wang et al., Image quality assessment: from error visibility to structural similarity (2004).
    """

    def sample_value(self, outputs: Outputs, truth: np.ndarray, key: str) -> float:
        from scipy.ndimage import uniform_filter  # imported here: it takes half a second

        found = np.nan_to_num(self._found(outputs, truth))
        top = self.span or picture_range(truth)
        wide = sorted(sorted(range(truth.ndim), key=lambda a: truth.shape[a])[-2:])
        size = tuple(7 if a in wide else 1 for a in range(truth.ndim))

        def mean(values: np.ndarray) -> np.ndarray:
            return np.asarray(uniform_filter(values, size, mode="reflect"))

        a, b = mean(found), mean(truth)
        spread = mean(found**2) - a**2, mean(truth**2) - b**2
        c1, c2 = (0.01 * top) ** 2, (0.03 * top) ** 2
        common = (2 * a * b + c1) * (2 * (mean(found * truth) - a * b) + c2)
        return float((common / ((a**2 + b**2 + c1) * (spread[0] + spread[1] + c2))).mean())


def picture_range(picture: np.ndarray) -> float:
    """Between black and white: 1, 2 (from -1 to 1) or 255 by the values of a picture, else their span."""
    if not picture.size:
        return 1.0
    low, high = float(np.min(picture)), float(np.max(picture))
    if low >= -0.5 and high <= 1.5:
        return 1.0
    if low >= -1.5 and high <= 1.5:
        return 2.0
    if low >= -45 and 32 < high <= 300:
        return 255.0
    return max(high - low, 1e-12)
