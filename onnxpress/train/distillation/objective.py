"""The loss of one batch: every output against the teacher's, hard labels, and matched inner values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from onnxpress.train.distillation import losses
from onnxpress.train.distillation.feature_matching import Pair
from onnxpress.train.distillation.output_heads import Head
from onnxpress.train.settings import Settings

_LOG = 1e-7


class Objective(nn.Module):  # type: ignore[misc]
    """heads: outputs; pairs: inner values; example: the teacher's values on some samples, which set the scales.

    Its parameters are the projections of pairs whose channels nobody could match; they are thrown away.
    widths: channels of the student's values that are projected, by name.
    """

    def __init__(
        self,
        settings: Settings,
        heads: Sequence[Head],
        pairs: Sequence[Pair],
        example: Mapping[str, np.ndarray],
        widths: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.settings, self.heads = settings, tuple(heads)
        self.feature_weight = settings.feature_weight
        self.early = 1.0
        self.pairs = tuple(pairs) if settings.features != "none" else ()
        self.scales = {h.teacher: losses.variance(self._logits(example[h.teacher], h.teacher_log)) for h in self.heads}
        self.projections = nn.ParameterList()
        self._projected: dict[str, int] = {}
        for number, pair in enumerate(self.pairs):
            target = self._wished(pair, torch.from_numpy(np.asarray(example[pair.teacher])))
            self.scales[pair.student] = losses.variance(target, pair.channel)
            if pair.project:
                shape = (target.shape[pair.channel], widths[pair.student])
                rng = np.random.default_rng([settings.seed, 3, number])
                start = rng.standard_normal(shape).astype(np.float32) / np.sqrt(shape[1])
                self._projected[pair.student] = len(self.projections)
                self.projections.append(nn.Parameter(torch.from_numpy(start.astype(np.float32))))

    @property
    def taps(self) -> list[str]:
        """Values of the student that are compared."""
        return list(dict.fromkeys([h.student for h in self.heads] + [p.student for p in self.pairs]))

    def at(self, step: int) -> None:
        """Set the weights for a step (0-based).  That of inner values falls to nothing, since a narrower student can say what
        the teacher says without saying it in the teacher's way; so does, where soft targets take its place, that of the squared
        error of the scores, which leads there faster but counts what no answer depends on."""
        last = self.settings.feature_share * self.settings.steps
        self.early = max(0.0, 1 - step / max(last, 1.0))
        self.feature_weight = self.settings.feature_weight * self.early

    @staticmethod
    def _logits(values: Tensor | np.ndarray, log: bool) -> Tensor:
        found = torch.from_numpy(np.asarray(values)) if not isinstance(values, Tensor) else values
        return found.clamp_min(_LOG).log() if log else found

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
        parts = [self._output(h, student, teacher) for h in self.heads]
        total = torch.stack(parts).mean()
        if self.settings.labels and labels is not None:
            head = next((h for h in self.heads if h.answer), None)
            if head is not None:
                total = total + self.settings.labels * losses.hard_labels(
                    self._logits(student[head.student], head.student_log), labels
                )
        if self.pairs and self.feature_weight:
            inner = [self._feature(p, student[p.student], teacher[p.teacher]) for p in self.pairs]
            total = total + self.feature_weight * torch.stack(inner).mean()
        return total

    def _output(self, head: Head, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        s = self._logits(student[head.student], head.student_log)
        t = self._logits(teacher[head.teacher], head.teacher_log)
        way = self.settings.loss
        if way == "none":
            return s.sum() * 0.0
        if way == "blend" and head.classes:
            soft = losses.soft_targets(s, t, self.settings.temperature)
            return soft if not self.early else soft + self.early * self._squares(head, s, t)
        if not head.classes or way in ("auto", "mse"):
            return self._squares(head, s, t)
        if way == "dkd":
            return losses.decoupled(s, t, t.argmax(-1), self.settings.temperature)
        return losses.soft_targets(s, t, self.settings.temperature)

    def _squares(self, head: Head, s: Tensor, t: Tensor) -> Tensor:
        if head.classes and (head.student_log or head.teacher_log or head.student != head.output):
            s, t = (x - x.mean(-1, keepdim=True) for x in (s, t))  # a Softmax does not see what is common to all
        return losses.relative_mse(s, t, self.scales[head.teacher])

    def _wished(self, pair: Pair, value: Tensor) -> Tensor:
        if pair.kept is None:
            return value
        return value.index_select(pair.channel, torch.tensor(pair.kept))

    def _feature(self, pair: Pair, s: Tensor, teacher: Tensor) -> Tensor:
        t = self._wished(pair, teacher)
        way = self.settings.features
        if pair.student in self._projected and way in ("auto", "mse", "cosine"):
            weight = self.projections[self._projected[pair.student]]
            s = torch.movedim(torch.movedim(s, pair.channel, -1) @ weight.T, -1, pair.channel)
        if way in ("auto", "mse"):
            return losses.relative_mse(s, t, self.scales[pair.student])
        if way == "cosine":
            return losses.cosine(s, t, pair.channel)
        if way == "attention":
            return losses.attention(s, t, pair.channel)
        return losses.relational(s, t)
