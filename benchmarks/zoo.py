"""optimize on every case of a zoo, beside the recipes that its peers offer, in one run.

    ONNXPRESS_ZOO=path/to/zoo python benchmarks/zoo.py [--cases kws,vww] [--peers/--no-peers] [--json FILE]

A zoo is a folder with `cases.py` (names(), load(name) -> case with model, data(split), size(split)).  Peers:
onnxruntime's static quantization (QDQ, per channel) in four type pairs, its dynamic quantization, and NNCF and onnxsim
where they are installed.  All models of a case are timed against the original in one interleaved run with one thread;
accuracy is on `val`, which nothing was tuned on.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import onnx

from onnxpress.cli.output import console
from onnxpress.data.dataset import Dataset, Splits
from onnxpress.errors import Problem
from onnxpress.measure.score import Score, Scorer
from onnxpress.model.files import load
from onnxpress.model.signature import Signature, signature
from onnxpress.result import document
from onnxpress.runtime.latency import Effort, Ratio, compare_latency
from onnxpress.runtime.machine import this_machine
from onnxpress.search.optimize import optimize
from onnxpress.search.request import OptimizeOptions

CALIBRATION = 128

os.environ["ONNXPRESS_CACHE"] = "off"  # nothing measured in an earlier run may help this one


@dataclass
class Row:
    """One model of a case; score None where the recipe failed (note says why)."""

    case: str
    recipe: str
    bytes: int
    score: Score | None
    ratio: Ratio | None
    seconds: float
    note: str = ""


def zoo_module(folder: Path) -> ModuleType:
    path = folder / "cases.py"
    if not path.is_file():
        raise click.UsageError(f"{path} is missing: give --zoo or ONNXPRESS_ZOO a folder with cases.py")
    spec = importlib.util.spec_from_file_location("zoo_cases", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["zoo_cases"] = module
    spec.loader.exec_module(module)
    return module


def dataset(case: Any, split: str, sig: Signature, limit: int | None = None) -> Dataset:
    """A split of a case as a Dataset (arrays in memory)."""
    inputs, labels = case.data(split, 0, limit)
    return Dataset.from_arrays(inputs, sig, labels=labels, name=f"{case.name}/{split}")


class Reader:
    """onnxruntime's calibration reader over one dataset."""

    def __init__(self, data: Dataset) -> None:
        self.data, self._left = data, self._all(data)

    @staticmethod
    def _all(data: Dataset) -> Iterator[dict[str, np.ndarray]]:
        return (b.inputs for b in data.batches(1))

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)

    def rewind(self) -> None:
        self._left = self._all(self.data)


def static(pair: str) -> Callable[[Path, Path, Dataset], None]:
    """onnxruntime quantize_static: QDQ, per channel, min-max, after its own pre-processing. pair: activation,
    weight."""

    def recipe(source: Path, target: Path, data: Dataset) -> None:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        kinds = {"u8": QuantType.QUInt8, "s8": QuantType.QInt8}
        ready = target.with_suffix(".pre.onnx")
        quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready),
            str(target),
            Reader(data),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=kinds[pair[:2]],
            weight_type=kinds[pair[2:]],
        )

    return recipe


def dynamic(source: Path, target: Path, data: Dataset) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(source), str(target), weight_type=QuantType.QInt8)


def nncf(source: Path, target: Path, data: Dataset) -> None:
    import nncf as tool

    model = onnx.load(source)
    done = tool.quantize(model, tool.Dataset([b.inputs for b in data.batches(1)]), subset_size=len(data))
    onnx.save(done, target)


def onnxsim(source: Path, target: Path, data: Dataset) -> None:
    import onnxsim as tool

    onnx.save(tool.simplify(onnx.load(source))[0], target)


RECIPES: dict[str, Callable[[Path, Path, Dataset], None]] = {
    "ort u8s8": static("u8s8"),
    "ort u8u8": static("u8u8"),
    "ort s8s8": static("s8s8"),
    "ort s8u8": static("s8u8"),
    "ort dynamic": dynamic,
    "nncf": nncf,
    "onnxsim": onnxsim,
}


