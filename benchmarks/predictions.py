"""Predicted beside measured losses: what every pass proposes, each proposal applied alone.

    ONNXPRESS_ZOO=path/to/zoo python benchmarks/predictions.py [--cases kws,vww] [--passes prune,depth] [--count 8]
                                                                [--json FILE]

Of the proposals of a pass with a predicted loss, `--count` are taken, evenly spread over the predicted losses. Measured
is the relative squared error of the outputs on samples that made no prediction (`select`). Printed are, by case and
pass, the rank correlation (Spearman) and the middle of measured / predicted with its quartiles; at the end the same for
all proposals of a pass. A search needs the order to be right, and the scale only where passes compete for one unit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import scipy.stats
from zoo import dataset, zoo_module

from onnxpress.cli.output import console
from onnxpress.errors import Problem
from onnxpress.measure.evidence import Evidence
from onnxpress.measure.score import Scorer, logits_model
from onnxpress.model.files import load
from onnxpress.model.signature import signature
from onnxpress.passes.core.contract import AnyPass, Proposal, proposals
from onnxpress.passes.registry import all_passes
from onnxpress.plan.exact_base import exact_base
from onnxpress.plan.plan import PlanStep, take_step
from onnxpress.result import document
from onnxpress.runtime.machine import this_machine

os.environ["ONNXPRESS_CACHE"] = "off"
_CALIBRATION, _JUDGED = 128, 128  # samples
_NOTHING = 1e-9  # losses below are rounding


@dataclass(frozen=True)
class Point:
    """One proposal, applied alone.  Losses: relative squared errors of the outputs."""

    case: str
    pass_name: str
    unit: str
    predicted: float
    measured: float


def spread(offers: Iterable[Proposal], count: int) -> list[Proposal]:
    """Some of the proposals that lose something, evenly over the order of their predicted losses."""
    losing = sorted((p for p in offers if p.loss is not None and p.loss > _NOTHING), key=lambda p: p.assumed_loss)
    places = np.unique(np.linspace(0, len(losing) - 1, min(count, len(losing))).round().astype(int))
    return [losing[i] for i in places]


def measured(case: str, asked: AnyPass, evidence: Evidence, judge: Scorer, count: int) -> list[Point]:
    """The points of one pass on one model."""
    points = []
    for offer in spread(proposals(asked, evidence), count):
        try:
            model = take_step(PlanStep(asked.name, (offer.action,)), evidence).model
            loss = judge.nmse(logits_model(model))
        except Problem as problem:
            console.out(f"{case}: {asked.name} of {offer.unit}: {problem.line()}")
            continue
        points.append(Point(case, asked.name, offer.unit, offer.assumed_loss, loss))
    return points


def row(label: list[str], points: list[Point]) -> list[str]:
    """A row of the table."""
    predicted = np.array([p.predicted for p in points])
    found = np.maximum([p.measured for p in points], _NOTHING)
    correlation = float(scipy.stats.spearmanr(predicted, found).statistic) if len(points) > 2 else float("nan")
    low, middle, high = np.quantile(found / predicted, (0.25, 0.5, 0.75))
    return [*label, str(len(points)), f"{correlation:.2f}", f"{middle:.2g}", f"{low:.2g} to {high:.2g}"]


def show(points: list[Point]) -> None:
    columns = [("case", "left"), ("pass", "left")]
    numbers = [("n", "right"), ("rank corr.", "right"), ("measured / predicted", "right"), ("quartiles", "right")]
    keys = dict.fromkeys((p.case, p.pass_name) for p in points)
    rows = [row([*key], [p for p in points if (p.case, p.pass_name) == key]) for key in keys]
    names = dict.fromkeys(p.pass_name for p in points)
    rows += [row(["all", name], [p for p in points if p.pass_name == name]) for name in names]
    console.table([*columns, *numbers], rows)


@click.command()
@click.option("--zoo", envvar="ONNXPRESS_ZOO", required=True, type=click.Path(path_type=Path), help="Folder.")
@click.option("--cases", default="", help="Names, separated by commas; default: all.")
@click.option("--passes", default="", help="Names, separated by commas; default: all that are not exact.")
@click.option("--count", default=8, show_default=True, help="Proposals of each pass.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="File for the results.")
def main(zoo: Path, cases: str, passes: str, count: int, target: Path | None) -> None:
    module: Any = zoo_module(zoo)
    chosen = {name: p for name, p in all_passes().items() if not p.exact and (not passes or name in passes.split(","))}
    points: list[Point] = []
    for name in cases.split(",") if cases else list(module.names()):
        case = module.load(name)
        original = load(case.model)
        sig = signature(original)
        evidence = exact_base(original, dataset(case, "train", sig, _CALIBRATION), this_machine()).evidence
        judge = Scorer(logits_model(evidence.model), dataset(case, "select", sig, _JUDGED))
        for asked in chosen.values():
            points += measured(name, asked, evidence, judge, count)
        if target is not None:
            body = {"machine": this_machine().as_dict(), "points": [asdict(p) for p in points]}
            target.write_text(json.dumps(document("predictions", **body), indent=1))
    if points:
        show(points)
    console.out(this_machine().text())


if __name__ == "__main__":
    main()
