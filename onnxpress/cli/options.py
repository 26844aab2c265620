"""Options that several commands share, and how they become datasets, splits and efforts."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from onnxpress.errors import InputProblem

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxpress.data.dataset import Dataset, Splits
    from onnxpress.measure.quality import QualityOptions

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class DataChoice:
    """What --data and its companions said."""

    path: str | None
    labels: str | None = None
    preprocess: str | None = None
    tokenizer: str | None = None
    classes: str | None = None
    trust: bool = False
    strict: bool = False
    shape: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What --shape said, by input. Raises InputProblem where it cannot be read."""
        found: dict[str, tuple[int, ...]] = {}
        for text in self.shape:
            name, sign, sizes = text.rpartition("=")
            try:
                found[name] = tuple(int(size) for size in sizes.replace("x", ",").split(",")) if sizes.strip() else ()
            except ValueError:
                sign = ""
            if not sign or not name:
                raise InputProblem(
                    "cannot read --shape", text, "sizes are whole numbers", "write it as in --shape image=1x3x224x224"
                )
        return found

    def at(self, path: str) -> DataChoice:
        """The same reading of another source, which brings its own labels."""
        return replace(self, path=path, labels=None)


def data_options(required: bool) -> Callable[[F], F]:
    """--data and what belongs to it; the command gets them as one `source: DataChoice`."""
    kinds = ".npz, .npy, a folder (arrays, images, sounds, test_data_set_N), .csv, .tsv, .parquet, .txt, .jsonl"
    options = (
        click.option("--data", "-d", metavar="PATH", required=required, help=f"Samples: {kinds}, or module:function."),
        click.option("--labels", metavar="PATH|KEY", help="Labels: a file, a key or a column."),
        click.option(
            "--preprocess",
            metavar="RECIPE",
            help="raw, unit, imagenet, tf, …, a TOML file, a preprocessor_config.json, or module:function.",
        ),
        click.option("--tokenizer", metavar="FILE", help="A tokenizer.json, for text."),
        click.option(
            "--classes", metavar="FILE", help="Names of the model's classes in order, for labels that are names."
        ),
        click.option("--trust", is_flag=True, help="Lift the size limits on images and archives."),
        click.option(
            "--strict", is_flag=True, help="Exit 2 if samples are not what the model expects, 1 if a goal is not met."
        ),
        click.option(
            "--shape",
            multiple=True,
            metavar="INPUT=1x3xHxW",
            help="Shape of an input with free sizes: of synthetic inputs, and as what samples are read; repeatable.",
        ),
    )

    def wrap(function: F) -> F:
        @functools.wraps(function)
        def command(*args: Any, **given: Any) -> Any:
            names = ("data", "labels", "preprocess", "tokenizer", "classes", "trust", "strict", "shape")
            return function(*args, source=DataChoice(*[given.pop(name) for name in names]), **given)

        for option in reversed(options):
            command = option(command)
        return cast(F, command)

    return wrap


# Names of metrics and of decoders of boxes, here because --help must be fast; a test compares them.
METRICS = (
    "top-1", "top-5", "agreement", "f1", "auc", "position-agreement", "exact-sequence", "error-rate", "perplexity",
    "kl", "cosine", "retrieval", "iou", "dice", "psnr", "ssim", "r2", "mse", "mae", "pearson", "spearman", "map",
    "map50", "relative-error",
)  # fmt: skip
DECODERS = ("yolov8", "yolov5", "ssd", "detr", "boxes", "rows", "grid")


@dataclass(frozen=True)
class QualityChoice:
    """What --metric and its companions said."""

    metric: tuple[str, ...]
    decode: str | None
    outputs: tuple[str, ...]

    def options(self) -> QualityOptions:
        """As options of one metric. Raises InputProblem for an unknown metric or decoder."""
        from onnxpress.measure.quality import QualityOptions

        found = QualityOptions(self.metric[0] if self.metric else None, self.decode, self.outputs)
        found.check()
        return found


def quality_options(many: bool = False) -> Callable[[F], F]:
    """--metric and what belongs to it; the command gets them as one `quality: QualityChoice`. many: several metrics."""
    names = f"{', '.join(METRICS)}, or module:function."
    repeated = " Can be repeated." if many else ""
    options = (
        click.option(
            "--metric",
            multiple=many,
            metavar="NAME",
            help=f"What results are judged by; default: chosen by what the outputs are. One of {names}{repeated}",
        ),
        click.option(
            "--decode",
            metavar="NAME",
            help="What stands between outputs and metric: module:function, called with the outputs of a sample, or a "
            f"decoder of boxes: {', '.join(DECODERS)}.",
        ),
        click.option(
            "--outputs", multiple=True, metavar="NAME", help="An output that matters; default: all. Can be repeated."
        ),
    )

    def wrap(function: F) -> F:
        @functools.wraps(function)
        def command(*args: Any, **given: Any) -> Any:
            metric, decode, outputs = (given.pop(name) for name in ("metric", "decode", "outputs"))
            chosen = (metric,) if isinstance(metric, str) else tuple(metric or ())
            return function(*args, quality=QualityChoice(chosen, decode, tuple(outputs)), **given)

        for option in reversed(options):
            command = option(command)
        return cast(F, command)

    return wrap


def max_drop_option(function: F) -> F:
    return click.option(
        "--max-drop",
        type=float,
        help="Maximum drop in the metric's unit: 0.01 is one point of accuracy; default: by the metric.",
    )(function)


def speed_options(function: F) -> F:
    """The goal in time of a command that makes a model faster."""
    for option in reversed(
        (
            click.option(
                "--speedup",
                type=float,
                default=0.0,
                help="Target speed-up; the most accurate candidate that reaches it is chosen.",
            ),
            click.option(
                "--latency-ms", type=float, default=0.0, help="Target latency of one run in ms, instead of --speedup."
            ),
        )
    ):
        function = option(function)
    return function


