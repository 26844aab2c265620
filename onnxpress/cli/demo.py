"""`onnxpress demo`: the main job on the shipped digits model."""

from __future__ import annotations

from pathlib import Path

import click

from onnxpress.cli.options import DataChoice, Seconds, json_option, quiet_option
from onnxpress.errors import EXIT_UNMET


@click.command("demo")
@click.option(
    "--output", "-o", metavar="FILE", default="digits-fast.onnx", show_default=True, help="The file to write."
)
@click.option("--max-drop", default=0.01, show_default=True, help="Maximum drop: 0.01 is one point of accuracy.")
@click.option("--time-budget", type=Seconds(), default="60s", show_default=True, help="Time of the search.")
@json_option
@quiet_option
def command(output: str, max_drop: float, time_budget: float, as_json: bool, quiet: bool) -> int:
    """Optimize the included digits model (a small residual CNN) on the included images."""
    from onnxpress.cli.optimize import show
    from onnxpress.cli.options import splits_of
    from onnxpress.cli.output.console import note
    from onnxpress.cli.output.progress_display import progress
    from onnxpress.data.shipped import calibration_folder
    from onnxpress.model.files import check_target
    from onnxpress.search.optimize import optimize

    folder = calibration_folder() / "digits"
    model = folder / "digits.onnx"
    check_target(output, model)
    if not quiet:
        note(
            f"onnxpress optimize {model.name} --data train.npz --select select.npz --validate validate.npz"
            f" --max-drop {max_drop} -o {output}   (in {_short(folder)})"
        )
    train = DataChoice(str(folder / "train.npz"))
    splits = splits_of(model, train, str(folder / "select.npz"), str(folder / "validate.npz"), quiet=True)
    with progress(quiet or as_json, time_budget) as report:
        outcome = optimize(model, splits, max_drop=max_drop, time_budget=time_budget, output=output, progress=report)
    show(outcome, output, as_json)
    return 0 if outcome.met else EXIT_UNMET


def _short(folder: Path) -> str:
    try:
        return str(folder.relative_to(Path.cwd()))
    except ValueError:
        return str(folder)
