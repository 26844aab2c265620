"""`onnxpress share MODEL --data SAMPLES -o FILE`."""

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


@click.command("share")
@click.argument("model", type=click.Path(path_type=Path))
@data_options(required=True)
@output_option
@click.option("--centres", default=16, show_default=True, help="Values in a codebook: 16 (4 bits) or 256 (8 bits).")
@click.option(
    "--per",
    default="scaled",
    show_default=True,
    metavar="scaled|tensor|N",
    help="A codebook a tensor and a scale a row; one a tensor; or one for every N rows.",
)
@click.option(
    "--spare",
    type=float,
    help="Share of the bytes to spend on 8 bits for the weights that lose most; without it: as little as is needed.",
)
@click.option("--no-repair", is_flag=True, help="Do not take the mean error back through biases.")
@click.option("--samples", default=128, show_default=True, help="Samples at most that feed statistics.")
@click.option("--seed", default=0, show_default=True)
@plan_option
@json_option
@quiet_option
def command(
    model: Path,
    source: DataChoice,
    output: str,
    centres: int,
    per: str,
    spare: float | None,
    no_repair: bool,
    samples: int,
    seed: int,
    plan_path: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Keep weights as short codes and codebooks of few values, chosen by what your samples use of them.  The file shrinks;
    onnxruntime makes plain weights of them at load, so time and memory stay as they are."""
    from onnxpress.cli.result import show
    from onnxpress.model.files import check_target
    from onnxpress.optimize.bits import share
    from onnxpress.passes.codebook import Wish

    wish = Wish(centres, per, spare)
    wish.check()
    check_target(output, model)
    dataset = need_data(source, model, quiet)
    result = share(
        model, dataset, wish, output=output, plan_path=plan_path, repair=not no_repair, samples=samples, seed=seed
    )
    show("share", result, output, as_json, quiet)
