"""The gain of `optimize --train-budget` over candidates without training, and of its teacher over labels alone.

    ONNXPRESS_ZOO=path/to/zoo python benchmarks/train_budget.py --case resnet56 [--train-budget 600] [--max-drop 0.02]

One run of optimize with training on the train part without labels.  Rows: the best int8 form of the whole model; the
best candidate without training; the chosen one; and the chosen student refitted by least squares only, and trained for
as long on the train part's labels only, both in int8 where the chosen one is.  Weights and candidates are selected on
`select`; accuracy is on `val`.  Speed-ups are over the original, from one interleaved run with one thread.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import onnx_ir as ir
from zoo import dataset, zoo_module

from onnxpress import quantize
from onnxpress.api.distill import distill
from onnxpress.api.distillation_session import DistillationOptions, available_cores
from onnxpress.cli.output import console
from onnxpress.data.dataset import Dataset, Splits
from onnxpress.measure.score import Score, Scorer
from onnxpress.model.files import load, to_bytes
from onnxpress.model.signature import signature
from onnxpress.plan.candidate_store import Candidate, model_of
from onnxpress.plan.plan import Plan, apply_plan
from onnxpress.result import document
from onnxpress.runtime.latency import Effort, Ratio, compare_latency
from onnxpress.runtime.machine import this_machine
from onnxpress.search.finalists import OptimizeResult
from onnxpress.search.optimize import optimize
from onnxpress.search.request import OptimizeOptions
from onnxpress.search.search import allowed
from onnxpress.train.settings import TrainingSettings

os.environ["ONNXPRESS_CACHE"] = "off"


@dataclass
class Row:
    """One model: its score on val, and its speed-up over the original and over the faster of float and int8."""

    case: str
    recipe: str
    bytes: int
    score: Score
    speed: Ratio | None = None
    over: float = 0.0


def trained_form(outcome: OptimizeResult) -> Candidate | None:
    """The float student behind the fastest trained candidate that the selection samples allow."""
    if "trained" not in outcome.chosen:
        return None
    name = outcome.chosen.split(" + int8")[0].removesuffix(", trained") + ", trained"
    return next((c for c in outcome.candidates if c.name == name), None)


def untrained(outcome: OptimizeResult, max_drop: float, word: str = "") -> Candidate | None:
    """The fastest candidate without training, by its short timing, whose name begins with `word`."""
    some = [
        c for c in outcome.candidates if "trained" not in c.name and c.name.startswith(word) and allowed(c, max_drop)
    ]
    return max(some, key=lambda c: c.quick or 0.0, default=None)


def run_case(case: Any, request: OptimizeOptions) -> tuple[list[Row], OptimizeResult]:
    original = load(case.model)
    sig = signature(original)
    inputs, _ = case.data("train")
    bare = Dataset.from_arrays(inputs, sig, name=f"{case.name}/train without labels")
    labelled = dataset(case, "train", sig)
    splits = Splits(bare, dataset(case, "select", sig), dataset(case, "val", sig))
    models: dict[str, ir.Model | bytes | str] = {"original": original}
    with tempfile.TemporaryDirectory() as folder:
        outcome = optimize(
            case.model, splits, request, output=Path(folder) / "out.onnx", report=_stage_printer(case.name)
        )
    for recipe, found in (
        ("int8", untrained(outcome, 1.0, "int8")),
        ("no training", untrained(outcome, request.max_drop)),
    ):
        if found is not None:
            models[f"{recipe}: {found.name}"] = found.data
    models[f"chosen: {outcome.chosen}"] = outcome.data
    float_form = trained_form(outcome)
    if float_form is not None:
        step = float_form.plan.steps[-1]
        start = apply_plan(Plan(float_form.plan.steps[:-1]), original, bare).model
        steps = int(step.actions[0]["settings"]["steps"])
        settings = TrainingSettings(loss="none", labels_weight=1.0, features="none", threads=available_cores())
        alone = distill(
            start, original, labelled, DistillationOptions(settings, steps=steps), select=splits.select
        ).model
        forms = {
            "same student, closed form": start,
            "same student, labels alone": alone,
            "trained, float": model_of(float_form),
        }
        for name, model in forms.items():
            in_int8 = "int8" in outcome.chosen and name != "trained, float"
            models[name] = to_bytes(quantize(model, bare).model if in_int8 else model)
    judge = Scorer(original, splits.validate)
    rows = [Row(case.name, n, len(m), judge.score(m)) for n, m in models.items() if isinstance(m, bytes)]
    feeds = [b.inputs for b in bare.take(4).batches(1)]
    ratios = compare_latency(models, feeds, Effort(seconds=4.0 * len(models), precision=0.004)).ratios
    for row in rows:
        row.speed = next(r for r in ratios if r.name == row.recipe)
    plain = max([1.0, *(r.speed.speedup for r in rows if r.speed and r.recipe.startswith("int8"))])
    return [replace(r, over=r.speed.speedup / plain if r.speed else 0.0) for r in rows], outcome


def _stage_printer(case: str) -> Any:
    last = [""]

    def progress(stage: str, fraction: float) -> None:
        words = stage.split(": loss")[0]
        if words != last[0] and os.environ.get("VERBOSE"):
            last[0] = words
            print(f"{case} {fraction:.0%} {words}", flush=True)

    return progress


def show(rows: list[Row]) -> None:
    console.table(
        [("model", "left"), ("speed-up", "right"), ("over", "right"), ("val", "right"), ("drop", "right")],
        [[r.recipe[:36], f"{r.speed.speedup:.2f} {console.interval(r.speed.low, r.speed.high, 2)}" if r.speed else "",
          f"{r.over:.2f}", f"{r.score.value:.4f}", f"{r.score.drop:+.4f}"] for r in rows],
    )  # fmt: skip
    console.out(f"{rows[0].case}; over: beside the faster of float and int8")


@click.command()
@click.option("--zoo", type=click.Path(path_type=Path), default=lambda: os.environ.get("ONNXPRESS_ZOO"))
@click.option("--case", "name", default="resnet56")
@click.option("--max-drop", default=0.01)
@click.option("--time-budget", default=120.0, help="Seconds of search before training.")
@click.option("--train-budget", default=600.0, help="Seconds of training.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), default=Path("benchmarks/results/train_budget.json")
)
def main(
    zoo: Path | None, name: str, max_drop: float, time_budget: float, train_budget: float, json_path: Path
) -> None:
    """Run the benchmark and print one table."""
    if zoo is None:
        raise click.UsageError("give --zoo or ONNXPRESS_ZOO")
    request = OptimizeOptions(max_drop=max_drop, time_budget=time_budget, train_budget=train_budget)
    rows, outcome = run_case(zoo_module(Path(zoo)).load(name), request)
    show(rows)
    for refused, why in outcome.rejected.items():
        console.out(f"refused after the look at val: {refused}: {'; '.join(why)}")
    for c in outcome.candidates:
        console.out(f"{c.name}: {c.quick or 0:.2f}x, drop on select {c.score.drop:+.4f}")
        if "trained" in c.name:
            console.out("  " + "; ".join(n for n in c.notes if n.startswith("step"))[:2000])
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(document("train-budget", machine=this_machine().as_dict(), rows=rows), indent=1))
    console.out(this_machine().text())


if __name__ == "__main__":
    main()
