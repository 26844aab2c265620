"""Accuracy against latency of pruning without training: by second-order loss, uniform, by magnitude, and by onnxsim's
pruner.

    ONNXPRESS_ZOO=path/to/zoo python benchmarks/pruning_curve.py [--cases resnet56,lite0,sst2,kws,vww] [--val select]

Every recipe at six shares of the multiply-accumulates (those that the kernels' grid makes the same once), all repaired
by least squares on calibration samples of the train part, no labels, no training.  onnxsim:
`apply_structured_wanda_pruning` with the same samples, its heads, and its own repair (`apply_pruning_finetune`), at
four sparsities.  Accuracy on `val`, which nothing was tuned on; all files of a case are timed in one interleaved run
with the original, one thread.  In the end, of every other recipe, at how many of its points ours is at least as good
at the same speed (by straight lines between our points).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnx_ir as ir
from zoo import dataset, zoo_module

from onnxpress import simplify
from onnxpress.cli.output import console
from onnxpress.data.dataset import Dataset
from onnxpress.errors import Problem
from onnxpress.measure.evidence import evidence_for
from onnxpress.measure.score import Scorer
from onnxpress.model.counts import macs
from onnxpress.model.files import load, to_bytes
from onnxpress.model.signature import signature
from onnxpress.passes.core.contract import Action
from onnxpress.passes.pruning.allocation import plan_pruning
from onnxpress.passes.pruning.options import PruneOptions
from onnxpress.passes.pruning.prune import PRUNE
from onnxpress.result import document
from onnxpress.runtime.latency import Effort, compare_latency
from onnxpress.runtime.machine import this_machine

OURS = "second-order, global"
RECIPES = {
    OURS: ("second-order", "global"),
    "second-order, uniform": ("second-order", "uniform"),
    "magnitude, uniform": ("magnitude", "uniform"),
}
PEER = "onnxsim, repaired"
SHARES = (0.9, 0.8, 0.7, 0.6, 0.45, 0.3)
SPARSITIES = (0.1, 0.2, 0.3, 0.5)

os.environ["ONNXPRESS_CACHE"] = "off"  # nothing measured in an earlier run may help this one


def points(original: ir.Model, train: Dataset) -> Iterator[tuple[str, float, ir.Model | None, str]]:
    """(recipe, aim, model or None, why not)."""
    evidence = evidence_for(simplify(original).model, train)
    for recipe, (criterion, allocation) in RECIPES.items():
        before: list[Action] = []
        for share in SHARES:
            try:
                actions = plan_pruning(evidence, PruneOptions(macs=share, criterion=criterion, allocation=allocation))
                if actions == before:
                    continue
                before = actions
                yield (
                    recipe,
                    share,
                    PRUNE.apply(evidence, [*actions, {"refit": "least-squares"}]).model,
                    "",
                )
            except Problem as error:
                yield recipe, share, None, str(error)
    feeds = [dict(b.inputs) for b in train.batches(1)]
    for sparsity in SPARSITIES:
        yield PEER, sparsity, *by_onnxsim(ir.to_proto(evidence.model), feeds, sparsity)


def by_onnxsim(model: onnx.ModelProto, feeds: list[dict[str, Any]], sparsity: float) -> tuple[ir.Model | None, str]:
    import onnxsim

    try:
        cut = onnxsim.apply_structured_wanda_pruning(model, calibration_data=feeds, sparsity=sparsity)
        cut = onnxsim.apply_attention_head_wanda_pruning(cut, calibration_data=feeds, sparsity=sparsity)
        done = onnxsim.apply_pruning_finetune(model, cut, calibration_data=feeds)
        return ir.from_proto(done), ""
    except Exception as error:  # whatever the peer raises is its result
        return None, f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"


def work(model: ir.Model, data: Dataset) -> int:
    evidence = evidence_for(model, data.take(1))
    return sum(macs(evidence.model, evidence.trace).values())


def run_case(case: Any, samples: int, split: str) -> list[dict[str, Any]]:
    original = load(case.model)
    sig = signature(original)
    train = dataset(case, "train", sig).take(samples)
    judge = Scorer(original, dataset(case, split, sig))
    whole = work(original, train)
    made: dict[str, ir.Model | bytes | str] = {"original": original}
    rows: list[dict[str, Any]] = []
    start = time.perf_counter()
    for recipe, aim, model, why in points(original, train):
        row: dict[str, Any] = {
            "case": case.name,
            "recipe": recipe,
            "aim": aim,
            "why": why,
            "seconds": time.perf_counter() - start,
        }
        start = time.perf_counter()
        rows.append(row)
        if model is None:
            continue
        try:
            score = judge.score(to_bytes(model))
        except Problem as error:
            row["why"] = f"it does not run: {error}"
            continue
        row |= {"macs": work(model, train) / whole, "top1": score.value, "original": score.reference}
        made[f"{recipe} {aim}"] = model
    feeds = [b.inputs for b in train.take(4).batches(1)]
    timed = compare_latency(made, feeds, Effort(seconds=2.0 * len(made), precision=0.004))
    for row in rows:
        if "top1" in row:
            ratio = timed.ratio(f"{row['recipe']} {row['aim']}")
            row |= {"speedup": ratio.speedup, "low": ratio.low, "high": ratio.high}
    return rows


def comparison(rows: list[dict[str, Any]]) -> str:
    """Of each other recipe at how many of its points ours is at least as good at the same speed."""
    done = [r for r in rows if "speedup" in r]
    ours = sorted(
        [(r["speedup"], r["top1"]) for r in done if r["recipe"] == OURS] + [(1.0, r["original"]) for r in done[:1]]
    )
    speeds, right = zip(*ours, strict=True)
    parts = []
    for recipe in dict.fromkeys(r["recipe"] for r in done if r["recipe"] != OURS):
        own = [r for r in done if r["recipe"] == recipe]
        beaten = sum(
            r["speedup"] <= 1.005 * speeds[-1] and float(np.interp(r["speedup"], speeds, right)) >= r["top1"]
            for r in own
        )
        parts.append(f"{recipe}: {beaten} of {len(own)}")
    return "; ".join(parts)


def _numbers(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['macs']:.2f}",
        f"{row['top1']:.4f}",
        f"{row['speedup']:.2f} {console.interval(row['low'], row['high'], 2)}",
    ]


@click.command()
@click.option("--zoo", type=click.Path(path_type=Path), default=lambda: os.environ.get("ONNXPRESS_ZOO"))
@click.option("--cases", default="resnet56,lite0,sst2,kws,vww")
@click.option("--samples", default=128)
@click.option("--val", "split", default="val")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), default=Path("benchmarks/results/pruning_curve.json")
)
def main(zoo: Path | None, cases: str, samples: int, split: str, json_path: Path) -> None:
    """Run the benchmark and print one table a case."""
    if zoo is None:
        raise click.UsageError("give --zoo or ONNXPRESS_ZOO")
    rows: list[dict[str, Any]] = []
    for name in cases.split(","):
        own = run_case(zoo_module(Path(zoo)).load(name), samples, split)
        rows += own
        console.table(
            [("recipe", "left"), ("aim", "right"), ("MACs", "right"), ("top-1", "right"), ("speed-up", "right")],
            [[r["recipe"], f"{r['aim']:g}", *(_numbers(r) if "speedup" in r else ["", "", "no result"])] for r in own],
            title=name,
        )
        for row in own:
            if row["why"]:
                console.note(f"{row['recipe']} {row['aim']:g}: {row['why']}")
        slower = sum(r["high"] < 1 for r in own if r["recipe"] == OURS and "high" in r)
        console.out(
            f"{name} had {next((r['original'] for r in own if 'original' in r), float('nan')):.4f}; "
            f"{slower} of ours are slower than it"
        )
        console.out(f"at the same speed ours is at least as good at: {comparison(own)}")
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(
            json.dumps(document("pruning-curve", machine=this_machine().as_dict(), rows=rows), indent=1)
        )
    console.out(this_machine().text())


if __name__ == "__main__":
    main()
