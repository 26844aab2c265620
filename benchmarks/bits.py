"""Fewer bits for weights: file size, accuracy and time of `share`, `weights`, `half` and `dynamic` beside the original.

    ONNXPRESS_ZOO=path/to/zoo python benchmarks/bits.py [--cases resnet56,lite0,sst2] [--commands …] [--split val]

128 calibration samples of the train part, no labels.  Accuracy with its paired 95 % interval on `val`, which nothing
was tuned on (`--split select` while trying).  All files of a case are timed against the original in one interleaved
run with one thread.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import onnx_ir as ir
from zoo import dataset, zoo_module

from onnxpress import dynamic, half, share, weights
from onnxpress.api.run_pass import PassResult
from onnxpress.cli.output import console
from onnxpress.data.dataset import Dataset
from onnxpress.errors import Problem
from onnxpress.measure.score import Scorer
from onnxpress.model.files import load, to_bytes
from onnxpress.model.signature import signature
from onnxpress.passes.weights.share import ShareOptions
from onnxpress.passes.weights.weights import WeightsOptions
from onnxpress.result import document
from onnxpress.runtime.latency import Effort, compare_latency
from onnxpress.runtime.machine import this_machine

os.environ["ONNXPRESS_CACHE"] = "off"  # nothing measured in an earlier run may help this one

COMMANDS: dict[str, Callable[[ir.Model, Dataset], PassResult]] = {
    "16 centres": lambda m, d: share(m, d),
    "16, 8 times smaller": lambda m, d: share(m, d, options=ShareOptions(smaller=8)),
    "16, none spared": lambda m, d: share(m, d, options=ShareOptions(spare=0.0)),
    "256 centres": lambda m, d: share(m, d, options=ShareOptions(256)),
    "8 bits": lambda m, d: weights(m, d),
    "8, 4 times smaller": lambda m, d: weights(m, d, options=WeightsOptions(smaller=4)),
    "4 bits": lambda m, d: weights(m, d, options=WeightsOptions(4)),
    "4 bits of 32": lambda m, d: weights(m, d, options=WeightsOptions(4, 32)),
    "3 bits": lambda m, d: weights(m, d, options=WeightsOptions(3)),
    "half": lambda m, d: half(m),
    "dynamic": lambda m, d: dynamic(m),
}


def bits_case(case: Any, commands: list[str], split: str, seconds: float) -> list[dict[str, Any]]:
    """One row a command of one case."""
    model = load(case.model)
    sig = signature(model)
    train = dataset(case, "train", sig)
    judge = Scorer(model, dataset(case, split, sig))
    rows: list[dict[str, Any]] = []
    made: dict[str, ir.Model | bytes | str] = {"original": model}
    for name in commands:
        start = time.perf_counter()
        try:
            done = COMMANDS[name](model, train)
        except Problem as problem:
            console.note(f"{case.name}, {name}: {problem.line()}")
            continue
        took = time.perf_counter() - start
        made[name] = to_bytes(done.model)
        score = judge.score(to_bytes(done.model))
        rows.append(
            {
                "case": case.name,
                "command": name,
                "smaller": done.bytes_before / done.bytes_after,
                "bytes": done.bytes_after,
                "score": score,
                "seconds": took,
            }
        )
    feeds = [b.inputs for b in train.take(4).batches(1)]
    for row, ratio in zip(
        rows, compare_latency(made, feeds, Effort(seconds=seconds)).ratios if rows else (), strict=True
    ):
        row["ratio"] = ratio
    return rows


@click.command()
@click.option("--zoo", type=click.Path(path_type=Path), required=True, default=lambda: os.environ.get("ONNXPRESS_ZOO"))
@click.option("--cases", default="resnet56,lite0,sst2")
@click.option("--commands", default=";".join(COMMANDS), help="Names apart by semicolons.")
@click.option("--split", type=click.Choice(["select", "val"]), default="val", show_default=True)
@click.option("--seconds", default=12.0, show_default=True, help="Of timing a case.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=Path("benchmarks/results/bits.json"))
def main(zoo: Path, cases: str, commands: str, split: str, seconds: float, json_path: Path) -> None:
    """Run the benchmark and print one table."""
    names = [name.strip() for name in commands.split(";")]
    unknown = [name for name in names if name not in COMMANDS]
    if unknown:
        raise click.UsageError(f"no command {unknown[0]!r}: {', '.join(COMMANDS)}")
    module = zoo_module(Path(zoo))
    rows = [row for name in cases.split(",") for row in bits_case(module.load(name), names, split, seconds)]
    console.table(
        [("case", "left"), ("command", "left"), ("size", "right"), (f"drop ({split})", "right"), ("speed-up", "right")],
        [
            [
                row["case"],
                row["command"],
                f"/{row['smaller']:.2f}",
                f"{row['score'].drop:+.4f} [{row['score'].low:.4f}, {row['score'].high:.4f}]",
                f"{row['ratio'].speedup:.2f} [{row['ratio'].low:.2f}, {row['ratio'].high:.2f}]",
            ]
            for row in rows
        ],
    )
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(
        json.dumps(document("bits", machine=this_machine().as_dict(), split=split, rows=rows), indent=1)
    )
    console.out(this_machine().text())


if __name__ == "__main__":
    main()
