"""`onnxpress weights MODEL --bits 4 --data SAMPLES -o FILE`."""

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


@click.command("weights")
@click.argument("model", type=click.Path(path_type=Path))
@data_options(required=True)
@output_option
@click.option("--bits", default=8, show_default=True, help="Of a weight: 8, 4, 3 or 2.")
@click.option("--block", default=0, show_default=True, metavar="N", help="Weights that share a scale; 0: a row.")
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
    bits: int,
    block: int,
    spare: float | None,
    no_repair: bool,
    samples: int,
    seed: int,
    plan_path: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Keep weights as integers of few bits, chosen by what your samples use of them; activations stay in float.  The file
    shrinks; onnxruntime makes plain weights of them at load, so time and memory stay as they are."""
    from onnxpress.cli.result import show
    from onnxpress.model.files import check_target
    from onnxpress.optimize.bits import weights
    from onnxpress.passes.weightonly import Wish

    wish = Wish(bits, block, spare)
    wish.check()
    check_target(output, model)
    dataset = need_data(source, model, quiet)
    result = weights(
        model, dataset, wish, output=output, plan_path=plan_path, repair=not no_repair, samples=samples, seed=seed
    )
    show("weights", result, output, as_json, quiet)
