"""RMS normalization in the spelling that onnxruntime fuses."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from onnxpress.passes.rewriting.families import apply_families
from onnxpress.runtime.session import SessionSettings, open_session
from tests.passes.rewriting.helpers import assert_same_values, f32, graph, operators, random, rewritten

CONSTANTS = {"two": f32(2), "eps": f32(1e-6), "one": f32(1), "ten": f32(10), "g": random(8)}
ROOT = "q=Pow(x,two)\nm=ReduceMean<axes=[-1]>(q)\nv=Add(m,eps)\ns=Sqrt(v)\n"
FORMS = {
    "reciprocal": f"{ROOT}r=Reciprocal(s)\nn=Mul(x,r)\ny=Mul(n,g)",
    "on the left": f"{ROOT}r=Reciprocal(s)\nn=Mul(r,x)\ny=Mul(g,n)",
    "one divided": f"{ROOT}r=Div(one,s)\nn=Mul(x,r)\ny=Mul(n,g)",
}
OTHERS = {
    "read twice": f"{ROOT}r=Reciprocal(s)\nn=Mul(x,r)\ny=Add(n,r)",
    "no root": "a=Abs(x)\nv=Add(a,one)\nr=Reciprocal(v)\ny=Mul(x,r)",
    "ten divided": f"{ROOT}r=Div(ten,s)\ny=Mul(x,r)",
}


@pytest.mark.parametrize("kind", FORMS)
def test_products_become_divisions(kind: str) -> None:
    evidence = graph(FORMS[kind], CONSTANTS)
    found, model = rewritten(evidence, "rms-norm")
    assert "Div" in found and "Reciprocal" not in found
    assert_same_values(evidence, model)


@pytest.mark.parametrize("kind", OTHERS)
def test_others_stay(kind: str) -> None:
    evidence = graph(OTHERS[kind], CONSTANTS)
    assert rewritten(evidence, "rms-norm")[0] == operators(evidence.model)


def test_onnxruntime_fuses_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    evidence = graph(FORMS["reciprocal"], CONSTANTS)
    model, _ = apply_families(evidence.model, evidence.probe, ["rms-norm"], evidence.trace)
    target = tmp_path_factory.mktemp("graph") / "optimized.onnx"
    open_session(model, SessionSettings(dump=str(target)))
    assert [n.op_type for n in ir.load(target).graph] == ["SimplifiedLayerNormalization"]
