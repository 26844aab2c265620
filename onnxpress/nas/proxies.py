"""What an untrained network promises, by forward runs in onnxruntime alone; and which proxies there are.

All are higher where a network should do better once trained.  Work and size are the baselines that the others must
beat: they often do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.model import read
from onnxpress.model.files import to_bytes
from onnxpress.nas.costs import Costs
from onnxpress.runtime.session import all_cores, open_session, run, tap

FORWARD = ("naswot", "zen")
GRADIENT = ("synflow", "snip", "grad-norm", "jacobian")
COUNTED = ("macs", "parameters")
PROXIES = (*FORWARD, *GRADIENT, *COUNTED)
_FEW = 32  # samples
_STEP = 0.01  # of the perturbation of zen
_TINY = 1e-12

Arrays = Mapping[str, np.ndarray]


def check(name: str) -> None:
    """Raises InputProblem for a proxy that does not exist."""
    if name not in PROXIES:
        raise InputProblem("unknown proxy", name, "", f"one of {', '.join(PROXIES)}")


def proxy(name: str, model: ir.Model, batch: Arrays, counted: Costs, seed: int = 0) -> float:
    """The proxy of a candidate.  batch: some samples (32 do).  Raises EnvironmentProblem where it needs torch and has none."""
    check(name)
    if name in COUNTED:
        return float(counted.macs if name == "macs" else counted.parameters)
    if name == "naswot":
        return naswot(model, batch)
    if name == "zen":
        return zen(model, batch, seed)
    from onnxpress.nas.gradients import gradient_proxy

    return gradient_proxy(name, model, batch, seed)


def naswot(model: ir.Model, batch: Arrays) -> float:
    """How differently the samples switch the network's Relus (Mellor et al. 2021): log|det K| of the kernel of equal
    codes; minus infinity without Relus."""
    names = [n.inputs[0].name or "" for n in model.graph if n.op_type in ("Relu", "Clip") and n.inputs[0] is not None]
    if not names:
        return -np.inf
    count = _rows(batch)
    kernel = np.zeros((count, count))
    for value in run(tap(model, names), batch):
        code = (value.reshape(count, -1) > 0).astype(np.float32)
        kernel += code @ code.T + (1 - code) @ (1 - code).T
    sign, size = np.linalg.slogdet(kernel)
    return float(size) if sign > 0 else -np.inf


def zen(model: ir.Model, batch: Arrays, seed: int = 0) -> float:
    """How strongly features answer to a small change of a random input, normalizations' scales counted back (Lin et al.
    2021): log E|f(x) - f(x + 0.01 e)| + sum over normalizations of log sqrt(mean variance)."""
    rng = np.random.default_rng(seed)
    noise = {n: rng.standard_normal(a.shape).astype(a.dtype) if a.dtype.kind == "f" else a for n, a in batch.items()}
    moved = {n: a + (_STEP * rng.standard_normal(a.shape)).astype(a.dtype) if a.dtype.kind == "f" else a for n, a in noise.items()}
    norms = [n for n in model.graph if n.op_type == "BatchNormalization" and read.standard(n)]
    statistics, scale = _settled(model, norms, noise)
    features = _features(model)
    session = _open(model, norms, [features])
    first, second = (run_with(session, feeds, statistics)[0] for feeds in (noise, moved))
    return float(np.log(np.abs(first - second).mean() + _TINY) + scale)


def _features(model: ir.Model) -> str:
    """The last value with positions, before they are averaged; else what enters the last layer."""
    pools = [n for n in model.graph if n.op_type in ("GlobalAveragePool", "ReduceMean")]
    last = pools[-1] if pools else [n for n in model.graph if n.op_type in read.WEIGHTED][-1]
    assert last.inputs[0] is not None
    return last.inputs[0].name or ""


def _settled(model: ir.Model, norms: Sequence[ir.Node], feeds: Arrays) -> tuple[dict[str, np.ndarray], float]:
    """Each normalization's statistics on the batch, given those before it; and the sum of log sqrt(mean variance)."""
    if not norms:
        return {}, 0.0
    sources = [n.inputs[0].name or "" for n in norms if n.inputs[0] is not None]
    session = _open(model, norms, sources)
    found: dict[str, np.ndarray] = {}
    total = 0.0
    for node, source in zip(norms, sources, strict=True):
        value = run_with(session, feeds, found, [source])[0]
        axes = (0, *range(2, value.ndim))
        mean, var = value.mean(axes), value.var(axes)
        for place, number in zip(node.inputs[3:5], (mean, var), strict=True):
            assert place is not None
            found[place.name or ""] = number.astype(np.float32)
        total += float(np.log(np.sqrt(var.mean()) + _TINY))
    return found, total


def _open(model: ir.Model, norms: Sequence[ir.Node], names: Sequence[str]) -> object:
    """A session that gives the named values, and takes the normalizations' statistics as inputs with defaults."""
    proto = onnx.load_from_string(to_bytes(model))
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in dict.fromkeys(names))
    for node in norms:
        for value in node.inputs[3:5]:
            assert value is not None and value.const_value is not None
            shape = list(value.const_value.shape.numpy())
            proto.graph.input.append(onnx.helper.make_tensor_value_info(value.name or "", onnx.TensorProto.FLOAT, shape))
    return open_session(proto.SerializeToString(), all_cores())


def run_with(session: object, feeds: Arrays, statistics: Arrays, names: Sequence[str] | None = None) -> list[np.ndarray]:
    """One run with statistics in the place of the stored ones; names: of the outputs to compute (None: all)."""
    return list(session.run(list(names) if names else None, {**feeds, **statistics}))  # type: ignore[attr-defined]


def _rows(batch: Arrays) -> int:
    return len(next(iter(batch.values())))
