"""Pareto fronts of architecture searches on the zoo's data, in keyword and text spaces.

    ONNXPRESS_ZOO=path/to/zoo python benchmarks/nas_zoo.py --case kws --space keyword-1d [--time-budget 600]

The zoo's network is the teacher on the train part, without labels; weights and candidates are selected on `select`,
accuracy is on `val`.  Latency: ratios to the teacher in one interleaved run, one thread.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import click
from zoo import dataset, zoo_module

from onnxpress.cli.output import console
from onnxpress.data.dataset import Dataset, Splits
from onnxpress.model.files import load
from onnxpress.model.signature import signature
from onnxpress.nas.evaluation.evaluator import Evaluator
from onnxpress.nas.request import NasRequest
from onnxpress.nas.search import search, summary
from onnxpress.result import document
from onnxpress.runtime.machine import this_machine

os.environ["ONNXPRESS_CACHE"] = "off"


@click.command()
@click.option("--zoo", type=click.Path(path_type=Path), default=lambda: os.environ.get("ONNXPRESS_ZOO"))
@click.option("--case", "name", default="kws")
@click.option("--space", default="keyword-1d")
@click.option("--time-budget", default=600.0)
@click.option("--trials", default=100)
@click.option("--trainees", default=6)
@click.option("--keep", default=3)
@click.option("--proxy", default=NasRequest("").proxy)
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=Path("benchmarks/results/nas_zoo.json"))
def main(zoo: Path | None, name: str, space: str, json_path: Path, **fields: Any) -> None:
    """Run the benchmark and print one table.  fields: of the request."""
    if zoo is None:
        raise click.UsageError("give --zoo or ONNXPRESS_ZOO")
    case = zoo_module(Path(zoo)).load(name)
    teacher = load(case.model)
    sig = signature(teacher)
    bare = Dataset.from_arrays(case.data("train")[0], sig, name=f"{name}/train without labels")
    splits = Splits(bare, dataset(case, "select", sig), dataset(case, "val", sig))
    request = NasRequest(space, **fields)
    with tempfile.TemporaryDirectory() as folder:
        result = search(Evaluator(teacher, splits, request, True, this_machine()), folder)
    ratios = {r.name: r for r in result.timing.ratios}
    console.table(
        [("network", "left"), ("weights", "right"), ("val", "right"), ("drop", "right"), ("speed-up", "right"),
         ("front", "left")],
        [[n.name, f"{n.parameters / 1e3:.0f} k", f"{n.score.value:.4f}", f"{n.score.drop:+.4f}",
          f"{ratios[n.name].speedup:.2f} {console.interval(ratios[n.name].low, ratios[n.name].high, 2)}",
          "*" * n.on_front]
         for n in result.networks],
    )  # fmt: skip
    console.out(
        f"{name}, {space}: {len(result.trials)} candidates, {result.seconds:.0f} s; "
        "speed-up over the teacher, one thread"
    )
    console.out(this_machine().text())
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(document("nas-zoo", machine=this_machine().as_dict(), **summary(result)), indent=1))


if __name__ == "__main__":
    main()
