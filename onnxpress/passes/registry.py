"""All passes: the built-in ones, and those of other packages under the entry point group `onnxpress.passes`.

This is the only list. The command line, `inspect`, `optimize`, the Python functions, plans and the conformance suite
find passes here. A pass is one file, one line below and one test file.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from onnxpress.errors import EnvironmentProblem, InputProblem

if TYPE_CHECKING:
    from onnxpress.passes.core.contract import AnyPass

GROUP = "onnxpress.passes"

# name: (module:object, summary for the list of commands)
_BUILT_IN: dict[str, tuple[str, str]] = {
    "simplify": ("exact.simplify:SIMPLIFY", "constant folding and exact reductions, no samples needed"),
    "rewrite": ("rewriting.rewrite:REWRITE", "the same function in onnxruntime's fastest kernels, no samples needed"),
    "prune": ("pruning.prune:PRUNE", "remove channels and heads, with least-squares refit"),
    "depth": ("structure.depth:DEPTH", "remove residual blocks or layers, with least-squares refit"),
    "lowrank": ("structure.lowrank:LOWRANK", "low-rank factorization of weights where that is faster"),
    "kernels": ("structure.kernels:KERNELS", "smaller and separable convolution kernels"),
    "attention": ("structure.attention:ATTENTION", "linear attention in place of softmax attention"),
    "quantize": ("int8.quantize:QUANTIZE", "static int8 with calibration samples"),
    "dynamic": ("int8.dynamic:DYNAMIC", "dynamic int8 of MatMul and Gemm, no samples needed"),
    "equalize": ("int8.equalize:EQUALIZE", "cross-layer equalization, before quantization"),
    "share": ("weights.share:SHARE", "weights as codebooks: a smaller file, the same speed"),
    "weights": ("weights.weights:WEIGHTS", "weights in 8, 4, 3 or 2 bits: a smaller file, the same speed"),
    "half": ("weights.half:HALF", "weights in 16 bits: half the file, the same speed"),
    "sparsify": ("weights.sparsify:SPARSIFY", "unstructured or N:M sparsity: a smaller compressed file"),
    "distill": ("distillation.distill:DISTILL", "train a student towards a teacher, or refit it in closed form"),
}


def pass_names() -> list[str]:
    """Names of all passes, the built-in ones first; nothing is imported."""
    return [*_BUILT_IN, *sorted(_entries())]


def summary(name: str) -> str:
    """One line about a pass, for lists; a pass of another package is imported for it."""
    if name in _BUILT_IN:
        return _BUILT_IN[name][1]
    lines = (type(find_pass(name)).__doc__ or "").strip().splitlines()
    return lines[0].rstrip(".") if lines else f"a pass of {package_of(name)}"


def package_of(name: str) -> str:
    """The distribution that a pass comes from."""
    if name in _BUILT_IN:
        return "onnxpress"
    found = _entries()[name].dist
    return found.name if found is not None else "another package"


def find_pass(name: str) -> AnyPass:
    """A pass by name.

    Raises InputProblem that lists the known names, EnvironmentProblem where the package of a pass cannot be loaded.
    """
    if name in _BUILT_IN:
        module, attribute = _BUILT_IN[name][0].split(":")
        found: AnyPass = getattr(import_module(f"onnxpress.passes.{module}"), attribute)
        return found
    entry = _entries().get(name)
    if entry is None:
        raise InputProblem("unknown pass", name, "", f"one of {', '.join(sorted(pass_names()))}")
    return _load(entry)


def all_passes() -> dict[str, AnyPass]:
    """All passes by name; a warning for each of another package that cannot be loaded."""
    found = {name: find_pass(name) for name in _BUILT_IN}
    for name in sorted(_entries()):
        try:
            found[name] = find_pass(name)
        except EnvironmentProblem as problem:
            warnings.warn(problem.line(), stacklevel=2)
    return found


@cache
def _entries() -> dict[str, EntryPoint]:
    """Entry points of other packages; a built-in name cannot be replaced."""
    return {e.name: e for e in entry_points(group=GROUP) if e.name not in _BUILT_IN}


def _load(entry: EntryPoint) -> AnyPass:
    from onnxpress.passes.core.contract import Pass  # not above: listing the names must stay fast

    package = entry.dist.name if entry.dist is not None else "another package"
    try:
        loaded = entry.load()
    except Exception as error:  # whatever the import of another package raises
        raise EnvironmentProblem(
            f"the pass {entry.name} cannot be loaded",
            package,
            f"{type(error).__name__}: {error}",
            "update or uninstall that package",
        ) from error
    if not isinstance(loaded, Pass) or loaded.name != entry.name:
        raise EnvironmentProblem(
            f"the pass {entry.name} does not follow the contract of a pass",
            package,
            "expected name, exact, needs_data, extra, Options, propose, plan and apply",
            "see onnxpress.testing",
        )
    return loaded
