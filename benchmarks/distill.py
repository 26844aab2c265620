"""What distillation without labels brings back of a narrow network, beside least squares alone and labels alone.

    ONNXPRESS_ZOO=path/to/zoo python benchmarks/distill.py [--case resnet56] [--macs 0.5] [--minutes 10]

The student is the case's model with channels removed (by harm) until it has at most so many multiply-accumulates.  Rows:
cut and repaired in closed form; distilled from the original on the train part without its labels; trained for as long
on the train part's labels alone.  Weights are chosen on `select`; accuracy is on `val`, which nothing was chosen on.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from zoo import dataset, zoo_module

from onnxpress.cli import console
from onnxpress.data.dataset import Dataset
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.measure.score import Judge, Score
from onnxpress.model.counts import macs
from onnxpress.model.files import load, save, to_bytes
from onnxpress.model.signature import signature
from onnxpress.optimize.distill import Wish, distill
from onnxpress.optimize.run import document
from onnxpress.optimize.single import simplify
from onnxpress.passes.base import Decision
from onnxpress.passes.prune import PRUNE, curves, sensitivities, spread_by_harm, widths
from onnxpress.runtime.machine import this_machine
from onnxpress.train.settings import Settings

SAMPLES = 128


@dataclass
class Row:
    """One recipe: score on val; curve: (step, metric on select) of its training; best: the step kept."""

    case: str
    recipe: str
    macs: float
    score: Score
    seconds: float
    curve: list[tuple[int, float]] = field(default_factory=list)
    best: int = 0
    steps: int = 0


def cost(evidence: Evidence) -> int:
    return sum(macs(evidence.model, evidence.trace).values())


def narrowed(path: Path, data: Dataset, share: float, scope: str = "hidden", by_harm: bool = True) -> Any:
    """The model with as few channels as `share` of its multiply-accumulates needs, repaired.

    scope: "hidden" (inner widths of blocks) or "all"; by_harm: the groups weighed by their measured harm to the output.
    """
    evidence = evidence_for(simplify(path).model, data)
    shapes = curves(evidence, scope)
    weights = sensitivities(evidence, shapes, dict.fromkeys(shapes, 0)) if by_harm else {}
    full = cost(evidence)
    halves = {n: evidence.channels.group(n).size - (widths(evidence.channels.group(n).size, evidence) or [0])[0] for n in shapes}
    order = np.random.default_rng(0).permutation(sorted(shapes)).tolist()
    low, high = 0, len(order)

    def decided(count: int, times: int = 1) -> list[Decision]:
        """What harms least, as much as a step (of `times` grid steps) of the first `count` groups saves."""
        goal = {n: min(times * halves[n], evidence.channels.group(n).size - 1) if i < count else 0 for i, n in enumerate(order)}
        gone = spread_by_harm(evidence, shapes, weights, goal)
        return [{"group": n, "remove": sorted(shapes[n].order[:g])} for n, g in gone.items() if g]

    def small(decisions: list[Decision]) -> bool:
        plain = PRUNE.apply(evidence.model, [*decisions, {"repair": "none"}], evidence).model
        return cost(evidence_for(plain, data.take(1))) <= share * full

    times = next((t for t in range(1, 8) if small(decided(high, t))), 8)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if small(decided(middle, times)) else (middle, high)
    return PRUNE.apply(evidence.model, [*decided(high, times), {"repair": "least-squares"}], evidence).model


def run_case(case: Any, share: float, scope: str, wish: Wish, student: Path | None, keep: Path | None) -> list[Row]:
    original = load(case.model)
    sig = signature(original)
    train, select = dataset(case, "train", sig), dataset(case, "select", sig)
    judge = Judge(original, dataset(case, "val", sig))
    start = time.perf_counter()
    made = narrowed(case.model, train.take(SAMPLES), share, scope) if student is None else load(student)
    if keep is not None:
        save(made, keep)
    part = cost(evidence_for(made, train.take(1))) / cost(evidence_for(original, train.take(1)))
    rows = [Row(case.name, "closed form", part, judge.score(to_bytes(made)), time.perf_counter() - start)]
    labels = replace(wish, settings=replace(wish.settings, loss="none", labels=1.0, features="none"))
    inputs, _ = case.data("train")
    bare = Dataset.from_arrays(inputs, sig, name=f"{case.name}/train without labels")
    for name, how, data in (("distilled, no labels", wish, bare), ("labels alone", labels, train)):
        start = time.perf_counter()
        done = distill(made, original, data, how, select=select)
        row = Row(case.name, name, part, judge.score(to_bytes(done.model)), time.perf_counter() - start)
        row.curve, row.best = [(p.step, p.value) for p in done.curve], done.best
        row.steps = done.settings.steps if done.settings else 0
        rows.append(row)
    return rows


def show(rows: list[Row]) -> None:
    console.table(
        [("case", "left"), ("recipe", "left"), ("MACs", "right"), ("val", "right"), ("95 % interval of the drop", "right"),
         ("s", "right")],
        [[r.case, r.recipe, f"{r.macs:.2f}", f"{r.score.value:.4f}", console.interval(r.score.low, r.score.high, 4),
          f"{r.seconds:.0f}"] for r in rows],
    )  # fmt: skip
    for row in rows:
        if row.curve:
            marks = row.curve[:: max(1, len(row.curve) // 6)]
            console.out(f"{row.recipe}, on select: " + ", ".join(f"{s}: {v:.4f}" for s, v in marks))
            console.out(f"  step {row.best} of {row.steps} kept: {dict(row.curve).get(row.best, float('nan')):.4f}")
    console.out(f"original on val: {rows[0].score.reference:.4f}")


@click.command()
@click.option("--zoo", type=click.Path(path_type=Path), default=lambda: os.environ.get("ONNXPRESS_ZOO"))
@click.option("--case", "name", default="resnet56")
@click.option("--macs", "share", default=0.5, help="Share of the multiply-accumulates that stays.")
@click.option("--scope", type=click.Choice(["hidden", "all"]), default="hidden")
@click.option("--minutes", default=10.0, help="Of training, for each of the two trained rows.")
@click.option("--threads", default=0)
@click.option("--student", type=click.Path(path_type=Path), help="A narrowed file made before.")
@click.option("--keep", type=click.Path(path_type=Path), help="Write the narrowed file.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=Path("benchmarks/results/distill.json"))
def main(
    zoo: Path | None,
    name: str,
    share: float,
    scope: str,
    minutes: float,
    threads: int,
    student: Path | None,
    keep: Path | None,
    json_path: Path,
) -> None:
    """Run the benchmark and print one table."""
    if zoo is None:
        raise click.UsageError("give --zoo or ONNXPRESS_ZOO")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    wish = Wish(seconds=60 * minutes)
    if threads:
        wish = replace(wish, settings=replace(wish.settings, threads=threads))
    rows = run_case(zoo_module(Path(zoo)).load(name), share, scope, wish, student, keep)
    show(rows)
    settings: Settings = wish.settings
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(
        json.dumps(
            document("distill", machine=this_machine().as_dict(), minutes=minutes, settings=settings.plain(), rows=rows),
            indent=1,
        )
    )
    console.out(this_machine().text())


if __name__ == "__main__":
    main()
