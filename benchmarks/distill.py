"""Accuracy of a pruned network after distillation without labels, least squares alone, and labels alone.

    ONNXPRESS_ZOO=path/to/zoo python benchmarks/distill.py [--case resnet56] [--macs 0.5] [--minutes 10]

The student is the case's model with channels pruned (by loss increase) to a fraction of its multiply-accumulates.
Rows: pruned and refitted by least squares; distilled from the original on the train part without labels; trained for as
long on the train part's labels only; int8 of the original and of the distilled student; and, where onnxsim is
installed, its blockwise fine-tuning, or the reason why it fails.  Weights are selected on `select`; accuracy is on
`val`.  Speed-ups are over the original, one thread, in one interleaved run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import onnx
import onnx_ir as ir
from zoo import dataset, zoo_module

from onnxpress import quantize, simplify
from onnxpress.api.distill import DistillResult, distill
from onnxpress.api.distillation_session import DistillationOptions
from onnxpress.cli.output import console
from onnxpress.data.dataset import Dataset
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.measure.score import Score, Scorer
from onnxpress.model.counts import macs
from onnxpress.model.edit import canonical
from onnxpress.model.files import load, save, to_bytes
from onnxpress.model.signature import signature
from onnxpress.passes.pruning.allocation import plan_pruning
from onnxpress.passes.pruning.options import PruneOptions
from onnxpress.passes.pruning.prune import PRUNE
from onnxpress.result import document
from onnxpress.runtime.latency import Effort, Ratio, compare_latency
from onnxpress.runtime.machine import this_machine
from onnxpress.train.settings import TrainingSettings

SAMPLES = 128
_PEER_BATCH = 32  # samples of a step; the default, all at once, needs too much memory


@dataclass
class Row:
    """One row.

    score: on val (None: it failed, see note).
    curve: (step, metric on select) of its training.
    best: the step that was kept.
    """

    case: str
    recipe: str
    macs: float
    score: Score | None
    seconds: float
    note: str = ""
    curve: list[tuple[int, float]] = field(default_factory=list)
    best: int = 0
    steps: int = 0
    speed: Ratio | None = None


def cost(evidence: Evidence) -> int:
    return sum(macs(evidence.model, evidence.trace).values())


def narrowed(path: Path, data: Dataset, share: float, scope: str = "hidden", by_harm: bool = True) -> Any:
    """The model with as few channels as `share` of its multiply-accumulates needs, repaired.

    scope: "hidden" (inner widths of blocks) or "all"; by_harm: the groups weighed by their measured harm to the output.
    """
    evidence = evidence_for(simplify(path).model, data)
    weights = None if by_harm else {}
    actions = plan_pruning(evidence, PruneOptions(macs=share, scope=scope), loss_scales=weights)
    return PRUNE.apply(evidence, [*actions, {"refit": "least-squares"}]).model


def step_graphs(reference: ir.Model, student: ir.Model, data: Dataset) -> ir.Model | str:
    """onnxsim's fine-tuning of all blocks with the original as reference; or why it fails."""
    from onnxsim import qat

    batches = [dict(b.inputs) for b in data.take(SAMPLES).batches(1)]
    protos = [onnx.load_from_string(to_bytes(m)) for m in (reference, student)]
    try:
        model, results = qat.apply_block_finetune_all_blocks(*protos, calibration_data=batches, batch_size=_PEER_BATCH)
    except Exception as error:  # a stranger's tool: whatever it says is its row
        return f"{type(error).__name__}: {str(error)[:160]}"
    if any(r.trained for r in results):
        return ir.from_proto(model)
    reasons = sorted({str(r.skipped_reason)[:160] for r in results})
    return f"no block of {len(results)} is trained" + "".join(f": {r}" for r in reasons[:1])


