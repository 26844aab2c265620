"""Which loss suits a student: told by short trainings, since networks of one task differ in it.

Squared error of the scores and soft targets, with inner values beside them or without: on a spectrum network soft targets
led to half the error, on a picture network of the same size squares did, and inner values helped the first and hindered a
third.  What is ahead after a short training, its schedule complete, was ahead after a long one in each of these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxpress.errors import EnvironmentProblem
from onnxpress.train.distillation.output_heads import Head
from onnxpress.train.distillation.runner import Distillation, Watch
from onnxpress.train.settings import Settings

_SHARE = 0.06  # of the steps, for each
_LEAST = 25  # steps, below which nothing is told


def recipes(settings: Settings, heads: Sequence[Head], paired: bool) -> list[Settings]:
    """What "auto" may stand for; the first where nothing is tried.  paired: whether inner values have twins."""
    classes = any(h.sure and h.classes > 1 for h in heads)
    losses = [settings.loss] if settings.loss != "auto" else ["mse", *(["blend"] if classes else [])]
    features = [settings.features] if settings.features != "auto" else ["mse", *(["none"] if paired else [])]
    return [replace(settings, loss=loss, features=feature) for feature in features for loss in losses]


def chosen(
    job: Distillation, steps: int, harm: Callable[[ir.Model], float], tell: Callable[[float], None] | None = None
) -> Settings:
    """The settings of the job with the recipe whose short training came closest to the teacher.

    steps: of the training to come; harm: of a model, on samples that are not learned from.
    """
    before = job.settings
    options = recipes(before, job.heads, bool(job.pairs))
    short = int(_SHARE * steps)
    if len(options) == 1 or short < _LEAST:
        return options[0]
    found = []
    try:
        for number, option in enumerate(options):
            job.settings = replace(option, steps=short, looks=1)
            try:
                found.append((harm(job.run(Watch())[0]), number))
            except EnvironmentProblem:  # it diverged
                continue
            if tell is not None:
                tell((number + 1) / len(options))
    finally:
        job.settings = before
    return options[min(found)[1]] if found else options[0]
