"""Implementations of the operators, by family.  Importing this package fills the registry."""

from onnxpress.train.graph.registry import REGISTRY, find_operator
from onnxpress.train.operators import activation, control, elementwise, random, reduce, signal
from onnxpress.train.operators.arrays import counting, gather, resize, sampling, shape
from onnxpress.train.operators.layers import attention, contrib, conv, linear, loss, normalize, pool, quant, recurrent

__all__ = [
    "REGISTRY",
    "activation",
    "attention",
    "contrib",
    "control",
    "conv",
    "counting",
    "elementwise",
    "find_operator",
    "gather",
    "linear",
    "loss",
    "normalize",
    "pool",
    "quant",
    "random",
    "recurrent",
    "reduce",
    "resize",
    "sampling",
    "shape",
    "signal",
]
