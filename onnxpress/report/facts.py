"""From the record of a command to what a report shows: headline numbers, charts, tables, remarks.

Read are a run folder of `optimize` or `nas` (or its run.json), and what `bench`, `quantize`, `optimize` and `nas` print with --json.
Nothing is computed here that was not measured there; a part without numbers is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxpress.errors import InputProblem
from onnxpress.optimize.run import SCHEMA

_MOST_BARS = 40
Document = Mapping[str, Any]


@dataclass(frozen=True)
class Headline:
    """One number at the top.  note: its interval, or what it is compared with."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Point:
    """One mark of a chart.  low, high: the interval of y (of a bar: of its length); size: of the mark, 0 to 1; chosen: the result."""

    name: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    size: float = 0.5
    chosen: bool = False


@dataclass(frozen=True)
class Chart:
    """kind: "scatter" (x, y), "bars" (x alone, a bar a point) or "spans" (a bar from low to high).  note: how to read it."""

    kind: str
    title: str
    x: str
    y: str
    points: tuple[Point, ...]
    note: str = ""


@dataclass(frozen=True)
class Table:
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
    tables: list[Table] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def read(path: str | Path) -> Document:
    """The record at a path: a run folder or a JSON file.  Raises InputProblem where there is none, or it is another thing."""
    where = Path(path)
    file = where / "run.json" if where.is_dir() else where
    try:
        text = file.read_text()
    except FileNotFoundError as error:
        raise InputProblem("there is no run to report", file, "", "name a run folder, or a file written with --json") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputProblem("the run cannot be read", file, str(error), "name a run folder, or a file written with --json") from error
    try:
        body = json.loads(text)
    except ValueError as error:
        raise InputProblem("the run's record is damaged", file, str(error), "run the command again") from error
    if not isinstance(body, dict) or body.get("schema") != SCHEMA or body.get("kind") not in _PAGES:
        raise InputProblem("this is no record of a run", file, "", f"a report can be made of {', '.join(sorted(_PAGES))}")
    plan = where / "plan.json"
    if where.is_dir() and plan.is_file():
        try:
            body["plan"] = json.loads(plan.read_text())
        except (OSError, ValueError):
            body["plan"] = {}
    return body


