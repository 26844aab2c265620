"""Report of `bench`: every point of a sweep, and all optional measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from onnxpress.reporting.facts import (
    MOST_BARS,
    Chart,
    ChartPoint,
    Document,
    Headline,
    Page,
    ReportTable,
    latency_charts,
    machine_table,
    ratio_note,
    string_list,
)


def bench_page(body: Document) -> Page:
    """The report of a record of `bench`."""
    points = body.get("points") or [body]
    several = len(points) > 1
    page = Page("Latency", ", ".join(str(t["name"]) for t in points[0].get("timings") or []))
    for point in points:
        where = _point_label(point) if several else ""
        page.headlines += _headlines(point, where)
        page.charts += [*latency_charts(point.get("timings") or [], where), *_profiles(point, where)]
        if point.get("self_check"):
            check = point["self_check"]
            page.remarks.append(
                f"self-check{_suffix(where)}: the first model against itself {check['speedup']:.3f}x, {_ends(check, 3)}"
            )
        if point.get("reference"):
            speed = point["reference"]
            page.remarks.append(
                f"speed in units of the built-in reference model{_suffix(where)}: {speed['speedup']:.3g}, "
                f"{_ends(speed, 3)}"
            )
        page.remarks += [f"{text}{_suffix(where)}" for text in string_list(point, "warnings")]
    if several:
        page.charts.insert(0, _sweep(points))
    page.tables = [
        *(t(points) for t in (_timings, _ratios, _cold, _memory, _throughput)),
        _decisions(body),
        _conditions(body),
        machine_table(body),
    ]
    page.remarks += [] if several else string_list(body, "notes")
    return page


def _point_label(point: Document) -> str:
    threads = point.get("threads", 1)
    return f"{threads} thread{'s' if threads != 1 else ''}, batch {point.get('batch', 1)}"


def _suffix(where: str) -> str:
    return f" ({where})" if where else ""


def _headlines(point: Document, where: str) -> list[Headline]:
    found = [
        Headline(f"{r['name']}{_suffix(where)}", f"{r['speedup']:.2f}x", ratio_note(r))
        for r in point.get("ratios") or []
    ]
    timings = point.get("timings") or []
    if timings and not found:
        t = timings[0]
        note = f"median; 90 % of the runs within {1e3 * t['p90']:.3g} ms"
        found.append(Headline(f"{t['name']}{_suffix(where)}", f"{1e3 * t['median']:.3g} ms", note))
    return found


def _sweep(points: list[Document]) -> Chart:
    """Samples per second over the batch size, one line for each model and number of threads."""
    marks = []
    for p in points:
        batch = p.get("batch", 1)
        for t in p.get("timings") or []:
            rate, low, high = (batch / t[key] for key in ("median", "high", "low"))
            marks.append(
                ChartPoint(
                    _point_label(p),
                    float(batch),
                    rate,
                    low,
                    high,
                    0.3,
                    group=f"{t['name']}, {p.get('threads', 1)} thr.",
                )
            )
    return Chart(
        "lines",
        "Sweep",
        "batch",
        "samples per second",
        tuple(marks),
        "Points are measured one after another; lines: 95 % intervals.",
    )


def _profiles(point: Document, where: str) -> list[Chart]:
    """The slowest kernels of each profiled model."""
    charts = []
    for one in point.get("profiles") or []:
        kernels = sorted(one["kernels"], key=lambda k: -k["seconds"])[:MOST_BARS]
        points = tuple(ChartPoint(_kernel(k), 1e6 * k["seconds"], 0.0) for k in kernels)
        left = len(one["kernels"]) - len(kernels)
        note = f"The kernels cover {one['covered']:.0%} of a run." + (
            f" {left} faster ones are omitted." if left else ""
        )
        charts.append(
            Chart(
                "bars",
                f"Where the time goes: {one['name'] or 'the model'}{_suffix(where)}",
                "microseconds per run",
                "",
                points,
                note,
            )
        )
    return charts


def _kernel(kernel: Document) -> str:
    nodes = kernel.get("nodes") or []
    return f"{kernel['op']} {nodes[0]}" if nodes else f"{kernel['op']} {kernel['name']}"


def _rows(points: list[Document], part: str, row: Callable[[Document], tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    several = len(points) > 1
    return tuple(((_point_label(p),) if several else ()) + row(x) for p in points for x in p.get(part) or [])


def _table(
    points: list[Document], title: str, columns: Iterable[str], rows: tuple[tuple[str, ...], ...]
) -> ReportTable:
    return ReportTable(title, (*(("conditions",) if len(points) > 1 else ()), *columns), rows)


def _timings(points: list[Document]) -> ReportTable:
    def row(t: Document) -> tuple[str, ...]:
        return (
            t["name"],
            *(f"{1e3 * t.get(k, 0):.4g}" for k in ("median", "low", "high", "p90", "minimum", "cpu")),
            str(t["rounds"]),
        )

    return _table(
        points,
        "Milliseconds",
        ("model", "median", "low", "high", "p90", "minimum", "CPU", "rounds"),
        _rows(points, "timings", row),
    )


def _ratios(points: list[Document]) -> ReportTable:
    def row(r: Document) -> tuple[str, ...]:
        return r["name"], r["baseline"], f"{r['speedup']:.3f}x", f"{r['low']:.3f} to {r['high']:.3f}"

    return _table(
        points, "Ratios", ("model", "against", "times as fast", "95 % interval"), _rows(points, "ratios", row)
    )


def _cold(points: list[Document]) -> ReportTable:
    def row(c: Document) -> tuple[str, ...]:
        return (
            c["name"],
            *(f"{1e3 * c[k]:.4g}" for k in ("median", "low", "high", "load", "first_run")),
            str(c["children"]),
        )

    columns = ("model", "median ms", "low", "high", "load", "first run", "processes")
    return _table(points, "Cold start", columns, _rows(points, "cold", row))


def _memory(points: list[Document]) -> ReportTable:
    def row(m: Document) -> tuple[str, ...]:
        return (m["name"], *(f"{m[k]:.1f}" for k in ("peak", "low", "high", "loaded", "settled", "process")))

    columns = ("model", "peak MB", "low", "high", "loaded", "after runs", "process")
    return _table(points, "Memory in a fresh process", columns, _rows(points, "memory", row))


def _throughput(points: list[Document]) -> ReportTable:
    def row(t: Document) -> tuple[str, ...]:
        return t["name"], f"{t['per_second']:.4g}", _ends(t, 0), str(t["callers"])

    return _table(
        points,
        "Throughput",
        ("model", "samples per second", "95 % interval", "callers"),
        _rows(points, "throughput", row),
    )


def _decisions(body: Document) -> ReportTable:
    rows = tuple(("pass" if d["passed"] else "fail", str(d["why"]), str(d["how"])) for d in body.get("decisions") or [])
    return ReportTable("Gate", ("", "why", "how"), rows)


def _conditions(body: Document) -> ReportTable:
    """Session settings that are not empty."""
    found = body.get("conditions") or {}
    named = {**{k: v for k, v in found.items() if k != "settings"}, **(found.get("settings") or {})}
    return ReportTable(
        "Conditions", ("", ""), tuple((k, str(v)) for k, v in named.items() if v not in ("", None, [], {}, 0, False))
    )


def _ends(interval: Document, digits: int) -> str:
    return f"95 % interval {interval['low']:.{digits}f} to {interval['high']:.{digits}f}"
