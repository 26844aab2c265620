"""Selection of the distillation loss by short trainings.

Networks of one task differ in the loss that suits them: on a spectrogram network soft targets halved the error, on an
image network of the same size the squared error of the logits was better, and matching inner values helped the first
and harmed a third.  In each of these cases the loss that was ahead after a short training with a complete schedule was
ahead after a long one, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxpress.errors import EnvironmentProblem
from onnxpress.progress import Progress, no_progress
from onnxpress.train.distillation.output_heads import OutputHead
from onnxpress.train.distillation.runner import Distillation, RunOptions
from onnxpress.train.settings import TrainingSettings

_TRIAL_FRACTION = 0.06  # of the steps, for each trial
_MIN_TRIAL_STEPS = 25  # no trials below


def loss_candidates(settings: TrainingSettings, heads: Sequence[OutputHead], paired: bool) -> list[TrainingSettings]:
    """The settings among which "auto" selects; the first is used without trials.

    paired: whether inner values were matched.
    """
    classes = any(h.is_classifier and h.classes > 1 for h in heads)
    losses = [settings.loss] if settings.loss != "auto" else ["mse", *(["blend"] if classes else [])]
    features = [settings.features] if settings.features != "auto" else ["mse", *(["none"] if paired else [])]
    return [replace(settings, loss=loss, features=feature) for feature in features for loss in losses]


def select_loss(
    job: Distillation, steps: int, error: Callable[[ir.Model], float], progress: Progress = no_progress
) -> TrainingSettings:
    """The settings of the job with the loss whose short training gave the lowest error.

    steps: of the training to come.
    error: of a model, on samples that are not trained on.
    """
    before = job.settings
    candidates = loss_candidates(before, job.output_heads, bool(job.pairs))
    trial_steps = int(_TRIAL_FRACTION * steps)
    if len(candidates) == 1 or trial_steps < _MIN_TRIAL_STEPS:
        return candidates[0]
    found = []
    try:
        for number, candidate in enumerate(candidates):
            job.settings = replace(candidate, steps=trial_steps, evaluations=1)
            try:
                found.append((error(job.run(RunOptions())[0]), number))
            except EnvironmentProblem:  # it diverged
                continue
            progress("selecting the loss", (number + 1) / len(candidates))
    finally:
        job.settings = before
    return candidates[min(found)[1]] if found else candidates[0]
