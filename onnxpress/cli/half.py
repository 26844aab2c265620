"""`onnxpress half MODEL -o FILE`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxpress.cli.options import json_option, output_option, plan_option, quiet_option


@click.command("half")
@click.argument("model", type=click.Path(path_type=Path))
@output_option
@click.option(
    "--type", "kind", default="float16", show_default=True, help="float16 (11 bits of precision) or bfloat16 (8)."
)
@plan_option
@json_option
@quiet_option
def command(model: Path, output: str, kind: str, plan_path: str | None, as_json: bool, quiet: bool) -> None:
    """Keep weights in 16 bits: half the file.  onnxruntime makes float32 of them at load, so the speed stays as it is.
    Tensors that 16 bits cannot hold stay in float32."""
    from onnxpress.api.weight_passes import half
    from onnxpress.cli.result import show
    from onnxpress.model.files import check_target

    check_target(output, model)
    show("half", half(model, kind=kind, output=output, plan_path=plan_path), output, as_json, quiet)
