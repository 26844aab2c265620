"""What every operator computes, by families.  Importing this package fills the registry."""

from onnxpress.train.operators import (
    activation,
    conv,
    elementwise,
    gather,
    linear,
    normalize,
    pool,
    reduce,
    shape,
)
from onnxpress.train.registry import REGISTRY, find

__all__ = [
    "REGISTRY",
    "activation",
    "conv",
    "elementwise",
    "find",
    "gather",
    "linear",
    "normalize",
    "pool",
    "reduce",
    "shape",
]
