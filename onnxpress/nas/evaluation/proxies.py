"""Zero-cost proxies: estimates of a network's quality without training, here by forward passes in onnxruntime.

All are higher for networks that are expected to be better after training.  MACs and parameters are the baselines,
which the other proxies often do not exceed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxpress.data.readers.user_function import load_function_once
from onnxpress.errors import InputProblem
from onnxpress.model import read
from onnxpress.model.files import to_bytes
from onnxpress.nas.evaluation.costs import Costs
from onnxpress.runtime.session import all_cores, open_session
from onnxpress.train.optional_torch import require_torch

FORWARD = ("naswot", "zen")
GRADIENT = ("synflow", "snip", "grad-norm", "jacobian")
COUNTED = ("macs", "parameters", "capacity")
PROXIES = (*FORWARD, *GRADIENT, *COUNTED)
TRAINING = "training"  # a short training, see evaluator.py
_STEP = 0.01  # size of zen's perturbation
_TINY = 1e-12
_SWITCHES = ("Relu", "Clip", "HardSwish", "Sigmoid", "Erf")

Arrays = Mapping[str, np.ndarray]


def check_proxy(name: str) -> None:
    """Raises InputProblem for an unknown proxy."""
    if ".py:" in name:
        load_function_once(name, "cannot load the proxy")
    elif name not in (*PROXIES, TRAINING):
        words = ", ".join((*PROXIES, TRAINING))
        raise InputProblem("unknown proxy", name, "", f"one of {words}, or FILE.py:function")


def compute_proxy(name: str, model: ir.Model, batch: Arrays, costs: Costs, seed: int = 0) -> float:
    """The proxy of a network.

    name: one of PROXIES, or FILE.py:function.
    batch: inputs of some samples (32 suffice).
    costs: of the network.
    Raises EnvironmentProblem where the proxy needs torch, which is not installed.
    """
    if ".py:" in name:
        return _user_proxy(name, model, batch)
    check_proxy(name)
    if name in COUNTED:
        sizes = {"macs": float(costs.macs), "parameters": float(costs.parameters), "capacity": capacity(costs)}
        return sizes[name]
    if name == "naswot":
        return naswot(model, batch)
    if name == "zen":
        return zen(model, batch, seed)
    require_torch(f"the proxy {name}")
    from onnxpress.train.proxies import gradient_proxy

    return gradient_proxy(name, model, batch, seed)


def _user_proxy(name: str, model: ir.Model, batch: Arrays) -> float:
    """The value of the user's function of (model, batch)."""
    try:
        return float(load_function_once(name, "cannot load the proxy")(model, dict(batch)))
    except InputProblem:
        raise
    except Exception as error:  # user code may raise anything; it is reported in one line
        raise InputProblem("the proxy failed", name, f"{type(error).__name__}: {error}") from error


def capacity(costs: Costs) -> float:
    """log(MACs) + log(parameters).

    The default: on CIFAR-10, for random networks of about the same latency, the rank correlation with the score
    after a short training was +0.3 for capacity, and -0.9, -0.5 and -0.5 for naswot, zen and synflow
    (`benchmarks/proxies.py`).
    """
    return float(np.log(max(costs.macs, 1)) + np.log(max(costs.parameters, 1)))


def naswot(model: ir.Model, batch: Arrays) -> float:
    """log|det K| of the kernel of equal activation codes of the samples (Mellor et al. 2021); higher where codes differ
    more.

    Normalizations use batch statistics.  Minus infinity without activations.
    """
    names = [n.inputs[0].name or "" for n in model.graph if n.op_type in _SWITCHES and n.inputs[0] is not None]
    if not names:
        return -np.inf
    batch = _distinct_samples(batch)
    count = _rows(batch)
    kernel = np.zeros((count, count))
    norms = _norms(model)
    statistics, _ = _batch_statistics(model, norms, batch)
    for value in run_with_statistics(_open(model, norms, names), batch, statistics):
        code = (value.reshape(count, -1) > 0).astype(np.float32)
        kernel += code @ code.T + (1 - code) @ (1 - code).T
    sign, size = np.linalg.slogdet(kernel)
    return float(size) if sign > 0 else -np.inf


