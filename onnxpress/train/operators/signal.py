"""Fourier transforms and the mel filter bank (window functions use their function bodies)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from onnxpress.train.graph.registry import NodeContext, Run, operator
from onnxpress.train.graph.tensors import Tensor, torch_type


def _complex(x: Tensor) -> Tensor:
    """[..., 1 or 2] as real or complex numbers."""
    return x[..., 0] if x.shape[-1] == 1 else torch.view_as_complex(x.contiguous())


def transform(x: Tensor, length: int | None, axis: int, inverse: bool, half: bool) -> Tensor:
    """The standard's DFT of [..., 1 or 2] along an axis.  half: only the non-redundant frequencies of a real signal."""
    values = _complex(x)
    if inverse and half:
        return torch.fft.irfft(values, length or 2 * (x.shape[axis] - 1), axis).unsqueeze(-1)
    if inverse:
        return torch.view_as_real(torch.fft.ifft(values, length, axis))
    if half and not values.is_complex():
        return torch.view_as_real(torch.fft.rfft(values, length, axis))
    result = torch.view_as_real(torch.fft.fft(values, length, axis))
    return result.narrow(axis, 0, result.shape[axis] // 2 + 1) if half else result


@operator("DFT", since=17, grad_inputs=(0,))
def _dft_attribute(context: NodeContext) -> Run:
    """Version 17: the axis is an attribute."""
    axis, inverse, half = (
        context.integer("axis", 1),
        bool(context.integer("inverse")),
        bool(context.integer("onesided")),
    )

    def run(x: Tensor, length: Tensor = None) -> Tensor:
        return transform(x, None if length is None else int(length), axis % x.ndim, inverse, half)

    return run


@operator("DFT", since=20, grad_inputs=(0,))
def _dft(context: NodeContext) -> Run:
    inverse, half = bool(context.integer("inverse")), bool(context.integer("onesided"))

    def run(x: Tensor, length: Tensor = None, axis: Tensor = None) -> Tensor:
        place = -2 if axis is None else int(axis)
        return transform(x, None if length is None else int(length), place % x.ndim, inverse, half)

    return run


@operator("STFT", grad_inputs=(0, 2))
def _stft(context: NodeContext) -> Run:
    half = bool(context.integer("onesided", 1))

    def run(x: Tensor, step: Tensor, window: Tensor = None, length: Tensor = None) -> Tensor:
        size = int(length) if length is not None else int(window.shape[0])
        frames = x.unfold(1, size, int(step)).movedim(-1, 2)  # N, frames, size, 1 or 2
        if window is not None:
            frames = frames * window.reshape(1, 1, -1, 1)
        return transform(frames, size, 2, False, half)

    return run


@operator("MelWeightMatrix", grad_inputs=())
def _mel_weights(context: NodeContext) -> Run:
    kind = torch_type(context.integer("output_datatype", 1))

    def run(bins: Tensor, length: Tensor, rate: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return torch.from_numpy(_mel(int(bins), int(length), int(rate), float(low), float(high))).to(kind)

    return run


def _mel(bins: int, length: int, rate: int, low: float, high: float) -> Any:
    """Triangular filters between neighbouring mel frequencies, in whole spectrogram bins; [length / 2 + 1, bins]."""
    first_mel, last_mel = (2595 * np.log10(1 + f / 700) for f in (low, high))
    edges = np.linspace(first_mel, last_mel, bins + 2, endpoint=False)
    places = ((length + 1) * (700 * (10 ** (edges / 2595) - 1)) // rate).astype(int)
    weights = np.zeros((length // 2 + 1, bins))
    for i in range(bins):
        first, centre, last = places[i : i + 3]
        if centre == first:
            weights[centre, i] = 1.0
        else:
            rise = np.arange(first, centre + 1)
            weights[rise, i] = (rise - first) / (centre - first)
        if last > centre:
            fall = np.arange(centre, last)
            weights[fall, i] = (last - fall) / (last - centre)
    return weights
