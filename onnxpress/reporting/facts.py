"""Contents of a report for any command, and the parts that several commands share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_BARS = 40
Document = Mapping[str, Any]


@dataclass(frozen=True)
class Headline:
    """One number at the top of the report.  note: its interval, or what it is compared with."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class ChartPoint:
    """One mark of a chart.

    low, high: interval of y; for a bar, of its length
    size:      of the mark, 0 to 1
    chosen:    drawn in the highlight colour
    group:     marks of one group have one colour and, in "lines", form one line
    density:   for a span, the density of each of its equal parts
    """

    name: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    size: float = 0.5
    chosen: bool = False
    group: str = ""
    density: tuple[float, ...] = ()


@dataclass(frozen=True)
class Chart:
    """A chart.

    kind: "scatter" and "lines" (x and y), "bars" (x only, one bar per name and group) or "spans" (bars from low to
          high)
    note: how to read it
    """

    kind: str
    title: str
    x: str
    y: str
    points: tuple[ChartPoint, ...]
    note: str = ""

    @property
    def rows(self) -> int:
        """Number of bars below each other."""
        return len({(p.name, p.group) for p in self.points}) if self.kind in ("bars", "spans") else 0


@dataclass(frozen=True)
class ReportTable:
    """A table of strings."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass
class Page:
    """The contents of a report, in this order."""

    title: str
    subtitle: str = ""
    headlines: list[Headline] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    tables: list[ReportTable] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def name_of(body: Document) -> str:
    """The model, or the output, of a record."""
    return str(body.get("model") or body.get("output") or "")


def ratio_note(ratio: Document) -> str:
    """The interval and baseline of a speed-up."""
    return f"95 % interval {ratio['low']:.2f} to {ratio['high']:.2f}, against {ratio['baseline']}"


def size_headline(before: float | None, after: float | None) -> list[Headline]:
    """The reduction in file size; nothing where a size is unknown."""
    if not before or not after:
        return []
    return [Headline("smaller", f"{before / after:.2f}x", f"{size(before)} to {size(after)}")]


def drop_text(score: Document | None) -> str:
    """A drop with its interval; "" where there is none."""
    if not score or score.get("drop") is None:
        return ""
    low, high = score.get("low"), score.get("high")
    return f"{score['drop']:+.4f}" + ("" if low is None or high is None else f" [{low:+.4f}, {high:+.4f}]")


def latency_charts(timings: Sequence[Document], where: str = "") -> list[Chart]:
    """Medians with intervals, and the distributions of the runs, where recorded.  where: the conditions."""
    suffix = f", {where}" if where else ""
    medians = tuple(ChartPoint(t["name"], 1e3 * t["median"], 0.0, 1e3 * t["low"], 1e3 * t["high"]) for t in timings)
    runs = tuple(
        ChartPoint(f"{share:.0%} of the runs", 1e3 * seconds, 100 * share, group=t["name"], size=0.0)
        for t in timings
        for share, seconds in _cumulative(t.get("quantiles") or [])
    )
    note = "Lines: 95 % intervals of the medians."
    share = "% of the runs took at most this"
    return [
        Chart("bars", f"Latency in one interleaved run{suffix}", "milliseconds (median)", "", medians, note),
        Chart(
            "lines", f"Distribution of the runs{suffix}", "milliseconds", share, runs, "The slowest 5 % are left out."
        ),
    ]


def _cumulative(quantiles: Sequence[float]) -> Iterable[tuple[float, float]]:
    """(fraction of the runs, their maximum) without the slowest 5 %, which would compress the rest of the chart."""
    shares = [i / max(len(quantiles) - 1, 1) for i in range(len(quantiles))]
    return [(share, seconds) for share, seconds in zip(shares, quantiles, strict=True) if share <= 0.95]


def profile_charts(found: Document | None) -> list[Chart]:
    """Time by operator and layer before and after, and changed widths of layers."""
    found = found or {}

    def pairs(name: str, factor: float, changed: bool = False) -> tuple[ChartPoint, ...]:
        some = [p for p in found.get(name) or [] if not changed or p["before"] != p["after"]]
        if len(some) > MOST_BARS:  # the largest, in the order of the graph
            least = sorted((max(p["before"], p["after"]) for p in some), reverse=True)[MOST_BARS - 1]
            some = [p for p in some if max(p["before"], p["after"]) >= least][:MOST_BARS]
        return tuple(
            ChartPoint(p["name"], factor * p[when], 0.0, group=when, chosen=when == "after")
            for p in some
            for when in ("before", "after")
        )

    unit = "microseconds per run"
    note = "From one profile of each model, alternating with runs without profiler, whose overhead is subtracted."
    fused = "With the operators fused into them; in the order of the graph."
    changed_widths = pairs("widths", 1.0, changed=True)
    return [
        Chart("bars", "Where the time goes: operators", unit, "", pairs("operators", 1e6), note),
        Chart("bars", "Where the time goes: layers", unit, "", pairs("layers", 1e6), fused),
        Chart("bars", "Changed widths", "channels", "", changed_widths, "Layers in the order of the graph."),
    ]


def refusal_table(found: Sequence[Document]) -> ReportTable:
    """Nodes that a pass left unchanged, and why."""
    return ReportTable("Unchanged nodes", ("node", "why"), tuple((str(r["unit"]), str(r["reason"])) for r in found))


def machine_table(body: Document) -> ReportTable:
    """Facts of the machine."""
    facts = body.get("machine") or {}
    known = [
        (k.replace("_", " "), " ".join(map(str, v)) if isinstance(v, list) else str(v))
        for k, v in facts.items()
        if v not in ("", None, 0)
    ]
    return ReportTable("Machine", ("", ""), tuple(known))


def string_list(body: Document, name: str) -> list[str]:
    """A list of strings of a record."""
    return [str(s) for s in body.get(name) or []]


def size(count: float) -> str:
    """Bytes in B, kB, MB or GB (powers of 1000)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
