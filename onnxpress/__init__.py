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
    "optimize": "onnxpress.search.optimize",
    "Request": "onnxpress.search.request",
    "prune": "onnxpress.api.one_pass",
    "depth": "onnxpress.api.one_pass",
    "lowrank": "onnxpress.api.one_pass",
    "quantize": "onnxpress.api.one_pass",
    "share": "onnxpress.api.weight_passes",
    "weights": "onnxpress.api.weight_passes",
    "stream_weights": "onnxpress.api.external_data_quantization",
    "sparsify": "onnxpress.api.weight_passes",
    "half": "onnxpress.api.weight_passes",
    "dynamic": "onnxpress.api.weight_passes",
    "simplify": "onnxpress.api.one_pass",
    "distill": "onnxpress.api.distill",
    "apply": "onnxpress.api.one_pass",
    "bench": "onnxpress.evaluate.bench",
    "compare": "onnxpress.evaluate.compare",
    "inspect": "onnxpress.api.inspection",
    "load": "onnxpress.model.files",
    "save": "onnxpress.model.files",
    "Dataset": "onnxpress.data.dataset",
    "open_dataset": "onnxpress.data.dataset",
    "report": "onnxpress.reporting.page",
    "signature": "onnxpress.model.signature",
    "Plan": "onnxpress.plan.plan",
}

__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from onnxpress.api.distill import distill as distill
    from onnxpress.api.external_data_quantization import stream_weights as stream_weights
    from onnxpress.api.inspection import inspect as inspect
    from onnxpress.api.one_pass import apply as apply
    from onnxpress.api.one_pass import depth as depth
    from onnxpress.api.one_pass import lowrank as lowrank
    from onnxpress.api.one_pass import prune as prune
    from onnxpress.api.one_pass import quantize as quantize
    from onnxpress.api.one_pass import simplify as simplify
    from onnxpress.api.weight_passes import dynamic as dynamic
    from onnxpress.api.weight_passes import half as half
    from onnxpress.api.weight_passes import share as share
    from onnxpress.api.weight_passes import sparsify as sparsify
    from onnxpress.api.weight_passes import weights as weights
    from onnxpress.data.dataset import Dataset as Dataset
    from onnxpress.data.dataset import open_dataset as open_dataset
    from onnxpress.evaluate.bench import bench as bench
    from onnxpress.evaluate.compare import compare as compare
    from onnxpress.model.files import load as load
    from onnxpress.model.files import save as save
    from onnxpress.model.signature import signature as signature
    from onnxpress.plan.plan import Plan as Plan
    from onnxpress.reporting.page import report as report
    from onnxpress.search.optimize import optimize as optimize
    from onnxpress.search.request import Request as Request


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'onnxpress' has no attribute {name!r}")
    return getattr(import_module(home), name)
