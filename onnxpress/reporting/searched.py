"""What a run of `nas` shows."""

from __future__ import annotations

from onnxpress.reporting.facts import Chart, Document, Headline, Page, Point, Table, drop_of, machine, size, strings


def searched(body: Document) -> Page:
    """A record without an outcome is of a search that was stopped, or goes on."""
    request = body.get("request") or {}
    found = body.get("outcome") or body
    if "evaluated" not in found:
        return Page("Search: not finished", str(request.get("space", "")), tables=[machine(body)])
    title = "Search" if found.get("met", True) else "Search: no candidate keeps the limit"
    trained = found["candidates"]
    made = Page(title, str(request.get("space", "")))
    on_front = sum(bool(c.get("on_front")) for c in trained)
    made.headlines = [Headline("looked at", str(found["evaluated"]), f"{found['distinct']} different networks"),
                      Headline("trained to the end", str(len(trained)), f"{on_front} on the front")]  # fmt: skip
    ratios = {r["name"]: r for r in found.get("ratios") or []}
    metric = trained[0]["score"]["metric"] if trained else ""
    made.charts = [_front(trained, metric)]
    rows = tuple(
        (c["name"], f"{c['ms']:.3f}", _faster(ratios.get(c["name"])), f"{c['score']['value']:.4f}", drop_of(c["score"]),
         f"{c['macs'] / 1e6:.1f} M", f"{c['parameters'] / 1e3:.0f} k", size(c["bytes"]), "yes" if c.get("on_front") else "",
         ", ".join(f"{k} {v}" for k, v in (c.get("choices") or {}).items()))
        for c in trained
    )  # fmt: skip
    columns = ("name", "ms", "faster", metric, "drop", "MACs", "weights", "size", "front", "choices")
    made.tables = [Table("Trained candidates", columns, rows), machine(body)]
    made.remarks = strings(found, "notes")
    return made


def _front(trained: list[Document], metric: str) -> Chart:
    largest = max((c["bytes"] for c in trained), default=1)
    points = tuple(
        Point(
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
    """The interval of a value whose drop has one."""
    low, high, reference = score.get("low"), score.get("high"), score.get("reference")
    return (None, None) if low is None or high is None or reference is None else (reference - high, reference - low)


def _faster(ratio: Document | None) -> str:
    return "" if ratio is None else f"{ratio['speedup']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]"
