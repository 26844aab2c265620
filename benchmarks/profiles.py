"""Whether the kernels of `bench --profile` add up, and whether `bench` is fast enough on very short and very long
models.

    OPENBLAS_NUM_THREADS=1 ONNXPRESS_ZOO=path/to/zoo python benchmarks/profiles.py [--cases kws,vww,…]

(a) The peak of the roofline against numpy's product of large matrices, both on one thread, measured alternately.

(b) The sum of the operators' times as a fraction of the median run without the profiler, on models of the zoo.

(c) `bench` with its defaults on a model of about 0.1 ms and on one of about 2 s: its duration, and the width of the
interval.

The machine must be idle otherwise.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import click
import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from zoo import dataset, zoo_module

from onnxpress.cli.output import console
from onnxpress.evaluate.bench import bench
from onnxpress.model.files import load
from onnxpress.model.signature import signature
from onnxpress.result import document
from onnxpress.runtime.builtin_models import measured_peak
from onnxpress.runtime.machine import this_machine
from onnxpress.runtime.profile import profile

_SIDES, _ROUNDS = (512, 768, 1024), 5
_CASES = "kws,vww,resnet8,resnet20_bn,resnet56,lite0,sst2"


def numpy_peak(seconds: float = 0.6) -> float:
    """The best rate of numpy's float32 product in GFLOP/s."""
    best = 0.0
    for side in _SIDES:
        a, b = np.random.default_rng(0).standard_normal((2, side, side)).astype(np.float32)
        started = time.perf_counter()
        while time.perf_counter() - started < seconds / len(_SIDES):
            start = time.perf_counter()
            a @ b
            best = max(best, 2e-9 * side**3 / (time.perf_counter() - start))
    return best


def peaks() -> dict[str, float]:
    """Medians of several alternating measurements: a shared machine has slow seconds."""
    ours, theirs = zip(*[(measured_peak().gflops, numpy_peak()) for _ in range(_ROUNDS)], strict=True)
    return {"onnxpress": float(np.median(ours)), "numpy": float(np.median(theirs))}


def products(side: int, count: int) -> ir.Model:
    """A chain of products of a [side, side] matrix."""
    weight = numpy_helper.from_array(
        (np.random.default_rng(0).standard_normal((side, side)) / side**0.5).astype(np.float32), "w"
    )
    nodes = [helper.make_node("MatMul", [f"x{i}", "w"], [f"x{i + 1}"]) for i in range(count)]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [side, side]) for n in ("x0", f"x{count}")]
    graph = helper.make_graph(nodes, "products", ends[:1], ends[1:], [weight])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def sized(milliseconds: float, side: int) -> ir.Model:
    """Products that take about this long on this machine."""
    single = bench({"products": products(side, 4)}).timings[0].median / 4
    return products(side, max(1, round(1e-3 * milliseconds / single)))


@click.command()
@click.option("--zoo", type=click.Path(path_type=Path), default=lambda: os.environ.get("ONNXPRESS_ZOO"))
@click.option("--cases", default=_CASES)
@click.option("--seconds", default=4.0, help="Seconds of each profile.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=Path("benchmarks/results/profiles.json"))
def main(zoo: Path | None, cases: str, seconds: float, json_path: Path) -> None:
    """Run the benchmark and print its tables."""
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        raise click.UsageError("set OPENBLAS_NUM_THREADS=1: numpy's product is to use one thread, too")
    top = peaks()
    times = top["onnxpress"] / top["numpy"]
    console.out(
        f"peak, one thread: {top['onnxpress']:.1f} GFLOP/s, numpy's product {top['numpy']:.1f}: {times:.2f} times"
    )
    covered = {}
    for name in cases.split(",") if zoo is not None else []:
        case = zoo_module(Path(zoo)).load(name)
        model = load(case.model)
        feeds = next(iter(dataset(case, "train", signature(model), 4).batches(1))).inputs
        found = profile(model, feeds, seconds=seconds, name=name)
        covered[name] = {"ms": 1e3 * found.latency, "covered": found.covered, "runs": found.runs}
    console.table(
        [("case", "left"), ("median ms", "right"), ("operators add up to", "right"), ("runs", "right")],
        [[n, f"{c['ms']:.3f}", f"{c['covered']:.1%}", str(c["runs"])] for n, c in covered.items()],
    )
    ends = []
    for wished, side in ((0.1, 128), (2000.0, 1024)):
        model = sized(wished, side)
        start = time.perf_counter()
        result = bench({"products": model})
        timing, spent = result.timings[0], time.perf_counter() - start
        width = (timing.high - timing.low) / timing.median
        ends.append(
            {"wished": wished, "ms": 1e3 * timing.median, "seconds": spent, "width": width, "rounds": timing.rounds}
        )
    console.table(
        [
            ("model of", "right"),
            ("median ms", "right"),
            ("bench took", "right"),
            ("interval", "right"),
            ("rounds", "right"),
        ],
        [
            [
                f"{e['wished']:g} ms",
                f"{e['ms']:.4g}",
                f"{e['seconds']:.1f} s",
                f"{e['width']:.1%} wide",
                str(e["rounds"]),
            ]
            for e in ends
        ],
    )
    console.out(this_machine().text())
    json_path.parent.mkdir(parents=True, exist_ok=True)
    body = document("profiles", machine=this_machine().as_dict(), peaks=top, covered=covered, ends=ends)
    json_path.write_text(json.dumps(body, indent=1))


if __name__ == "__main__":
    main()
