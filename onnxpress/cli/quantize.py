"""`onnxpress quantize MODEL --data SAMPLES -o FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxpress.cli.options import (
    DataChoice,
    data_options,
    json_option,
    need_data,
    output_option,
    plan_option,
    quiet_option,
)

if TYPE_CHECKING:
    from onnxpress.optimize.sensitivity import Layer

_NAME = 28  # characters of a layer's name that fit


@click.command("quantize")
@click.argument("model", type=click.Path(path_type=Path))
@data_options(required=True)
@output_option
@click.option(
    "--ranges",
    "method",
    type=click.Choice(["auto", "minmax", "percentile", "entropy", "mse"]),
    default="auto",
    show_default=True,
)
@click.option("--include", multiple=True, metavar="PATTERN", help="Only these in int8: a name, an operator or a regular expression.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="These stay in float; may be repeated.")
@click.option("--max-drop", type=float, help="Leave as few layers in float as keep the drop on the samples within this.")
@click.option("--report", is_flag=True, help="Say of every layer its range and what its int8 harms.")
@click.option(
    "--target-cpu",
    type=click.Choice(["auto", "avx2", "avx512", "vnni", "arm"]),
    default="auto",
    show_default=True,
    help="Choose integer types for another CPU.",
)
@click.option("--samples", default=128, show_default=True, help="Samples at most that feed statistics.")
@click.option("--seed", default=0, show_default=True)
@plan_option
@json_option
@quiet_option
def command(
    model: Path,
    source: DataChoice,
    output: str,
    method: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    max_drop: float | None,
    report: bool,
    target_cpu: str,
    samples: int,
    seed: int,
    plan_path: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Static int8 (QDQ) of every node with an integer kernel.  Whether that is faster, `bench` and `optimize` measure."""
    from onnxpress.cli.result import show
    from onnxpress.model.files import check_target
    from onnxpress.optimize.single import quantize
    from onnxpress.runtime.machine import machine_for

    machine = machine_for(target_cpu)
    check_target(output, model)
    dataset = need_data(source, model, quiet)
    result = quantize(
        model,
        dataset,
        method=method,
        include=include,
        exclude=exclude,
        max_drop=max_drop,
        report=report,
        output=output,
        plan_path=plan_path,
        samples=samples,
        machine=machine,
        seed=seed,
    )
    show("quantize", result, output, as_json, quiet)
    if report and not as_json:
        _table(result.layers)


def _table(layers: list[Layer]) -> None:
    from onnxpress.cli import console

    columns = [("layer", "left"), ("as", "left"), ("range", "right"), ("SQNR", "right"), ("alone", "right"), ("back", "right")]
    console.table(columns, [_row(x) for x in layers], title="most harmful first")
    console.out("SQNR: of rounding the output; alone: nmse with only this layer in int8;")
    console.out("back: nmse of the int8 model with this layer in float")


def _row(x: Layer) -> list[str]:
    name = x.node if len(x.node) <= _NAME else "…" + x.node[1 - _NAME :]
    seen = x.high > x.low  # what leaves the int8 part at once is not rounded
    ends, sqnr = (f"{x.low:.3g} … {x.high:.3g}", f"{x.sqnr:.0f} dB") if seen else ("", "")
    return [name, "int8" if x.int8 else "float", ends, sqnr, f"{x.alone:.1e}", f"{x.back:.1e}"]
