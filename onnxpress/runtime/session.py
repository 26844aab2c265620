"""onnxruntime sessions: opened with the tool's settings, tapped at intermediate values; errors become one line.

Calibration and scoring use all cores; latency uses one thread by default (see latency.py).  Spinning is off by default,
so that an idle session does not slow the measured one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxpress.errors import EnvironmentProblem, InputProblem
from onnxpress.model import submodels
from onnxpress.model.files import serialized
from onnxpress.model.trace import Trace
from onnxpress.runtime.time_limit import check_time

Feeds = Mapping[str, np.ndarray]
ort.set_default_logger_severity(4)

_LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class SessionSettings:
    """Settings of a session.

    threads:  intra-op threads
    level:    graph optimizations: "none", "basic" or "all"
    config:   session config entries
    profile:  prefix of the profiler's file; "" for no profile
    dump:     file that onnxruntime writes its optimized graph to; "" for none
    spinning: whether idle threads of the pool spin (faster, but they disturb whatever runs next)
    provider: onnxruntime's name of the execution provider; operators it does not implement run on the CPU
    in_order: whether nodes run in the order of the file as far as possible, and not branch by branch
    """

    threads: int = 1
    level: str = "all"
    config: tuple[tuple[str, str], ...] = ()
    profile: str = ""
    dump: str = ""
    spinning: bool = False
    provider: str = CPU
    in_order: bool = False


_HELD_BYTES = 2**30  # of all values of a run
_ELEMENTS = {f"tensor({name})": kind for name, kind in (
    ("float", ir.DataType.FLOAT), ("double", ir.DataType.DOUBLE), ("float16", ir.DataType.FLOAT16),
    ("bool", ir.DataType.BOOL), ("int8", ir.DataType.INT8), ("uint8", ir.DataType.UINT8),
    ("int16", ir.DataType.INT16), ("uint16", ir.DataType.UINT16), ("int32", ir.DataType.INT32),
    ("uint32", ir.DataType.UINT32), ("int64", ir.DataType.INT64), ("uint64", ir.DataType.UINT64),
)}  # fmt: skip
_DEFAULT: ContextVar[SessionSettings | None] = ContextVar("settings", default=None)


def default_settings() -> SessionSettings:
    """Settings of sessions that are opened without any: those of `sessions_with`, else one thread on the CPU."""
    return _DEFAULT.get() or SessionSettings()


@contextmanager
def sessions_with(settings: SessionSettings) -> Iterator[None]:
    """Let everything within, in this thread, be timed with these settings, and run on their provider."""
    token = _DEFAULT.set(settings)
    try:
        yield
    finally:
        _DEFAULT.reset(token)


def all_cores(level: str = "all") -> SessionSettings:
    """Settings for computations whose time does not matter: all cores of this process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return replace(default_settings(), threads=cores, level=level)


def open_session(
    model: ir.Model | bytes | str | Path, settings: SessionSettings | None = None, where: object = ""
) -> ort.InferenceSession:
    """Open a session.  where: shown in errors.

    Raises InputProblem where onnxruntime cannot run the model, EnvironmentProblem without memory.
    """
    settings = settings or default_settings()
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = _LEVELS[settings.level]
    options.log_severity_level = 4
    if settings.in_order:
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if settings.spinning else "0")
    for key, value in settings.config:
        options.add_session_config_entry(key, value)
    if settings.profile:
        options.enable_profiling = True
        options.profile_file_prefix = settings.profile
    if settings.dump:
        options.optimized_model_filepath = settings.dump
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", f"{Path(settings.dump).name}.data"
        )
    if isinstance(model, ir.Model):
        with serialized(model) as source:
            return _create(str(source) if isinstance(source, Path) else source, options, settings.provider, where)
    return _create(str(model) if isinstance(model, Path) else model, options, settings.provider, where)


def find_provider(word: str) -> str:
    """The full name of an execution provider of this onnxruntime: `cpu` and `CPUExecutionProvider` are the same.

    Raises InputProblem for another name.
    """
    available = ort.get_available_providers()
    for name in available:
        if word.lower() in (name.lower(), name.lower().removesuffix("executionprovider")):
            return str(name)
    short = ", ".join(name.removesuffix("ExecutionProvider") for name in available)
    raise InputProblem(
        "no such execution provider",
        word,
        f"this onnxruntime has {short}",
        "choose one of these, or install another build of onnxruntime",
    )


def _create(source: bytes | str, options: ort.SessionOptions, provider: str, where: object) -> ort.InferenceSession:
    providers = [provider] if provider == CPU else [provider, CPU]
    try:
        return ort.InferenceSession(source, options, providers=providers)
    except MemoryError as error:
        raise EnvironmentProblem(
            "not enough memory to load the model", where, str(error), "free some memory"
        ) from error
    except Exception as error:  # onnxruntime's own exceptions share no base but Exception
        text = (str(error).strip().splitlines() or [""])[0]
        text = text.split(" : ", 2)[-1][:240]
        raise InputProblem(
            "onnxruntime cannot load the model",
            where,
            text,
            "export it with operators and types that onnxruntime's CPU provider implements",
        ) from error


