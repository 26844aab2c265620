"""TfIdfVectorizer over integers: counts of the n-grams of a pool in a row."""

from __future__ import annotations

from typing import Any

import torch

from onnxpress.train.graph.registry import NodeContext, Run, operator
from onnxpress.train.graph.tensors import Tensor


def _pool(context: NodeContext) -> dict[tuple[int, ...], int]:
    """Output column by n-gram.  The pool lists all 1-grams, then all 2-grams, from the offsets `ngram_counts` on."""
    items, starts = context.integers("pool_int64s"), context.integers("ngram_counts") or []
    if items is None:
        raise context.problem("strings are not supported")
    columns = iter(context.integers("ngram_indexes") or [])
    grams = {}
    for size, (start, end) in enumerate(zip(starts, [*starts[1:], len(items)], strict=True), 1):
        for place in range(start, end, size):
            grams[tuple(items[place : place + size])] = next(columns)
    return grams


@operator("TfIdfVectorizer", grad_inputs=())
def _tf_idf(context: NodeContext) -> Run:
    """mode TF: counts; IDF: weights of the n-grams that occur; TFIDF: weights times counts."""
    grams, mode = _pool(context), context.text("mode", "TF")
    sizes = range(context.integer("min_gram_length", 1), context.integer("max_gram_length", 1) + 1)
    skips, width = context.integer("max_skip_count"), max(context.integers("ngram_indexes") or [0]) + 1
    weights: Any = torch.tensor(context.numbers("weights") or [1.0] * width)

    def count(row: list[int]) -> list[float]:
        found = [0.0] * width
        for size in sizes:
            for stride in range(1, (skips if size > 1 else 0) + 2):
                for start in range(len(row) - (size - 1) * stride):
                    column = grams.get(tuple(row[start : start + (size - 1) * stride + 1 : stride]))
                    if column is not None:
                        found[column] += 1
        return found

    def run(x: Tensor) -> Tensor:
        counts = torch.tensor(count(x.tolist()) if x.ndim == 1 else [count(row) for row in x.tolist()])
        if mode == "TF":
            return counts
        return counts * weights if mode == "TFIDF" else (counts > 0) * weights

    return run
