"""`onnxpress compare ORIGINAL OTHER --data SAMPLES`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxpress.cli.options import DataChoice, data_options, json_option, need_data, quiet_option
from onnxpress.errors import EXIT_UNMET


@click.command("compare")
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path))
@data_options(required=True)
@click.option("--max-drop", type=float, help="Exit 1 where OTHER loses more than this.")
@json_option
@quiet_option
def command(
    original: Path,
    other: Path,
    source: DataChoice,
    max_drop: float | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Measure how far OTHER is from ORIGINAL on samples."""
    from onnxpress.cli import console
    from onnxpress.optimize.run import document
    from onnxpress.optimize.single import compare

    samples = need_data(source, original, quiet)
    score, differences = compare(original, other, samples)
    if as_json:
        console.emit_json(document("compare", score=score, outputs=differences))
    else:
        console.table(
            [("output", "left"), ("max abs", "right"), ("SQNR dB", "right"), ("cosine", "right")],
            [[d.name, f"{d.max_abs:.3g}", f"{d.sqnr_db:.1f}", f"{d.cosine:.6f}"] for d in differences],
        )
        console.out(
            f"{score.metric} {score.value:.4f}, original {score.reference:.4f}: drop {score.drop:+.4f}"
            f" {console.interval(score.low, score.high, 4)} on {score.samples} samples"
        )
        if score.agreement is not None:
            console.out(f"same answer on {score.agreement:.2%} of the samples")
    return EXIT_UNMET if max_drop is not None and score.drop > max_drop else 0
