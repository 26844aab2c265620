"""onnxpress: makes a trained ONNX file smaller and faster on this CPU, and proves it on your data.

The public names are imported when first used, so that `import onnxpress` costs nothing.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# numpy's and scipy's OpenBLAS each keep threads that spin for some 30 ms after every call, beside each other's and beside
# onnxruntime's: pruning took 1.35 times as long, more where the machine was busy.  Read when numpy is loaded, so before it:
# the name counts powers of two of clock ticks, 4 is the least, and OpenBLAS's own 26 shows the difference.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

_HOMES = {
    "optimize": "onnxpress.optimize.loop",
    "Request": "onnxpress.optimize.request",
    "prune": "onnxpress.optimize.single",
    "depth": "onnxpress.optimize.single",
    "lowrank": "onnxpress.optimize.single",
    "quantize": "onnxpress.optimize.single",
    "share": "onnxpress.optimize.bits",
    "weights": "onnxpress.optimize.bits",
    "stream_weights": "onnxpress.optimize.streamed",
    "sparsify": "onnxpress.optimize.bits",
    "half": "onnxpress.optimize.bits",
    "dynamic": "onnxpress.optimize.bits",
    "simplify": "onnxpress.optimize.single",
    "distill": "onnxpress.optimize.distill",
    "apply": "onnxpress.optimize.single",
    "bench": "onnxpress.optimize.bench",
    "compare": "onnxpress.optimize.compared",
    "inspect": "onnxpress.optimize.inspection",
    "load": "onnxpress.model.files",
    "save": "onnxpress.model.files",
    "Dataset": "onnxpress.data.dataset",
    "open_dataset": "onnxpress.data.dataset",
    "report": "onnxpress.report.page",
    "signature": "onnxpress.model.signature",
    "Plan": "onnxpress.optimize.plan",
}

__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from onnxpress.data.dataset import Dataset as Dataset
    from onnxpress.data.dataset import open_dataset as open_dataset
    from onnxpress.model.files import load as load
    from onnxpress.model.files import save as save
    from onnxpress.model.signature import signature as signature
    from onnxpress.optimize.bench import bench as bench
    from onnxpress.optimize.bits import dynamic as dynamic
    from onnxpress.optimize.bits import half as half
    from onnxpress.optimize.bits import share as share
    from onnxpress.optimize.bits import sparsify as sparsify
    from onnxpress.optimize.bits import weights as weights
    from onnxpress.optimize.compared import compare as compare
    from onnxpress.optimize.distill import distill as distill
    from onnxpress.optimize.inspection import inspect as inspect
    from onnxpress.optimize.loop import optimize as optimize
    from onnxpress.optimize.plan import Plan as Plan
    from onnxpress.optimize.request import Request as Request
    from onnxpress.optimize.single import (
        apply as apply,
    )
    from onnxpress.optimize.single import (
        depth as depth,
    )
    from onnxpress.optimize.single import (
        lowrank as lowrank,
    )
    from onnxpress.optimize.single import (
        prune as prune,
    )
    from onnxpress.optimize.single import (
        quantize as quantize,
    )
    from onnxpress.optimize.single import (
        simplify as simplify,
    )
    from onnxpress.optimize.streamed import stream_weights as stream_weights
    from onnxpress.report.page import report as report


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'onnxpress' has no attribute {name!r}")
    return getattr(import_module(home), name)
