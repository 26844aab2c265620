"""`onnxpress compare ORIGINAL OTHER --data SAMPLES`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxpress.cli.options import DataChoice, data_options, json_option, need_data, quiet_option
from onnxpress.errors import EXIT_UNMET

if TYPE_CHECKING:
    from onnxpress.optimize.differences import Difference

_NUMBERS = [("max abs", "right"), ("SQNR dB", "right"), ("cosine", "right")]
_WALKED = 32  # samples whose inner values are compared
_NAME = 32  # characters of a value's name that fit


@click.command("compare")
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path))
@data_options(required=True)
@click.option("--max-drop", type=float, help="Exit 1 where OTHER loses more than this.")
@click.option("--layers", is_flag=True, help="Walk the inner values that both have, to see where the difference begins.")
@json_option
@quiet_option
def command(
    original: Path,
    other: Path,
    source: DataChoice,
    max_drop: float | None,
    layers: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Measure how far OTHER is from ORIGINAL on samples."""
    from onnxpress.cli import console
    from onnxpress.model.files import load
    from onnxpress.optimize.differences import along
    from onnxpress.optimize.run import document
    from onnxpress.optimize.single import compare

    samples = need_data(source, original, quiet)
    score, outputs = compare(original, other, samples)
    inner = along(load(original), load(other), samples.take(_WALKED)) if layers else []
    if as_json:
        console.emit_json(document("compare", score=score, outputs=outputs, layers=inner))
    else:
        if layers:
            console.table([("value", "left"), ("made by", "left"), *_NUMBERS], [[_short(d.name), d.op, *_told(d)] for d in inner])
        console.table([("output", "left"), *_NUMBERS], [[d.name, *_told(d)] for d in outputs])
        console.out(
            f"{score.metric} {score.value:.4f}, original {score.reference:.4f}: drop {score.drop:+.4f}"
            f" {console.interval(score.low, score.high, 4)} on {score.samples} samples"
        )
        if score.agreement is not None:
            console.out(f"same answer on {score.agreement:.2%} of the samples")
    return EXIT_UNMET if max_drop is not None and score.drop > max_drop else 0


def _told(d: Difference) -> list[str]:
    return [f"{d.max_abs:.3g}", f"{d.sqnr_db:.1f}", f"{d.cosine:.6f}"]


def _short(name: str) -> str:
    return name if len(name) <= _NAME else "…" + name[1 - _NAME :]
