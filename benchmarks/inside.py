"""Search inside a model (`nas --from`) and `optimize`, with the same target speed-up and time budget.

    ONNXPRESS_ZOO=path/to/zoo python benchmarks/inside.py --case resnet56 --speedup 4 [--max-drop 0.02] [--time-budget
180]

Both use the train part without labels and select on `select`; scores are on `val`.  Speed-ups are over the original,
from one interleaved run with one thread.  `--val select` leaves `val` unused, for work on the search itself.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import onnx_ir as ir
from zoo import dataset, zoo_module

from onnxpress.cli.output import console
from onnxpress.data.dataset import Dataset, Splits
from onnxpress.measure.score import Score, Scorer
from onnxpress.model.files import load
from onnxpress.model.signature import signature
from onnxpress.nas.functions import nas_from
from onnxpress.result import document
from onnxpress.runtime.latency import Effort, Ratio, compare_latency
from onnxpress.runtime.machine import this_machine
from onnxpress.search.finalists import OptimizeResult
from onnxpress.search.optimize import optimize
from onnxpress.search.request import OptimizeOptions

os.environ["ONNXPRESS_CACHE"] = "off"
_METHODS = {"optimize": optimize, "nas --from": nas_from}


@dataclass
class Row:
    """Result of one method.  met: whether the target was met in its final timing."""

    method: str
    chosen: str
    met: bool
    speed: Ratio
    score: Score
    seconds: float
    candidates: list[tuple[str, float, float]]


def run_case(case: Any, request: OptimizeOptions, val: str) -> list[Row]:
    original = load(case.model)
    sig = signature(original)
    bare = Dataset.from_arrays(case.data("train")[0], sig, name=f"{case.name}/train without labels")
    splits = Splits(bare, dataset(case, "select", sig), dataset(case, val, sig))
    found: dict[str, OptimizeResult] = {name: method(case.model, splits, request) for name, method in _METHODS.items()}
    feeds = [b.inputs for b in bare.take(4).batches(1)]
    models: dict[str, ir.Model | bytes | str] = {"original": original, **{n: o.data for n, o in found.items()}}
    ratios = compare_latency(models, feeds, Effort(seconds=12.0, precision=0.004))
    judge = Scorer(original, splits.validate)
    return [
        Row(name, o.chosen, o.met, ratios.ratio(name), judge.score(o.data), o.seconds,
            [(c.name, c.quick or 0.0, c.score.drop) for c in o.candidates])
        for name, o in found.items()
    ]  # fmt: skip


@click.command()
@click.option("--zoo", type=click.Path(path_type=Path), default=lambda: os.environ.get("ONNXPRESS_ZOO"))
@click.option("--case", "name", default="resnet56")
@click.option("--speedup", default=2.0)
@click.option("--max-drop", default=0.02)
@click.option("--time-budget", default=180.0, help="Seconds, per method.")
@click.option("--train-budget", default=0.0, help="Additional seconds of training, per method.")
@click.option("--val", type=click.Choice(["val", "select"]), default="val")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=Path("benchmarks/results/inside.json"))
def main(
    zoo: Path | None,
    name: str,
    speedup: float,
    max_drop: float,
    time_budget: float,
    train_budget: float,
    val: str,
    json_path: Path,
) -> None:
    """Run the benchmark and print one table."""
    if zoo is None:
        raise click.UsageError("give --zoo or ONNXPRESS_ZOO")
    request = OptimizeOptions(max_drop, time_budget=time_budget, train_budget=train_budget, speedup=speedup)
    rows = run_case(zoo_module(Path(zoo)).load(name), request, val)
    console.table(
        [("method", "left"), ("chosen", "left"), ("speed-up", "right"), (val, "right"), ("drop", "right"),
         ("met", "left")],
        [[r.method, r.chosen, f"{r.speed.speedup:.2f} {console.interval(r.speed.low, r.speed.high, 2)}",
          f"{r.score.value:.4f}", f"{r.score.drop:+.4f}", "yes" if r.met else "no"] for r in rows],
    )  # fmt: skip
    console.out(f"{name}, target {speedup:g}x, {time_budget:g} s each, {train_budget:g} s of training")
    for row in rows:
        console.out(f"{row.method}: " + "; ".join(f"{n} {speed:.2f}x {drop:+.4f}" for n, speed, drop in row.candidates))
    console.out(this_machine().text())
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(document("inside", machine=this_machine().as_dict(), rows=rows), indent=1))


if __name__ == "__main__":
    main()
