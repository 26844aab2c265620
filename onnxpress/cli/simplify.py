"""`onnxpress simplify MODEL -o FILE`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxpress.cli.options import json_option, output_option, plan_option, quiet_option


@click.command("simplify")
@click.argument("model", type=click.Path(path_type=Path))
@output_option
@plan_option
@json_option
@quiet_option
def command(model: Path, output: str, plan_path: str | None, as_json: bool, quiet: bool) -> None:
    """Fold constants and neighbours, and remove what provably does not matter; the function stays the same."""
    from onnxpress.cli.result import show
    from onnxpress.optimize.single import simplify

    show("simplify", simplify(model, output=output, plan_path=plan_path), output, as_json, quiet)
