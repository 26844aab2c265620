"""Attention, RotaryEmbedding and TensorScatter (the cache update)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from onnxpress.train.graph.registry import NodeContext, Run, operator
from onnxpress.train.graph.tensors import Tensor, torch_type


@dataclass(frozen=True)
class _AttentionAttributes:
    """Attributes of an Attention node.

    left, right: size of the sliding window, -1 without limit.
    """

    query_heads: int
    key_heads: int
    scale: float | None
    softcap: float
    causal: bool
    qk_output: int
    precision: Any
    left: int
    right: int


def _split(x: Tensor, heads: int) -> Tensor:
    """[B, S, heads * D] as [B, heads, S, D]."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _past_length(q: Tensor, past: Tensor, lengths: Tensor) -> Tensor:
    """Number of keys before the first query [B or 1, 1, 1, 1]: of an internal or external cache."""
    if lengths is not None and past is None:
        return (lengths.reshape(-1) - q.shape[2]).reshape(-1, 1, 1, 1)
    return torch.tensor(past.shape[2] if past is not None else 0).reshape(1, 1, 1, 1)


def _bias(
    attributes: _AttentionAttributes, q: Tensor, k: Tensor, mask: Tensor, past: Tensor, lengths: Tensor
) -> Tensor:
    """The bias of the scores: the mask, and -inf for masked keys; None without a mask."""
    allowed = None
    if attributes.causal or attributes.left >= 0 or attributes.right >= 0:
        distance = torch.arange(q.shape[2]).unsqueeze(1) + _past_length(q, past, lengths) - torch.arange(k.shape[2])
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


@operator("Attention", grad_inputs=(0, 1, 2, 3, 4, 5))
def _attention(context: NodeContext) -> Run:
    attributes = _AttentionAttributes(
        context.integer("q_num_heads"),
        context.integer("kv_num_heads"),
        context.number("scale") if context.has_attribute("scale") else None,
        context.number("softcap"),
        bool(context.integer("is_causal")),
        context.integer("qk_matmul_output_mode"),
        torch_type(context.integer("softmax_precision")) if context.has_attribute("softmax_precision") else None,
        context.integer("left_window_size", -1),
        context.integer("right_window_size", -1),
    )
    many = len(context.node.outputs) > 1

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
            q, k, v = (
                _split(q, attributes.query_heads),
                _split(k, attributes.key_heads),
                _split(v, attributes.key_heads),
            )
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


def _attend(attributes: _AttentionAttributes, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted values, and the scores at the stage that `qk_output` names.  A row without keys gives zeros."""
    scale = attributes.scale if attributes.scale is not None else 1 / math.sqrt(q.shape[3])
    root = math.sqrt(scale)
    scores = shown = torch.matmul(q * root, (k * root).transpose(2, 3))
    if attributes.softcap > 0:
        scores = torch.tanh(scores / attributes.softcap) * attributes.softcap
    if attributes.qk_output == 1:
        shown = scores
    empty = None
    if bias is not None:
        scores = scores + bias
        empty = (bias == float("-inf")).all(-1, keepdim=True)
    if attributes.qk_output == 2:
        shown = scores
    wide = scores if attributes.precision is None else scores.to(attributes.precision)
    if empty is not None:  # softmax of a row without keys has no gradient: such rows are zeroed first
        wide = wide.masked_fill(empty, 0.0)
    shares = torch.softmax(wide, -1).to(q.dtype)
    if empty is not None:
        shares = shares.masked_fill(empty, 0.0)
    return torch.matmul(shares, v), shares if attributes.qk_output == 3 else shown


@operator("RotaryEmbedding")
def _rotary(context: NodeContext) -> Run:
    interleaved, rotary_dim, heads = (
        bool(context.integer("interleaved")),
        context.integer("rotary_embedding_dim"),
        context.integer("num_heads"),
    )

    def run(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor = None) -> Tensor:
        rows = x.transpose(1, 2) if x.ndim == 4 else x.reshape(*x.shape[:2], heads, -1)
        if positions is not None:
            cos, sin = cos[positions.long()], sin[positions.long()]
        cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
        size = rotary_dim or rows.shape[-1]
        rotated, rest = rows[..., :size], rows[..., size:]
        a, b = (rotated[..., 0::2], rotated[..., 1::2]) if interleaved else rotated.chunk(2, -1)
        real, imaginary = cos * a - sin * b, sin * a + cos * b
        joined = torch.stack([real, imaginary], -1).flatten(-2) if interleaved else torch.cat([real, imaginary], -1)
        result = torch.cat([joined, rest], -1)
        return result.transpose(1, 2) if x.ndim == 4 else result.reshape(x.shape)

    return run


@operator("TensorScatter", grad_inputs=(0, 1))
def _tensor_scatter(context: NodeContext) -> Run:
    """Write an update into a cache, from an own position per sample on (wrapping around in mode "circular")."""
    axis, circular = context.integer("axis", -2), context.text("mode", "linear") == "circular"

    def run(cache: Tensor, update: Tensor, first: Tensor = None) -> Tensor:
        place, steps = axis % cache.ndim, torch.arange(update.shape[axis])
        start = torch.zeros(cache.shape[0], dtype=torch.int64) if first is None else first.long()
        where = start.unsqueeze(1) + steps
        where = where % cache.shape[axis] if circular else where
        shape = [cache.shape[0]] + [1] * (cache.ndim - 1)
        shape[place] = len(steps)
        return cache.scatter(place, where.reshape(shape).expand(update.shape), update)

    return run
