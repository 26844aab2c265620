"""`onnxpress sparsify MODEL --data SAMPLES -o FILE`."""

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


@click.command("sparsify")
@click.argument("model", type=click.Path(path_type=Path))
@data_options(required=True)
@output_option
@click.option("--ratio", default=0.5, show_default=True, help="Share of each weight's numbers that become zero.")
@click.option("--pattern", default="", metavar="N:M", help="Instead: of every M neighbours in a row N stay, as in 2:4.")
@click.option(
    "--method",
    default="update",
    show_default=True,
    metavar="update|activation|magnitude",
    help="Choose by what the outputs lose while other weights make up for it, by size times input, or by size.",
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
    ratio: float,
    pattern: str,
    method: str,
    no_repair: bool,
    samples: int,
    seed: int,
    plan_path: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make weights zero, chosen by what your samples use of them.  Only the compressed file shrinks: onnxruntime multiplies zeros
    like other numbers, so time stays as it is.  To be faster, `prune` takes whole channels out."""
    from onnxpress.cli.result import show
    from onnxpress.model.files import check_target
    from onnxpress.optimize.bits import sparsify
    from onnxpress.passes.sparsify import Wish

    wish = Wish(ratio, pattern, method)
    wish.check()
    check_target(output, model)
    dataset = need_data(source, model, quiet)
    result = sparsify(
        model, dataset, wish, output=output, plan_path=plan_path, repair=not no_repair, samples=samples, seed=seed
    )
    show("sparsify", result, output, as_json, quiet)
