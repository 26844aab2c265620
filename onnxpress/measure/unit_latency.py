"""The unit latency table: seconds of single units of models on this machine, each timed alone once.

A unit is a layer with the operators that onnxruntime fuses into it, or any other operator.  The table is kept in the
user's cache by machine, version of onnxruntime, threads and provider; units are found in it by operators, attributes,
shapes and types, whatever model they are from.  Alone a unit takes longer than within a model, whose memory layout it
could share: such times rank units and possible savings, and are not a basis for claims.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from onnxpress.errors import Problem
from onnxpress.measure.cache import Cache, cache_key, user_cache
from onnxpress.model import read, submodels
from onnxpress.model.structural_hash import structural_hash
from onnxpress.model.trace import Trace
from onnxpress.runtime.latency import quick_seconds
from onnxpress.runtime.machine import this_machine
from onnxpress.runtime.session import default_settings

_MOST = 20_000  # units that are kept
_FUSED = {"BatchNormalization", "Relu", "Clip", "Sigmoid", "HardSigmoid", "Tanh", "LeakyRelu"}


def fused_units(model: ir.Model) -> Iterator[list[ir.Node]]:
    """The nodes of each unit, in the model's order."""
    taken: set[int] = set()
    for node in model.graph:
        if id(node) in taken:
            continue
        nodes = [node]
        if read.standard(node) and node.op_type in read.WEIGHTED:
            while (follower := _only_reader(nodes[-1])) is not None and follower.op_type in _FUSED:
                nodes.append(follower)
        taken.update(map(id, nodes))
        yield nodes


def _only_reader(node: ir.Node) -> ir.Node | None:
    uses = list(node.outputs[0].uses())
    alone = len(uses) == 1 and len(node.outputs) == 1 and uses[0].idx == 0 and not node.outputs[0].is_graph_output()
    return uses[0].node if alone and read.standard(uses[0].node) else None


class UnitLatencies:
    """Seconds of units on this machine by structure and sizes, with the settings of `sessions_with`.

    cache: where the table is kept (None: the user's cache).
    """

    def __init__(self, cache: Cache | None = None) -> None:
        self._cache = user_cache() if cache is None else cache
        machine, settings = this_machine(), default_settings()
        here = f"{machine.model} {machine.arch} {machine.isa} {machine.onnxruntime}"
        self._key = cache_key("unit latencies", here, f"{settings.threads} {settings.provider}")
        self._known = self._kept()
        self._new: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._known)

    def _kept(self) -> dict[str, float]:
        stored = self._cache.get(self._key) or {}
        names, seconds = stored.get("units", np.array([], np.str_)), stored.get("seconds", np.array([]))
        return dict(zip(names.tolist(), seconds.tolist(), strict=True)) if len(names) == len(seconds) else {}

    def keep(self) -> None:
        """Write what was timed to the cache, beside what other runs wrote meanwhile."""
        if not self._new:
            return
        table = {**self._kept(), **self._new}
        some = list(table)[-_MOST:]
        self._cache.put(self._key, {"units": np.array(some), "seconds": np.array([table[name] for name in some])})
        self._new = {}

    def seconds(self, model: ir.Model, nodes: Sequence[ir.Node], sizes: Trace) -> float:
        """Seconds of one unit; 0 where it cannot run alone (nodes that only compute shapes take almost no time)."""
        part = submodels.extract_nodes(model, nodes, sizes)
        key = f"{structural_hash(part, named=False)} {[sizes.shape(v.name) for v in part.graph.inputs]}"
        if key not in self._known:
            self._known[key] = self._new[key] = _timed(part, sizes)
        return self._known[key]


def node_seconds(model: ir.Model, sizes: Trace) -> dict[str, float]:
    """Seconds by node name; the time of a unit is attributed to its first node."""
    times = UnitLatencies()
    found = {nodes[0].name or "": times.seconds(model, nodes, sizes) for nodes in fused_units(model)}
    times.keep()
    return found


def _timed(part: ir.Model, sizes: Trace) -> float:
    rng = np.random.default_rng(0)
    feeds = {}
    for value in part.graph.inputs:
        name, shape = value.name or "", sizes.shape(value.name) or ()
        dtype = np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()
        if name in sizes.values:
            feeds[name] = sizes.values[name]
        elif dtype.kind == "f":
            feeds[name] = rng.standard_normal(shape).astype(dtype)
        else:
            feeds[name] = np.zeros(shape, dtype)
    try:
        return quick_seconds(part, feeds)
    except Problem:
        return 0.0
