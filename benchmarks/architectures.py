"""Architecture sweep: the fraction of parameters that every well-known architecture loses at one ratio, and whether the
result is correct.

    pip install torchvision transformers onnxscript  # in addition to the extra `train`
    python benchmarks/architectures.py [--family classification] [--only 'resnet*'] [--ratio 0.3] [--planted]
                                       [--json FILE --resume]

The list: the nine topologies of the onnx wheel, everything in torchvision's registry (classification, segmentation,
video; of detectors the backbone), and small configurations of transformers.  Weights are drawn from a seed, those with
constant initialization (normalization, layer scale, biases) as well, so that a channel mistaken for another shows.
Every architecture is exported with a dynamic batch axis (by dynamo, else by TorchScript), simplified, and pruned by
magnitude with the same ratio for every group, without refit, in a process of its own.

With `--planted`, channels without effect are planted in every weight first (`planted_channels.py`), and what is asked
is whether `simplify` and pruning keep every value.

An architecture passes where the simplified form agrees with the original to 1e-4 of the largest output, and the result
keeps the contract of `optimize` (checker, signature, input sizes), agrees with the masked original at two batch sizes
to 1e-5 of the largest output, and has at least 20 % fewer parameters (any fewer, where it is not an image classifier).
`effect` in the JSON is how much the mask itself changes the outputs: a small one would make the agreement meaningless.
For comparison: DepGraph's authors report 81 of 85 torchvision architectures, on torch modules.
"""

from __future__ import annotations

import fnmatch
import itertools
import json
import os
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnx_ir as ir
import torch
from known_architectures import BATCHES, FAMILIES, VOCABULARY, Architecture, brief, catalogue, exported, far
from planted_channels import plant

from onnxpress import simplify
from onnxpress.cli.output import console
from onnxpress.data.dataset import Dataset
from onnxpress.data.synthetic import synthetic
from onnxpress.errors import Problem
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.model import read
from onnxpress.model.channels import removal as rm
from onnxpress.model.files import load
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.model.parameter_count import parameters
from onnxpress.model.signature import signature
from onnxpress.passes.pruning.allocation import plan_pruning
from onnxpress.passes.pruning.options import PruneOptions
from onnxpress.passes.pruning.prune import PRUNE
from onnxpress.plan import result_contract
from onnxpress.result import document
from onnxpress.runtime import isolate
from onnxpress.runtime.machine import this_machine
from onnxpress.runtime.session import open_session, run

PARITY, GOAL = 1e-5, 0.2
EXACT = 1e-4  # folded normalizations and merged rows round otherwise, in deep networks more than once

os.environ["ONNXPRESS_CACHE"] = "off"  # results of earlier runs must not be reused


def measure(path: Path, ratio: float, planted: bool = False) -> dict[str, Any]:
    """Prune one file and compare the result with the masked original.

    gone: relative to the file or its simplified form, whichever is smaller; neither exact reductions nor an unshared
          weight count as pruning
    planted: channels without effect are planted first, which `simplify` may remove if the values stay the same
    """
    model = load(path)
    plants = plant(model) if planted else {}
    data = synthetic(signature(model), max(BATCHES), vocabulary=VOCABULARY)
    evidence = evidence_for(simplify(model).model, data)
    assert evidence.trace.shapes  # computed before the clock starts: a run of the model is not part of the analysis
    start = time.perf_counter()
    facts = evidence.channels
    seconds = time.perf_counter() - start
    options = PruneOptions(ratio, allocation="uniform", criterion="magnitude")
    actions = plan_pruning(evidence, options)
    removal = {d["group"]: d["remove"] for d in actions}
    pruned = PRUNE.apply(evidence, [*actions, {"refit": "none"}] if actions else []).model
    original, simplified, after = (parameters(m) for m in (canonical(model), evidence.model, pruned))
    before = min(original, simplified)
    row = {
        "original": original,
        "simplified": simplified,
        "before": before,
        "after": after,
        "gone": 1 - after / before,
        "planted": plants,
        "simplified_away": 1 - simplified / original,
        "seconds": seconds,
        "nodes": len(evidence.model.graph),
        "groups": len(facts.groups),
        "refused": refusals(evidence),
        "problems": result_contract.same_shape_behaviour(model, pruned, data),
    }
    return row | parity([model, evidence.model, rm.mask(evidence.model, facts, removal), pruned], data)


