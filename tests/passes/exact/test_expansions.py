"""Expand in front of operators that broadcast anyway."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxpress.measure.evidence import evidence_for
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.passes.exact.expansions import drop_expansions
from onnxpress.passes.exact.simplify import SIMPLIFY
from onnxpress.runtime.session import open_session, run

pytestmark = pytest.mark.unit

SHAPE = "n=Shape<end=1>(x)\nt=Concat<axis=0>(n,one,len,len)\n"
CONSTANTS = (
    "int64[1] one={1}, int64[1] len={4}, bool[1,1,4,4] causal={1,0,0,0,1,1,0,0,1,1,1,0,1,1,1,1}, "
    "bool[1,1,4,4] all={1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}, float low={-1e9}, float zero={0.0}, int64[1] row={2}, "
    "int64[4] more={2,2,4,4}, float[4] none={0,0,0,0}, float[4] same={1,1,1,1}"
)
BODIES = {
    "a constant mask": f"{SHAPE}e=Expand(causal,t)\nw=Where(e,zero,low)\ny=Add(x,w)",
    "a mask of samples": f"{SHAPE}e=Expand(m,t)\nw=Where(e,zero,low)\ny=Add(x,w)",
    "both": f"{SHAPE}e=Expand(causal,t)\nf=Expand(m,t)\ng=And(e,f)\nw=Where(g,zero,low)\ny=Add(w,x)",
    "directly": f"{SHAPE}h=Cast<to=1>(m)\ne=Expand(h,t)\ny=Mul(x,e)",
}
KEPT = {
    "a sum of one row": f"{SHAPE}h=Cast<to=1>(m)\ne=Expand(h,t)\nr=ReduceSum(x,row)\ny=Add(r,e)",
    "it is returned": f"{SHAPE}h=Cast<to=1>(m)\ne=Expand(h,t)\nz=Mul(e,zero)\nk=Add(z,e)\ny=Softmax<axis=-1>(k)",
    "a larger one": "h=Cast<to=1>(causal)\ne=Expand(h,more)\nk=ReduceSum(e)\ny=Add(x,k)",
}


def model_of(body: str) -> ir.Model:
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,2,4,4] x, bool[N,1,1,4] m) => (float[N,K,4,4] y) '
        f"<{CONSTANTS}> {{ {body} }}"
    )
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model)
    return canonical(ir.from_proto(model))


def assert_same(one: ir.Model, two: ir.Model) -> None:
    for samples in (1, 3):
        rng = np.random.default_rng(samples)
        feeds = {
            "x": rng.standard_normal((samples, 2, 4, 4)).astype(np.float32),
            "m": rng.random((samples, 1, 1, 4)) > 0.3,
        }
        names = [v.name for v in one.graph.inputs]
        given = {k: v for k, v in feeds.items() if k in names}
        (wanted,), (found,) = (run(open_session(m), given) for m in (one, two))
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", BODIES)
def test_expansions_go(kind: str) -> None:
    model = model_of(BODIES[kind])
    done = model.clone()
    assert drop_expansions(done)
    assert "Expand" not in [n.op_type for n in done.graph]
    assert drop_expansions(done) == 0
    assert_same(model, done)


@pytest.mark.parametrize("kind", KEPT)
def test_what_gives_the_result_its_size_stays(kind: str) -> None:
    model = model_of(KEPT[kind])
    done = model.clone()
    drop_expansions(done)
    assert "Expand" in [n.op_type for n in done.graph]
    assert_same(model, done)


def test_a_mask_that_hides_nothing_is_not_added() -> None:
    model = model_of(BODIES["a constant mask"].replace("causal", "all"))
    done = SIMPLIFY.apply(evidence_for(model, None), [{"fold": "expansions"}])
    assert not {"Expand", "Where", "Add"} & {n.op_type for n in done.model.graph}
    assert_same(model, done.model)


def test_two_neutral_operands_in_a_row_go() -> None:
    model = model_of("b=Add(x,none)\nd=Mul(same,b)\ny=Sub(d,none)")
    done = model.clone()
    assert drop_expansions(done) == 3
    assert not {"Add", "Mul", "Sub"} & {n.op_type for n in done.graph}
    onnx.checker.check_model(ir.to_proto(done))
    assert_same(model, done)
