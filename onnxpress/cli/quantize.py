"""`onnxpress quantize MODEL --data SAMPLES -o FILE`."""

from __future__ import annotations

from pathlib import Path

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
@click.option("--exclude", multiple=True, metavar="NODE", help="Keep a node in float; may be repeated.")
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
    exclude: tuple[str, ...],
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
        exclude=exclude,
        output=output,
        plan_path=plan_path,
        samples=samples,
        machine=machine,
        seed=seed,
    )
    show("quantize", result, output, as_json, quiet)
