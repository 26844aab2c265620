"""Gates of channels in the layout of convolutions."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from onnxpress.passes.rewriting.families import apply_families
from onnxpress.runtime.session import SessionSettings, open_session
from tests.passes.rewriting.helpers import assert_same_values, f32, graph, operators, random, rewritten

CONSTANTS = {
    "w": random(32, 3, 3, 3) / 5, "b": random(32), "v": random(32, 32, 1, 1) / 6, "p": random(8, 32, 1, 1) / 6,
    "r": random(16, 32, 1, 1) / 6, "e": random(32, 16, 1, 1) / 4, "rows": random(3, 32, 1, 1), "one": f32(1.0),
    "high": random(1, 32, 8, 1),
}  # fmt: skip
FIRST = "a=Conv<pads=[1,1,1,1]>(x,w,b)\n"
GATE = "q=GlobalAveragePool(a)\nr0=Conv(q,r)\nr1=Relu(r0)\nr2=Conv(r1,e)\ng=HardSigmoid(r2)\n"
LAST = "\nc=Conv(m,v)\nd=Add(c,a)\ny=Conv(d,p)"
FORMS = {
    "a gate": f"{GATE}m=Mul(a,g){LAST}",
    "on the left": f"{GATE}m=Mul(g,a){LAST}",
    "behind a reduction": GATE.replace("GlobalAveragePool(a)", "ReduceMean<axes=[2,3]>(a)") + f"m=Mul(a,g){LAST}",
    "of something else": f"s=Conv<pads=[1,1,1,1]>(x,w)\n{GATE.replace('Pool(a)', 'Pool(s)')}m=Mul(a,g){LAST}",
}
OTHERS = {
    "a gate of rows": f"{GATE}h=Add(g,rows)\nm=Mul(a,h){LAST}",
    "of rows of pixels": f"{GATE}h=Mul(g,high)\nm=Mul(a,h){LAST}",
    "for all samples": f"t=ReduceMean<axes=[0]>(a)\n{GATE.replace('Pool(a)', 'Pool(t)')}m=Mul(a,g){LAST}",
    "not between convolutions": f"{GATE}m=Mul(a,g)\nk=Sin(m)\ny=Conv(k,p)",
    "a constant": f"m=Mul(a,one){LAST}",
}


@pytest.mark.parametrize("opset", [10, 11, 13, 17])
@pytest.mark.parametrize("kind", FORMS)
def test_gates_are_copied_to_all_pixels(kind: str, opset: int) -> None:
    evidence = graph(FIRST + FORMS[kind], CONSTANTS, opset, "N,3,8,8", "N,8,8,8")
    found, model = rewritten(evidence, "gates")
    assert "Resize" in found
    assert_same_values(evidence, model, 1e-5)


@pytest.mark.parametrize("kind", OTHERS)
def test_others_stay(kind: str) -> None:
    rows = "3" if kind == "a gate of rows" else "N"
    evidence = graph(FIRST + OTHERS[kind], CONSTANTS, 17, f"{rows},3,8,8", f"{rows},8,8,8")
    assert rewritten(evidence, "gates")[0] == operators(evidence.model)


def test_free_sizes_stay() -> None:
    evidence = graph(FIRST + FORMS["a gate"], CONSTANTS, 17, "N,3,H,W", "N,8,H,W")
    assert "Resize" not in rewritten(evidence, "gates")[0]


def test_before_resize_there_is_no_gate() -> None:
    evidence = graph(FIRST + FORMS["a gate"], CONSTANTS, 9, "N,3,8,8", "N,8,8,8")
    assert "Resize" not in rewritten(evidence, "gates")[0]


@pytest.mark.parametrize("samples", ["N", "2"])
def test_onnxruntime_stays_in_blocks_and_fuses_the_sum(samples: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One conversion is left, of the result; without the stated name of the free size there would be more."""
    evidence = graph(FIRST + FORMS["a gate"], CONSTANTS, 17, f"{samples},3,8,8", f"{samples},8,8,8")
    model, _ = apply_families(evidence.model, evidence.probe, ["gates"], evidence.trace)
    target = tmp_path_factory.mktemp("graph") / "optimized.onnx"
    open_session(model, SessionSettings(dump=str(target)))
    kinds = [n.op_type for n in ir.load(target).graph]
    if "ReorderOutput" not in kinds:
        pytest.skip("this CPU has no blocked convolutions")
    assert kinds.count("ReorderOutput") == 1
    assert "Add" not in kinds
