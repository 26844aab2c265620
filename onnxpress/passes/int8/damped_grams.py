"""Damped Gram matrices of layer inputs for output-aware rounding, kept with the evidence.

Candidates and the recipe itself (`quantization_recipe.py`) round the same layers with other ranges. The matrices and
their cross-validated damping do not depend on ranges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxpress.measure.evidence import Evidence, EvidenceKey
from onnxpress.measure.gram import WIDE, input_moments
from onnxpress.measure.linear import linear
from onnxpress.passes.core.rounding import add_to_diagonal, cross_validated_damping

_KEPT_BYTES = 64 * 2**20  # of matrices; of the other layers only the damping is kept


@dataclass
class _Known:
    """By node name: matrices [K, K], and damping factors (None: no damping)."""

    grams: dict[str, np.ndarray] = field(default_factory=dict)
    factors: dict[str, float | None] = field(default_factory=dict)

    def keep(self, name: str, gram: np.ndarray) -> None:
        if sum(g.nbytes for g in self.grams.values()) + gram.nbytes <= _KEPT_BYTES:
            self.grams[name] = gram


_KNOWN: EvidenceKey[_Known] = EvidenceKey("damped Gram matrices of layer inputs")


def damped_grams(evidence: Evidence, nodes: Sequence[ir.Node]) -> Iterator[tuple[str, np.ndarray]]:
    """Node name and damped Gram matrix [K, K] of the inputs of each node that is linear, of the evidence's model.

    Nodes with more than WIDE columns are left out.
    """
    nodes = [n for n in nodes if (layer := linear(n)) is not None and layer.weight.shape[1] <= WIDE]
    known = evidence.derive(_KNOWN, _Known)
    yield from ((n.name or "", known.grams[n.name or ""]) for n in nodes if n.name in known.grams)
    for name, layer, moments in input_moments(evidence, [n for n in nodes if n.name not in known.grams]):
        centre = layer.bias is not None
        if name not in known.factors:
            known.factors[name] = cross_validated_damping(moments, layer.weight, centre)
        gram, factor = moments.centred(centre)[0], known.factors[name]
        damped = gram if factor is None else add_to_diagonal(gram, factor)
        known.keep(name, damped)
        yield name, damped
