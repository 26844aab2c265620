"""What one run at a small size showed: the concrete shape of every value, and the small integer values.

The runtime fills it in; rooms of this floor reason from it.  A Reshape that computes its target from Shape
operators is then as readable as one with a constant, and no shape rule of any operator is written twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Trace:
    """shapes: by value name, concrete; values: integer and bool values of at most 64 elements; floats: those of float32, and whether
    NaN is among their numbers."""

    shapes: dict[str, tuple[int, ...]]
    values: dict[str, np.ndarray] = field(default_factory=dict)
    floats: dict[str, bool] = field(default_factory=dict)

    def shape(self, name: str | None) -> tuple[int, ...] | None:
        return None if name is None else self.shapes.get(name)
