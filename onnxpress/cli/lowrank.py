"""`onnxpress lowrank MODEL --data SAMPLES (--ratio R | --rank N | --energy E) -o FILE`."""

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


@click.command("lowrank")
@click.argument("model", type=click.Path(path_type=Path))
@data_options(required=True)
@output_option
@click.option("--ratio", type=float, help="Share of the layers' work (--goal size: weights) to save, such as 0.3.")
@click.option("--rank", type=int, metavar="N", help="Instead: the same rank for every layer.")
@click.option("--energy", type=float, help="Instead: share of every layer's output power to keep, such as 0.99.")
@click.option(
    "--goal",
    type=click.Choice(["latency", "size"]),
    default="latency",
    show_default=True,
    help="latency: only layers whose factors are measured to be faster.",
)
@click.option("--no-repair", is_flag=True, help="Only factor; do not refit the second factors.")
@click.option("--samples", default=128, show_default=True, help="Samples at most that feed statistics.")
@click.option("--seed", default=0, show_default=True)
@plan_option
@json_option
@quiet_option
def command(
    model: Path,
    source: DataChoice,
    output: str,
    ratio: float | None,
    rank: int | None,
    energy: float | None,
    goal: str,
    no_repair: bool,
    samples: int,
    seed: int,
    plan_path: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write weights as products of two thinner ones, ranked by what your samples use of them."""
    from onnxpress.cli.result import show
    from onnxpress.model.files import check_target
    from onnxpress.optimize.single import lowrank
    from onnxpress.passes.lowrank import Wish

    wish = Wish(ratio, rank, energy, goal)
    wish.check()
    check_target(output, model)
    dataset = need_data(source, model, quiet)
    result = lowrank(
        model, dataset, wish, output=output, plan_path=plan_path, repair=not no_repair, samples=samples, seed=seed
    )
    show("lowrank", result, output, as_json, quiet)
