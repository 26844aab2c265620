"""onnxsim in a child process with limits: one file in, one file out.

Files with an operator set below 13 are converted to 13 first, which int8 needs.  Some rewrites are disabled: MatMul of
rank 3 as Reshape-Gemm-Reshape (slower on CPU, and it hides the widths that pruning works on), the fusion of Q, K and V,
and whole attentions as one operator of onnxruntime (other tools cannot read the file, and heads are no longer visible).
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from onnxpress.runtime import isolate
from onnxpress.runtime.session import temporary_folder

SECONDS = 180.0
NEEDED_OPSET = 13  # for integers with one scale per channel; older files are converted to it
_DISABLED = [
    "fuse_matmul_add_bias_into_gemm",
    "fuse_matmul_add_bias_into_gemm_batched",
    "fuse_qkv",
    "fuse_attention",
    "fuse_gqa",
]
_MAX_BYTES = 1_500_000_000
_SERVER = isolate.ForkServer("onnxpress.runtime.simplifier:preload")


def onnxsim(model: bytes) -> bytes | str:
    """The simplified model, or one clause that says why there is none."""
    if importlib.util.find_spec("onnxsim") is None:
        return "it is not installed"
    if len(model) > _MAX_BYTES:
        return "the model is too large for it"
    with temporary_folder() as folder:
        source, target = folder / "in.onnx", folder / "out.onnx"
        source.write_bytes(model)
        outcome = _SERVER.call("onnxpress.runtime.simplifier:child", str(source), str(target), seconds=SECONDS)
        if not outcome.ok:
            return f"{outcome.reason}: {outcome.detail}"
        return target.read_bytes()


def preload() -> None:
    """In the server of child processes: what all of them need."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # onnxsim imports it where it is installed, which takes a second and is not needed
    import onnxsim  # noqa: F401


def child(source: str, target: str) -> None:
    """In the child process: simplify one file into another."""
    import onnx
    import onnxsim as tool

    model = onnx.load(source)
    _own_initializers(model)
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), NEEDED_OPSET)
    if version < NEEDED_OPSET:
        model = onnx.version_converter.convert_version(model, NEEDED_OPSET)
    proto, ok = tool.simplify(model, skipped_optimizers=_DISABLED)
    if not ok:
        raise RuntimeError("onnxsim's own check of the result failed")
    Path(target).write_bytes(proto.SerializeToString(deterministic=True))


def _own_initializers(model: Any) -> None:
    """Before IR version 4 initializers are inputs as well; the added ones are not, so the others stop being inputs."""
    if model.ir_version < 4:
        held = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in held]
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        model.ir_version = 4