def parity(models: Sequence[ir.Model], data: Dataset) -> dict[str, Any]:
    """Differences, at the batch sizes that the file accepts, of the original, its simplified form, that masked, and the
    result: each from the one before it.
    """
    feeds = [next(iter(data.batches(size))).inputs for size in BATCHES]
    batches = list(dict.fromkeys(len(next(iter(f.values()))) for f in feeds))  # one where the batch size is fixed
    answers = [answered(model, feeds[: len(batches)]) for model in models]
    exact, effect, apart = (max(map(far, first, second)) for first, second in itertools.pairwise(answers))
    return {"batches": batches, "exact": exact, "effect": effect, "difference": apart}


def answered(model: ir.Model, feeds: Sequence[dict[str, np.ndarray]]) -> list[list[np.ndarray]]:
    session = open_session(model)
    return [run(session, f) for f in feeds]


def refusals(evidence: Evidence) -> list[dict[str, Any]]:
    """Why layers keep their channels, by the number of parameters concerned; `first` names a layer."""
    nodes = {n.name: n for n in evidence.model.graph}
    found: dict[str, dict[str, Any]] = {}
    for refusal in evidence.channels.refused:
        weight = read.constant(nodes[refusal.node].inputs[1])
        reason = re.sub(r" \([^)]*\)", "", refusal.reason)
        entry = found.setdefault(
            reason, {"reason": reason, "layers": 0, "parameters": 0, "first": f"{refusal.node}: {refusal.reason}"}
        )
        entry["layers"] += 1
        entry["parameters"] += 0 if weight is None else int(weight.size)
    return sorted(found.values(), key=lambda e: -int(e["parameters"]))[:8]


def child(name: str, family: str, ratio: str, planted: str, models: str, target: str) -> None:
    """One architecture, from its definition to a row, in a process of its own."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    path = Path(models) / family / f"{name}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    note = path.with_suffix(".exporter")
    row: dict[str, Any] = {"name": name, "family": family, "exporter": "", "why": ""}
    stage = "export"
    try:
        if not note.exists():
            note.write_text(exported(Architecture(name, family), path))
        row["exporter"], stage = note.read_text(), "prune"
        row |= measure(path, float(ratio), planted == "planted")
        row["why"] = verdict(row)
    except Problem as error:
        row["why"] = f"{stage}: {error}"
    except Exception as error:  # a crash of the tool is a result
        where = traceback.extract_tb(error.__traceback__)[-1]
        row["why"] = f"{stage}: {brief(error)}" + (
            f" ({Path(where.filename).name}:{where.lineno})" if stage == "prune" else ""
        )
    Path(target).write_text(json.dumps(row))


def verdict(row: dict[str, Any]) -> str:
    """Empty where the architecture passes, else the first reason for failure."""
    if row["problems"]:
        return f"contract: {row['problems'][0]}"
    if not row["exact"] <= EXACT:
        return f"simplify changed the values by {row['exact']:.1e}"
    if not row["difference"] <= PARITY:
        return f"differs from the masked original by {row['difference']:.1e}"
    if row["planted"]:
        return "" if sum(row["planted"].values()) else "nothing could be planted"
    goal = GOAL if row["family"] in ("classification", "light") else 0.0
    if row["gone"] <= 0 or row["gone"] < goal:
        return f"{row['gone']:.1%} of the parameters gone"
    return ""


def swept(item: Architecture, ratio: float, planted: bool, models: Path, timeout: float) -> dict[str, Any]:
    """The row of one architecture, whatever happens to its process."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "row.json"
        done = isolate.call(
            "architectures:child",
            item.name,
            item.family,
            str(ratio),
            "planted" if planted else "",
            str(models),
            str(target),
            seconds=timeout,
        )
        if target.exists():
            row: dict[str, Any] = json.loads(target.read_text())
            return row
    return {"name": item.name, "family": item.family, "exporter": "", "why": f"{done.reason}: {done.detail}"}


