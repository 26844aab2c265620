"""onnxpress: makes a trained ONNX file smaller and faster on this CPU, and proves it on your data.

Every pass of the registry is a function of the package (`prune`, `quantize`, ...), those of other packages, too. Names
are imported when they are first used, so that `import onnxpress` costs nothing.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# numpy's and scipy's OpenBLAS each keep threads that spin for some 30 ms after every call, beside each other's and
# beside onnxruntime's: pruning took 1.35 times as long, more where the machine was busy. Read when numpy is loaded, so
# set before: the value counts powers of two of clock ticks, 4 is the least, and OpenBLAS's own 26 shows the difference.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

_PLACES = {
    "optimize": "search.optimize",
    "OptimizeOptions": "search.request",
    "OptimizeResult": "search.finalists",
    "QualityOptions": "measure.quality",
    "run_pass": "api.run_pass",
    "apply": "api.run_pass",
    "PassResult": "api.run_pass",
    "stream_weights": "api.external_data_quantization",
    "distill": "api.distill",
    "DistillationOptions": "api.distillation_session",
    "TrainingSettings": "train.settings",
    "nas_search": "nas.functions",
    "nas_from": "nas.functions",
    "nas_worker": "nas.functions",
    "nas_build": "nas.functions",
    "inspect": "api.inspection",
    "bench": "evaluate.bench",
    "BenchOptions": "evaluate.bench",
    "BenchConditions": "evaluate.bench",
    "Effort": "runtime.latency",
    "run_gate": "evaluate.gate",
    "GateOptions": "evaluate.gate",
    "compare": "evaluate.compare",
    "report": "reporting.page",
    "load": "model.files",
    "save": "model.files",
    "signature": "model.signature",
    "Dataset": "data.dataset",
    "Splits": "data.dataset",
    "open_dataset": "data.dataset",
    "Plan": "plan.plan",
    "read_plan": "plan.plan",
    "write_plan": "plan.plan",
    "PruneOptions": "passes.pruning.options",
    "DepthOptions": "passes.structure.depth",
    "LowRankOptions": "passes.structure.lowrank",
    "KernelsOptions": "passes.structure.kernels",
    "AttentionOptions": "passes.structure.attention",
    "QuantizeOptions": "passes.int8.quantize",
    "DynamicOptions": "passes.int8.dynamic",
    "EqualizeOptions": "passes.int8.equalize",
    "ShareOptions": "passes.weights.share",
    "WeightsOptions": "passes.weights.weights",
    "HalfOptions": "passes.weights.half",
    "SparsifyOptions": "passes.weights.sparsify",
    "SimplifyOptions": "passes.exact.simplify",
    "RewriteOptions": "passes.rewriting.rewrite",
    "Problem": "errors",
    "InputProblem": "errors",
    "EnvironmentProblem": "errors",
}

if TYPE_CHECKING:
    from onnxpress.api.distill import distill as distill
    from onnxpress.api.distillation_session import DistillationOptions as DistillationOptions
    from onnxpress.api.external_data_quantization import stream_weights as stream_weights
    from onnxpress.api.inspection import inspect as inspect
    from onnxpress.api.pass_functions import PassFunction
    from onnxpress.api.run_pass import PassResult as PassResult
    from onnxpress.api.run_pass import apply as apply
    from onnxpress.api.run_pass import run_pass as run_pass
    from onnxpress.data.dataset import Dataset as Dataset
    from onnxpress.data.dataset import Splits as Splits
    from onnxpress.data.dataset import open_dataset as open_dataset
    from onnxpress.errors import EnvironmentProblem as EnvironmentProblem
    from onnxpress.errors import InputProblem as InputProblem
    from onnxpress.errors import Problem as Problem
    from onnxpress.evaluate.bench import BenchConditions as BenchConditions
    from onnxpress.evaluate.bench import BenchOptions as BenchOptions
    from onnxpress.evaluate.bench import bench as bench
    from onnxpress.evaluate.compare import compare as compare
    from onnxpress.evaluate.gate import GateOptions as GateOptions
    from onnxpress.evaluate.gate import run_gate as run_gate
    from onnxpress.measure.quality import QualityOptions as QualityOptions
    from onnxpress.model.files import load as load
    from onnxpress.model.files import save as save
    from onnxpress.model.signature import signature as signature
    from onnxpress.nas.functions import nas_build as nas_build
    from onnxpress.nas.functions import nas_from as nas_from
    from onnxpress.nas.functions import nas_search as nas_search
    from onnxpress.nas.functions import nas_worker as nas_worker
    from onnxpress.passes.exact.simplify import SimplifyOptions as SimplifyOptions
    from onnxpress.passes.int8.dynamic import DynamicOptions as DynamicOptions
    from onnxpress.passes.int8.equalize import EqualizeOptions as EqualizeOptions
    from onnxpress.passes.int8.quantize import QuantizeOptions as QuantizeOptions
    from onnxpress.passes.pruning.options import PruneOptions as PruneOptions
    from onnxpress.passes.rewriting.rewrite import RewriteOptions as RewriteOptions
    from onnxpress.passes.structure.attention import AttentionOptions as AttentionOptions
    from onnxpress.passes.structure.depth import DepthOptions as DepthOptions
    from onnxpress.passes.structure.kernels import KernelsOptions as KernelsOptions
    from onnxpress.passes.structure.lowrank import LowRankOptions as LowRankOptions
    from onnxpress.passes.weights.half import HalfOptions as HalfOptions
    from onnxpress.passes.weights.share import ShareOptions as ShareOptions
    from onnxpress.passes.weights.sparsify import SparsifyOptions as SparsifyOptions
    from onnxpress.passes.weights.weights import WeightsOptions as WeightsOptions
    from onnxpress.plan.plan import Plan as Plan
    from onnxpress.plan.plan import read_plan as read_plan
    from onnxpress.plan.plan import write_plan as write_plan
    from onnxpress.reporting.page import report as report
    from onnxpress.runtime.latency import Effort as Effort
    from onnxpress.search.finalists import OptimizeResult as OptimizeResult
    from onnxpress.search.optimize import optimize as optimize
    from onnxpress.search.request import OptimizeOptions as OptimizeOptions
    from onnxpress.train.settings import TrainingSettings as TrainingSettings

    simplify: PassFunction
    rewrite: PassFunction
    prune: PassFunction
    depth: PassFunction
    lowrank: PassFunction
    kernels: PassFunction
    attention: PassFunction
    quantize: PassFunction
    dynamic: PassFunction
    equalize: PassFunction
    share: PassFunction
    weights: PassFunction
    half: PassFunction
    sparsify: PassFunction


def _pass_names() -> list[str]:
    from onnxpress.passes.registry import pass_names

    return [name for name in pass_names() if name not in _PLACES]


def __dir__() -> list[str]:
    return sorted([*_PLACES, *_pass_names(), "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return [*_PLACES, *_pass_names(), "__version__"]
    place = _PLACES.get(name)
    if place is not None:
        return getattr(import_module(f"onnxpress.{place}"), name)
    if not name.startswith("_") and name in _pass_names():
        from onnxpress.api.pass_functions import pass_function

        return pass_function(name)
    raise AttributeError(f"module 'onnxpress' has no attribute {name!r}")
