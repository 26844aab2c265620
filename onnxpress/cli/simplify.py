"""`onnxpress simplify MODEL -o FILE`."""

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


@click.command("simplify")
@click.argument("model", type=click.Path(path_type=Path))
@data_options(required=False)
@output_option
@click.option("--calibrated", is_flag=True, help="Remove what none of the samples moves, too; this is not exact.")
@plan_option
@json_option
@quiet_option
def command(
    model: Path, source: DataChoice, output: str, calibrated: bool, plan_path: str | None, as_json: bool, quiet: bool
) -> None:
    """Fold constants and neighbours, and remove what provably does not matter; the function stays the same."""
    from onnxpress.api.one_pass import simplify
    from onnxpress.cli.result import show
    from onnxpress.errors import InputProblem
    from onnxpress.model.files import check_target

    if calibrated != bool(source.path):
        if calibrated:
            raise InputProblem("nothing to calibrate by", "--calibrated", "no samples are given", "add --data")
        raise InputProblem(
            "simplify is exact and needs no samples", "--data", source.path or "", "leave it out, or add --calibrated"
        )
    check_target(output, model)
    data = need_data(source, model, quiet) if calibrated else None
    show("simplify", simplify(model, data, output=output, plan_path=plan_path), output, as_json, quiet)