def run_case(case: Any, folder: Path, request: OptimizeOptions, peers: bool, seconds: float) -> list[Row]:
    original = load(case.model)
    sig = signature(original)
    splits = Splits(dataset(case, "train", sig), dataset(case, "select", sig), dataset(case, "val", sig))
    rows: list[Row] = []
    start = time.perf_counter()
    target = folder / f"{case.name}.onnx"
    outcome = optimize(case.model, splits, request, output=target)
    rows.append(
        Row(case.name, "onnxpress", target.stat().st_size, None, None, time.perf_counter() - start, outcome.chosen)
    )
    models: dict[str, bytes] = {"original": Path(case.model).read_bytes(), "onnxpress": target.read_bytes()}
    calibrate = splits.calibrate.take(CALIBRATION)
    for name, recipe in RECIPES.items() if peers else ():
        if name == "nncf" and importlib.util.find_spec("nncf") is None:
            continue
        path = folder / f"{case.name}-{name.replace(' ', '-')}.onnx"
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                recipe(Path(case.model), path, calibrate)
            models[name] = path.read_bytes()
            rows.append(Row(case.name, name, path.stat().st_size, None, None, time.perf_counter() - start))
        except Exception as error:  # a peer's failure is a result of the benchmark
            rows.append(
                Row(case.name, name, 0, None, None, time.perf_counter() - start, f"failed: {type(error).__name__}")
            )
    _measure(rows, models, original, splits, seconds)
    return rows


def _measure(rows: list[Row], models: dict[str, bytes], original: Any, splits: Splits, seconds: float) -> None:
    judge = Scorer(original, splits.validate)
    feeds = [b.inputs for b in splits.calibrate.take(4).batches(1)]
    for row in rows:
        if row.recipe in models:
            try:
                row.score = judge.score(models[row.recipe])
            except Problem as problem:
                row.note = problem.line()
                del models[row.recipe]
    comparison = compare_latency(models, feeds, Effort(seconds=seconds, precision=0.004))
    for row in rows:
        if row.recipe in models:
            row.ratio = comparison.ratio(row.recipe)


def best_peer(rows: list[Row], max_drop: float) -> Row | None:
    good = [
        r
        for r in rows
        if r.recipe != "onnxpress" and r.score is not None and r.ratio is not None and r.score.drop <= max_drop
    ]
    return max(good, key=lambda r: r.ratio.speedup if r.ratio else 0.0, default=None)


def show(rows: list[Row], max_drop: float) -> None:
    console.table(
        [
            ("case", "left"),
            ("recipe", "left"),
            ("speed-up", "right"),
            ("95 % interval", "right"),
            ("drop (val)", "right"),
            ("kB", "right"),
            ("s", "right"),
        ],
        [
            [
                r.case,
                r.recipe,
                f"{r.ratio.speedup:.3f}x" if r.ratio else "-",
                console.interval(r.ratio.low, r.ratio.high) if r.ratio else r.note[:18],
                f"{r.score.drop:+.4f}" if r.score else "-",
                f"{r.bytes / 1000:.0f}",
                f"{r.seconds:.0f}",
            ]
            for r in rows
        ],
    )
    for case in dict.fromkeys(r.case for r in rows):
        own = next(r for r in rows if r.case == case and r.recipe == "onnxpress")
        peer = best_peer([r for r in rows if r.case == case], max_drop)
        if peer and peer.ratio and own.ratio:
            console.out(
                f"{case}: onnxpress ({own.note}) {own.ratio.speedup:.3f}x; "
                f"best peer within {max_drop:g}: {peer.recipe} {peer.ratio.speedup:.3f}x"
            )


@click.command()
@click.option(
    "--zoo",
    type=click.Path(path_type=Path),
    default=lambda: os.environ.get("ONNXPRESS_ZOO"),
    help="Folder with cases.py.",
)
@click.option("--cases", default="", help="Comma-separated names; default all.")
@click.option("--peers/--no-peers", default=True)
@click.option("--max-drop", default=0.01)
@click.option("--time-budget", default=240.0, help="Seconds of optimize for a case.")
@click.option("--seconds", default=30.0, help="Seconds of the final timing of a case.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=Path("benchmarks/results/zoo.json"))
def main(
    zoo: Path | None, cases: str, peers: bool, max_drop: float, time_budget: float, seconds: float, json_path: Path
) -> None:
    """Run the benchmark and print one table."""
    if zoo is None:
        raise click.UsageError("give --zoo or ONNXPRESS_ZOO")
    module = zoo_module(Path(zoo))
    wanted = cases.split(",") if cases else module.names()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            rows += run_case(
                module.load(name),
                Path(folder),
                OptimizeOptions(max_drop=max_drop, time_budget=time_budget),
                peers,
                seconds,
            )
            json_path.parent.mkdir(parents=True, exist_ok=True)
            json_path.write_text(
                json.dumps(document("zoo", machine=this_machine().as_dict(), max_drop=max_drop, rows=rows), indent=1)
            )
            show([r for r in rows if r.case == name], max_drop)
    console.out(this_machine().text())


if __name__ == "__main__":
    main()
