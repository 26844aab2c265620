"""How `bench` shows what it measured: tables within 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxpress.cli import console

if TYPE_CHECKING:
    from onnxpress.runtime.latency import Ratio, Timing
    from onnxpress.runtime.profile import KernelTime, Profile


def latency(timings: Sequence[Timing]) -> None:
    console.table(
        [("model", "left"), ("median ms", "right"), ("95 % interval", "right"), ("p90 ms", "right"), ("runs", "right")],
        [
            [
                t.name,
                console.ms(t.median),
                f"[{console.ms(t.low)}, {console.ms(t.high)}]",
                console.ms(t.p90),
                str(t.rounds * t.runs_per_round),
            ]
            for t in timings
        ],
    )


def ratios(found: Sequence[Ratio]) -> None:
    console.table(
        [("against " + found[0].baseline, "left"), ("speed-up", "right"), ("95 % interval", "right"), ("", "left")],
        [[r.name, f"{r.speedup:.3f}x", console.interval(r.low, r.high), r.verdict] for r in found],
    )


def profile(found: Profile, top: int) -> None:
    """Operators, then the slowest kernels with the nodes of the file that they stand for."""
    columns = [("ms", "right"), ("share", "right"), ("calls", "right"), ("GFLOP/s", "right"), ("of peak", "right")]
    console.table(
        [("operator", "left"), *columns],
        [
            [o.op, console.ms(o.seconds), f"{o.share:.1%}", f"{o.calls:g}", *_rate(o.macs, o.gflops, found)]
            for o in found.operators[:top]
        ],
        title=f"{found.name}: where {console.ms(found.latency)} ms go",
    )
    console.table(
        [("node", "left"), ("kernel", "left"), *columns[:2], *columns[3:]],
        [
            [
                _nodes(k),
                k.op[:18],
                console.ms(k.seconds),
                f"{k.share:.1%}",
                *_rate(k.macs, k.gflops, found),
            ]
            for k in found.kernels[:top]
        ],
    )
    hidden = max(0, len(found.kernels) - top)
    more = f"; {hidden} more with --top" if hidden else ""
    console.out(f"{len(found.kernels)} kernels add up to {found.covered:.0%} of the median over {found.runs} runs{more}")
    console.out(f"peak: {found.peak.gflops:.1f} GFLOP/s, {found.peak.kind}, measured now")


def _rate(macs: int, gflops: float, found: Profile) -> list[str]:
    return [f"{gflops:.1f}", f"{gflops / found.peak.gflops:.0%}"] if macs else ["-", "-"]


def _nodes(kernel: KernelTime) -> str:
    """The file's nodes, the first one and how many more; onnxruntime's name in brackets where none can be told."""
    if not kernel.nodes:
        return f"({kernel.name[-28:]})"
    main = next((n for n in kernel.nodes if n == kernel.name), kernel.nodes[0])
    more = len(kernel.nodes) - 1
    return main[-24:] + (f" +{more}" if more else "")
