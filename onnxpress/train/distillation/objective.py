"""The training loss of one batch: outputs against the teacher, labels, and matched inner values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from onnxpress.train.distillation import losses
from onnxpress.train.distillation.feature_matching import FeaturePair
from onnxpress.train.distillation.output_heads import OutputHead
from onnxpress.train.settings import TrainingSettings

_MIN_PROBABILITY = 1e-7


class Objective(nn.Module):  # type: ignore[misc]
    """Loss of a batch; its parameters are the learned projections of pairs whose channels could not be matched.

    settings: of the training.
    output_heads: the compared outputs.
    pairs: the matched inner values.
    example: the teacher's values on some samples, whose variance scales the losses.
    widths: number of channels of the student's projected values, by name.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        output_heads: Sequence[OutputHead],
        pairs: Sequence[FeaturePair],
        example: Mapping[str, np.ndarray],
        widths: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.settings, self.output_heads = settings, tuple(output_heads)
        self.features_weight = settings.features_weight
        self.decay = 1.0
        self.pairs = tuple(pairs) if settings.features != "none" else ()
        self.scales = {
            h.teacher: losses.variance(self._logits(example[h.teacher], h.teacher_probabilities))
            for h in self.output_heads
        }
        self.projections = nn.ParameterList()
        self._projected: dict[str, int] = {}
        for number, pair in enumerate(self.pairs):
            target = self._target(pair, torch.from_numpy(np.asarray(example[pair.teacher])))
            self.scales[pair.student] = losses.variance(target, pair.channel)
            if pair.project:
                shape = (target.shape[pair.channel], widths[pair.student])
                rng = np.random.default_rng([settings.seed, 3, number])
                start = rng.standard_normal(shape).astype(np.float32) / np.sqrt(shape[1])
                self._projected[pair.student] = len(self.projections)
                self.projections.append(nn.Parameter(torch.from_numpy(start.astype(np.float32))))

    @property
    def student_values(self) -> list[str]:
        """Names of the student's compared values."""
        return list(dict.fromkeys([h.student for h in self.output_heads] + [p.student for p in self.pairs]))

    def set_step(self, step: int) -> None:
        """Set the weights of a step (0-based).

        The weight of inner values decays to 0, since a narrower student can give the teacher's outputs without the
        teacher's inner values.  With the loss "blend", so does the weight of the squared error of the logits: it
        converges faster than soft targets, but also penalizes differences that do not change the result.
        """
        last = self.settings.features_decay_fraction * self.settings.steps
        self.decay = max(0.0, 1 - step / max(last, 1.0))
        self.features_weight = self.settings.features_weight * self.decay

    @staticmethod
    def _logits(values: Tensor | np.ndarray, probabilities: bool) -> Tensor:
        found = torch.from_numpy(np.asarray(values)) if not isinstance(values, Tensor) else values
        return found.clamp_min(_MIN_PROBABILITY).log() if probabilities else found

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
        """The loss.  student, teacher: values by name; labels: class distributions [N, K]."""
        parts = [self._output_loss(h, student, teacher) for h in self.output_heads]
        total = torch.stack(parts).mean()
        if self.settings.labels_weight and labels is not None:
            head = next((h for h in self.output_heads if h.labelled), None)
            if head is not None:
                logits = self._logits(student[head.student], head.student_probabilities)
                total = total + self.settings.labels_weight * losses.hard_labels(logits, labels)
        if self.pairs and self.features_weight:
            inner = [self._feature_loss(p, student[p.student], teacher[p.teacher]) for p in self.pairs]
            total = total + self.features_weight * torch.stack(inner).mean()
        return total

    def _output_loss(self, head: OutputHead, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        s = self._logits(student[head.student], head.student_probabilities)
        t = self._logits(teacher[head.teacher], head.teacher_probabilities)
        loss = self.settings.loss
        if loss == "none":
            return s.sum() * 0.0
        if loss == "blend" and head.classes:
            soft = losses.soft_targets(s, t, self.settings.temperature)
            return soft if not self.decay else soft + self.decay * self._squared_error(head, s, t)
        if not head.classes or loss in ("auto", "mse"):
            return self._squared_error(head, s, t)
        if loss == "dkd":
            return losses.decoupled(s, t, t.argmax(-1), self.settings.temperature)
        return losses.soft_targets(s, t, self.settings.temperature)

    def _squared_error(self, head: OutputHead, s: Tensor, t: Tensor) -> Tensor:
        before_softmax = head.student_probabilities or head.teacher_probabilities or head.student != head.output
        if head.classes and before_softmax:
            s, t = (x - x.mean(-1, keepdim=True) for x in (s, t))  # a Softmax is invariant to a common offset
        return losses.relative_mse(s, t, self.scales[head.teacher])

    def _target(self, pair: FeaturePair, value: Tensor) -> Tensor:
        """The teacher's value, reduced to the student's channels."""
        if pair.kept is None:
            return value
        return value.index_select(pair.channel, torch.tensor(pair.kept))

    def _feature_loss(self, pair: FeaturePair, s: Tensor, teacher: Tensor) -> Tensor:
        t = self._target(pair, teacher)
        loss = self.settings.features
        if pair.student in self._projected and loss in ("auto", "mse", "cosine"):
            weight = self.projections[self._projected[pair.student]]
            s = torch.movedim(torch.movedim(s, pair.channel, -1) @ weight.T, -1, pair.channel)
        if loss in ("auto", "mse"):
            return losses.relative_mse(s, t, self.scales[pair.student])
        if loss == "cosine":
            return losses.cosine(s, t, pair.channel)
        if loss == "attention":
            return losses.attention(s, t, pair.channel)
        return losses.relational(s, t)
