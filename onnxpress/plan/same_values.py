"""Whether an exact result computes the values of the original: at every size the original runs at, up to rounding.

Equal shapes are no proof that a rewrite is exact. Outputs are compared on a few samples, and on variants of them with
other batch sizes and other sizes of dynamic axes. Rounding is allowed for: the error may be as large as that between
two runs of the original with and without onnxruntime's own rewrites, where that is more than a small share. (It is
where a network amplifies rounding, and where the graph draws random numbers.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem
from onnxpress.measure.dynamic_shape_variants import Feeds, dynamic_shape_variants
from onnxpress.measure.evidence import signature_allows_batching
from onnxpress.model.signature import signature
from onnxpress.runtime.session import SessionSettings, all_cores, open_session, run

_SAMPLES = 3
_TOLERANCE = 1e-3  # root of the summed squared differences, relative to that of the values
_CHANGED = 0.01  # share of integers that may differ: where two scores are equal up to rounding, either may win
_NOISE = 4.0  # how much more than the original's own rounding error is allowed
_BYTES = 256 * 2**20  # of outputs that are held; sizes beyond are not compared

Values = list[np.ndarray]


def different_values(original: ir.Model, result: ir.Model | bytes, samples: Dataset) -> str:
    """What differs between the outputs of two models with the same signature, in words; "" where nothing does.

    Nothing is found where the original does not run on the samples.
    """
    feeds = list(_variants(original, samples))
    names = [v.name or "" for v in original.graph.outputs]
    wanted = _outputs(original, feeds, all_cores())
    found = _outputs(result, [f if w else None for f, w in zip(feeds, wanted, strict=True)], all_cores())
    errors = _errors(wanted, found)
    if all(e <= allowed for e, allowed in zip(errors, _allowed(wanted, errors), strict=True)):
        return ""
    noise = _errors(wanted, _outputs(original, feeds, SessionSettings(level="none")))
    for name, error, allowed, own in zip(names, errors, _allowed(wanted, errors), noise, strict=True):
        if error > max(allowed, _NOISE * own):
            return f"values of the output {name} differ by {error:.2g} of their size"
    return ""


def _variants(model: ir.Model, samples: Dataset) -> Iterator[Feeds]:
    """Samples at every size, and a batch of different samples, as variants repeat one sample."""
    sig = signature(model)
    for batch in samples.take(_SAMPLES).batches(1):
        for _, feeds in dynamic_shape_variants(dict(batch.inputs), sig):
            yield feeds
    if len(samples) > 1 and signature_allows_batching(sig):
        yield dict(next(iter(samples.take(_SAMPLES).batches(_SAMPLES))).inputs)


def _outputs(model: ir.Model | bytes, feeds: Sequence[Feeds | None], settings: SessionSettings) -> list[Values | None]:
    """The outputs for each of the feeds; None where the model does not run, and for feeds that are None."""
    session = open_session(model, settings)
    made: list[Values | None] = []
    held = 0
    for one in feeds:
        try:
            values = run(session, one) if one is not None and held < _BYTES else None
        except InputProblem:
            values = None
        held += sum(v.nbytes for v in values or ())
        made.append(values)
    return made


def _errors(wanted: Sequence[Values | None], found: Sequence[Values | None]) -> list[float]:
    """By output the relative error of numbers, or the share of changed integers; the largest over the feeds."""
    pairs = [(w, f) for w, f in zip(wanted, found, strict=True) if w is not None]
    count = max((len(w) for w, _ in pairs), default=0)
    return [max(1.0 if f is None else _error(w[place], f[place]) for w, f in pairs) for place in range(count)]


def _error(wanted: np.ndarray, found: np.ndarray) -> float:
    if wanted.shape != found.shape:
        return 0.0  # a size that depends on values, as behind NonMaxSuppression: shapes are compared elsewhere
    if wanted.dtype.kind != "f":
        return float(np.mean(wanted != found)) if wanted.size else 0.0
    a, b = wanted.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return 1.0
    a, b = a[finite], b[finite]
    largest = max(float(np.abs(a).max(initial=0)), 1e-6)  # squares of the largest float64 would be infinite
    floor = 1e-6 * max(a.size, 1) ** 0.5 / largest
    return float(np.linalg.norm((a - b) / largest) / max(float(np.linalg.norm(a / largest)), floor))


def _allowed(wanted: Sequence[Values | None], errors: Sequence[float]) -> list[float]:
    """By output how much of an error is rounding."""
    first = next((w for w in wanted if w is not None), [])
    return [_TOLERANCE if v.dtype.kind == "f" else max(_CHANGED, 1.0 / max(v.size, 1)) for v in first][: len(errors)]
