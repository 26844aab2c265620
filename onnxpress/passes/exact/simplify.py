"""simplify: constant folding and graph clean-up by onnxsim, with onnx-ir's clean-ups behind it.

onnxsim is native code and graphs come from strangers: it runs in a child under a time limit (`runtime/simplifier.py`).
Where it fails, or its result is not valid or computes something else, onnx-ir's own clean-ups stand in, and the
result says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import Evidence
from onnxpress.model import edit
from onnxpress.model.files import is_large, to_bytes
from onnxpress.passes.core.contract import Applied, Decision, Option
from onnxpress.runtime.session import SessionSettings, open_session, run
from onnxpress.runtime.simplifier import onnxsim

_DIARY = "onnxsim."  # under what the tool notes in the file what it did: kilobytes of names that nobody reads


class Simplify:
    name = "simplify"
    exact = True
    needs_data = False

    def options(self, model: ir.Model, evidence: Evidence) -> list[Option]:
        return [Option(self.name, "graph", {"tool": "onnxsim"})]

    def apply(self, model: ir.Model, decisions: Sequence[Decision], evidence: Evidence) -> Applied:
        """decisions: [{"tool": "onnxsim" | "onnx-ir"}]; "onnx-ir" asks for the built-in clean-ups alone."""
        if not decisions:
            return Applied(model.clone())
        if decisions[0].get("tool") != "onnxsim":
            return Applied(edit.canonical(model))
        done = _checked(model, evidence)
        if isinstance(done, str):
            return Applied(edit.canonical(model), [f"onnxsim was not used ({done}); onnx-ir's clean-ups were"])
        return Applied(edit.canonical(done))


def _checked(model: ir.Model, evidence: Evidence) -> ir.Model | str:
    """onnxsim's result if it is valid, keeps the signature and answers a sample as the original does."""
    if is_large(model):
        return "it takes no more than 2 GB"
    data = onnxsim(to_bytes(model))
    if isinstance(data, str):
        return data
    try:
        proto = onnx.load_from_string(data)
        onnx.checker.check_model(proto)
    except Exception as error:  # whatever a misbehaving native library left behind
        return f"its result is not valid: {type(error).__name__}"
    done: ir.Model = ir.from_proto(proto)
    inputs = ([v.name for v in g.inputs if not v.is_initializer()] for g in (done.graph, model.graph))
    if [v.name for v in done.graph.outputs] != [v.name for v in model.graph.outputs] or len(
        {tuple(i) for i in inputs}
    ) > 1:
        return "it changed the signature"
    for new, old in zip(done.graph.outputs, model.graph.outputs, strict=True):
        new.shape, new.type = old.shape, old.type
    for key in [k for k in done.metadata_props if k.startswith(_DIARY) and k not in model.metadata_props]:
        done.metadata_props.pop(key)
    try:
        return done if _same(model, done, evidence) else "it changed the answers"
    except InputProblem as error:
        return f"its result does not run: {error.what}"


def _same(model: ir.Model, done: ir.Model, evidence: Evidence) -> bool:
    plain = SessionSettings(level="basic")
    old, new = (run(open_session(m, plain), evidence.probe) for m in (model, done))
    return all(
        a.shape == b.shape and (a.dtype.kind not in "fiub" or np.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True))
        for a, b in zip(old, new, strict=True)
    )


SIMPLIFY = Simplify()
