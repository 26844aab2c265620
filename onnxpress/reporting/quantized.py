"""Report of `quantize`."""

from __future__ import annotations

from onnxpress.reporting.facts import (
    MOST_BARS,
    Chart,
    ChartPoint,
    Document,
    Headline,
    Page,
    ReportTable,
    name_of,
    profile_charts,
    refusal_table,
    size_headline,
    string_list,
)

_COLUMNS = (
    "layer",
    "operator",
    "types",
    "low",
    "high",
    "SQNR in",
    "SQNR out",
    "clipped",
    "alone",
    "back",
    "µs",
    "µs now",
    "why",
)


def quantize_page(body: Document) -> Page:
    """The report of a record of `quantize`."""
    page = Page("Quantized", name_of(body))
    details = body.get("details") or {}
    layers = details.get("layers") or []
    page.headlines = size_headline(body.get("bytes_before"), body.get("bytes_after"))
    page.headlines += (
        [Headline("layers in int8", f"{sum(bool(x['int8']) for x in layers)} of {len(layers)}")] if layers else []
    )
    known = [x for x in layers if x["one_at_a_time"] is not None]
    sensitive = sorted(known, key=lambda x: -x["one_at_a_time"])[:MOST_BARS]
    losses = tuple(ChartPoint(x["node"], x["one_at_a_time"], 0.0, chosen=not x["int8"]) for x in sensitive)
    wide = tuple(_distribution(x) for x in sensitive if x["high"] > x["low"])
    marked = "Orange: layers that stay in float." if any(p.chosen for p in losses) else ""
    page.charts = [
        Chart("bars", "Loss by layer", "nmse of the model with only this layer in int8", "", losses, marked),
        Chart(
            "spans",
            "How outputs are distributed",
            "values on the samples, in units of the layer's largest magnitude",
            "",
            wide,
            "The darker, the more values lie there; int8 has 255 steps for a row.",
        ),
        *profile_charts(details.get("profile")),
    ]
    page.tables = [
        ReportTable("Layers", _COLUMNS, tuple(_row(x) for x in layers)),
        refusal_table(body.get("refused") or []),
    ]
    page.remarks = string_list(body, "notes")
    return page


def _distribution(x: Document) -> ChartPoint:
    largest = max(abs(x["low"]), abs(x["high"]))
    return ChartPoint(
        x["node"],
        x["high"] / largest,
        0.0,
        x["low"] / largest,
        x["high"] / largest,
        density=tuple(x.get("density") or ()),
    )


def _row(x: Document) -> tuple[str, ...]:
    def formatted(name: str, form: str, factor: float = 1.0) -> str:
        return "" if x[name] is None else format(factor * x[name], form)

    ends = (
        (formatted("low", ".3g"), formatted("high", ".3g")) if x["high"] > x["low"] else ("", "")
    )  # graph outputs are not observed
    return (
        x["node"],
        x["op"],
        str(x.get("types") or ("int8" if x["int8"] else "float")),
        *ends,
        formatted("input_sqnr", ".0f"),
        formatted("output_sqnr", ".0f"),
        formatted("clipped", ".2%"),
        formatted("one_at_a_time", ".1e"),
        formatted("leave_one_out", ".1e"),
        formatted("seconds_before", ".3g", 1e6),
        formatted("seconds_after", ".3g", 1e6),
        str(x["reason"]),
    )
