"""`onnxpress depth MODEL --data SAMPLES (--keep SHARE | --remove N) -o FILE`."""

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


@click.command("depth")
@click.argument("model", type=click.Path(path_type=Path))
@data_options(required=True)
@output_option
@click.option("--keep", type=float, help="Share of the removable blocks' work to keep, such as 0.5.")
@click.option("--remove", type=int, metavar="N", help="Instead: how many blocks to take out.")
@click.option("--max-drop", type=float, help="Take out fewer where the repaired model would lose more than this.")
@click.option(
    "--units",
    type=click.Choice(["all", "branches", "layers"]),
    default="all",
    show_default=True,
    help="layers: the largest groups that repeat, such as attention with its feed-forward.",
)
@click.option("--no-repair", is_flag=True, help="Only take out; do not refit the rest.")
@click.option("--samples", default=128, show_default=True, help="Samples at most that feed statistics.")
@click.option("--seed", default=0, show_default=True)
@plan_option
@json_option
@quiet_option
def command(
    model: Path,
    source: DataChoice,
    output: str,
    keep: float | None,
    remove: int | None,
    max_drop: float | None,
    units: str,
    no_repair: bool,
    samples: int,
    seed: int,
    plan_path: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Take whole residual blocks or layers out, those that harm least, and refit the rest by least squares."""
    from onnxpress.cli.result import show
    from onnxpress.model.files import check_target
    from onnxpress.optimize.single import depth
    from onnxpress.passes.depth import Wish

    wish = Wish(keep, remove, max_drop, units)
    wish.check()
    check_target(output, model)
    dataset = need_data(source, model, quiet)
    result = depth(
        model, dataset, wish, output=output, plan_path=plan_path, repair=not no_repair, samples=samples, seed=seed
    )
    show("depth", result, output, as_json, quiet)
