"""Proxies for the accuracy of an untrained network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("optuna")

from onnxpress.errors import InputProblem
from onnxpress.nas.evaluation import proxies
from onnxpress.nas.evaluation.costs import count_costs
from onnxpress.nas.spaces.registry import load_space
from onnxpress.runtime.session import open_session, run
from tests.nas import tasks
from tests.nas.spaces.test_registry import RandomTrial


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in ("naswot", "zen") else ()) for n in proxies.PROXIES]
)
def test_proxies_are_finite_and_differ_between_networks(name: str) -> None:
    if name in proxies.GRADIENT:
        pytest.importorskip("torch")
    batch = tasks.batch(tasks.IMAGE, 8)
    found = []
    for seed in range(2):
        model = load_space("image-small")(RandomTrial(seed), tasks.IMAGE)
        before = run(open_session(model), batch)[0]
        counted = count_costs(model, tasks.batch(tasks.IMAGE))
        found.append(proxies.compute_proxy(name, model, batch, counted))
        assert found[-1] == pytest.approx(proxies.compute_proxy(name, model, batch, counted), rel=1e-3)
        np.testing.assert_array_equal(run(open_session(model), batch)[0], before)
    assert np.isfinite(found).all()
    assert len(set(found)) == 2


def test_naswot_by_hand() -> None:
    """Two samples, three Relus: K counts the activations that are both on or both off."""
    from onnxpress.nas.spaces.network import NetworkBuilder

    net = NetworkBuilder()
    model = net.model({"y": net.activation(net.input("x", (3,)))})
    batch = {"x": np.array([[1, 1, -1], [1, -1, -1]], np.float32)}
    assert proxies.naswot(model, batch) == pytest.approx(np.log(3 * 3 - 2 * 2), abs=1e-6)


def test_a_user_proxy(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def depth(model, batch):\n    return len(model.graph)\n\ndef bad(model, batch): 1 / 0\n"
    )
    model = load_space("image-small")(RandomTrial(0), tasks.IMAGE)
    counted = count_costs(model, tasks.batch(tasks.IMAGE))
    assert proxies.compute_proxy(f"{tmp_path / 'mine.py'}:depth", model, {}, counted) == len(model.graph)
    with pytest.raises(InputProblem, match=r"the proxy failed.*ZeroDivisionError"):
        proxies.compute_proxy(f"{tmp_path / 'mine.py'}:bad", model, {}, counted)
    with pytest.raises(InputProblem, match="has no 'other'"):
        proxies.check_proxy(f"{tmp_path / 'mine.py'}:other")
