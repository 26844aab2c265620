"""The structural hash: equal for networks of equal structure, whatever the names and values."""

from __future__ import annotations

import pytest

pytest.importorskip("optuna")

from onnxpress.model.structural_hash import structural_hash
from onnxpress.nas.spaces.registry import load_space
from onnxpress.nas.strategies.study import fixed_trial
from tests.nas import tasks
from tests.nas.spaces.test_registry import RandomTrial

pytestmark = pytest.mark.unit


def test_structural_hash_ignores_names_and_values() -> None:
    first = load_space("image-small")(RandomTrial(2), tasks.IMAGE)
    first_trial = RandomTrial(2)
    same = load_space("image-small")(first_trial, tasks.IMAGE)
    assert structural_hash(first) == structural_hash(same)
    for node in same.graph:
        node.name = f"other_{node.name}"
    assert structural_hash(first) == structural_hash(same)
    assert structural_hash(first) != structural_hash(load_space("image-small")(RandomTrial(3), tasks.IMAGE))
    assert structural_hash(first) == structural_hash(
        load_space("image-small")(fixed_trial(first_trial.params), tasks.IMAGE)
    )


def test_structural_hash_depends_on_resolution_and_sharing() -> None:
    from onnxpress.nas.spaces.network import NetworkBuilder

    def at(size: int) -> str:
        net = NetworkBuilder()
        return structural_hash(net.model({"y": net.global_pool(net.resized(net.input("x", (3, 32, 32)), size))}))

    def summed(shared: bool) -> str:
        net = NetworkBuilder()
        x = net.input("x", (3, 8, 8))
        first = net.conv(x, 4)
        return structural_hash(net.model({"y": net.add(first, first if shared else net.conv(x, 4))}))

    assert at(16) != at(24)
    assert summed(True) != summed(False)
