"""Error curves of channel groups."""

from __future__ import annotations

import numpy as np

from onnxpress.measure.evidence import evidence_for
from onnxpress.passes.pruning.error_curves import error_curves
from tests import nets


def test_groups_of_several_block_sizes_behind_one_flatten() -> None:
    """Behind a grouped convolution and a Flatten, a channel of one group is a run of columns, one of another several
    runs: of the same wide layer."""
    net = nets.image_net()
    x = net.relu(net.conv("image", 32))
    x = net.relu(net.conv(x, 32, group=2))
    model = net.model(net.head(x, pooled=False), nets.IMAGE, ["N", 10])
    evidence = evidence_for(model, nets.samples(model, 24))
    curves = error_curves(evidence)
    assert {len(c.order) for c in curves.values()} >= {1, 15}
    for curve in curves.values():
        assert sorted(curve.order) == sorted(set(curve.order))
        assert np.all(np.diff(curve.error) >= 0) and np.isfinite(curve.error).all()
