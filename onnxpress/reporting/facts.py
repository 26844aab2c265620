"""What a report shows, whatever was run: headline numbers, charts, tables, remarks; and the parts that several commands have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_BARS = 40
Document = Mapping[str, Any]


@dataclass(frozen=True)
class Headline:
    """One number at the top.  note: its interval, or what it is compared with."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class ChartPoint:
    """One mark of a chart.

    low, high: the interval of y (of a bar: of its length); size: of the mark, 0 to 1; chosen: drawn in the other colour
    group:     marks of one group have one colour and, in "lines", one line
    density:   of a span, how dark each of its equal parts is
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
    """kind: "scatter" and "lines" (x, y), "bars" (x alone, a bar a name and group) or "spans" (a bar from low to high).  note: how
    to read it."""

    kind: str
    title: str
    x: str
    y: str
    points: tuple[ChartPoint, ...]
    note: str = ""

    @property
    def rows(self) -> int:
        """Bars below each other."""
        return len({(p.name, p.group) for p in self.points}) if self.kind in ("bars", "spans") else 0


@dataclass(frozen=True)
class ReportTable:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass
class Page:
    """What a report shows, in this order."""

    title: str
    subtitle: str = ""
    headlines: list[Headline] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    tables: list[ReportTable] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def name_of(body: Document) -> str:
    return str(body.get("model") or body.get("output") or "")


def ratio_note(ratio: Document) -> str:
    return f"95 % interval {ratio['low']:.2f} to {ratio['high']:.2f}, against {ratio['baseline']}"


def size_headline(before: float | None, after: float | None) -> list[Headline]:
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
    """Medians with intervals, and how the runs are spread, where that is recorded.  where: under which conditions."""
    behind = f", {where}" if where else ""
    medians = tuple(ChartPoint(t["name"], 1e3 * t["median"], 0.0, 1e3 * t["low"], 1e3 * t["high"]) for t in timings)
    runs = tuple(
        ChartPoint(f"{share:.0%} of the runs", 1e3 * seconds, 100 * share, group=t["name"], size=0.0)
        for t in timings
        for share, seconds in _cumulative(t.get("quantiles") or [])
    )
    return [
        Chart("bars", f"Latency in one interleaved run{behind}", "milliseconds (median)", "", medians, "Lines: 95 % intervals of the medians."),
        Chart("lines", f"How runs are spread{behind}", "milliseconds", "% of the runs took at most this", runs,
              "The slowest 5 % are left out."),
    ]  # fmt: skip


def _cumulative(quantiles: Sequence[float]) -> Iterable[tuple[float, float]]:
    """(share of the runs, what they took at most), without the slowest 5 %, which would press the rest together."""
    shares = [i / max(len(quantiles) - 1, 1) for i in range(len(quantiles))]
    return [(share, seconds) for share, seconds in zip(shares, quantiles, strict=True) if share <= 0.95]


def profile_charts(found: Document | None) -> list[Chart]:
    """Where the time goes before and after, and how wide layers are."""
    found = found or {}

    def pairs(name: str, factor: float, changed: bool = False) -> tuple[ChartPoint, ...]:
        some = [p for p in found.get(name) or [] if not changed or p["before"] != p["after"]]
        if len(some) > MOST_BARS:  # the largest, in their order
            least = sorted((max(p["before"], p["after"]) for p in some), reverse=True)[MOST_BARS - 1]
            some = [p for p in some if max(p["before"], p["after"]) >= least][:MOST_BARS]
        return tuple(
            ChartPoint(p["name"], factor * p[when], 0.0, group=when, chosen=when == "after")
            for p in some
            for when in ("before", "after")
        )

    micro = "microseconds a run"
    note = "From one profile of each, in turns with unwatched runs; the profiler's own work is taken off."
    return [
        Chart("bars", "Where the time goes: operators", micro, "", pairs("operators", 1e6), note),
        Chart("bars", "Where the time goes: layers", micro, "", pairs("layers", 1e6), "With what is fused into them; in the order of the graph."),
        Chart("bars", "Widths that changed", "channels", "", pairs("widths", 1.0, changed=True), "Layers in the order of the graph."),
    ]  # fmt: skip


def refusal_table(found: Sequence[Document]) -> ReportTable:
    return ReportTable("Left alone", ("node", "why"), tuple((str(r["unit"]), str(r["reason"])) for r in found))


def machine_table(body: Document) -> ReportTable:
    facts = body.get("machine") or {}
    known = [
        (k.replace("_", " "), " ".join(map(str, v)) if isinstance(v, list) else str(v))
        for k, v in facts.items()
        if v not in ("", None, 0)
    ]
    return ReportTable("Machine", ("", ""), tuple(known))


def string_list(body: Document, name: str) -> list[str]:
    return [str(s) for s in body.get(name) or []]


def size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
