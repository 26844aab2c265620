"""Products of consecutive linear layers."""

from __future__ import annotations

import numpy as np
import pytest

from tests import nets
from tests.passes.exact.helpers import assert_same, changed, reduced

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("middle", "wide", "merged"), [(32, 8, True), (4, 32, False)])
def test_linear_layers_are_merged_where_that_is_cheaper(middle: int, wide: int, merged: bool) -> None:
    net = nets.image_net()
    x = net.relu(net.conv("image", wide))
    y = net.relu(net.conv(net.conv(x, middle, k=1), wide, k=1))
    model = net.model(net.head(y), nets.IMAGE, ["N", 10])
    done, notes = reduced(model)
    assert any("linear" in n for n in notes) == merged
    assert (len([n for n in done.graph if n.op_type == "Conv"]) == 2) == merged
    assert_same(model, done)


def test_padding_between_linear_layers_prevents_merging_a_bias() -> None:
    net = nets.image_net()
    model = net.model(
        net.head(net.relu(net.conv(net.conv(net.relu(net.conv("image", 8)), 32, k=1), 8))), nets.IMAGE, ["N", 10]
    )
    done, notes = reduced(model)
    assert not any("linear" in n for n in notes)
    assert_same(model, done)

    def unbiased(weight: np.ndarray, bias: np.ndarray) -> None:
        bias[:] = 0

    plain = changed(model, 1, unbiased)
    done, notes = reduced(plain)
    assert any("linear" in n for n in notes)
    assert_same(plain, done)
