"""Combinations of families, on made-up clocks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.passes.rewriting import family_selection
from onnxpress.passes.rewriting.families import BY_NAME, apply_families
from onnxpress.passes.rewriting.family_selection import choose
from onnxpress.runtime.latency import LatencyComparison, Ratio
from tests import nets

Speeds = Callable[[tuple[str, ...]], float]
A, B, C = "activations", "pooling", "affine"


def made_up(speeds: Speeds) -> Callable[..., LatencyComparison]:
    """A clock by which combinations of families have these speeds, each known to 1 %."""

    def compare(models: dict[str, object], *_: object, **__: object) -> LatencyComparison:
        first, *others = models
        base = speeds(_families(first))
        ratios = [(n, speeds(_families(n)) / base) for n in others]
        return LatencyComparison((), tuple(Ratio(n, first, v, v - 0.01, v + 0.01) for n, v in ratios))

    return compare


def _families(title: str) -> tuple[str, ...]:
    return () if title == "model" else tuple(title.split(" + "))


@pytest.fixture
def places() -> tuple[Evidence, dict[str, ir.Model]]:
    """A model with places for three families, and its form by each."""
    net = nets.image_net()
    x = net.conv("image", 32)
    gate = net.op("Clip", [net.op("Add", [x, net.constant(np.array(3, np.float32))], 32),
                           *(net.constant(np.array(v, np.float32)) for v in (0, 6))], 32)  # fmt: skip
    x = net.conv(net.op("Mul", [x, gate], 32), 32)
    x = net.conv(net.op("Sub", [net.constant(np.ones((32, 1, 1), np.float32)), x], 32), 32)
    pooled = net.op("ReduceMean", [x], 32, axes=[2, 3], keepdims=1)
    model = net.model(net.head(net.add(x, pooled)), nets.IMAGE, ["N", 10])
    evidence = evidence_for(model, None)
    return evidence, {n: apply_families(evidence.model, evidence.probe, [n], evidence.trace)[0] for n in (A, B, C)}


@pytest.mark.parametrize(
    ("speeds", "kept"),
    [
        ({}, ()),
        ({A: 1.2}, (A,)),
        ({A: 1.2, B: 1.1}, (A, B)),
        ({A: 1.2, B: 0.9}, (A,)),
        ({A: 1.2, B: 1.1, (A, B): 0.6}, (A,)),  # they undo each other
        ({(A, B): 1.3}, (A, B)),  # one makes room for the other
        ({A: 1.2, (B, C): 1.3}, (A, B, C)),
        ({A: 1.2, B: 0.95, (A, B): 1.3}, (A, B)),
        ({B: 0.98, C: 0.5, (A, B): 1.3}, (A, B)),  # as slow alone as by noise
        ({A: 0.9, B: 0.9, C: 0.9}, ()),
    ],
)
def test_the_fastest_combination_is_kept(
    speeds: dict[str | tuple[str, ...], float],
    kept: tuple[str, ...],
    places: tuple[Evidence, dict[str, ir.Model]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Families that gain nothing are left out, alone and in combinations."""

    def speed(names: tuple[str, ...]) -> float:
        each = [v for k, v in speeds.items() if (isinstance(k, str) and k in names)]
        pairs = [v for k, v in speeds.items() if isinstance(k, tuple) and set(k) <= set(names)]
        return float(np.prod([*each, *pairs]))

    monkeypatch.setattr(family_selection, "compare_latency", made_up(speed))
    times = choose(*places, seconds=1.0)
    assert times.kept == kept
    assert [r.name for r in times.families] == [A, B, C]
    assert (times.together is None) == (not kept)
    if times.together is not None:
        assert times.together.speedup == pytest.approx(speed(kept))


def test_one_family(places: tuple[Evidence, dict[str, ir.Model]], monkeypatch: pytest.MonkeyPatch) -> None:
    evidence, forms = places
    monkeypatch.setattr(family_selection, "compare_latency", made_up(lambda names: 1.2 if names else 1.0))
    assert choose(evidence, {A: forms[A]}, 1.0).kept == (A,)
    monkeypatch.setattr(family_selection, "compare_latency", made_up(lambda names: 1.0))
    assert choose(evidence, {A: forms[A]}, 1.0).kept == ()


def test_names_of_families_do_not_hold_the_separator() -> None:
    assert not any(" + " in name for name in BY_NAME)
