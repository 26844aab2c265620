"""Trace of one run at a small size: the concrete shape of every value, and the small integer values.

The runtime records it, the model package reasons from it.  A Reshape whose target is computed by Shape operators is
then as readable as one with a constant, and no operator needs a shape rule of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Trace:
    """What one run recorded, by value name.

    shapes: concrete shapes
    values: integer and bool values of at most 64 elements
    floats: for float32 values, whether any element is NaN
    """

    shapes: dict[str, tuple[int, ...]]
    values: dict[str, np.ndarray] = field(default_factory=dict)
    floats: dict[str, bool] = field(default_factory=dict)

    def shape(self, name: str | None) -> tuple[int, ...] | None:
        return None if name is None else self.shapes.get(name)
