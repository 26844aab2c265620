"""A Python function for every pass in the registry, its signature and documentation made from the pass's options."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol, get_type_hints

from onnxpress.api.run_pass import PassResult, run_pass
from onnxpress.data.any_data import DataSource
from onnxpress.errors import InputProblem
from onnxpress.measure.quality import DecodeSource, MetricSource, QualityOptions
from onnxpress.model.source import ModelSource
from onnxpress.passes.core.contract import AnyPass
from onnxpress.passes.core.options import PassOptions, option_specs
from onnxpress.passes.registry import find_pass
from onnxpress.plan.plan import CALIBRATION

_COMMON = {
    "options": "an options object instead of single options",
    "output": "file to write",
    "plan": "file to write the plan to",
    "samples": f"largest number of samples that feed statistics (default: {CALIBRATION})",
    "seed": "seed of anything random (default: 0)",
}
_JUDGING = {
    "metric": "what the result is judged by: a name or a function (see QualityOptions); default: by the outputs",
    "decode": "what stands between outputs and metric: a function, or the name of a decoder of boxes",
    "outputs": "names of the outputs that matter; default: all",
}


class PassFunction(Protocol):
    """A pass as a function: model, samples, then the options of the pass by name, and how its result is judged."""

    def __call__(
        self,
        model: ModelSource,
        data: DataSource | None = None,
        *,
        options: PassOptions | None = None,
        output: str | Path | None = None,
        plan: str | Path | None = None,
        samples: int = CALIBRATION,
        seed: int = 0,
        **settings: Any,
    ) -> PassResult: ...


_TAKE_DATA = ("equalize",)  # plans read samples, replays do not


@cache
def pass_function(name: str) -> PassFunction:
    """The function of a pass. Raises InputProblem for an unknown name."""
    chosen = find_pass(name)

    def function(model: ModelSource, data: DataSource | None = None, **given: Any) -> PassResult:
        common = {n: given.pop(n) for n in _COMMON if n in given}
        options = common.pop("options", None)
        quality = None if chosen.exact else _quality(given)
        settings = given
        known = [s.name for s in option_specs(chosen.Options)]
        strange = [k for k in settings if k not in known]
        if strange:
            raise TypeError(f"{name}() got an unexpected argument {strange[0]!r}; its options are {', '.join(known)}")
        if options is not None and settings:
            raise InputProblem("options are given twice", "`options`", ", ".join(settings), "give one of them")
        tuples = {s.name for s in option_specs(chosen.Options) if s.many}
        typed: dict[str, Any] = {
            k: (v,) if k in tuples and isinstance(v, str) else tuple(v) if k in tuples else v
            for k, v in settings.items()
        }
        wanted = options if options is not None else chosen.Options(**typed)
        wanted = wanted if quality is None else replace(wanted, quality=quality)
        return run_pass(name, model, data, wanted, **common)

    function.__name__ = function.__qualname__ = name
    function.__module__ = "onnxpress"
    function.__doc__ = _documentation(name)
    function.__signature__ = _signature(name)  # type: ignore[attr-defined]
    return function


def _quality(given: dict[str, Any]) -> QualityOptions | None:
    """How the result is judged, taken out of the arguments; None where they do not say."""
    said = {n: given.pop(n) for n in _JUDGING if n in given}
    if not said:
        return None
    outputs = said.pop("outputs", ())
    return QualityOptions(**said, outputs=(outputs,) if isinstance(outputs, str) else tuple(outputs))


def _signature(name: str) -> inspect.Signature:
    chosen = find_pass(name)
    kind = inspect.Parameter.KEYWORD_ONLY
    hints = get_type_hints(chosen.Options)
    common = inspect.signature(PassFunction.__call__).parameters
    parameters = [common["model"], common["data"]]
    if chosen.needs_data:
        parameters[1] = parameters[1].replace(default=inspect.Parameter.empty, annotation=DataSource)
    parameters += [
        inspect.Parameter(s.name, kind, default=s.default, annotation=hints[s.name])
        for s in option_specs(chosen.Options)
    ]
    parameters += [common[n] for n in _COMMON]
    if not chosen.exact:
        parameters += [
            inspect.Parameter("metric", kind, default=None, annotation=MetricSource | None),
            inspect.Parameter("decode", kind, default=None, annotation=DecodeSource | None),
            inspect.Parameter("outputs", kind, default=(), annotation=Sequence[str]),
        ]
    return inspect.Signature(parameters, return_annotation=PassResult)


def _common(chosen: AnyPass) -> dict[str, str]:
    """The parameters beside the options of a pass, and what they are: an exact one is not judged."""
    return _COMMON if chosen.exact else {**_COMMON, **_JUDGING}


def _documentation(name: str) -> str:
    chosen = find_pass(name)
    lines = [inspect.getdoc(type(chosen)) or name, "", "Parameters:"]
    lines.append("  model: a path, the bytes of a file, an onnx.ModelProto or an onnx_ir.Model")
    needed = "samples" if chosen.needs_data else "samples, used to check the result"
    lines.append(f"  data: {needed}: a path, arrays by input name, an iterable of samples, or a Dataset")
    for spec in option_specs(chosen.Options):
        choices = f" One of {', '.join(map(str, spec.choices))}." if spec.choices else ""
        unit = f" In {spec.unit}." if spec.unit else ""
        lines.append(f"  {spec.name}: {spec.help}{unit}{choices} Default: {spec.default!r}.")
    lines += [f"  {n}: {text}" for n, text in _common(chosen).items()]
    settings = "".join(f", {name}={value!r}" for name, value in chosen.Options.example.items())
    data = ', "samples.npz"' if chosen.needs_data or name in _TAKE_DATA else ""
    lines += [
        "",
        f'>>> result = onnxpress.{name}("model.onnx"{data}{settings})',
        "",
        "Returns a PassResult. Raises InputProblem on bad input and EnvironmentProblem where the machine fails.",
    ]
    return "\n".join(lines)