def run(
    session: ort.InferenceSession, feeds: Feeds, names: Sequence[str] | None = None, where: object = ""
) -> list[np.ndarray]:
    """Run once.  Raises InputProblem where onnxruntime rejects an input, EnvironmentProblem without memory."""
    check_time()
    try:
        return [np.asarray(a) for a in session.run(list(names) if names else None, dict(feeds))]
    except MemoryError as error:
        raise EnvironmentProblem(
            "not enough memory to run the model", where, str(error), "use smaller samples"
        ) from error
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0].split(" : ", 2)[-1][:240]
        raise InputProblem(
            "the model fails on a sample", where, text, "compare the sample's shapes with `onnxpress inspect`"
        ) from error


def tap(model: ir.Model, names: Sequence[str], settings: SessionSettings | None = None) -> ort.InferenceSession:
    """A session whose outputs are exactly the named values, in this order."""
    return open_session(submodels.outputs_only(model, names), settings or all_cores())


def trace(model: ir.Model, feeds: Feeds) -> Trace:
    """Run once with every value as an output, and record shapes and small integer values.

    Values inside sub-graphs, and those that onnxruntime cannot output (optional, sequence), are absent.  Where all
    values together may be larger than the memory, they are not held.
    """
    names = [v.name for n in model.graph for v in n.outputs if v.name and not _is_not_tensor(v)]
    if len(names) * max((_likely_bytes(array) for array in feeds.values()), default=0) > _HELD_BYTES:
        return _light_trace(model, feeds)
    found = dict(zip(names, run(tap(model, names, all_cores("none")), feeds), strict=True))
    arrays = {**feeds, **found}
    values = {name: array for name, array in found.items() if array.dtype.kind in "iub" and array.size <= 64}
    floats = {
        n: bool(np.isnan(a.min())) for n, a in arrays.items() if a.dtype == np.float32 and a.size
    }  # the minimum propagates NaN
    return Trace({name: tuple(array.shape) for name, array in arrays.items()}, values, floats)


def _likely_bytes(array: np.ndarray) -> int:
    """Bytes that values within a model have: those of its input; of token numbers those of a few attention matrices."""
    return array.nbytes if array.dtype.kind == "f" else 32 * max(array.shape, default=0) ** 2


def _light_trace(model: ir.Model, feeds: Feeds) -> Trace:
    """The trace of a model, by a run that outputs shapes in place of values."""
    kinds = _kinds(model)
    names, floats = list(kinds), [name for name, kind in kinds.items() if kind == ir.DataType.FLOAT]
    whole = [name for name, kind in kinds.items() if kind.is_integer() or kind == ir.DataType.BOOL]
    light, shapes, sums = submodels.shapes_only(model, names, floats)
    light = submodels.with_outputs(light, whole)
    wanted = [*shapes, *sums, *whole]
    session = open_session(light, replace(all_cores("none"), in_order=True))  # else shapes are asked for at the end
    found = dict(zip(wanted, run(session, feeds, wanted), strict=True))
    sizes = {name: tuple(int(n) for n in found[shape]) for name, shape in zip(names, shapes, strict=True)}
    sizes.update({name: tuple(array.shape) for name, array in feeds.items()})
    values = {name: found[name] for name in whole if found[name].size <= 64}
    # A sum is NaN where an element is, or where infinite elements cancel, which is looked at then.
    unclear = {name: bool(np.isnan(found[total])) for name, total in zip(floats, sums, strict=True)}
    flags = {name: flag and _holds_nan(model, name, feeds) for name, flag in unclear.items()}
    flags.update({name: bool(np.isnan(array).any()) for name, array in feeds.items() if array.dtype == np.float32})
    return Trace(sizes, values, {name: flag for name, flag in flags.items() if 0 not in sizes[name]})


def _holds_nan(model: ir.Model, name: str, feeds: Feeds) -> bool:
    return bool(np.isnan(run(tap(model, [name], all_cores("none")), feeds)[0]).any())


def _kinds(model: ir.Model) -> dict[str, ir.DataType]:
    """The element types of all values that nodes of the main graph compute: from the file, else from onnxruntime."""
    values = [v for n in model.graph for v in n.outputs if v.name and not _is_not_tensor(v)]
    if all(v.dtype is not None for v in values):
        return {v.name or "": v.dtype for v in values if v.dtype is not None}
    session = tap(model, [v.name or "" for v in values], all_cores("none"))
    return {found.name: _ELEMENTS.get(found.type, ir.DataType.UNDEFINED) for found in session.get_outputs()}


def _is_not_tensor(value: ir.Value) -> bool:
    """Whether a value is not a tensor."""
    return value.type is not None and not isinstance(value.type, ir.TensorType)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="onnxpress-") as folder:
        yield Path(folder)
