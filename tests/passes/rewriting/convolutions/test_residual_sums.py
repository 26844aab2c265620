"""Sums of a blocked and a plain tensor."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxpress.passes.rewriting.families import apply_families
from onnxpress.runtime.session import SessionSettings, open_session
from tests.passes.rewriting.helpers import assert_same_values, graph, operators, random, rewritten

CONSTANTS = {
    "w": random(32, 3, 3, 3) / 5, "k": random(32, 32, 3, 3) / 17, "n": random(16, 3, 3, 3) / 5,
    "p": random(8, 32, 1, 1),
    "pads": np.array([0, 8, 0, 0, 0, 8, 0, 0]), "z": np.array([0]), "o": np.array([2**62]), "ax": np.array([2]),
    "step": np.array([1]),
}  # fmt: skip
SAME = "<pads=[1,1,1,1]>"
PADDED = f"s=Conv{SAME}(x,n)\nd=Pad(s,pads)\na=Conv{SAME}(x,w)\n"
FORMS = {
    "a padded shortcut": f"{PADDED}b=Add(a,d)\ny=Conv(b,p)",
    "an activation behind": f"{PADDED}b0=Add(d,a)\nb=Relu(b0)\ny=Conv(b,p)",
    "an activation in front": f"{PADDED}e=Relu(d)\nb=Sum(a,e)\ny=Conv(b,p)",
    "a slice": f"i=Conv{SAME}(x,w)\nd=Slice(i,z,o,ax,step)\na=Conv{SAME}(x,w)\nb=Add(a,d)\ny=Conv(b,p)",
    "a chain": f"{PADDED}b0=Add(a,d)\nb=Relu(b0)\nc=Conv{SAME}(b,k)\ne0=Add(c,b)\ne=Relu(e0)\nf=Conv{SAME}(e,k)\n"
    "g=Add(f,e)\ny=Conv(g,p)",
}  # fmt: skip
OTHERS = {
    "two convolutions": f"s=Conv{SAME}(x,w)\na=Conv{SAME}(x,w)\nb=Add(a,s)\ny=Conv(b,p)",
    "two plain ones": f"{PADDED}e=Sin(a)\nb=Add(e,d)\ny=Conv(b,p)",
    "no convolution behind": f"{PADDED}b=Add(a,d)\nc=Sin(b)\ny=Conv(c,p)",
    "a broadcast": f"{PADDED}m=ReduceMax<axes=[2,3]>(d)\nb=Add(a,m)\ny=Conv(b,p)",
}


@pytest.mark.parametrize("kind", FORMS)
def test_the_first_sum_returns_to_blocks(kind: str) -> None:
    evidence = graph(FORMS[kind], CONSTANTS, 17, "N,3,8,8", "N,8,8,8")
    found, model = rewritten(evidence, "sums")
    assert found.count("Conv") == operators(evidence.model).count("Conv") + 1
    assert_same_values(evidence, model, 1e-6)


@pytest.mark.parametrize("kind", OTHERS)
def test_others_stay(kind: str) -> None:
    evidence = graph(OTHERS[kind], CONSTANTS, 17, "N,3,8,8", "N,8,8,8")
    assert rewritten(evidence, "sums")[0] == operators(evidence.model)


def test_onnxruntime_keeps_a_chain_in_blocks(tmp_path_factory: pytest.TempPathFactory) -> None:
    evidence = graph(FORMS["a chain"], CONSTANTS, 17, "N,3,8,8", "N,8,8,8")
    target = tmp_path_factory.mktemp("graph") / "optimized.onnx"
    counts = []
    for names in ([], ["sums"]):
        model, _ = apply_families(evidence.model, evidence.probe, names, evidence.trace)
        open_session(model, SessionSettings(dump=str(target)))
        kinds = [n.op_type for n in ir.load(target).graph]
        if "ReorderOutput" not in kinds:
            pytest.skip("this CPU has no blocked convolutions")
        counts.append((kinds.count("ReorderOutput"), kinds.count("Add")))
    assert counts == [(5, 3), (2, 0)]
