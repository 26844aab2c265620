"""`onnxpress apply PLAN MODEL -o FILE`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxpress.cli.options import DataChoice, data_options, json_option, open_data, output_option, quiet_option


@click.command("apply")
@click.argument("plan", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@data_options(required=False)
@output_option
@json_option
@quiet_option
def command(
    plan: Path,
    model: Path,
    source: DataChoice,
    output: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Replay PLAN on MODEL.  With the same model and samples, the result is the same, byte for byte."""
    from onnxpress.api.run_pass import apply
    from onnxpress.cli.output.progress_display import progress
    from onnxpress.cli.pass_command import show
    from onnxpress.model.files import check_target
    from onnxpress.plan.plan import read_plan

    check_target(output, model, plan)
    steps = read_plan(plan)
    dataset = open_data(source, model, quiet)
    with progress(quiet or as_json, name="apply"):
        result = apply(steps, model, dataset, output=output)
    show("apply", result, output, as_json, quiet)
