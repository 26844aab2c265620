"""`onnxpress dynamic MODEL -o FILE`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxpress.cli.options import json_option, output_option, plan_option, quiet_option


@click.command("dynamic")
@click.argument("model", type=click.Path(path_type=Path))
@output_option
@click.option("--exclude", multiple=True, metavar="NODE", help="Keep a node in float; may be repeated.")
@click.option(
    "--target-cpu",
    type=click.Choice(["auto", "avx2", "avx512", "vnni", "arm"]),
    default="auto",
    show_default=True,
    help="Choose the weights' bits for another CPU.",
)
@plan_option
@json_option
@quiet_option
def command(
    model: Path,
    output: str,
    exclude: tuple[str, ...],
    target_cpu: str,
    plan_path: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Dynamic int8 of MatMul and Gemm: no samples are needed, ranges are looked at as inputs come.  Whether that is faster,
    `bench` measures; `quantize` (with samples) is for convolutions, and often faster."""
    from onnxpress.api.weight_passes import dynamic
    from onnxpress.cli.result import show
    from onnxpress.model.files import check_target
    from onnxpress.runtime.machine import machine_for

    machine = machine_for(target_cpu)
    check_target(output, model)
    result = dynamic(model, exclude=exclude, output=output, plan_path=plan_path, machine=machine)
    show("dynamic", result, output, as_json, quiet)
