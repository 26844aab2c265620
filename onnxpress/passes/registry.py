"""The passes there are: the built-in ones, and those other packages register under `onnxpress.passes`."""

from __future__ import annotations

from importlib.metadata import entry_points

from onnxpress.errors import InputProblem
from onnxpress.passes.core.contract import Pass
from onnxpress.passes.distillation.distill import DISTILL
from onnxpress.passes.exact.reduce import REDUCE
from onnxpress.passes.exact.simplify import SIMPLIFY
from onnxpress.passes.int8.dynamic import DYNAMIC
from onnxpress.passes.int8.equalize import EQUALIZE
from onnxpress.passes.int8.quantize import QUANTIZE
from onnxpress.passes.pruning.prune import PRUNE
from onnxpress.passes.structure.attention import ATTENTION
from onnxpress.passes.structure.depth import DEPTH
from onnxpress.passes.structure.kernels import KERNELS
from onnxpress.passes.structure.lowrank import LOWRANK
from onnxpress.passes.weights.half import HALF
from onnxpress.passes.weights.share import SHARE
from onnxpress.passes.weights.sparsify import SPARSIFY
from onnxpress.passes.weights.weights import WEIGHTS


def find_pass(name: str) -> Pass:
    """A pass by name; raises InputProblem that lists the known ones."""
    known = all_passes()
    if name not in known:
        raise InputProblem("unknown pass", name, "", f"one of {', '.join(sorted(known))}")
    return known[name]


def all_passes() -> dict[str, Pass]:
    """The built-in passes and those other packages register."""
    own = (
        SIMPLIFY,
        REDUCE,
        PRUNE,
        DEPTH,
        KERNELS,
        ATTENTION,
        LOWRANK,
        EQUALIZE,
        QUANTIZE,
        DYNAMIC,
        SHARE,
        WEIGHTS,
        HALF,
        SPARSIFY,
        DISTILL,
    )
    found: dict[str, Pass] = {p.name: p for p in own}
    for entry in entry_points(group="onnxpress.passes"):
        if entry.name not in found:
            found[entry.name] = entry.load()
    return found
