"""Bias correction: the mean error that quantization causes on an output channel is subtracted from the bias.

Source: Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction (2019), empirical variant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from onnxpress.measure.evidence import Evidence, stream
from onnxpress.measure.layerwise_activations import LayerwiseActivations
from onnxpress.model import edit, read
from onnxpress.model.counts import macs
from onnxpress.passes.int8.qdq import placement

_SAMPLES, _SAMPLES_SMALL_MODEL = 32, 128
_SMALL_MODEL_MACS = 5e7  # multiply-accumulates per sample up to which more samples are affordable


def correct_bias(evidence: Evidence, work: ir.Model, layout: placement.QdqLayout) -> int:
    """Correct the bias of every integer layer by E[y_float] - E[y_int8] per output channel, in place.

    Layers are visited in topological order: the layers in front are already corrected, so that each layer sees the
    inputs it will see in the end, and each part of the model runs once for all layers behind it.

    Args:
        evidence: the float model and its samples, of which 32 are used (128 for small models).
        work: the quantized model.
        layout: the layout it was quantized with.

    Returns:
        The number of layers with a bias.
    """
    small_model = sum(macs(evidence.model, evidence.trace).values()) <= _SMALL_MODEL_MACS
    data = evidence.samples().take(_SAMPLES_SMALL_MODEL if small_model else _SAMPLES)
    nodes = [
        n
        for n in list(work.graph)
        if n.name in layout.nodes and n.op_type in placement.COMPUTE and len(n.inputs) > 2 and n.inputs[2] is not None
    ]
    if not nodes:
        return 0
    # By node, not by value: at the graph's output, the DequantizeLinear behind a node takes over the value's name.
    float_names = {n.name: n.outputs[0].name or "" for n in evidence.model.graph if n.outputs}
    wanted = {float_names[n.name]: n.op_type for n in nodes}
    wanted_means = _channel_means(stream(evidence.model, list(wanted), data, evidence.batch_for(list(wanted))), wanted)
    activations = LayerwiseActivations(work, data, min(evidence.batch_for([name]) for name in wanted), nodes)
    for node in nodes:
        name = node.outputs[0].name or ""
        actual_means = _channel_means(activations.values([name]), {name: node.op_type})[name]
        activations.finalize([node])
        shift = wanted_means[float_names[node.name]] - actual_means
        dq = node.inputs[2].producer() if node.inputs[2] is not None else None
        if dq is None or dq.inputs[0] is None or not np.isfinite(shift).all():
            continue
        integers, scale = read.constant(dq.inputs[0]), read.constant(dq.inputs[1])
        if integers is None or scale is None or len(shift) != len(integers):
            continue
        corrected = np.rint(integers.astype(np.float64) + shift / scale)
        edit.set_constant(dq.inputs[0], np.clip(corrected, -(2.0**31 - 1024), 2.0**31 - 1024).astype(np.int32))
    return len(nodes)


def _channel_means(batches: Iterable[Mapping[str, np.ndarray]], operators: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Mean of each output channel over all samples and positions, by value name.  operators: types of the producers."""
    sums: dict[str, np.ndarray] = {}
    counts = dict.fromkeys(operators, 0)
    for values in batches:
        for name, op in operators.items():
            y = values[name]
            channels_last = np.moveaxis(y, 1, -1) if op == "Conv" else y
            rows = channels_last.reshape(-1, channels_last.shape[-1])
            sums[name] = sums.get(name, 0) + rows.sum(axis=0, dtype=np.float64)
            counts[name] += len(rows)
    return {name: sums[name] / max(counts[name], 1) for name in operators}
