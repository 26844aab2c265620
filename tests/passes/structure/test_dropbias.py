"""Removal of biases of convolutions."""

from __future__ import annotations

from onnxpress import dropbias
from tests import nets


def test_half_of_the_biases_go() -> None:
    model = nets.residual(width=16)
    convs = [n for n in dropbias(model, nets.samples(model, 8)).model.graph if n.op_type == "Conv"]
    assert 0 < sum(len(n.inputs) == 2 for n in convs) < len(convs)