def zen(model: ir.Model, batch: Arrays, seed: int = 0) -> float:
    """Sensitivity of the features to a small change of a random input, corrected for normalizations (Lin et al. 2021).

    log E|f(x) - f(x + 0.01 e)|, summed over a sample's features, + sum over normalizations of log sqrt(mean
    variance).  The paper's weights have variance 1; those here have 2 / fan, which is corrected, too.
    """
    if not any(a.dtype.kind == "f" for a in batch.values()):
        raise InputProblem("the proxy does not apply", "zen", "no float input", "use another proxy")
    rng = np.random.default_rng(seed)
    noise = {n: rng.standard_normal(a.shape).astype(a.dtype) if a.dtype.kind == "f" else a for n, a in batch.items()}
    moved = {
        n: a + (_STEP * rng.standard_normal(a.shape)).astype(a.dtype) if a.dtype.kind == "f" else a
        for n, a in noise.items()
    }
    norms = _norms(model)
    statistics, scale = _batch_statistics(model, norms, noise)
    features = _features(model)
    session = _open(model, norms, [features])
    first, second = (run_with_statistics(session, feeds, statistics)[0] for feeds in (noise, moved))
    answer = np.abs(first - second).reshape(len(first), -1).sum(1).mean()
    return float(np.log(answer + _TINY) + scale + sum(_log_weight_scale(n) for n in norms))


def _norms(model: ir.Model) -> list[ir.Node]:
    """The batch normalizations."""
    return [n for n in model.graph if n.op_type == "BatchNormalization" and read.standard(n)]


def _log_weight_scale(norm: ir.Node) -> float:
    """log of the standard deviation with which the weights before a normalization should be multiplied to have
    variance 1.
    """
    source = norm.inputs[0]
    layer = source.producer() if source is not None else None
    tensor = read.constant_tensor(layer.inputs[1]) if layer is not None and layer.op_type == "Conv" else None
    return 0.0 if tensor is None else 0.5 * float(np.log(np.prod(tensor.shape.numpy()[1:]) / 2))


def _distinct_samples(batch: Arrays) -> dict[str, np.ndarray]:
    """The samples without duplicates, which would make the kernel singular."""
    rows = [b"".join(np.ascontiguousarray(a[i]).tobytes() for a in batch.values()) for i in range(_rows(batch))]
    first = sorted({row: i for i, row in reversed(list(enumerate(rows)))}.values())
    return {n: a[first] for n, a in batch.items()}


def _features(model: ir.Model) -> str:
    """The last value with positions, before global pooling; else the input of the last layer."""
    pools = [n for n in model.graph if n.op_type in ("GlobalAveragePool", "ReduceMean")]
    last = pools[-1] if pools else [n for n in model.graph if n.op_type in read.WEIGHTED][-1]
    assert last.inputs[0] is not None
    return last.inputs[0].name or ""


def _batch_statistics(model: ir.Model, norms: Sequence[ir.Node], feeds: Arrays) -> tuple[dict[str, np.ndarray], float]:
    """Statistics of each normalization on the batch, given those before it; and the sum of log sqrt(mean variance)."""
    if not norms:
        return {}, 0.0
    sources = [n.inputs[0].name or "" for n in norms if n.inputs[0] is not None]
    session = _open(model, norms, sources)
    found: dict[str, np.ndarray] = {}
    total = 0.0
    for node, source in zip(norms, sources, strict=True):
        value = run_with_statistics(session, feeds, found, [source])[0]
        axes = (0, *range(2, value.ndim))
        mean, var = value.mean(axes), value.var(axes)
        for place, number in zip(node.inputs[3:5], (mean, var), strict=True):
            assert place is not None
            found[place.name or ""] = number.astype(np.float32)
        total += float(np.log(np.sqrt(var.mean()) + _TINY))
    return found, total


def _open(model: ir.Model, norms: Sequence[ir.Node], names: Sequence[str]) -> ort.InferenceSession:
    """A session that returns the named values; statistics of normalizations are inputs with defaults."""
    proto = onnx.load_from_string(to_bytes(model))
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in dict.fromkeys(names))
    for node in norms:
        for value in node.inputs[3:5]:
            assert value is not None and value.const_value is not None
            shape = list(value.const_value.shape.numpy())
            proto.graph.input.append(
                onnx.helper.make_tensor_value_info(value.name or "", onnx.TensorProto.FLOAT, shape)
            )
    return open_session(proto.SerializeToString(), all_cores())


def run_with_statistics(
    session: ort.InferenceSession, feeds: Arrays, statistics: Arrays, names: Sequence[str] | None = None
) -> list[np.ndarray]:
    """Run with the given statistics in place of the stored ones.  names: of the outputs to compute (None: all)."""
    return list(session.run(list(names) if names else None, {**feeds, **statistics}))


def _rows(batch: Arrays) -> int:
    return len(next(iter(batch.values())))
