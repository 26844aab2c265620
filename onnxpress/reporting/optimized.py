"""Report of a run of `optimize` (or of `distill`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from onnxpress.reporting.facts import (
    Chart,
    ChartPoint,
    Document,
    Headline,
    Page,
    ReportTable,
    drop_text,
    latency_charts,
    machine_table,
    name_of,
    profile_charts,
    ratio_note,
    refusal_table,
    size,
    size_headline,
    string_list,
)

_MAX_NOTES = 3  # notes shown per candidate


def optimize_page(body: Document) -> Page:
    """The report of a record; one without an outcome (an interrupted or running command) shows what is known so far."""
    found = body.get("outcome") or (body if "chosen" in body else {})
    page = Page(_title(found), name_of(body))
    page.headlines = [
        *_speed(found.get("speedup")),
        *size_headline(found.get("original_bytes"), found.get("bytes")),
        *_quality(found.get("validate")),
        *_seconds(found),
    ]
    page.charts = [
        _candidates(body, found),
        *latency_charts(found.get("timings") or []),
        *profile_charts(found.get("profile_comparison")),
        _training(body),
    ]
    page.tables = [
        _table(body, found),
        _predictions(body, found),
        _plan(body),
        refusal_table(found.get("refused") or []),
        machine_table(body),
    ]
    page.remarks = [
        *string_list(found, "reasons"),
        *(f"try: {a}" for a in string_list(found, "advice")),
        *_rejected(found),
        *(f"{name} failed: {why}" for name, why in (body.get("failed") or {}).items()),
        *string_list(found, "notes"),
        *string_list(found, "warnings"),
    ]
    return page


def _title(found: Document) -> str:
    if not found:
        return "Not finished"
    title = "Optimized" if found.get("met") else "No result meets the goal"
    return f"{title} (interrupted)" if found.get("interrupted") else title


def _speed(ratio: Document | None) -> list[Headline]:
    return [Headline("faster", f"{ratio['speedup']:.2f}x", ratio_note(ratio))] if ratio else []


def _quality(score: Document | None) -> list[Headline]:
    if not score or score.get("value") is None:
        return []
    note = f"original {score['reference']:.4f}; drop {drop_text(score)}, {score['samples']} samples"
    return [Headline(str(score["metric"]), f"{score['value']:.4f}", note)]


def _seconds(found: Document) -> list[Headline]:
    return [Headline("time taken", f"{found['seconds']:.0f} s")] if found.get("seconds") else []


def _candidates(body: Document, found: Document) -> Chart:
    speeds = _speeds(body, found)
    several = [
        c
        for c in body.get("candidates", [])
        if speeds.get(c["name"]) and (c.get("select") or {}).get("drop") is not None
    ]
    largest = max((c["size"] for c in several), default=1)
    chosen = found.get("chosen")
    points = tuple(
        ChartPoint(c["name"], speeds[c["name"]], c["select"]["drop"], c["select"].get("low"), c["select"].get("high"),
              c["size"] / largest, c["name"] == chosen)
        for c in several
    )  # fmt: skip
    marked = " Orange: the chosen candidate." if any(p.chosen for p in points) else ""
    note = (
        "Lower and to the right is better; the mark's size is the file's; lines: 95 % intervals; speed-ups with ~ in "
        f"the table are of short timings.{marked}"
    )
    return Chart("scatter", "Candidates", "times as fast", "drop on the selection samples", points, note)


def _predictions(body: Document, found: Document) -> ReportTable:
    """What was expected of candidates, beside what was measured."""
    speeds, rows = _speeds(body, found), []
    for c in body.get("candidates", []):
        expected, score = c.get("predicted") or {}, c.get("select") or {}
        loss, speedup = expected.get("loss"), expected.get("speedup")
        if loss is None and speedup is None:
            continue
        error, speed = score.get("nmse"), speeds.get(c["name"])
        rows.append((
            c["name"],
            f"{speedup:.2f}x" if speedup else "",
            f"{speed:.2f}x" if speed else "",
            f"{loss:.2g}" if loss is not None else "",
            f"{error:.2g}" if error is not None else "",
        ))  # fmt: skip
    columns = ("name", "faster, predicted", "measured", "error of the outputs, predicted", "measured")
    return ReportTable("Predicted and measured", columns, tuple(rows))


def _final_speeds(found: Document) -> dict[str, float]:
    """By candidate, of the final timing."""
    timed = {r["name"]: r["speedup"] for r in found.get("ratios") or [] if r.get("speedup")}
    return timed | ({found["chosen"]: found["speedup"]["speedup"]} if found.get("speedup") else {})


def _speeds(body: Document, found: Document) -> dict[str, float]:
    """By candidate: of the final timing where it was in it, else of a short one."""
    quick = {c["name"]: c["quick_speedup"] for c in body.get("candidates", []) if c.get("quick_speedup")}
    return quick | _final_speeds(found)


def _table(body: Document, found: Document) -> ReportTable:
    rows = []
    speeds, timed = _speeds(body, found), _final_speeds(found)
    for c in body.get("candidates", []):
        speed, notes = speeds.get(c["name"]), string_list(c, "notes")
        about = "" if c["name"] in timed else "~"
        notes_text = "; ".join(notes[:_MAX_NOTES]) + (
            f"; and {len(notes) - _MAX_NOTES} more" if len(notes) > _MAX_NOTES else ""
        )
        name = f"{c['name']} (chosen)" if c["name"] == found.get("chosen") else c["name"]
        rows.append(
            (name, f"{about}{speed:.2f}x" if speed else "", drop_text(c.get("select")), size(c["size"]), notes_text)
        )
    return ReportTable("Candidates", ("name", "faster", "drop", "size", "notes"), tuple(rows))


def _training(body: Document) -> Chart:
    curve = [p for p in body.get("curve", []) if p.get("drop") is not None]
    points = tuple(ChartPoint(f"step {p['step']}", float(p["step"]), p["drop"], size=0.2, group="drop") for p in curve)
    return Chart("lines", "Training", "step", "drop on the selection samples", points)


def _plan(body: Document) -> ReportTable:
    steps = (body.get("plan") or {}).get("steps") or []
    rows = [(str(s.get("pass")), f"{len(s.get('actions', []))}", _brief(s.get("actions", []))) for s in steps]
    return ReportTable("Plan", ("pass", "actions", "first"), tuple(rows))


def _brief(actions: Sequence[Any]) -> str:
    text = json.dumps(actions[0]) if actions else ""
    return text if len(text) <= 120 else f"{text[:117]}…"


def _rejected(found: Document) -> list[str]:
    return [f"{name} was rejected: {'; '.join(map(str, why))}" for name, why in (found.get("rejected") or {}).items()]
