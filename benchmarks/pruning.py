"""Pruning without training: accuracy kept and speed won, beside simpler recipes, and what is left of a small residual
net.

    ONNXPRESS_ZOO=path/to/zoo python benchmarks/pruning.py [--cases resnet56,lite0,sst2,kws,vww] [--val select]

What is asked of each case stands in GOALS; of sst2, half of the units of every feed-forward layer and a quarter of the
heads. Calibration samples of the train part, no labels, no training, one thread; accuracy on `val`, which nothing was
tuned on.  The speeds of a case are of one interleaved run beside its original.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from zoo import dataset, zoo_module

from onnxpress import prune, simplify
from onnxpress.cli.output import console
from onnxpress.data.dataset import Dataset
from onnxpress.measure.evidence import evidence_for
from onnxpress.measure.score import Scorer
from onnxpress.model.counts import macs
from onnxpress.model.files import load, to_bytes
from onnxpress.model.parameter_count import parameters
from onnxpress.model.signature import signature
from onnxpress.passes.core.contract import Action
from onnxpress.passes.pruning.error_curves import error_curves
from onnxpress.passes.pruning.kernel_grid import action_of
from onnxpress.passes.pruning.options import PruneOptions
from onnxpress.passes.pruning.prune import PRUNE
from onnxpress.result import document
from onnxpress.runtime.latency import Effort, compare_latency
from onnxpress.runtime.machine import this_machine

ROOT = Path(__file__).resolve().parent.parent
GOALS = {  # and the points of accuracy that may be lost
    "resnet56": (PruneOptions(macs=0.6), 0.02),
    "lite0": (PruneOptions(macs=0.85), 0.05),
    "sst2": (None, 0.01),
    "kws": (PruneOptions(speedup=1.1), 0.01),
    "vww": (PruneOptions(speedup=1.1), 0.02),
    "resnet8": (PruneOptions(speedup=1.1), 0.01),
    "resnet20_bn": (PruneOptions(macs=0.8), 0.02),
}
RECIPES = {  # criterion, allocation, whether the readers are refitted
    "second-order, global": ("second-order", "global", True),
    "second-order, uniform": ("second-order", "uniform", True),
    "magnitude, uniform": ("magnitude", "uniform", True),
    "magnitude, not refitted": ("magnitude", "uniform", False),
}
_FEED_FORWARD, _HEADS = 0.5, 0.25  # shares of sst2 that go

os.environ["ONNXPRESS_CACHE"] = "off"  # nothing measured in an earlier run may help this one


def prune_case(case: Any, samples: int, split: str) -> list[dict[str, Any]]:
    model = load(case.model)
    sig = signature(model)
    train = dataset(case, "train", sig).take(samples)
    judge = Scorer(model, dataset(case, split, sig))
    goal, allowed = GOALS[case.name]
    made, rows = {"original": model}, []
    for name, (criterion, allocation, refitted) in RECIPES.items():
        if goal is None and allocation == "global":
            continue
        start = time.perf_counter()
        if goal is None:
            made[name] = transformer(model, train, criterion, refitted)
        else:
            options = replace(goal, criterion=criterion, allocation=allocation, refit=refitted)
            made[name] = prune(model, train, options=options, samples=samples).model
        score = judge.score(to_bytes(made[name]))
        rows.append(
            {
                "case": case.name,
                "recipe": name,
                "parameters": parameters(made[name]) / parameters(model),
                "allowed": allowed,
                "macs": work(made[name], train) / work(model, train),
                "top1": score.value,
                "original": score.reference,
                "low": score.low,
                "high": score.high,
                "seconds": time.perf_counter() - start,
            }
        )
    feeds = [b.inputs for b in train.take(4).batches(1)]
    timed = compare_latency(made, feeds, Effort(seconds=3.0 * len(made), precision=0.005))
    for row in rows:
        ratio = timed.ratio(row["recipe"])
        row |= {"speedup": ratio.speedup, "speedup_low": ratio.low, "speedup_high": ratio.high}
    return rows


def work(model: Any, data: Dataset) -> int:
    evidence = evidence_for(model, data.take(1))
    return sum(macs(evidence.model, evidence.trace).values())


def transformer(model: Any, data: Dataset, criterion: str, refitted: bool) -> Any:
    """Shares of the units of all feed-forward layers, and of the heads."""
    evidence = evidence_for(simplify(model).model, data)
    found = error_curves(evidence, criterion=criterion)
    actions: list[Action] = []
    for group in evidence.channels.groups:
        heads = group.sliced and any(p.role == "in" for p in group.slices) and len(group.producers) > 1
        share = _HEADS if heads else 0.0 if group.sliced else _FEED_FORWARD
        if share and group.internal:
            actions.append(action_of(found[group.name], round(share * group.size)))
    return PRUNE.apply(evidence, [*actions, {"refit": "least-squares" if refitted else "none"}]).model


def small_residual() -> dict[str, Any]:
    """The residual net of the issue (blocks on one spine, global pooling, Gemm head), half of the channels."""
    spec = importlib.util.spec_from_file_location("tests_nets", ROOT / "tests" / "nets.py")
    assert spec is not None
    assert spec.loader is not None
    nets = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["tests_nets"] = nets
    spec.loader.exec_module(nets)
    model = nets.residual(width=32, blocks=3)
    rng = np.random.default_rng(0)
    data = Dataset.from_arrays({"image": rng.standard_normal((64, 3, 8, 8)).astype(np.float32)}, signature(model))
    ours = prune(model, data, options=PruneOptions(0.5))
    return {"kept": parameters(ours.model) / parameters(model), "onnxsim": onnxsim_kept(model)}


def onnxsim_kept(model: Any) -> float | None:
    """What onnxsim's own structured pruner keeps of the same net."""
    import onnx
    import onnx_ir as ir
    import onnxsim

    try:
        done = onnxsim.apply_structured_pruning(ir.to_proto(model), 0.5)
        proto = done[0] if isinstance(done, tuple) else done
        size = sum(int(np.prod(t.dims)) for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    except Exception as error:  # another version's signature is not our failure
        console.note(f"onnxsim's pruner did not run: {error}")
        return None
    return size / parameters(model)


@click.command()
@click.option("--zoo", type=click.Path(path_type=Path), default=lambda: os.environ.get("ONNXPRESS_ZOO"))
@click.option("--cases", default="resnet56,lite0,sst2,kws,vww")
@click.option("--samples", default=256)
@click.option("--val", "split", default="val")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=Path("benchmarks/results/pruning.json"))
def main(zoo: Path | None, cases: str, samples: int, split: str, json_path: Path) -> None:
    """Run the benchmark and print one table."""
    rows: list[dict[str, Any]] = []
    if zoo is not None:
        module = zoo_module(Path(zoo))
        for name in cases.split(","):
            rows += prune_case(module.load(name), samples, split)
    console.table(
        [
            ("case", "left"),
            ("recipe", "left"),
            ("MACs", "right"),
            ("weights", "right"),
            ("top-1", "right"),
            ("speed-up", "right"),
        ],
        [
            [
                r["case"],
                r["recipe"],
                f"{r['macs']:.2f}",
                f"{r['parameters']:.2f}",
                f"{r['top1']:.4f}{'' if r['original'] - r['top1'] <= r['allowed'] else '*'}",
                f"{r['speedup']:.2f} {console.interval(r['speedup_low'], r['speedup_high'], 2)}",
            ]
            for r in rows
        ],
    )
    console.out(
        "* more is lost than is allowed; " + ", ".join(sorted({f"{r['case']} had {r['original']:.4f}" for r in rows}))
    )
    residual = small_residual()
    other = "did not run" if residual["onnxsim"] is None else f"{residual['onnxsim']:.1%}"
    console.out(
        f"small residual net at --ratio 0.5: {residual['kept']:.1%} of the parameters kept; onnxsim's pruner: {other}"
    )
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(
        json.dumps(document("pruning", machine=this_machine().as_dict(), rows=rows, residual=residual), indent=1)
    )
    console.out(this_machine().text())


if __name__ == "__main__":
    main()
