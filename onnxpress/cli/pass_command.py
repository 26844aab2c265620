"""The command of a pass, made from its options: `onnxpress NAME MODEL [--data SAMPLES] [options] -o FILE`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxpress.cli.options import (
    DataChoice,
    QualityChoice,
    data_options,
    json_option,
    open_data,
    output_option,
    plan_option,
    print_notes,
    quality_options,
    quiet_option,
)
from onnxpress.cli.output import console
from onnxpress.result import size_change_text

if TYPE_CHECKING:
    from onnxpress.api.run_pass import PassResult
    from onnxpress.passes.core.contract import Refusal
    from onnxpress.passes.core.options import OptionSpec

_STREAMED = "weights"  # works without samples, too: one weight in memory at a time
_REASONS = 5  # of units left alone that are shown


@cache
def pass_command(name: str) -> click.Command:
    """The click command of a pass in the registry."""
    from onnxpress.passes.core.options import option_specs
    from onnxpress.passes.registry import find_pass

    chosen = find_pass(name)
    specs = option_specs(chosen.Options)

    def command(
        model: Path,
        source: DataChoice,
        output: str,
        plan: str | None,
        samples: int,
        seed: int,
        as_json: bool,
        quiet: bool,
        quality: QualityChoice | None = None,
        **given: Any,
    ) -> None:
        if quality is not None:
            given["quality"] = quality.options()
        options = chosen.Options(**given)
        options.checked()
        if source.path is None and name == _STREAMED:
            _stream(name, model, output, options, plan, as_json, quiet)
            return
        from onnxpress.api.run_pass import run_pass
        from onnxpress.cli.output.progress_display import progress
        from onnxpress.model.files import check_target

        check_target(output, model)
        data = open_data(source, model, quiet)
        with progress(quiet or as_json, name=name):
            result = run_pass(name, model, data, options, output=output, plan=plan, samples=samples, seed=seed)
        show(name, result, output, as_json, quiet)

    command.__doc__ = inspect.getdoc(type(chosen)) or name
    function: Callable[..., Any] = command
    decorators = [
        click.argument("model", type=click.Path(path_type=Path)),
        data_options(required=chosen.needs_data and name != _STREAMED),
        output_option,
        *(_click_option(s) for s in specs),
        click.option("--samples", default=128, show_default=True, help="Maximum number of calibration samples."),
        click.option("--seed", default=0, show_default=True, help="Random seed."),
        *([] if chosen.exact else [quality_options()]),
        plan_option,
        json_option,
        quiet_option,
    ]
    for decorator in reversed(decorators):
        function = decorator(function)
    return click.command(name, short_help=command.__doc__.splitlines()[0])(function)


def _click_option(spec: OptionSpec) -> Callable[[Any], Any]:
    """One option of a pass as a click option of the same name."""
    flag = "--" + spec.name.replace("_", "-")
    text = console.with_options(spec.help) + (f" In {spec.unit}." if spec.unit else "")
    if spec.type is bool:
        if spec.default:
            return click.option(f"{flag}/--no-{flag[2:]}", spec.name, default=True, show_default=True, help=text)
        return click.option(flag, spec.name, is_flag=True, help=text)
    kind: Any = spec.type
    convert = None
    if spec.choices:
        kind = click.Choice([str(c) for c in spec.choices])
        convert = None if spec.type is str else _converter(spec.type)
    shown = spec.default not in (None, "", ())
    return click.option(
        flag,
        spec.name,
        type=kind,
        default=None if spec.many else (str(spec.default) if convert and shown else spec.default),
        show_default=shown and not spec.many,
        multiple=spec.many,
        metavar=spec.metavar or None,
        callback=convert,
        help=text,
    )


def _converter(kind: type) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback that turns the text of a choice into the type of the option."""
    return lambda context, parameter, value: None if value is None else kind(value)


def show(name: str, result: PassResult, output: str, as_json: bool, quiet: bool) -> None:
    """Print the result of a pass: a line on stdout, remarks on stderr; or one JSON document."""
    from onnxpress.cli.output.quality_lines import quality_lines
    from onnxpress.result import document

    if as_json:
        console.emit_json(document(name, output=output, parameters=result.parameters, **result.to_dict()))
        return
    print_notes(result.notes, quiet)
    _left_alone(result.refused, quiet)
    for line in () if quiet else result.judged_by:
        console.note(line)
    console.out(
        f"{output}: {size_change_text(result.bytes_before, result.bytes_after)}, {result.parameters:,} parameters"
    )
    for part in result.score.parts if result.score is not None else ():
        for text in quality_lines(part, "samples that the pass has seen"):
            console.out(text)
    if name == "quantize" and result.details is not None and result.details.layers:
        from onnxpress.cli.output.sensitivity_table import show_layers

        show_layers(result.details.layers)


def _left_alone(refused: list[Refusal], quiet: bool) -> None:
    reasons: dict[str, int] = {}
    for refusal in refused:
        reasons[refusal.reason] = reasons.get(refusal.reason, 0) + 1
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1])[: 0 if quiet else _REASONS]:
        console.note(f"left alone: {count} unit{'s' if count > 1 else ''}: {reason}")


def _stream(name: str, model: Path, output: str, options: Any, plan: str | None, as_json: bool, quiet: bool) -> None:
    """Weights without samples, for files of any size."""
    from onnxpress.api.external_data_quantization import stream_weights
    from onnxpress.cli.output.progress_display import progress
    from onnxpress.errors import InputProblem
    from onnxpress.result import document

    if plan is not None:
        raise InputProblem("this needs samples", "`plan`", "no data was given", "give `data`, or leave it out")
    with progress(quiet or as_json, name=name) as bar:
        done = stream_weights(model, output, options, bar)
    if as_json:
        console.emit_json(document(name, output=output, **done.to_dict()))
        return
    print_notes(done.notes, quiet)
    _left_alone(done.refused, quiet)
    console.out(f"{output}: {size_change_text(done.bytes_before, done.bytes_after)}")
