"""Report of a run of `nas`."""

from __future__ import annotations

from onnxpress.reporting.facts import (
    Chart,
    ChartPoint,
    Document,
    Headline,
    Page,
    ReportTable,
    drop_text,
    machine_table,
    size,
    string_list,
)


def search_page(body: Document) -> Page:
    """The report of a record; one without an outcome is from an interrupted or running search."""
    request = body.get("request") or {}
    found = body.get("outcome") or body
    if "evaluated" not in found:
        return Page("Search: not finished", str(request.get("space", "")), tables=[machine_table(body)])
    title = "Search" if found.get("met", True) else "Search: no candidate meets the limit"
    trained = found["candidates"]
    page = Page(title, str(request.get("space", "")))
    on_front = sum(bool(c.get("on_front")) for c in trained)
    page.headlines = [
        Headline("evaluated", str(found["evaluated"]), f"{found['distinct']} different networks"),
        Headline("fully trained", str(len(trained)), f"{on_front} on the front"),
    ]
    ratios = {r["name"]: r for r in found.get("ratios") or []}
    metric = trained[0]["score"]["metric"] if trained else ""
    page.charts = [_front(trained, metric)]
    rows = tuple(_row(c, ratios.get(c["name"])) for c in trained)
    columns = ("name", "ms", "faster", metric, "drop", "MACs", "weights", "size", "front", "choices")
    page.tables = [ReportTable("Trained candidates", columns, rows), machine_table(body)]
    page.remarks = string_list(found, "notes")
    return page


def _row(candidate: Document, ratio: Document | None) -> tuple[str, ...]:
    return (
        candidate["name"],
        f"{candidate['ms']:.3f}",
        _faster(ratio),
        f"{candidate['score']['value']:.4f}",
        drop_text(candidate["score"]),
        f"{candidate['macs'] / 1e6:.1f} M",
        f"{candidate['parameters'] / 1e3:.0f} k",
        size(candidate["bytes"]),
        "yes" if candidate.get("on_front") else "",
        ", ".join(f"{k} {v}" for k, v in (candidate.get("choices") or {}).items()),
    )


def _front(trained: list[Document], metric: str) -> Chart:
    largest = max((c["bytes"] for c in trained), default=1)
    points = tuple(
        ChartPoint(
            c["name"], c["ms"], c["score"]["value"], *_ends(c["score"]), c["bytes"] / largest, bool(c.get("on_front"))
        )
        for c in trained
        if (c.get("score") or {}).get("value") is not None
    )
    note = (
        "Higher and to the left is better; the mark's size is the file's; lines: 95 % intervals. Orange: on the front."
    )
    return Chart("scatter", "Front", "milliseconds", f"{metric} on the validation samples", points, note)


def _ends(score: Document) -> tuple[float | None, float | None]:
    """The interval of a value from the interval of its drop."""
    low, high, reference = score.get("low"), score.get("high"), score.get("reference")
    return (None, None) if low is None or high is None or reference is None else (reference - high, reference - low)


def _faster(ratio: Document | None) -> str:
    return "" if ratio is None else f"{ratio['speedup']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]"
