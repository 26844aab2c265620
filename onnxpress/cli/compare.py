"""`onnxpress compare ORIGINAL OTHER --data SAMPLES`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxpress.cli.options import (
    DataChoice,
    QualityChoice,
    data_options,
    files_options,
    json_option,
    need_data,
    quality_options,
    quiet_option,
)
from onnxpress.errors import EXIT_UNMET

if TYPE_CHECKING:
    from onnxpress.evaluate.compare import CompareResult
    from onnxpress.evaluate.tensor_differences import TensorDifference

_NUMBERS = [("max abs", "right"), ("SQNR dB", "right"), ("cosine", "right")]
_NAME = 32  # characters of a value's name that fit


@click.command("compare")
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path))
@data_options(required=True)
@quality_options(many=True)
@click.option("--worst", default=0, metavar="N", help="List the N samples with the largest errors.")
@click.option(
    "--max-drop",
    type=float,
    help="Exit 1 if the drop of a metric is larger, its whole interval.",
)
@click.option(
    "--layers",
    is_flag=True,
    help="Compare the intermediate values that both have, in order, to see where differences begin.",
)
@files_options
@json_option
@quiet_option
def command(
    original: Path,
    other: Path,
    source: DataChoice,
    quality: QualityChoice,
    worst: int,
    max_drop: float | None,
    layers: bool,
    junit: Path | None,
    markdown: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Measure how far OTHER is from ORIGINAL on samples.

    Both are judged by the labels; without labels the answers of ORIGINAL are the reference.  A function of --metric is
    called with the outputs of a sample by name and its label (or, where its second parameter is named `labels`, with
    those of all samples), and returns a number; higher is better.  Labels of boxes are rows x1, y1, x2, y2, class
    (class -1 is padding).
    """
    from onnxpress.cli.output import compare_files, console
    from onnxpress.cli.output.junit import junit as as_junit
    from onnxpress.cli.output.progress_display import progress
    from onnxpress.evaluate.compare import compare
    from onnxpress.model.files import check_target, write_atomic
    from onnxpress.result import document
    from onnxpress.runtime.machine import this_machine

    for target in (junit, markdown):
        if target is not None:
            check_target(target, original, other)
    samples = need_data(source, original, quiet)
    with progress(quiet or as_json, name="compare"):
        found = compare(
            original, other, samples,
            metric=quality.metric, decode=quality.decode, outputs=quality.outputs, worst=worst, layers=layers,
        )  # fmt: skip
    if junit is not None:
        cases = compare_files.cases(found, other.name, max_drop)
        write_atomic(junit, as_junit("onnxpress compare", cases, this_machine().text(), 0.0))
    if markdown is not None:
        write_atomic(markdown, compare_files.markdown(found, original.name, other.name, max_drop).encode())
    if as_json:
        console.emit_json(document("compare", **found.to_dict()))
    else:
        _show(found, found.layers)
    for m in found.undecided(max_drop):
        console.note(f"{m.metric}: the interval contains the allowed drop; more samples may decide")
    return EXIT_UNMET if found.failing(max_drop) else 0


def _show(found: CompareResult, inner: list[TensorDifference]) -> None:
    from onnxpress.cli.output import console

    if inner:
        console.table(
            [("value", "left"), ("made by", "left"), *_NUMBERS], [[_short(d.name), d.op, *_sqnr_row(d)] for d in inner]
        )
    console.table([("output", "left"), *_NUMBERS], [[d.name, *_sqnr_row(d)] for d in found.outputs])
    if found.worst:
        columns = [
            ("worst samples", "left"),
            *((n, "right") for n in ("relative error", "answer", "original's", "label")),
        ]
        rows = [
            [_short(s.key), f"{s.error:.3g}", *("" if v is None else f"{v:g}" for v in (s.after, s.before, s.label))]
            for s in found.worst
        ]
        console.table(columns, rows)
    for line in found.notes:
        console.note(f"warning: {line}")
    for line in [] if found.metrics else found.judged_by:
        console.note(line)
    for m in found.measured:
        console.out(m.text())
    if found.score.agreement is not None:
        console.out(f"same answer on {found.score.agreement:.2%} of the samples")


def _sqnr_row(d: TensorDifference) -> list[str]:
    if d.numbers and max(d.not_finite) == d.numbers:
        return ["not finite", "", ""]
    return [f"{d.max_abs:.3g}", f"{d.sqnr_db:.1f}", f"{d.cosine:.6f}"]


def _short(name: str) -> str:
    return name if len(name) <= _NAME else "…" + name[1 - _NAME :]