def page(body: Document) -> Page:
    """What to show of a record.  Raises InputProblem where the record lacks what its kind has."""
    try:
        made = _PAGES[body["kind"]](body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputProblem("the run's record is not complete", str(body.get("kind")), str(error), "run the command again") from error
    made.charts = [c for c in made.charts if c.points]
    made.tables = [t for t in made.tables if t.rows]
    return made


# optimize


def _run(body: Document) -> Page:
    return _nas(body) if body.get("command") == "nas" or "candidates" in (body.get("outcome") or {}) else _optimize(body)


def _optimize(body: Document) -> Page:
    outcome = body.get("outcome") or (body if "chosen" in body else {})
    made = Page("Optimized" if outcome.get("met") else "No result that keeps the wish", _name(body))
    made.headlines = [*_speed(outcome.get("speedup")), *_sizes(outcome), *_quality(outcome.get("validate"))]
    if outcome.get("seconds"):
        made.headlines.append(Headline("time taken", f"{outcome['seconds']:.0f} s"))
    made.charts = [_candidates(body, outcome), _latencies(outcome.get("timings") or []), _training(body)]
    made.tables = [_candidate_table(body), _plan(body), _machine(body)]
    made.remarks = [*_strings(outcome, "reasons"), *(f"try: {a}" for a in _strings(outcome, "advice")),
                    *_rejected(outcome), *_strings(outcome, "notes"), *_strings(outcome, "warnings")]  # fmt: skip
    return made


def _name(body: Document) -> str:
    return str(body.get("model") or body.get("output") or "")


def _speed(ratio: Document | None) -> list[Headline]:
    if not ratio:
        return []
    note = f"95 % interval {ratio['low']:.2f} to {ratio['high']:.2f}, against {ratio['baseline']}"
    return [Headline("faster", f"{ratio['speedup']:.2f}x", note)]


def _sizes(outcome: Document) -> list[Headline]:
    before, after = outcome.get("original_bytes"), outcome.get("bytes")
    if not before or not after:
        return []
    return [Headline("smaller", f"{before / after:.2f}x", f"{_bytes(before)} to {_bytes(after)}")]


def _quality(score: Document | None) -> list[Headline]:
    if not score or score.get("value") is None:
        return []
    note = f"original {score['reference']:.4f}; drop {score['drop']:+.4f} [{score['low']:+.4f}, {score['high']:+.4f}], {score['samples']} samples"
    return [Headline(str(score["metric"]), f"{score['value']:.4f}", note)]


def _candidates(body: Document, outcome: Document) -> Chart:
    several = [c for c in body.get("candidates", []) if c.get("quick_speedup") and (c.get("select") or {}).get("drop") is not None]
    largest = max((c["size"] for c in several), default=1)
    points = tuple(
        Point(c["name"], c["quick_speedup"], c["select"]["drop"], c["select"].get("low"), c["select"].get("high"),
              c["size"] / largest, c["name"] == outcome.get("chosen"))
        for c in several
    )  # fmt: skip
    return Chart("scatter", "Candidates", "times as fast (first timing)", "drop on the selection samples", points,
                 "Lower and to the right is better; the mark's size is the file's.")  # fmt: skip


def _candidate_table(body: Document) -> Table:
    rows = []
    for c in body.get("candidates", []):
        score = c.get("select") or {}
        drop = score.get("drop")
        speed = c.get("quick_speedup")
        rows.append((c["name"], f"{speed:.2f}x" if speed else "", "" if drop is None else f"{drop:+.4f}", _bytes(c["size"])))
    return Table("Candidates", ("name", "faster", "drop", "size"), tuple(rows))


def _latencies(timings: Sequence[Document]) -> Chart:
    points = tuple(Point(t["name"], 1e3 * t["median"], 0.0, 1e3 * t["low"], 1e3 * t["high"]) for t in timings)
    return Chart("bars", "Latency in one interleaved run", "milliseconds (median)", "", points, "Lines: 95 % intervals of the medians.")


def _training(body: Document) -> Chart:
    curve = [p for p in body.get("curve", []) if p.get("drop") is not None]
    points = tuple(Point(f"step {p['step']}", float(p["step"]), p["drop"]) for p in curve)
    return Chart("scatter", "Training", "step", "drop on the selection samples", points)


def _plan(body: Document) -> Table:
    steps = (body.get("plan") or {}).get("steps") or []
    rows = [(str(s.get("pass")), f"{len(s.get('decisions', []))}", _brief(s.get("decisions", []))) for s in steps]
    return Table("Plan", ("pass", "decisions", "first"), tuple(rows))


def _brief(decisions: Sequence[Any]) -> str:
    text = json.dumps(decisions[0]) if decisions else ""
    return text if len(text) <= 120 else f"{text[:117]}…"


def _machine(body: Document) -> Table:
    facts = body.get("machine") or {}
    known = [(k.replace("_", " "), " ".join(map(str, v)) if isinstance(v, list) else str(v)) for k, v in facts.items() if v not in ("", None, 0)]
    return Table("Machine", ("", ""), tuple(known))


def _rejected(outcome: Document) -> list[str]:
    found = outcome.get("rejected") or {}
    return [f"{name} was rejected: {'; '.join(map(str, why))}" for name, why in found.items()]


def _strings(body: Document, name: str) -> list[str]:
    return [str(s) for s in body.get(name) or []]


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


# nas


def _nas(body: Document) -> Page:
    outcome = body.get("outcome") or body
    found = outcome["candidates"]
    title = "Search" if outcome.get("met", True) else "Search: no candidate keeps the limit"
    made = Page(title, str((body.get("request") or {}).get("space", "")))
    made.headlines = [Headline("looked at", str(outcome["looked_at"]), f"{outcome['different']} different networks"),
                      Headline("trained to the end", str(len(found)), f"{sum(bool(c.get('on_front')) for c in found)} on the front")]  # fmt: skip
    largest = max((c["bytes"] for c in found), default=1)
    points = tuple(
        Point(c["name"], c["ms"], c["score"]["value"], size=c["bytes"] / largest, chosen=bool(c.get("on_front")))
        for c in found
        if (c.get("score") or {}).get("value") is not None
    )
    metric = found[0]["score"]["metric"] if found else ""
    note = "Higher and to the left is better."
    made.charts = [Chart("scatter", "Front", "milliseconds", f"{metric} on the validation samples", points, note)]
    rows = tuple(
        (c["name"], f"{c['ms']:.3f}", f"{c['score']['value']:.4f}", f"{c['macs'] / 1e6:.1f} M", f"{c['parameters'] / 1e3:.0f} k",
         _bytes(c["bytes"]), "yes" if c.get("on_front") else "")
        for c in found
    )  # fmt: skip
    made.tables = [Table("Trained candidates", ("name", "ms", metric, "MACs", "weights", "size", "front"), rows), _machine(body)]
    made.remarks = _strings(outcome, "notes")
    return made


# bench


def _bench(body: Document) -> Page:
    made = Page("Latency", "")
    for ratio in body.get("ratios") or []:
        note = f"95 % interval {ratio['low']:.2f} to {ratio['high']:.2f}, against {ratio['baseline']}"
        made.headlines.append(Headline(str(ratio["name"]), f"{ratio['speedup']:.2f}x", note))
    timings = body.get("timings") or []
    if len(timings) == 1:
        t = timings[0]
        made.headlines.append(Headline(str(t["name"]), f"{1e3 * t['median']:.3g} ms", f"median; 90 % of the runs within {1e3 * t['p90']:.3g} ms"))
    made.charts = [_latencies(timings), *_profiles(body)]
    rows = tuple((t["name"], *(f"{1e3 * t[k]:.4g}" for k in ("median", "p90", "minimum")), str(t["rounds"])) for t in timings)
    made.tables = [Table("Milliseconds", ("model", "median", "p90", "least", "rounds"), rows), _machine(body)]
    made.remarks = [*_strings(body, "notes"), *_strings(body, "warnings")]
    return made


def _profiles(body: Document) -> list[Chart]:
    """The slowest kernels of each model that was profiled."""
    charts = []
    for one in body.get("profiles") or []:
        kernels = sorted(one["kernels"], key=lambda k: -k["seconds"])[:_MOST_BARS]
        points = tuple(Point(_kernel(k), 1e6 * k["seconds"], 0.0) for k in kernels)
        note = f"The kernels cover {one['covered']:.0%} of a run."
        charts.append(Chart("bars", f"Where the time goes: {one['name'] or 'the model'}", "microseconds a run", "", points, note))
    return charts


def _kernel(kernel: Document) -> str:
    nodes = kernel.get("nodes") or []
    return f"{kernel['op']} {nodes[0]}" if nodes else f"{kernel['op']} {kernel['name']}"


# quantize


def _quantize(body: Document) -> Page:
    made = Page("Quantized", _name(body))
    made.headlines = _sizes({"original_bytes": body.get("bytes_before"), "bytes": body.get("bytes_after")})
    layers = body.get("layers") or []
    made.headlines += [Headline("layers in int8", f"{sum(bool(x['int8']) for x in layers)} of {len(layers)}")] if layers else []
    harms = sorted((x for x in layers if x.get("alone") is not None), key=lambda x: -x["alone"])[:_MOST_BARS]
    harm = tuple(Point(x["node"], x["alone"], 0.0, chosen=not x["int8"]) for x in harms)
    wide = tuple(Point(x["node"], x["high"], 0.0, x["low"], x["high"]) for x in harms if x["high"] > x["low"])
    reading = "Marked: layers that stay in float."
    made.charts = [
        Chart("bars", "What each layer harms", "nmse of the model with only this layer in int8", "", harm, reading),
        Chart("spans", "Ranges of outputs", "from the least to the largest value on the samples", "", wide),
    ]
    rows = tuple(
        (x["node"], x["op"], "int8" if x["int8"] else "float", f"{x['low']:.3g}", f"{x['high']:.3g}",
         "" if x.get("sqnr") is None else f"{x['sqnr']:.0f} dB", f"{x['alone']:.1e}", f"{x['back']:.1e}", x.get("why", ""))
        for x in layers
    )  # fmt: skip
    refused = tuple((str(r["unit"]), str(r["reason"])) for r in body.get("refused") or [])
    made.tables = [Table("Layers", ("layer", "operator", "as", "low", "high", "SQNR", "alone", "back", "why"), rows),
                   Table("Left alone", ("node", "why"), refused)]  # fmt: skip
    made.remarks = _strings(body, "notes")
    return made


_PAGES: dict[str, Callable[[Document], Page]] = {
    "run": _run, "optimize": _optimize, "nas": _nas, "bench": _bench, "quantize": _quantize
}  # fmt: skip
