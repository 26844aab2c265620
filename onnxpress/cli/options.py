"""Options that several commands share, and how they become datasets, splits and efforts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from onnxpress.errors import InputProblem

F = TypeVar("F", bound=Callable[..., Any])


def data_options(required: bool) -> Callable[[F], F]:
    """--data and what belongs to it."""

    def wrap(function: F) -> F:
        for option in reversed(
            (
                click.option(
                    "--data",
                    "-d",
                    metavar="PATH",
                    required=required,
                    help="Samples: .npz, .npy, a folder (arrays, images, .wav, test_data_set_N), .csv, .tsv, .parquet, "
                    ".txt, .jsonl, or module:function.",
                ),
                click.option("--labels", metavar="PATH|KEY", help="Labels: a file, a key or a column."),
                click.option(
                    "--preprocess",
                    metavar="RECIPE",
                    help="raw, unit, imagenet, tf, …, a TOML file, or module:function.",
                ),
                click.option("--tokenizer", metavar="FILE", help="tokenizer.json for text."),
            )
        ):
            function = option(function)
        return function

    return wrap


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(function)


def quiet_option(function: F) -> F:
    return click.option("--quiet", "-q", is_flag=True, help="No progress and no notes.")(function)


def output_option(function: F) -> F:
    return click.option("--output", "-o", metavar="FILE", required=True, help="The file to write.")(function)


def plan_option(function: F) -> F:
    return click.option("--plan", "plan_path", metavar="FILE", help="Also write the plan, for `onnxpress apply`.")(
        function
    )


class Seconds(click.ParamType[float]):
    """A duration: 90, 90s, 5m, 1h."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h|)", str(value).strip())
        if not found:
            self.fail(f"{value!r} is not a duration such as 90s, 5m or 1h", param, ctx)
        return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def open_data(
    source: str | None, model: Path | str, labels: str | None, preprocess: str | None, tokenizer: str | None
) -> Any:
    """The dataset an option names, checked against the model's signature; None without one."""
    if source is None:
        if labels or preprocess or tokenizer:
            raise InputProblem(
                "--labels, --preprocess and --tokenizer belong to --data", "", "no --data was given", "add --data"
            )
        return None
    from onnxpress.data.dataset import open_dataset
    from onnxpress.model.files import load
    from onnxpress.model.signature import signature

    return open_dataset(source, signature(load(model)), labels=labels, preprocess=preprocess, tokenizer=tokenizer)


def tell_assumed(data: Any, quiet: bool) -> None:
    """Print what was assumed while reading samples."""
    from onnxpress.cli.console import note

    if data is not None and not quiet:
        for clause in data.assumed:
            note(f"assumed: {clause}")


def tell(notes: list[str], quiet: bool) -> None:
    from onnxpress.cli.console import note

    if not quiet:
        for line in notes:
            note(f"note: {line}")