def session_options(function: F) -> F:
    """How models are run when a search times them."""
    for option in reversed(
        (
            click.option(
                "--threads",
                type=click.IntRange(1, 1024),
                default=1,
                show_default=True,
                help="Threads of a session in every timing.",
            ),
            click.option(
                "--provider",
                default="",
                metavar="NAME",
                help="Execution provider of onnxruntime to optimize for, such as openvino; default: the CPU's.",
            ),
        )
    ):
        function = option(function)
    return function


def run_options(function: F) -> F:
    """Where a run is kept, and how it ends."""
    for option in reversed(
        (
            click.option("--seed", default=0, show_default=True, help="Random seed."),
            click.option(
                "--run", metavar="FOLDER", help="Folder of the run record; default: the output with the suffix .run."
            ),
        )
    ):
        function = option(function)
    return function


def files_options(function: F) -> F:
    """Files for other programs."""
    for option in reversed(
        (
            click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Also write JUnit XML."),
            click.option(
                "--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Also write a summary in Markdown."
            ),
        )
    ):
        function = option(function)
    return function


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(function)


def quiet_option(function: F) -> F:
    return click.option("--quiet", "-q", is_flag=True, help="No progress and no notes.")(function)


def output_option(function: F) -> F:
    return click.option("--output", "-o", metavar="FILE", required=True, help="The file to write.")(function)


def plan_option(function: F) -> F:
    return click.option("--plan", metavar="FILE", help="Also write the plan, for `onnxpress apply`.")(function)


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


def open_data(source: DataChoice, model: Path | str, quiet: bool = True, doubted: bool = True) -> Dataset | None:
    """The dataset an option names, checked against the model's signature; None without one.

    What was assumed while reading is printed unless quiet. doubted: whether to look if they are what the model expects.
    """
    if source.path is None:
        if source.labels or source.preprocess or source.tokenizer or source.classes:
            raise InputProblem(
                "--labels, --preprocess, --tokenizer and --classes belong to --data", "", "no --data was given",
                "add --data",
            )  # fmt: skip
        if source.shapes:
            from onnxpress.measure.model_inputs import remember_shapes
            from onnxpress.model.files import load

            remember_shapes(load(model), source.shapes)
        return None
    from onnxpress.cli.output.console import note
    from onnxpress.data.class_names import class_names_of
    from onnxpress.data.dataset import open_dataset
    from onnxpress.data.synthetic import with_sizes
    from onnxpress.model.files import load
    from onnxpress.model.signature import signature

    opened = load(model)
    read = functools.partial(
        open_dataset, source.path, with_sizes(signature(opened), source.shapes),
        labels=source.labels, preprocess=source.preprocess, tokenizer=source.tokenizer, trust=source.trust,
    )  # fmt: skip
    data = read(classes=source.classes)
    named = class_names_of(opened.metadata_props)
    if data.reading.numbered and named.keys() >= set(data.reading.numbered):  # the file holds their numbers
        data = read(classes=named)
    for clause in () if quiet else data.assumed:
        note(f"assumed: {clause}")
    if doubted:
        report_doubts(opened, data, source.strict)
    return data


def report_doubts(model: ir.Model, data: Dataset, strict: bool) -> None:
    """Print why samples may not be what the model expects. Raises InputProblem where there is a doubt and `strict`."""
    from onnxpress.cli.output.console import note
    from onnxpress.measure.sample_doubts import sample_doubts

    data.doubts = tuple(sample_doubts(model, data))
    for doubt in data.doubts:
        if strict:
            what, _, hint = doubt.partition(". TRY: ")
            raise InputProblem("the samples are not what the model expects", data.name, what, hint)
        note(f"warning: {doubt}")


def need_data(source: DataChoice, model: Path | str, quiet: bool = True) -> Dataset:
    """The dataset of a command that requires one."""
    data = open_data(source, model, quiet)
    assert data is not None
    return data


def splits_of(
    model: Path,
    source: DataChoice,
    select_source: str | None,
    validate_source: str | None,
    quiet: bool,
    crossed: bool = False,
) -> Splits:
    """Splits from one source, or from sources named part by part. crossed: two halves where there are few samples."""
    from onnxpress.data.dataset import Splits
    from onnxpress.plan.plan import SPLITS

    main = need_data(source, model, quiet)
    select = need_data(source.at(select_source), model) if select_source else None
    validate = need_data(source.at(validate_source), model) if validate_source else None
    if select is not None and validate is not None:
        return Splits(main, select, validate)
    if select is not None:
        parts = main.split(SPLITS[2])
        return Splits(parts.calibrate, select, parts.validate)
    if validate is not None:
        parts = main.split(SPLITS[1])
        return Splits(parts.calibrate, parts.select, validate)
    return main.parts() if crossed else main.split(SPLITS[0])


def print_notes(notes: list[str], quiet: bool) -> None:
    from onnxpress.cli.output.console import note

    if not quiet:
        for line in notes:
            note(f"note: {line}")


def sample_arguments(source: DataChoice, select: str | None, validate: str | None) -> list[str]:
    """The options that name these samples, for a command to repeat."""
    given = {
        "--data": source.path,
        "--labels": source.labels,
        "--preprocess": source.preprocess,
        "--tokenizer": source.tokenizer,
        "--classes": source.classes,
        "--select": select,
        "--validate": validate,
    }
    words = [w for name, value in given.items() if value for w in (name, value)]
    return [*words, *(w for text in source.shape for w in ("--shape", text)), *(["--trust"] if source.trust else [])]
