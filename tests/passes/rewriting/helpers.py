"""Small graphs written as text, rewritten by one family, and compared with the original without optimizations."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.passes.rewriting.families import apply_families
from onnxpress.runtime.session import SessionSettings, open_session, run

_RNG = np.random.default_rng(0)
EXTREME = (0.0, -0.0, 1e-30, -1e-30, 3.0, -3.0, 6.0, 20.0, -20.0, 60.0, -60.0, 1e4, -1e4)


def f32(value: object) -> np.ndarray:
    return np.array(value, np.float32)


def random(*shape: int) -> np.ndarray:
    return _RNG.standard_normal(shape).astype(np.float32)


def graph(
    body: str, constants: Mapping[str, np.ndarray], opset: int = 17, shape: str = "N,8", out: str = ""
) -> Evidence:
    """Evidence of a graph from x [shape] to y, with those of the constants that it reads."""
    text = (
        f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[{shape}] x) => (float[{out or shape}] y) {{ {body} }}'
    )
    model = onnx.parser.parse_model(text)
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(a, k) for k, a in constants.items() if k in used)
    onnx.checker.check_model(model)
    return evidence_for(ir.from_proto(model), None)


def rewritten(evidence: Evidence, family: str) -> tuple[list[str], ir.Model]:
    """The operators of the rewritten model, and that model; what is rewritten again stays as it is."""
    model, found = apply_families(evidence.model, evidence.probe, [family], evidence.trace)
    again, more = apply_families(model, evidence.probe, [family])
    assert not more, f"the rewrite of a rewrite found {more}"
    assert bool(found) == (
        [n.op_type for n in model.graph] != operators(evidence.model) or _others(model, evidence.model)
    )
    return operators(again), model


def operators(model: ir.Model) -> list[str]:
    return [n.op_type for n in model.graph]


def _others(one: ir.Model, two: ir.Model) -> bool:
    return bool(ir.to_proto(one).SerializeToString() != ir.to_proto(two).SerializeToString())


def assert_same_values(evidence: Evidence, model: ir.Model, tolerance: float = 2e-6, extreme: bool = True) -> None:
    """Both give the same values, relative to the largest; without onnxruntime's optimizations, and with them."""
    shape = evidence.probe["x"].shape
    feeds = [_RNG.standard_normal((3, *shape[1:])).astype(np.float32) * scale for scale in (1, 4)]
    if extreme:
        feeds.append(np.resize(np.array(EXTREME, np.float32), (3, *shape[1:])))
    for level in ("none", "all"):
        sessions = [open_session(m, SessionSettings(level=level)) for m in (evidence.model, model)]
        for x in feeds:
            wanted, found = (run(s, {"x": x})[0] for s in sessions)
            scale = max(float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0)), 1.0)
            np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance * scale)
