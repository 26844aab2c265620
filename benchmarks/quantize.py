"""Accuracy of `quantize` with its defaults on every case of a zoo, for this CPU and for one without VNNI.

    ONNXPRESS_ZOO=path/to/zoo python benchmarks/quantize.py [--cases kws,vww]

Columns: float; the file for this CPU; the same file under session.x64quantprecision=1 (u8 x u8 products, which never
saturate); the file written for AVX2 (fewer levels where pairs could saturate), run here; how many times smaller this
CPU's file is, and all numbers in it (initializers).  All on `val`, or the split that is named.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir
from zoo import dataset, zoo_module

from onnxpress import quantize
from onnxpress.cli.output import console
from onnxpress.data.dataset import Dataset
from onnxpress.model.files import load, to_bytes
from onnxpress.model.signature import signature
from onnxpress.result import document
from onnxpress.runtime.machine import this_machine
from onnxpress.runtime.session import SessionSettings, all_cores, open_session

PRECISE = SessionSettings(threads=all_cores().threads, config=(("session.x64quantprecision", "1"),))

os.environ["ONNXPRESS_CACHE"] = "off"  # nothing measured in an earlier run may help this one


def top1(model: bytes, data: Dataset, settings: SessionSettings) -> float:
    session = open_session(model, settings)
    right = total = 0
    for batch in data.batches(16):
        found = np.asarray(session.run(None, batch.inputs)[0]).reshape(batch.count, -1).argmax(1)
        marks = np.array([-1 if label is None else int(label) for label in batch.labels])
        right += int((found == marks)[marks >= 0].sum())
        total += int((marks >= 0).sum())
    return right / total


def weight_bytes(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def run_case(case: Any, split: str) -> dict[str, Any]:
    model = load(case.model)
    sig = signature(model)
    train, val = dataset(case, "train", sig), dataset(case, split, sig)
    done = quantize(model, train).model
    here = to_bytes(done)
    made = quantize(model, train, target_cpu="avx2")
    plain = all_cores()
    return {
        "case": case.name,
        "float": top1(Path(case.model).read_bytes(), val, plain),
        "here": top1(here, val, plain),
        "precise": top1(here, val, PRECISE),
        "avx2": top1(to_bytes(made.model), val, plain),
        "narrow": next((n for n in made.notes if "would saturate" in n), "none").split(" channels")[0],
        "size": len(to_bytes(model)) / len(here),
        "weights": weight_bytes(model) / weight_bytes(done),
    }


@click.command()
@click.option("--zoo", type=click.Path(path_type=Path), default=lambda: os.environ.get("ONNXPRESS_ZOO"))
@click.option("--cases", default="")
@click.option("--val", "split", default="val")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=Path("benchmarks/results/quantize.json"))
def main(zoo: Path | None, cases: str, split: str, json_path: Path) -> None:
    """Run the benchmark and print one table."""
    if zoo is None:
        raise click.UsageError("give --zoo or ONNXPRESS_ZOO")
    module = zoo_module(Path(zoo))
    rows = [run_case(module.load(name), split) for name in (cases.split(",") if cases else module.names())]
    console.table(
        [
            ("case", "left"),
            ("float", "right"),
            ("int8", "right"),
            ("u8u8", "right"),
            ("for avx2", "right"),
            ("file", "right"),
            ("weights", "right"),
        ],
        [
            [
                r["case"],
                *(f"{r[k]:.4f}" for k in ("float", "here", "precise", "avx2")),
                f"{r['size']:.2f}x",
                f"{r['weights']:.2f}x",
            ]
            for r in rows
        ],
    )
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(document("quantize", machine=this_machine().as_dict(), rows=rows), indent=1))
    console.out(this_machine().text())


if __name__ == "__main__":
    main()
