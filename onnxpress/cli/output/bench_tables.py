"""How `bench` shows what it measured: tables within 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from onnxpress.cli.output import console
from onnxpress.runtime.latency import SAME
from onnxpress.runtime.session import CPU

if TYPE_CHECKING:
    from onnxpress.evaluate.bench import BenchConditions, BenchPoint
    from onnxpress.evaluate.slowdown import SlowdownDecision
    from onnxpress.runtime.latency import Ratio, Timing
    from onnxpress.runtime.profile import KernelTime, Profile
    from onnxpress.runtime.subprocess_metrics import ColdStart, PeakMemory
    from onnxpress.runtime.throughput import Throughput


def point(
    found: BenchPoint,
    conditions: BenchConditions,
    top: int,
    several: bool,
    rewritable: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """All that was measured under one set of conditions.  rewritable: by model, nodes that a family of rewrites
    changes."""
    summary = _summary(found, conditions)
    latency(found.timings, summary if several else "")
    if found.ratios:
        ratios(found.ratios, "speed-up")
    if found.self_check:
        self_check(found.self_check)
    for seen in found.profiles:
        profile(seen, top, (rewritable or {}).get(seen.name, {}))
    if found.cold:
        cold(found.cold, found.cold_ratios)
    if found.memory:
        memory(found.memory)
    if found.throughput:
        throughput(found.throughput, found.throughput_ratios)
    console.out(f"{summary}, {found.seconds:.1f} s")


def self_check(found: Ratio) -> None:
    """A second session of the same bytes: what it seems to differ by is what this run cannot tell from nothing."""
    console.out(
        f"self-check, {found.baseline} beside itself: {found.speedup:.3f}x {console.interval(found.low, found.high)}"
    )
    if found.verdict != SAME:
        console.out("  that is not 1: believe no difference of this run that is not larger")


def _summary(found: BenchPoint, conditions: BenchConditions) -> str:
    """The conditions in words; the usual ones are not said."""
    own = conditions.settings
    parts = [f"{found.threads} thread{'s' if found.threads != 1 else ''}", f"batch {found.batch}"]
    parts += [f"pinned to {','.join(str(c) for c in conditions.pin)}"] if conditions.pin else []
    parts += [f"graph optimizations: {own.level}"] if own.level != "all" else []
    parts += ["spinning"] if own.spinning else []
    parts += [f"{key}={value}" for key, value in own.config]
    parts += [own.provider] if own.provider != CPU else []
    return ", ".join(parts)


def decisions(found: Sequence[SlowdownDecision]) -> None:
    """What the gate decided, and why."""
    for decision in found:
        text = f"{'pass' if decision.passed else 'FAIL'}: {decision.why} ({decision.how})"
        console.out(textwrap.fill(text, console.WIDTH, subsequent_indent="  ", break_long_words=False))


def latency(timings: Sequence[Timing], title: str = "") -> None:
    columns = [
        ("median ms", "right"),
        ("95 % interval", "right"),
        ("p90 ms", "right"),
        ("CPU ms", "right"),
        ("runs", "right"),
    ]
    console.table(
        [("model", "left"), *columns],
        [
            [
                t.name,
                console.ms(t.median),
                f"[{console.ms(t.low)}, {console.ms(t.high)}]",
                console.ms(t.p90),
                console.ms(t.cpu),
                str(t.rounds * t.runs_per_round),
            ]
            for t in timings
        ],
        title=title,
    )


def ratios(found: Sequence[Ratio], what: str) -> None:
    console.table(
        [("against " + found[0].baseline, "left"), (what, "right"), ("95 % interval", "right"), ("", "left")],
        [[r.name, f"{r.speedup:.3f}x", console.interval(r.low, r.high), r.verdict] for r in found],
    )


def cold(found: Sequence[ColdStart], against: Sequence[Ratio]) -> None:
    columns = [
        ("cold start ms", "right"),
        ("95 % interval", "right"),
        ("load", "right"),
        ("first run", "right"),
        ("n", "right"),
    ]
    console.table(
        [("model", "left"), *columns],
        [
            [
                c.name,
                console.ms(c.median),
                f"[{console.ms(c.low)}, {console.ms(c.high)}]",
                console.ms(c.load),
                console.ms(c.first_run),
                str(c.children),
            ]
            for c in found
        ],
    )
    if against:
        ratios(against, "cold start")


def memory(found: Sequence[PeakMemory]) -> None:
    console.table(
        [
            ("model", "left"),
            ("peak MB", "right"),
            ("of children", "right"),
            ("loaded", "right"),
            ("after runs", "right"),
            ("process", "right"),
        ],
        [
            [
                m.name,
                f"{m.peak:.1f}",
                console.interval(m.low, m.high, 1),
                f"{m.loaded:.1f}",
                f"{m.settled:.1f}",
                f"{m.process:.0f}",
            ]
            for m in found
        ],
    )


def throughput(found: Sequence[Throughput], against: Sequence[Ratio]) -> None:
    console.table(
        [
            ("model", "left"),
            ("inferences/s", "right"),
            ("95 % interval", "right"),
            ("callers", "right"),
            ("slices", "right"),
        ],
        [
            [t.name, f"{t.per_second:,.1f}", console.interval(t.low, t.high, 1), str(t.callers), str(t.slices)]
            for t in found
        ],
    )
    if against:
        ratios(against, "throughput")


def profile(found: Profile, top: int, rewritable: Mapping[str, str]) -> None:
    """Operators, then the slowest kernels with the nodes of the file that they stand for.  rewritable: nodes that a
    family of rewrites changes, which are marked."""
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
                _nodes(k) + (" *" if any(n in rewritable for n in k.nodes) else ""),
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
    console.out(
        f"{len(found.kernels)} kernels add up to {found.covered:.0%} of the median over {found.runs} runs{more}"
    )
    console.out(f"peak: {found.peak.gflops:.1f} GFLOP/s, {found.peak.kind}, measured now")
    marked = [k for k in found.kernels if any(n in rewritable for n in k.nodes)]
    if marked:
        families = dict.fromkeys(rewritable[n] for k in marked for n in k.nodes if n in rewritable)
        text = (
            f"* {len(marked)} kernels, {sum(k.share for k in marked):.0%} of the time: written in a form that "
            f"`onnxpress rewrite` can change ({', '.join(families)})"
        )
        console.out(textwrap.fill(text, 80, subsequent_indent="  "))


def _rate(macs: int, gflops: float, found: Profile) -> list[str]:
    return [f"{gflops:.1f}", f"{gflops / found.peak.gflops:.0%}"] if macs else ["-", "-"]


def _nodes(kernel: KernelTime) -> str:
    """The file's nodes, the first one and how many more; onnxruntime's name in brackets where none can be told."""
    if not kernel.nodes:
        return f"({kernel.name[-28:]})"
    main = next((n for n in kernel.nodes if n == kernel.name), kernel.nodes[0])
    more = len(kernel.nodes) - 1
    return main[-24:] + (f" +{more}" if more else "")
