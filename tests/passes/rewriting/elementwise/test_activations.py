"""Activations in many spellings become operators; what only looks like one stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxpress.measure.evidence import evidence_for
from onnxpress.passes.rewriting.families import apply_families
from tests.passes.rewriting.helpers import assert_same_values, f32, graph, operators, rewritten

NUMBERS = {
    "one": f32(1), "half": f32(0.5), "three": f32([3]), "six": f32(6), "zero": f32(0), "sixth": f32(1 / 6),
    "root": f32(2**0.5), "iroot": f32(2**-0.5), "a": f32(0.1), "na": f32(-0.1), "c": f32(0.7978845608),
    "d": f32(0.044715), "minus": f32(-1), "two": f32(2), "quick": f32(1.702), "most": f32(3.4028235e38),
    "ithree": np.array(3, np.int64), "almost": f32(5.9),
}  # fmt: skip
SPELLINGS = {
    "clip, product, quotient": ("HardSwish", "u=Add(x,three) v=Clip(u,zero,six) m=Mul(x,v) y=Div(m,six)"),
    "quotient first": ("HardSwish", "u=Add(three,x) v=Clip(u,zero,six) w=Div(v,six) y=Mul(w,x)"),
    "relu and min": ("HardSwish", "u=Add(x,three) r=Relu(u) v=Min(r,six) w=Mul(v,sixth) y=Mul(w,x)"),
    "max and min": ("HardSwish", "u=Add(x,three) r=Max(zero,u) v=Min(six,r) w=Mul(x,sixth) y=Mul(w,v)"),
    "scaled inside": ("HardSwish", "u=Mul(x,sixth) w=Add(u,half) v=Clip(w,zero,one) y=Mul(x,v)"),
    "hard sigmoid": ("HardSwish", "u=HardSigmoid<alpha=0.16666667,beta=0.5>(x) y=Mul(u,x)"),
    "clip and quotient": ("HardSigmoid", "u=Add(x,three) v=Clip(u,zero,six) y=Div(v,six)"),
    "max with a part": ("LeakyRelu", "u=Mul(x,a) y=Max(x,u)"),
    "two relus": ("LeakyRelu", "p=Relu(x) n=Neg(x) q=Relu(n) m=Mul(q,na) y=Add(p,m)"),
    "relu and abs": ("LeakyRelu", "p=Relu(x) m=Min(x,zero) q=Mul(m,a) y=Sum(p,q)"),
    "max then min": ("Clip", "u=Max(x,zero) y=Min(u,six)"),
    "two clips": ("Clip", "u=Clip(x,zero,six) y=Clip(u,minus,three)"),
    "open clip": ("Relu", "u=Clip(x,zero,most) y=Max(u,zero)"),
    "reciprocal": ("Sigmoid", "n=Neg(x) e=Exp(n) f=Add(e,one) y=Reciprocal(f)"),
    "quotient": ("Sigmoid", "n=Mul(x,minus) e=Exp(n) f=Add(one,e) y=Div(one,f)"),
    "by tanh": ("Sigmoid", "n=Mul(x,half) e=Tanh(n) f=Add(e,one) y=Mul(f,half)"),
    "by sigmoid": ("Tanh", "n=Mul(x,two) b=Sigmoid(n) c2=Mul(b,two) y=Sub(c2,one)"),
    "silu": ("Sigmoid Mul", "n=Neg(x) e=Exp(n) f=Add(e,one) y=Div(x,f)"),
    "quick gelu": ("Mul Sigmoid Mul", "q=Mul(x,quick) n=Neg(q) e=Exp(n) f=Add(e,one) y=Div(x,f)"),
    "erf": ("Gelu", "u=Mul(x,iroot) e=Erf(u) e1=Add(e,one) h=Mul(x,half) y=Mul(h,e1)"),
    "erf, sum last": ("Gelu", "u=Mul(x,iroot) e=Erf(u) h=Mul(x,half) m=Mul(h,e) y=Add(h,m)"),
    "erf, half first": ("Gelu", "u=Div(x,root) e=Erf(u) e1=Add(e,one) h=Mul(half,e1) y=Mul(x,h)"),
    "tanh, products": ("Gelu", "s=Mul(x,x) p=Mul(s,x) q=Mul(p,d) r=Add(x,q) w=Mul(r,c) u=Tanh(w) v=Add(u,one) "
                       "m=Mul(x,half) y=Mul(m,v)"),
    "tanh, half last": ("Gelu", "p=Pow(x,ithree) q=Mul(p,d) r=Add(x,q) w=Mul(c,r) u=Tanh(w) v=Add(u,one) m=Mul(x,v) "
                        "y=Mul(half,m)"),
    "absolute": ("Abs", "n=Neg(x) y=Max(x,n)"),
}  # fmt: skip
# Below the operator sets that have HardSwish and Gelu.
OLD = {
    "HardSwish": ["HardSigmoid", "Mul"],
    "erf": ["Div", "Erf", "Add", "Mul", "Mul"],
    "tanh": ["Pow", "Mul", "Add", "Mul", "Tanh", "Add", "Mul", "Mul"],
}
LOOK_ALIKES = {
    "no quotient": "u=Add(x,three) v=Clip(u,zero,six) y=Mul(x,v)",
    "another bound": "u=Add(x,three) v=Clip(u,zero,almost) m=Mul(x,v) y=Div(m,six)",
    "another reader": "u=Add(x,three) v=Clip(u,zero,six) m=Mul(x,v) q=Div(m,six) y=Add(q,v)",
    "another input": "z=Sin(x) u=Add(z,three) v=Clip(u,zero,six) m=Mul(x,v) y=Div(m,six)",
    "another root": "u=Mul(x,half) e=Erf(u) e1=Add(e,one) h=Mul(x,half) y=Mul(h,e1)",
    "known to onnxruntime, half first": "u=Div(x,root) e=Erf(u) e1=Add(e,one) m=Mul(x,half) y=Mul(m,e1)",
    "known to onnxruntime": "u=Div(x,root) e=Erf(u) e1=Add(e,one) m=Mul(x,e1) y=Mul(m,half)",
    "difference of exponentials": "e=Exp(x) f=Sub(e,one) y=Reciprocal(f)",
    "one operator": "y=Relu(x)",
    "computed bound": "s=ReduceMax<keepdims=0>(x) u=Add(x,three) v=Min(u,s) m=Mul(x,v) y=Div(m,six)",
}


def old_form(kind: str, operator: str) -> list[str]:
    return OLD.get(operator) or OLD["erf" if "erf" in kind else "tanh"]


@pytest.mark.parametrize("opset", [13, 17, 20])
@pytest.mark.parametrize("kind", SPELLINGS)
def test_spellings_become_operators(kind: str, opset: int) -> None:
    operator, body = SPELLINGS[kind]
    evidence = graph(body.replace(" ", "\n"), NUMBERS, opset)
    found, model = rewritten(evidence, "activations")
    old = (operator == "HardSwish" and opset < 14) or (operator == "Gelu" and opset < 20)
    if kind == "hard sigmoid" and old:
        assert found == ["HardSigmoid", "Mul"]
    else:
        assert found == (old_form(kind, operator) if old else operator.split())
    assert_same_values(evidence, model)


@pytest.mark.parametrize("kind", LOOK_ALIKES)
def test_look_alikes_stay(kind: str) -> None:
    evidence = graph(LOOK_ALIKES[kind].replace(" ", "\n"), NUMBERS)
    found, _model = rewritten(evidence, "activations")
    assert found == operators(evidence.model)


def test_bounds_as_attributes() -> None:
    evidence = graph("u=Clip<min=0.0>(x)\ny=Clip<max=6.0>(u)", {}, 10)
    found, model = rewritten(evidence, "activations")
    assert found == ["Clip"]
    assert_same_values(evidence, model)


def test_numbers_that_would_add_axes_stay() -> None:
    numbers = {"three": f32(np.full((1, 1, 1), 3)), "six": f32(6), "zero": f32(0)}
    body = "u=Add(x,three)\nv=Clip(u,zero,six)\nm=Mul(x,v)\ny=Div(m,six)"
    evidence = graph(body, numbers, out="K,N,8")
    assert rewritten(evidence, "activations")[0] == operators(evidence.model)


def test_in_front_of_and_behind_other_operators() -> None:
    body = """z=Sin(x)\nu=Add(z,three)\nv=Clip(u,zero,six)\nm=Mul(z,v)\nq=Div(m,six)\np=Max(q,zero)\ny=Cos(p)"""
    evidence = graph(body, NUMBERS)
    found, model = rewritten(evidence, "activations")
    assert found == ["Sin", "HardSwish", "Relu", "Cos"] or found == ["Sin", "HardSwish", "Max", "Cos"]
    assert_same_values(evidence, model)


def test_infinite_and_undefined_inputs() -> None:
    """What the original defines, the operator gives as well."""
    for kind in ("clip and quotient", "max with a part", "max then min", "by tanh", "absolute"):
        evidence = graph(SPELLINGS[kind][1].replace(" ", "\n"), NUMBERS)
        model, _ = apply_families(evidence.model, evidence.probe, ["activations"])
        assert_extreme(evidence.model, model)


def assert_extreme(one: ir.Model, two: ir.Model) -> None:
    from onnxpress.runtime.session import SessionSettings, open_session, run

    x = np.resize(np.array([np.inf, -np.inf, 1.0], np.float32), (1, 8))
    wanted, found = (run(open_session(m, SessionSettings(level="none")), {"x": x})[0] for m in (one, two))
    defined = ~np.isnan(wanted)
    np.testing.assert_allclose(found[defined], wanted[defined], rtol=1e-6)


def test_float16_has_its_own_precision() -> None:
    half = {k: v.astype(np.float16) if v.dtype == np.float32 and abs(v).max() < 6e4 else v for k, v in NUMBERS.items()}
    body = SPELLINGS["scaled inside"][1].replace(" ", "\n")
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float16[N,8] x) => (float16[N,8] y) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, k) for k, a in half.items() if k in used)
    evidence = evidence_for(ir.from_proto(onnx.shape_inference.infer_shapes(proto)), None)
    model, _ = apply_families(evidence.model, evidence.probe, ["activations"])
    assert operators(model) == ["HardSwish"]