def cells(row: dict[str, Any]) -> list[str]:
    if "gone" not in row:
        return [row["name"], *[""] * 7, row["exporter"], "no"]
    sizes = ",".join(str(b) for b in row["batches"])
    numbers = [
        f"{row['before'] / 1e6:.2f}",
        f"{row['simplified_away']:.1%}",
        f"{row['exact']:.0e}",
        f"{row['gone']:.1%}",
        f"{row['difference']:.0e}",
        sizes,
        f"{row['seconds']:.1f}",
    ]
    return [row["name"], *numbers, row["exporter"], "no" if row["why"] else "yes"]


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table per family, the failures with the layers that keep most parameters, and the score."""
    columns = [
        ("architecture", "left"),
        *((c, "right") for c in ("M par.", "exact", "diff", "gone", "diff", "batch", "s")),
        ("by", "left"),
        ("ok", "left"),
    ]
    for family in FAMILIES:
        own = [r for r in rows if r["family"] == family]
        if not own:
            continue
        console.table(columns, [cells(r) for r in own], title=family)
        for row in own:
            if row["why"]:
                console.out(f"{row['name']}: {row['why']}")
                for entry in row.get("refused", [])[:3]:
                    share = entry["parameters"] / max(row["before"], 1)
                    console.out(f"  {share:.0%} in {entry['layers']} layers: {entry['first']}")
        passed, tried = sum(not r["why"] for r in own), sum(bool(r["exporter"]) for r in own)
        console.out(f"{family}: {passed} of {tried} pass; {len(own) - tried} could not be exported or ended before")


def save(rows: Sequence[dict[str, Any]], ratio: float, planted: bool, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"machine": this_machine().as_dict(), "torch": torch.__version__, "onnx": onnx.__version__}
    facts |= {"ratio": ratio, "planted": planted}
    path.write_text(json.dumps(document("architectures", **facts, rows=list(rows)), indent=1))


def known(path: Path, ratio: float, planted: bool) -> list[dict[str, Any]]:
    """Rows of an earlier run with these settings."""
    if not path.exists():
        return []
    before = json.loads(path.read_text())
    return list(before["rows"]) if (before["ratio"], before.get("planted", False)) == (ratio, planted) else []


@click.command()
@click.option("--only", default="*", help="Names as shell patterns, separated by commas.")
@click.option("--family", type=click.Choice(FAMILIES), multiple=True)
@click.option("--ratio", default=0.3)
@click.option("--planted", is_flag=True, help="Plant channels without effect first: no pass may change a value.")
@click.option("--timeout", default=1200.0, help="Seconds for one architecture.")
@click.option("--models", type=click.Path(path_type=Path), help="Folder of exported files, which are reused.")
@click.option("--resume", is_flag=True, help="Keep the rows of the JSON file.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), default=Path("benchmarks/results/architectures.json")
)
def main(
    only: str,
    family: tuple[str, ...],
    ratio: float,
    planted: bool,
    timeout: float,
    models: Path | None,
    resume: bool,
    json_path: Path,
) -> None:
    """Run the sweep and print one table per family."""
    here = str(Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (here, os.environ.get("PYTHONPATH", "")) if p)
    listed = [
        a
        for a in catalogue()
        if any(fnmatch.fnmatch(a.name, p) for p in only.split(",")) and a.family in (family or FAMILIES)
    ]
    rows = known(json_path, ratio, planted) if resume else []
    done = {(r["family"], r["name"]) for r in rows}
    for number, item in enumerate(listed, 1):
        if (item.family, item.name) in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows.append(swept(item, ratio, planted, models or Path(folder), timeout))
        console.note(f"{number}/{len(listed)} {' '.join(cells(rows[-1]))} {rows[-1]['why']}")
        save(rows, ratio, planted, json_path)
    show(rows)
    console.out(this_machine().text())


if __name__ == "__main__":
    sys.exit(main())
