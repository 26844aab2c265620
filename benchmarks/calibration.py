"""Cost of calibration: time relative to a plain pass over the same samples, and additional memory, with onnxruntime's
calibrators for comparison.

    ONNXPRESS_ZOO=path/to/zoo python benchmarks/calibration.py [--case lite0] [--samples 64,512]

Without a case: a stack of convolutions on 64 x 64 images with large intermediate tensors; all on the simplified file,
as in `quantize`.  Each measurement is a fresh process that first runs all samples one by one with all cores, then
computes the ranges; its memory is VmHWM (ru_maxrss would include the parent's peak).  The samples are 64 of `train`,
repeated where more are needed, so that they take no memory.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

METHODS = ("minmax", "average", "percentile", "entropy", "mse", "output-error")
PEERS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
_SAMPLES_IN_MEMORY = 64  # samples in memory

os.environ["ONNXPRESS_CACHE"] = "off"  # results of earlier runs must not be reused

Samples = Callable[[], Iterator[dict[str, np.ndarray]]]
Finder = Callable[[Path, str, Samples], None]


def stack(folder: Path) -> Path:
    """conv-relu x 6 with 32 channels on 64 x 64: 6 MB of intermediate values per sample."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    nodes, tensors, x, width = [], [], "image", 3
    for i in range(6):
        weight = (rng.standard_normal((32, width, 3, 3)) / np.sqrt(width * 4.5)).astype(np.float32)
        tensors.append(numpy_helper.from_array(weight, f"w{i}"))
        tensors.append(numpy_helper.from_array(np.zeros(32, np.float32), f"b{i}"))
        nodes.append(
            helper.make_node(
                "Conv", [x, f"w{i}", f"b{i}"], [f"c{i}"], name=f"conv{i}", kernel_shape=[3, 3], pads=[1] * 4
            )
        )
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], name=f"relu{i}"))
        x, width = f"r{i}", 32
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["y"], name="pool"))
    ports = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (("image", ["N", 3, 64, 64]), ("y", ["N", 32, 1, 1]))
    ]
    graph = helper.make_graph(nodes, "stack", ports[:1], ports[1:], tensors)
    path = folder / "stack.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def held(path: Path, case: str) -> list[dict[str, np.ndarray]]:
    """A few samples in memory, each of batch 1."""
    if not case:
        rng = np.random.default_rng(0)
        return [{"image": rng.standard_normal((1, 3, 64, 64)).astype(np.float32)} for _ in range(_SAMPLES_IN_MEMORY)]
    from zoo import dataset, zoo_module

    from onnxpress.model.files import load
    from onnxpress.model.signature import signature

    found = zoo_module(Path(os.environ["ONNXPRESS_ZOO"])).load(case)
    return [dict(b.inputs) for b in dataset(found, "train", signature(load(path)), _SAMPLES_IN_MEMORY).batches(1)]


def peak_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


class Again:
    """Re-iterable samples."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self._samples()


class Reader:
    """The same samples for onnxruntime's calibrators."""

    def __init__(self, samples: Samples) -> None:
        self._left = samples()

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def ours() -> Finder:
    from onnxpress.data.dataset import open_dataset
    from onnxpress.measure.evidence import evidence_for
    from onnxpress.model.files import load
    from onnxpress.model.signature import signature
    from onnxpress.passes.int8 import calibration
    from onnxpress.passes.int8.qdq.write import histograms_for

    def find(path: Path, method: str, samples: Samples) -> None:
        model = load(path)
        evidence = evidence_for(model, open_dataset(Again(samples), signature(model)))
        calibration.activation_ranges(evidence, method, list(histograms_for(evidence)))

    return find


def theirs() -> Finder:
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    def find(path: Path, method: str, samples: Samples) -> None:
        with tempfile.TemporaryDirectory() as folder:
            kind = getattr(CalibrationMethod, PEERS[method])
            calibrator = create_calibrator(str(path), None, str(Path(folder) / "augmented.onnx"), calibrate_method=kind)
            calibrator.collect_data(Reader(samples))
            calibrator.compute_data()

    return find


def child(tool: str, method: str, count: int, path: Path, case: str) -> dict[str, float]:
    """In a fresh process: a plain pass, then the ranges.  Imports are not measured."""
    from onnxpress.runtime.session import all_cores, open_session

    feeds = held(path, case)

    def samples() -> Iterator[dict[str, np.ndarray]]:
        return itertools.islice(itertools.cycle(feeds), count)

    find = ours() if tool == "onnxpress" else theirs()
    session = open_session(path, all_cores())
    session.run(None, feeds[0])
    start = time.perf_counter()
    for one in samples():
        session.run(None, one)
    plain, before = time.perf_counter() - start, peak_mb()
    del session
    start = time.perf_counter()
    find(path, method, samples)
    return {"plain": plain, "seconds": time.perf_counter() - start, "over_mb": peak_mb() - before}


def measure(tool: str, method: str, count: int, path: Path, case: str) -> dict[str, Any] | None:
    command = [sys.executable, __file__, "--child", f"{tool},{method},{count},{path}", "--case", case]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return None
    return dict(json.loads(lines[-1]), tool=tool, method=method, samples=count)


@click.command()
@click.option("--case", default="", help="A case of the zoo; default: a stack of convolutions.")
@click.option("--samples", default="64,512")
@click.option("--peers/--no-peers", default=True)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), default=Path("benchmarks/results/calibration.json")
)
@click.option("--child", "child_spec", hidden=True)
def main(case: str, samples: str, peers: bool, json_path: Path, child_spec: str | None) -> None:
    """Run the benchmark and print one table."""
    if child_spec:
        tool, method, count, path = child_spec.split(",", 3)
        print(json.dumps(child(tool, method, int(count), Path(path), case)))
        return
    from onnxpress import simplify
    from onnxpress.cli.output import console
    from onnxpress.result import document
    from onnxpress.runtime.machine import this_machine

    rows, table = [], []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(os.environ["ONNXPRESS_ZOO"]) / case / "model.onnx" if case else stack(Path(folder))
        path = Path(folder) / "simplified.onnx"
        simplify(source, output=path)
        tools = [("onnxpress", m) for m in METHODS] + [("onnxruntime", m) for m in PEERS if peers]
        for (tool, method), count in itertools.product(tools, [int(c) for c in samples.split(",")]):
            found = measure(tool, method, count, path, case)
            rows.append(found or {"tool": tool, "method": method, "samples": count, "failed": True})
            cells = (
                ["failed"] * 2
                if found is None
                else [f"{found['seconds'] / found['plain']:.1f}x", f"{found['over_mb']:.0f}"]
            )
            table.append([tool, method, str(count), *cells])
    console.table(
        [("tool", "left"), ("ranges", "left"), *((n, "right") for n in ("samples", "of a plain pass", "MB over it"))],
        table,
    )
    console.out("a fresh process each; " + this_machine().text())
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(
        json.dumps(document("calibration", machine=this_machine().as_dict(), case=case, rows=rows), indent=1)
    )


if __name__ == "__main__":
    main()
