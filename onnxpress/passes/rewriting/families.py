"""The families of kernel rewrites, in the order in which they are applied.

Each is a rule that changes one place of a model, with the proof of its conditions; `apply_families` applies some until
none of them finds a place any more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxpress.model import edit
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.model.trace import Trace
from onnxpress.passes.rewriting.convolutions.channel_affine import as_depthwise
from onnxpress.passes.rewriting.convolutions.channel_gates import copy_gate
from onnxpress.passes.rewriting.convolutions.channel_padding import pad_channels
from onnxpress.passes.rewriting.convolutions.convolution_weights import (
    merge_groups,
    merge_parallel,
    split_depth_multiplier,
)
from onnxpress.passes.rewriting.convolutions.global_pooling import as_global_pooling
from onnxpress.passes.rewriting.convolutions.nearest_resize import as_pixel_copy
from onnxpress.passes.rewriting.convolutions.one_dimensional import as_picture, drop_axis_changes
from onnxpress.passes.rewriting.convolutions.prelu import fast_prelu
from onnxpress.passes.rewriting.convolutions.residual_sums import keep_sum_blocked
from onnxpress.passes.rewriting.convolutions.shuffled_channels import as_selection
from onnxpress.passes.rewriting.convolutions.split_convolution import split_weights
from onnxpress.passes.rewriting.elementwise.activations import name_activation
from onnxpress.passes.rewriting.elementwise.exponentials import vector_kernels
from onnxpress.passes.rewriting.products.layer_norm import as_sum
from onnxpress.passes.rewriting.products.parallel_products import merge_products
from onnxpress.passes.rewriting.products.rms_norm import divide_by_root
from onnxpress.passes.rewriting.products.softmax_guards import drop_guard
from onnxpress.runtime.session import trace

Rule = Callable[[ir.Model, ir.Node, Trace], bool]
_ROUNDS = 8  # of all nodes; a family that finds places for ever would be a defect


@dataclass(frozen=True)
class Family:
    """name: for plans; summary: what it does; rules: each changes one place of a model and returns whether it did;
    finite: whether it holds for finite values only."""

    name: str
    summary: str
    rules: tuple[Rule, ...]
    finite: bool = False


FAMILIES: tuple[Family, ...] = (
    Family("activations", "activations that are spelled out become operators", (name_activation,)),
    Family("vector-kernels", "Mish, Softplus, Elu, Selu and Celu by vector kernels", (vector_kernels,)),
    Family("layer-norm", "sums in front of LayerNormalization stay sums", (as_sum,)),
    Family("rms-norm", "products with the reciprocal of a root become divisions", (divide_by_root,)),
    Family("one-dimensional", "convolutions over one axis become those of pictures", (as_picture, drop_axis_changes)),
    Family("products", "products of one input with several matrices become one", (merge_products,)),
    Family("softmax-guard", "guards against empty rows where rows are whole", (drop_guard,), finite=True),
    Family("prelu", "PRelu in the layout of convolutions", (fast_prelu,)),
    Family("pooling", "reductions over whole pictures become pooling", (as_global_pooling,)),
    Family("resize", "nearest Resize by whole numbers copies pixels", (as_pixel_copy,)),
    Family("shuffle", "shuffles of channels become selections", (as_selection,)),
    Family("split", "convolutions whose channels are split behind become several", (split_weights,)),
    Family("parallel", "parallel convolutions become one", (merge_parallel,)),
    Family(
        "depth-multiplier", "depthwise convolutions of several outputs a channel are split", (split_depth_multiplier,)
    ),
    Family("affine", "sums and products between convolutions become depthwise convolutions", (as_depthwise,)),
    Family("padding", "channels padded to what blocked kernels take", (pad_channels,), finite=True),
    Family("sums", "sums with a plain tensor return to the layout of convolutions", (keep_sum_blocked,)),
    Family("gates", "gates of channels stay in the layout of convolutions", (copy_gate,)),
    Family("groups-8", "groups narrower than 8 channels are merged", (partial(merge_groups, 8),), finite=True),
    Family("groups-16", "groups narrower than 16 channels are merged", (partial(merge_groups, 16),), finite=True),
)
BY_NAME = {family.name: family for family in FAMILIES}


def apply_families(
    model: ir.Model, probe: dict[str, np.ndarray], names: Collection[str], sizes: Trace | None = None
) -> tuple[ir.Model, dict[str, int]]:
    """A rewritten copy of a model, and the number of places by family.

    probe: feeds of one run, which gives the shapes of values (sizes: where they are known). names: of families, applied
    in the order of FAMILIES.
    """
    work = canonical(model)
    return work, apply_in_place(work, probe, names, sizes)


def apply_in_place(
    work: ir.Model, probe: dict[str, np.ndarray], names: Collection[str], sizes: Trace | None = None
) -> dict[str, int]:
    """The same on a model in canonical form, which is changed where a family finds a place; the number of places."""
    found: dict[str, int] = {}
    for family in FAMILIES:
        rounds = _ROUNDS if family.name in names else 0
        while rounds:
            sizes = trace(work, probe) if sizes is None else sizes
            count = _apply(work, family, sizes)
            if not count:
                break
            rounds, sizes = rounds - 1, None
            found[family.name] = found.get(family.name, 0) + count
    if found:
        edit.forget_shapes(work)
    return found


def _apply(model: ir.Model, family: Family, sizes: Trace) -> int:
    """Apply a family from the last node to the first, so that the largest regions come first; how many places."""
    count = 0
    for node in reversed(list(model.graph)):
        if node.graph is not None and any(rule(model, node, sizes) for rule in family.rules):
            count += 1
            edit.drop_dead(model)
    return count
