"""Reliability of `bench`: models against themselves, and a real change of 3 %.

    python benchmarks/abtest.py [--pairs 40] [--seconds 10] [--tries 10] [--limit 60] [--change 0.03] [MODEL]

(a) A/A: the model against itself, --pairs times.  How many of the 95 % intervals contain 1, compared with a naive loop
on the same pairs: the mean of N runs of one session after the mean of N runs of the other, the smaller one called
faster; and the same with a t-test at 5 %.  The loop gets as many runs as bench took.

(b) A/B: the model against a copy with extra computation, sized by measurement: products that are known to be extra work
and whose result is multiplied by zero before it reaches an output.  In how many of --tries is the copy found slower
within --limit seconds?

Without MODEL: the shipped digits model.  The machine must be idle otherwise; more pairs give more precise fractions.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from onnxpress.cli.output import console
from onnxpress.data.shipped import calibration_folder
from onnxpress.data.synthetic import synthetic
from onnxpress.evaluate.bench import REBUILDS
from onnxpress.model.files import load
from onnxpress.model.signature import signature
from onnxpress.result import document
from onnxpress.runtime.intervals import order_statistic_interval
from onnxpress.runtime.latency import SLOWER, Effort, Ratio, Timing, compare_latency
from onnxpress.runtime.machine import this_machine
from onnxpress.runtime.session import open_session

_SIDE, _WIDTH = 16, 64  # of the products added to a model: [16, 64] by [64, 64], some microseconds each
Feeds = dict[str, np.ndarray]


@dataclass
class Pair:
    """One A/A comparison: bench's ratio, and the ratio of means and t statistic of the naive loop."""

    ratio: Ratio
    naive: float
    t: float
    runs: int

    @property
    def contains_one(self) -> bool:
        return self.ratio.low <= 1 <= self.ratio.high


@dataclass
class Try:
    """One A/B comparison: bench's ratio of the padded copy, and how long it took."""

    ratio: Ratio
    seconds: float

    @property
    def found(self) -> bool:
        return self.ratio.verdict == SLOWER


def naive(model: bytes, feeds: list[Feeds], runs: int) -> tuple[float, float]:
    """The naive loop: N runs of one, then N of the other; the ratio of means, and the t statistic."""
    means, errors = [], []
    for _ in range(2):
        session = open_session(model)
        session.run(None, feeds[0])
        times = []
        for i in range(runs):
            start = time.perf_counter()
            session.run(None, feeds[i % len(feeds)])
            times.append(time.perf_counter() - start)
        means.append(float(np.mean(times)))
        errors.append(float(np.var(times, ddof=1)) / runs)
    return means[0] / means[1], (means[0] - means[1]) / math.sqrt(sum(errors))


def runs_of(timing: Timing) -> int:
    return max(10, timing.rounds * timing.runs_per_round)


def pair(model: bytes, feeds: list[Feeds], effort: Effort) -> Pair:
    seen = compare_latency({"a": model, "b": model}, feeds, effort)
    runs = runs_of(seen.timings[0])
    return Pair(seen.ratios[0], *naive(model, feeds, runs), runs)