def run_case(
    case: Any, share: float, scope: str, options: DistillationOptions, student: Path | None, keep: Path | None
) -> list[Row]:
    original = load(case.model)
    sig = signature(original)
    train, select = dataset(case, "train", sig), dataset(case, "select", sig)
    judge = Scorer(original, dataset(case, "val", sig))
    inputs, _ = case.data("train")
    bare = Dataset.from_arrays(inputs, sig, name=f"{case.name}/train without labels")
    labels = replace(options, settings=replace(options.settings, loss="none", labels_weight=1.0, features="none"))
    models: dict[str, ir.Model | bytes | str] = {"original": original}
    rows: list[Row] = []

    def add(name: str, part: float, make: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        made = make()
        if isinstance(made, str):
            rows.append(Row(case.name, name, part, None, time.perf_counter() - start, made))
            return None
        model = made if isinstance(made, ir.Model) else made.model
        rows.append(Row(case.name, name, part, judge.score(to_bytes(model)), time.perf_counter() - start))
        if isinstance(made, DistillResult):
            rows[-1].curve, rows[-1].best = [(p.step, p.value) for p in made.curve], made.best
            rows[-1].steps = made.settings.steps if made.settings else 0
        models[name] = to_bytes(model)
        if keep is not None:
            save(model, keep / f"{name.replace(' ', '-')}.onnx")
        return model

    add("int8", 1.0, lambda: quantize(original, bare))
    reference = canonical(simplify(case.model).model)  # the student's names
    full = cost(evidence_for(original, train.take(1)))
    start = narrowed(case.model, bare.take(SAMPLES), share, scope) if student is None else load(student)
    part = cost(evidence_for(start, train.take(1))) / full
    add("closed form", part, lambda: start)
    trained = add("distilled", part, lambda: distill(start, original, bare, options, select=select))
    add("distilled + int8", part, lambda: quantize(trained, bare))
    if find_spec("onnxsim.qat") is not None:
        add("onnxsim's step graphs", part, lambda: step_graphs(reference, start, bare))
    add("labels alone", part, lambda: distill(start, original, train, labels, select=select))
    feeds = [b.inputs for b in bare.take(4).batches(1)]
    for ratio in compare_latency(models, feeds, Effort(seconds=3.0 * len(models), precision=0.004)).ratios:
        next(r for r in rows if r.recipe == ratio.name).speed = ratio
    return rows


def show(rows: list[Row]) -> None:
    console.table(
        [("case", "left"), ("recipe", "left"), ("MACs", "right"), ("val", "right"), ("drop, 95 %", "right"),
         ("speed-up", "right"), ("s", "right")],
        [[r.case, r.recipe, f"{r.macs:.2f}", f"{r.score.value:.4f}" if r.score else "none",
          console.interval(r.score.low, r.score.high, 4) if r.score else "",
          "" if r.speed is None else f"{r.speed.speedup:.2f} {console.interval(r.speed.low, r.speed.high, 2)}",
          f"{r.seconds:.0f}"] for r in rows],
    )  # fmt: skip
    for row in rows:
        if row.curve:
            marks = row.curve[:: max(1, len(row.curve) // 6)]
            console.out(f"{row.recipe}, on select: " + ", ".join(f"{s}: {v:.4f}" for s, v in marks))
            console.out(f"  step {row.best} of {row.steps} kept: {dict(row.curve).get(row.best, float('nan')):.4f}")
    for row in rows:
        if row.note:
            console.out(f"{row.recipe}: {row.note}")
    if rows[0].score is not None:
        console.out(f"original on val: {rows[0].score.reference:.4f}")


@click.command()
@click.option("--zoo", type=click.Path(path_type=Path), default=lambda: os.environ.get("ONNXPRESS_ZOO"))
@click.option("--case", "name", default="resnet56")
@click.option("--macs", "share", default=0.5, help="Fraction of the multiply-accumulates that remains.")
@click.option("--scope", type=click.Choice(["hidden", "all"]), default="hidden")
@click.option("--minutes", default=10.0, help="Of each of the two trainings.")
@click.option("--threads", default=0)
@click.option("--student", type=click.Path(path_type=Path), help="A pruned file.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for the models.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=Path("benchmarks/results/distill.json"))
def main(zoo: Path | None, name: str, minutes: float, threads: int, json_path: Path, **fields: Any) -> None:
    """Run the benchmark and print one table.  fields: arguments of `run_case`."""
    if zoo is None:
        raise click.UsageError("give --zoo or ONNXPRESS_ZOO")
    if fields["keep"] is not None:
        fields["keep"].mkdir(parents=True, exist_ok=True)
    options = DistillationOptions(time_budget=60 * minutes)
    if threads:
        options = replace(options, settings=replace(options.settings, threads=threads))
    rows = run_case(zoo_module(Path(zoo)).load(name), options=options, **fields)
    show(rows)
    settings: TrainingSettings = options.settings
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(
        json.dumps(
            document(
                "distill", machine=this_machine().as_dict(), minutes=minutes, settings=settings.as_dict(), rows=rows
            ),
            indent=1,
        )
    )
    console.out(this_machine().text())


if __name__ == "__main__":
    main()
