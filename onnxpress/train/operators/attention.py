"""Attention and RotaryEmbedding, and the cache update that goes with them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from onnxpress.train.graph.registry import Run, Site, operator
from onnxpress.train.graph.tensors import Tensor, torch_type


@dataclass(frozen=True)
class _Heads:
    """Attributes of an Attention node; left, right: sliding window, -1 where open."""

    queries: int
    keys: int
    scale: float | None
    softcap: float
    causal: bool
    show: int
    precision: Any
    left: int
    right: int


def _split(x: Tensor, heads: int) -> Tensor:
    """[B, S, heads * D] as [B, heads, S, D]."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _frontier(q: Tensor, past: Tensor, lengths: Tensor) -> Tensor:
    """Keys before the first query: of the cache inside (one number) or outside (one a sample) [B or 1, 1, 1, 1]."""
    if lengths is not None and past is None:
        return (lengths.reshape(-1) - q.shape[2]).reshape(-1, 1, 1, 1)
    return torch.tensor(past.shape[2] if past is not None else 0).reshape(1, 1, 1, 1)


def _bias(attributes: _Heads, q: Tensor, k: Tensor, mask: Tensor, past: Tensor, lengths: Tensor) -> Tensor:
    """What is added to the scores: the mask, -inf where a key is not to be seen; None where all are."""
    allowed = None
    if attributes.causal or attributes.left >= 0 or attributes.right >= 0:
        distance = torch.arange(q.shape[2]).unsqueeze(1) + _frontier(q, past, lengths) - torch.arange(k.shape[2])
        allowed = distance >= 0 if attributes.causal else torch.ones_like(distance, dtype=torch.bool)
        if attributes.left >= 0:
            allowed = allowed & (distance <= attributes.left)
        if attributes.right >= 0:
            allowed = allowed & (-distance <= attributes.right)
    if lengths is not None:
        inside = torch.arange(k.shape[2]).reshape(1, 1, 1, -1) < lengths.reshape(-1, 1, 1, 1)
        allowed = inside if allowed is None else allowed & inside
    added = None
    if mask is not None:
        missing = k.shape[2] - mask.shape[-1]
        boolean = mask.dtype == torch.bool
        if missing > 0:
            mask = functional.pad(mask, [0, missing], value=False if boolean else float("-inf"))
        if boolean:
            allowed = mask if allowed is None else allowed & mask
        else:
            added = mask
    if allowed is None:
        return added
    hidden = torch.zeros_like(allowed, dtype=q.dtype).masked_fill(~allowed, float("-inf"))
    return hidden if added is None else added + hidden


@operator("Attention", data=(0, 1, 2, 3, 4, 5))
def _attention(site: Site) -> Run:
    attributes = _Heads(
        site.integer("q_num_heads"),
        site.integer("kv_num_heads"),
        site.number("scale") if site.has("scale") else None,
        site.number("softcap"),
        bool(site.integer("is_causal")),
        site.integer("qk_matmul_output_mode"),
        torch_type(site.integer("softmax_precision")) if site.has("softmax_precision") else None,
        site.integer("left_window_size", -1),
        site.integer("right_window_size", -1),
    )
    many = len(site.node.outputs) > 1

    def run(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor = None,
        past_key: Tensor = None,
        past_value: Tensor = None,
        lengths: Tensor = None,
    ) -> Any:
        flat = q.ndim == 3
        if flat:
            q, k, v = _split(q, attributes.queries), _split(k, attributes.keys), _split(v, attributes.keys)
        if past_key is not None:
            k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
        present = k, v
        if q.shape[1] != k.shape[1]:
            times = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        bias = _bias(attributes, q, k, mask, past_key, lengths)
        result, scores = _attend(attributes, q, k, v, bias)
        result = result.transpose(1, 2).flatten(2) if flat else result
        return (result, *present, scores) if many else result

    return run


def _attend(attributes: _Heads, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted values, and the scores at the stage that `show` names.  A row that sees no key gives zeros."""
    scale = attributes.scale if attributes.scale is not None else 1 / math.sqrt(q.shape[3])
    root = math.sqrt(scale)
    scores = shown = torch.matmul(q * root, (k * root).transpose(2, 3))
    if attributes.softcap > 0:
        scores = torch.tanh(scores / attributes.softcap) * attributes.softcap
    if attributes.show == 1:
        shown = scores
    empty = None
    if bias is not None:
        scores = scores + bias
        empty = (bias == float("-inf")).all(-1, keepdim=True)
    if attributes.show == 2:
        shown = scores
    wide = scores if attributes.precision is None else scores.to(attributes.precision)
    if empty is not None:  # softmax over nothing has no gradient either: such rows are taken out first
        wide = wide.masked_fill(empty, 0.0)
    shares = torch.softmax(wide, -1).to(q.dtype)
    if empty is not None:
        shares = shares.masked_fill(empty, 0.0)
    return torch.matmul(shares, v), shares if attributes.show == 3 else shown


@operator("RotaryEmbedding")
def _rotary(site: Site) -> Run:
    woven, part, heads = (
        bool(site.integer("interleaved")),
        site.integer("rotary_embedding_dim"),
        site.integer("num_heads"),
    )

    def run(x: Tensor, cos: Tensor, sin: Tensor, places: Tensor = None) -> Tensor:
        rows = x.transpose(1, 2) if x.ndim == 4 else x.reshape(*x.shape[:2], heads, -1)
        if places is not None:
            cos, sin = cos[places.long()], sin[places.long()]
        cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
        size = part or rows.shape[-1]
        turned, rest = rows[..., :size], rows[..., size:]
        a, b = (turned[..., 0::2], turned[..., 1::2]) if woven else turned.chunk(2, -1)
        real, imaginary = cos * a - sin * b, sin * a + cos * b
        joined = torch.stack([real, imaginary], -1).flatten(-2) if woven else torch.cat([real, imaginary], -1)
        result = torch.cat([joined, rest], -1)
        return result.transpose(1, 2) if x.ndim == 4 else result.reshape(x.shape)

    return run


@operator("TensorScatter", data=(0, 1))
def _tensor_scatter(site: Site) -> Run:
    """Writes an update into a cache, for each sample from its own place on (around the end in mode circular)."""
    axis, circular = site.integer("axis", -2), site.text("mode", "linear") == "circular"

    def run(cache: Tensor, update: Tensor, first: Tensor = None) -> Tensor:
        place, steps = axis % cache.ndim, torch.arange(update.shape[axis])
        start = torch.zeros(cache.shape[0], dtype=torch.int64) if first is None else first.long()
        where = start.unsqueeze(1) + steps
        where = where % cache.shape[axis] if circular else where
        shape = [cache.shape[0]] + [1] * (cache.ndim - 1)
        shape[place] = len(steps)
        return cache.scatter(place, where.reshape(shape).expand(update.shape), update)

    return run
