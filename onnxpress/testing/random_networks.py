"""Random networks for hypothesis."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from hypothesis import strategies as st

from onnxpress.testing.networks import IMAGE, image_net


@st.composite
def random_nets(draw: st.DrawFn) -> ir.Model:
    """Residual, concat, depthwise, batchnorm, pooling and flatten parts in random order."""
    net = image_net(draw(st.integers(0, 10_000)))
    widths = st.sampled_from([4, 8, 12, 20, 32])
    x = net.relu(net.conv("image", draw(widths)))
    for kind in draw(
        st.lists(
            st.sampled_from(["plain", "residual", "concat", "depthwise", "norm", "gate", "pad"]), min_size=1, max_size=5
        )
    ):
        if kind == "plain":
            x = net.relu(net.conv(x, draw(widths), draw(st.sampled_from([1, 3]))))
        elif kind == "residual":
            y = net.relu(net.conv(x, draw(widths)))
            x = net.relu(net.add(net.conv(y, net.widths[x]), x))
        elif kind == "concat":
            parts = [net.conv(x, draw(widths), 1), net.relu(net.conv(x, draw(widths)))]
            x = net.concat(*parts, *([x] if draw(st.booleans()) else []))
        elif kind == "depthwise":
            x = net.relu(net.depthwise(x))
        elif kind == "norm":
            x = net.relu(net.batchnorm(net.conv(x, draw(widths), bias=False)))
        elif kind == "gate":
            pooled = net.op("GlobalAveragePool", [x], net.widths[x])
            gate = net.op("Sigmoid", [net.conv(net.relu(net.conv(pooled, 8, 1)), net.widths[x], 1)], net.widths[x])
            x = net.op("Mul", [x, gate], net.widths[x])
        else:
            extra = draw(st.integers(1, 4))
            pads = net.constant(np.array([0, extra, 0, 0, 0, extra, 0, 0], np.int64), "pads")
            wide = net.op("Pad", [x, pads], net.widths[x] + 2 * extra)
            x = net.relu(net.add(net.conv(x, net.widths[wide]), wide))
    return net.model(net.head(x, pooled=draw(st.booleans())), IMAGE, ["N", 10])
