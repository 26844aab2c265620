"""The pass: the clock keeps what is faster; options and plans."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import onnxpress
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import evidence_for
from onnxpress.passes.rewriting import family_selection
from onnxpress.passes.rewriting import rewrite as module
from onnxpress.passes.rewriting.rewrite import ALL, REWRITE, RewriteOptions, fastest_rewrites
from tests import nets
from tests.passes.rewriting.test_family_selection import made_up


def slow_net() -> ir.Model:
    """Mish and HardSwish as a poor exporter writes them, between convolutions."""
    net = nets.image_net()
    x = net.conv("image", 32)
    x = net.op("Mul", [x, net.op("Tanh", [net.op("Softplus", [x], 32)], 32)], 32)
    x = net.conv(x, 32)
    limits = [net.constant(np.array(v, np.float32)) for v in (3, 0, 6, 6)]
    gate = net.op("Clip", [net.op("Add", [x, limits[0]], 32), *limits[1:3]], 32)
    x = net.conv(net.op("Div", [net.op("Mul", [x, gate], 32), limits[3]], 32), 32)
    return net.model(net.head(x), nets.IMAGE, ["N", 10])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A made-up clock: speed-ups by family, which multiply; each known to 1 %."""
    speeds: dict[str, float] = {}
    monkeypatch.setattr(
        family_selection, "compare_latency", made_up(lambda names: math.prod(speeds.get(n, 1.0) for n in names))
    )
    return speeds


def test_the_clock_decides(clock: dict[str, float]) -> None:
    evidence = evidence_for(slow_net(), None)
    clock.update({"vector-kernels": 1.5, "activations": 0.9})
    planned = REWRITE.plan(evidence, RewriteOptions())
    assert planned.actions == [{"rewrite": "vector-kernels"}]
    clock.update({"activations": 1.2})
    planned = REWRITE.plan(evidence, RewriteOptions())
    assert planned.actions == [{"rewrite": "activations"}, {"rewrite": "vector-kernels"}]
    assert any("all that is kept" in note for note in planned.notes)
    clock.clear()
    assert REWRITE.plan(evidence, RewriteOptions()).actions == []


def test_all_that_applies_without_a_clock() -> None:
    evidence = evidence_for(slow_net(), None)
    names = [a["rewrite"] for a in REWRITE.plan(evidence, RewriteOptions(keep=ALL)).actions]
    assert names == ["activations", "vector-kernels", "affine"]  # a difference within Mish lies between convolutions
    only = REWRITE.plan(evidence, RewriteOptions(keep=ALL, family=("activations",))).actions
    assert only == [{"rewrite": "activations"}]


def test_searches_ask_for_what_is_faster(clock: dict[str, float]) -> None:
    evidence = evidence_for(slow_net(), None)
    assert fastest_rewrites(evidence, 1.0) == ([], [])
    clock.update({"activations": 1.3})
    actions, notes = fastest_rewrites(evidence, 1.0)
    assert actions == [{"rewrite": "activations"}] and "1.300x" in notes[0]
    assert fastest_rewrites(evidence_for(nets.residual(), None), 1.0) == ([], [])


def test_the_command_writes_a_faster_file(tmp_path: Path) -> None:
    model, _ = nets.written(slow_net(), tmp_path)
    result = onnxpress.rewrite(model, output=tmp_path / "fast.onnx", plan=tmp_path / "plan.json")
    assert "Softplus" not in [n.op_type for n in result.model.graph]
    again = onnxpress.apply(onnxpress.read_plan(tmp_path / "plan.json"), model)
    assert ir.to_proto(again.model).SerializeToString() == ir.to_proto(result.model).SerializeToString()


def test_nothing_to_rewrite_is_said(tmp_path: Path) -> None:
    model, _ = nets.written(nets.residual(), tmp_path)
    assert "no rewrite applies to this model" in onnxpress.rewrite(model).notes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (RewriteOptions(threads=0), "at least one thread"),
        (RewriteOptions(provider="Abacus"), "no such execution provider"),
        (RewriteOptions(family=("magic",)), "unknown value"),
        (RewriteOptions(keep="some"), "unknown value"),
    ],
)
def test_bad_options(options: RewriteOptions, words: str) -> None:
    with pytest.raises(InputProblem, match=words):
        options.checked()


def test_an_unknown_family_in_a_plan() -> None:
    with pytest.raises(InputProblem, match="unknown family"):
        REWRITE.apply(evidence_for(slow_net(), None), [{"rewrite": "magic"}])


def test_nodes_in_a_slow_form_are_named_with_their_family() -> None:
    evidence = evidence_for(slow_net(), None)
    found = module.rewritable_nodes(evidence)
    operators = {n.name: n.op_type for n in evidence.model.graph}
    assert {operators[n] for n, family in found.items() if family == "activations"} >= {"Clip", "Div"}
    assert {operators[n] for n, family in found.items() if family == "vector-kernels"} >= {"Tanh", "Softplus"}
    assert not any(operators[n] == "Conv" for n in found)
    assert module.rewritable_nodes(evidence_for(nets.residual(), None)) == {}
