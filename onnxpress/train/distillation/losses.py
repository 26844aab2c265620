"""Distillation losses of student and teacher tensors; each is a mean over the batch.

Sources: soft targets (Hinton et al. 2015), decoupled soft targets (Zhao et al. 2022), hints (Romero et al. 2015),
attention maps (Zagoruyko and Komodakis 2017), relations between samples (Park et al. 2019).
"""

from __future__ import annotations

import torch
import torch.nn.functional as fn
from torch import Tensor

_TINY = 1e-12
_MASKED = 1000.0  # subtracted from the target's logit, which removes it from a softmax


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(student/T)).  Logits [N, K]."""
    q = fn.log_softmax(student / temperature, dim=-1)
    p = fn.log_softmax(teacher / temperature, dim=-1)
    return fn.kl_div(q, p, reduction="batchmean", log_target=True) * temperature**2


def decoupled(
    student: Tensor, teacher: Tensor, target: Tensor, temperature: float, alpha: float = 1.0, beta: float = 2.0
) -> Tensor:
    """alpha KL of (target, other classes) + beta KL among the other classes, both times T^2.

    Logits [N, K]; target: class indices [N] (labels, or the teacher's top classes).  Soft targets weight the second
    term by the teacher's probability of the other classes, which vanishes where the teacher is certain; here its
    weight is constant.
    """
    s, t = student / temperature, teacher / temperature
    hit = fn.one_hot(target, student.shape[-1]).to(torch.bool)
    sure = fn.kl_div(_binary(s, hit), _binary(t, hit), reduction="batchmean", log_target=True)
    rest_s = fn.log_softmax(s - _MASKED * hit, dim=-1)
    rest_t = fn.log_softmax(t - _MASKED * hit, dim=-1)
    rest = fn.kl_div(rest_s, rest_t, reduction="none", log_target=True)
    return (alpha * sure + beta * rest.masked_fill(hit, 0.0).sum(-1).mean()) * temperature**2


def _binary(logits: Tensor, hit: Tensor) -> Tensor:
    """log probabilities of (target, any other class) [N, 2]."""
    log = fn.log_softmax(logits, dim=-1)
    own = log.masked_select(hit)
    others = torch.logsumexp(log.masked_fill(hit, float("-inf")), dim=-1)
    return torch.stack([own, others], dim=-1)


def hard_labels(student: Tensor, target: Tensor) -> Tensor:
    """Cross entropy with target distributions [N, K]; rows of zeros (no label) are ignored."""
    given = target.sum(-1)
    loss = -(target * fn.log_softmax(student, dim=-1)).sum(-1)
    return loss.sum() / given.sum().clamp_min(_TINY)


def relative_mse(student: Tensor, teacher: Tensor, scale: float) -> Tensor:
    """Mean squared error divided by the teacher's variance `scale` (see `variance`)."""
    return fn.mse_loss(student, teacher) / scale


def variance(teacher: Tensor, channel: int | None = None) -> float:
    """Mean squared deviation of the teacher's values from their mean (per channel where an axis is given), above zero.

    Where the values do not vary (a single number, few samples): their mean square.
    """
    value = teacher.double()
    if channel is None:
        centred = value - value.mean(0, keepdim=True)
    else:
        dims = [d for d in range(value.ndim) if d != channel % value.ndim]
        centred = value - value.mean(dims, keepdim=True)
    found = float((centred**2).mean())
    return found if found > _TINY else max(float((value**2).mean()), _TINY)


def cosine(student: Tensor, teacher: Tensor, channel: int = 1) -> Tensor:
    """1 - cosine similarity of the channel vectors, averaged over positions."""
    return 1 - fn.cosine_similarity(student, teacher, dim=channel, eps=1e-6).mean()


def attention(student: Tensor, teacher: Tensor, channel: int = 1) -> Tensor:
    """Squared distance of the normalized maps of mean squared activation.

    Numbers of channels may differ; of maps of different sizes the larger one is pooled.
    """
    s, t = student.square().mean(channel), teacher.square().mean(channel)
    if s.shape != t.shape:
        size = [min(a, b) for a, b in zip(s.shape[1:], t.shape[1:], strict=True)]
        s, t = (_pooled(x, size) for x in (s, t))
    s, t = (fn.normalize(x.flatten(1), dim=1) for x in (s, t))
    return (s - t).square().sum(1).mean()


def _pooled(maps: Tensor, size: list[int]) -> Tensor:
    pool = {1: fn.adaptive_avg_pool1d, 2: fn.adaptive_avg_pool2d, 3: fn.adaptive_avg_pool3d}[len(size)]
    return pool(maps.unsqueeze(1), size).squeeze(1)


def relational(student: Tensor, teacher: Tensor, distances: float = 25.0, angles: float = 50.0) -> Tensor:
    """Huber loss on the pairwise distances (relative to their mean) and on the angles of all triples of samples."""
    s, t = student.flatten(1), teacher.flatten(1)
    loss = distances * fn.smooth_l1_loss(_distances(s), _distances(t))
    return loss + angles * fn.smooth_l1_loss(_angles(s), _angles(t)) if len(s) > 2 else loss


def _distances(rows: Tensor) -> Tensor:
    """Pairwise distances [N, N], relative to their mean."""
    squares = rows.square().sum(1)
    apart = (squares[:, None] + squares[None] - 2 * rows @ rows.T).clamp_min(0)
    found = (apart + _TINY).sqrt() * (1 - torch.eye(len(rows), dtype=rows.dtype))
    positive = found[found > 1e-5]
    return found / positive.mean() if len(positive) else found


def _angles(rows: Tensor) -> Tensor:
    """Cosine of the angle at sample i between samples j and k, [N, N, N]."""
    directions = fn.normalize(rows[None] - rows[:, None], dim=2)
    return torch.bmm(directions, directions.transpose(1, 2))
