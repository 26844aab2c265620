"""The passes there are: the built-in ones, and those other packages register under `onnxpress.passes`."""

from __future__ import annotations

from importlib.metadata import entry_points

from onnxpress.errors import InputProblem
from onnxpress.passes.attention import ATTENTION
from onnxpress.passes.base import Pass
from onnxpress.passes.codebook import SHARE
from onnxpress.passes.depth import DEPTH
from onnxpress.passes.distill import DISTILL
from onnxpress.passes.dynamic import DYNAMIC
from onnxpress.passes.equalize import EQUALIZE
from onnxpress.passes.halfprec import HALF
from onnxpress.passes.kernels import KERNELS
from onnxpress.passes.lowrank import LOWRANK
from onnxpress.passes.prune import PRUNE
from onnxpress.passes.quantize import QUANTIZE
from onnxpress.passes.reduce import REDUCE
from onnxpress.passes.simplify import SIMPLIFY
from onnxpress.passes.sparsify import SPARSIFY
from onnxpress.passes.weightonly import WEIGHTS


def find_pass(name: str) -> Pass:
    """A pass by name; raises InputProblem that lists the known ones."""
    known = all_passes()
    if name not in known:
        raise InputProblem("unknown pass", name, "", f"one of {', '.join(sorted(known))}")
    return known[name]


def all_passes() -> dict[str, Pass]:
    """The built-in passes and those other packages register."""
    own = (SIMPLIFY, REDUCE, PRUNE, DEPTH, KERNELS, ATTENTION, LOWRANK, EQUALIZE, QUANTIZE, DYNAMIC, SHARE, WEIGHTS, HALF, SPARSIFY, DISTILL)
    found: dict[str, Pass] = {p.name: p for p in own}
    for entry in entry_points(group="onnxpress.passes"):
        if entry.name not in found:
            found[entry.name] = entry.load()
    return found
