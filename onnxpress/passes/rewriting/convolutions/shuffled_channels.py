"""Shuffles of channels, as one selection of channels for each reader.

before -> after

    Reshape [N, g, C / g, H, W], Transpose of the two, Reshape [N, C, H, W]  -> Gather of channels
    the same, and a Split (or Slices) of the channels behind it              -> Gather for each part

Why: each of the operators passes over the whole tensor, and the calls cost as much as that where pictures are small;
a Gather copies the channels that a reader needs (the units of ShuffleNet).

Conditions: float32; all sizes but that of the samples follow from the file, so that the Reshapes do at every size what
they did at one.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit, read
from onnxpress.model.trace import Trace
from onnxpress.passes.rewriting.convolutions.sample_axis import channel_shuffle, sample_axis
from onnxpress.passes.rewriting.convolutions.split_convolution import channel_parts
from onnxpress.passes.rewriting.elementwise.activations import FLOAT32, Builder, float_type


def as_selection(model: ir.Model, node: ir.Node, sizes: Trace) -> bool:
    """Replace one shuffle, in place; whether a node was the end of one."""
    shuffle = channel_shuffle(node, sizes)
    if shuffle is None or float_type(shuffle.source, sizes) != FLOAT32:
        return False
    samples = sample_axis(shuffle.source, sizes)
    if samples is None or not samples.fixed:
        return False
    channels = shuffle.groups * shuffle.width
    order = np.arange(channels).reshape(shuffle.groups, shuffle.width).T.ravel()
    whole, make = node.outputs[0], Builder(model, node)
    parts = channel_parts(whole, channels) if whole.uses() else None
    for first, last, value in parts or [(0, channels, whole)]:
        chosen = edit.add_constant(model, order[first:last].astype(np.int64), f"{read.node_label(node)}_channels")
        edit.reroute(model, value, make("Gather", [shuffle.source, chosen], axis=1))
    return True
