"""int8 by every rule for ranges, and attention of linear cost, on cases of a zoo: what each loses on `select`.

    ONNXPRESS_ZOO=path/to/zoo python benchmarks/rules.py [--cases kws,lite0]

Ranges: nmse of the first output and drop, every node that can be in int8, bias corrected, 128 calibration samples of
`train`. Attention, where a model has any: each alone and all but the first replaced and refitted
(`passes/attention.py`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import onnx_ir as ir
from zoo import dataset, zoo_module

from onnxpress.cli.output import console
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.measure.score import Scorer
from onnxpress.model.files import load
from onnxpress.model.signature import signature
from onnxpress.passes.int8.calibration import RANGE_METHODS
from onnxpress.passes.int8.quantization_recipe import QuantizationRecipe
from onnxpress.passes.int8.static_int8 import quantizable, quantize
from onnxpress.passes.structure.attention import ATTENTION, sites
from onnxpress.runtime.machine import this_machine

os.environ["ONNXPRESS_CACHE"] = "off"


def forms(evidence: Evidence) -> dict[str, ir.Model]:
    """What is compared, by name."""
    chosen = quantizable(evidence)
    exact = evidence.machine.int8_exact
    found = {
        f"int8, {rule}": quantize(evidence, chosen, QuantizationRecipe(rule), True, exact).model
        for rule in RANGE_METHODS
        if rule != "auto"
    }
    names = [s.name for s in sites(evidence)[0]]
    several = {f"attention {i + 1} linear": [name] for i, name in enumerate(names)}
    if len(names) > 1:
        several["all attentions but the first linear"] = names[1:]
    for what, some in several.items():
        found[what] = ATTENTION.apply(evidence, [{"attention": name} for name in some]).model
    return found


def run_case(case: Any) -> list[list[str]]:
    original = load(case.model)
    sig = signature(original)
    evidence = evidence_for(original, dataset(case, "train", sig).take(128))
    judge = Scorer(evidence.model, dataset(case, "select", sig))
    rows = []
    for what, model in forms(evidence).items():
        score = judge.score(model)
        rows.append([case.name, what, f"{score.nmse:.2e}", f"{score.value:.4f}", f"{score.drop:+.4f}"])
    return rows


@click.command()
@click.option("--zoo", type=click.Path(path_type=Path), default=lambda: os.environ.get("ONNXPRESS_ZOO"))
@click.option("--cases", default="")
def main(zoo: Path | None, cases: str) -> None:
    """Run the benchmark and print one table."""
    if zoo is None:
        raise click.UsageError("give --zoo or ONNXPRESS_ZOO")
    module = zoo_module(Path(zoo))
    rows = [row for name in (cases.split(",") if cases else module.names()) for row in run_case(module.load(name))]
    console.table([("case", "left"), ("form", "left"), ("nmse", "right"), ("select", "right"), ("drop", "right")], rows)
    console.out(this_machine().text())


if __name__ == "__main__":
    main()