def padded(model: ir.Model, products: int) -> bytes:
    """The model with a chain of `count` products, whose result is multiplied by zero and added to the first output."""
    proto = ir.to_proto(model)
    graph = proto.graph
    rng = np.random.default_rng(0)
    graph.initializer.append(numpy_helper.from_array(np.float32(rng.standard_normal((_WIDTH, _WIDTH)) / 8), "pad_w"))
    graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "pad_nothing"))
    graph.initializer.append(numpy_helper.from_array(np.float32(rng.standard_normal((_SIDE, _WIDTH))), "pad_x"))
    start = [  # from an input: otherwise it would be folded into a constant
        helper.make_node("Cast", [graph.input[0].name], ["pad_float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["pad_float"], ["pad_most"], keepdims=0),
        helper.make_node("Mul", ["pad_most", "pad_nothing"], ["pad_zero"]),
        helper.make_node("Add", ["pad_x", "pad_zero"], ["pad_start"]),
    ]
    names = ["pad_start", *(f"pad_{i}" for i in range(products))]
    graph.node.extend([*start, *(helper.make_node("MatMul", [a, "pad_w"], [b]) for a, b in pairwise(names))])
    output = graph.output[0].name
    for node in graph.node:
        for position, name in enumerate(node.output):
            if name == output:
                node.output[position] = "pad_output"
        for position, name in enumerate(node.input):
            if name == output:
                node.input[position] = "pad_output"
    graph.node.extend(
        [
            helper.make_node("ReduceMax", [names[-1]], ["pad_last"], keepdims=0),
            helper.make_node("Mul", ["pad_last", "pad_nothing"], ["pad_gone"]),
            helper.make_node("Add", ["pad_output", "pad_gone"], [output]),
        ]
    )
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString(deterministic=True))


def padding(model: ir.Model, feeds: list[Feeds], change: float, seconds: float) -> tuple[int, float]:
    """How many products slow a copy by the change, and by how much they do.

    Found by bisection on measured ratios, with seeds other than those of the tries.
    """
    plain = bytes(ir.to_proto(model).SerializeToString(deterministic=True))

    def slower(products: int) -> float:
        models: dict[str, ir.Model | bytes | str] = {"a": plain, "b": padded(model, products)}
        return (
            1 / compare_latency(models, feeds, Effort(seconds, 1e-3, REBUILDS, seed=1000 + products)).ratios[0].speedup
            - 1
        )

    low, high = 0, 1
    found = slower(high)
    while found < change and high < 1 << 14:
        low, high = high, 2 * high
        found = slower(high)
    best = (abs(found - change), high, found)
    while high - low > max(1, high // 16):
        middle = (low + high) // 2
        found = slower(middle)
        best = min(best, (abs(found - change), middle, found))
        low, high = (middle, high) if found < change else (low, middle)
    return best[1], best[2]


def report(pairs: list[Pair], tries: list[Try], extra: float, limit: float) -> None:
    """Print the table, one claim per row."""
    rows = []
    if pairs:
        count = len(pairs)
        spread = order_statistic_interval(np.array([abs(math.log(p.ratio.speedup)) for p in pairs]))[0]
        rows += [
            ["A/A: 95 % intervals that contain 1", f"{sum(p.contains_one for p in pairs)} of {count}"],
            ["A/A: median distance of bench's ratio from 1", f"{spread:.2%}"],
            [
                "A/A: means of N consecutive runs are off by more than 1 %",
                f"{sum(abs(p.naive - 1) > 0.01 for p in pairs)} of {count}",
            ],
            [
                "A/A: means of N consecutive runs, with a t-test at 5 %, differ",
                f"{sum(abs(p.t) > 1.96 for p in pairs)} of {count}",
            ],
        ]
    if tries:
        took = float(np.median([t.seconds for t in tries]))
        rows += [
            [
                f"A/B of {extra:+.1%}: found within {limit:g} s (median {took:.0f} s)",
                f"{sum(t.found for t in tries)} of {len(tries)}",
            ]
        ]
    console.table([("", "left"), ("", "right")], rows)
    console.out(this_machine().text())


@click.command()
@click.argument("model", type=click.Path(path_type=Path), default=calibration_folder() / "digits" / "digits.onnx")
@click.option("--pairs", default=40, show_default=True, help="A/A comparisons.")
@click.option("--seconds", default=10.0, show_default=True, help="Maximum time of each A/A comparison.")
@click.option(
    "--precision", default=0.01, show_default=True, help="Precision at which an A/A comparison ends; default of bench."
)
@click.option("--tries", default=10, show_default=True, help="A/B comparisons.")
@click.option("--limit", default=60.0, show_default=True, help="Maximum seconds of each A/B comparison.")
@click.option("--change", default=0.03, show_default=True, help="Relative change in A/B comparisons.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=Path("benchmarks/results/abtest.json"))
def main(
    model: Path, pairs: int, seconds: float, precision: float, tries: int, limit: float, change: float, json_path: Path
) -> None:
    """Measure how reliable `bench` is."""
    opened = load(model)
    feeds = [b.inputs for b in synthetic(signature(opened), 4).batches(1)]
    plain = bytes(ir.to_proto(opened).SerializeToString(deterministic=True))
    same = []
    for seed in range(pairs):
        same.append(pair(plain, feeds, Effort(seconds, precision, REBUILDS, seed=seed)))
        ratio = same[-1].ratio
        console.note(f"A/A {seed + 1} of {pairs}: {ratio.speedup:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]")
    products, extra, changed = 0, 0.0, []
    if tries:
        products, extra = padding(opened, feeds, change, min(seconds, limit))
        console.note(f"{products} products make it take {extra:+.2%} longer")
    for seed in range(tries):
        slow: dict[str, ir.Model | bytes | str] = {"a": plain, "b": padded(opened, products)}
        seen = compare_latency(slow, feeds, Effort(limit, change / 3, REBUILDS, seed=seed))
        changed.append(Try(seen.ratios[0], seen.seconds))
        console.note(
            f"A/B {seed + 1} of {tries}: {seen.ratios[0].speedup:.4f} {seen.ratios[0].verdict}, {seen.seconds:.0f} s"
        )
    report(same, changed, extra, limit)
    json_path.parent.mkdir(parents=True, exist_ok=True)
    body = document(
        "abtest",
        machine=this_machine().as_dict(),
        model=model.name,
        pairs=same,
        tries=changed,
        products=products,
        extra=extra,
    )
    json_path.write_text(json.dumps(body, indent=1))


if __name__ == "__main__":
    main()
