"""`onnxpress inspect MODEL`."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxpress.cli.options import DataChoice, Seconds, data_options, json_option, open_data, quiet_option

if TYPE_CHECKING:
    from onnxpress.api.inspection import Inspection, PassReport

_REASONS = 6  # that are shown without --nodes


@click.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@data_options(required=False)
@click.option("--nodes", is_flag=True, help="List every node with weights and the passes that could change it.")
@click.option(
    "--time-budget", type=Seconds(), default="120s", show_default=True, help="Time for the proposals; 0: facts only."
)
@json_option
@quiet_option
def command(model: Path, source: DataChoice, nodes: bool, time_budget: float, as_json: bool, quiet: bool) -> None:
    """Show what MODEL contains, and what every pass proposes, with predicted savings and losses, and refusals.

    Losses are predicted on --data; without it on synthetic inputs, which makes them rough.
    """
    from onnxpress.api.inspection import inspect
    from onnxpress.cli.output import console
    from onnxpress.cli.output.progress_display import progress
    from onnxpress.result import document
    from onnxpress.runtime.machine import this_machine

    data = open_data(source, model, quiet)
    with progress(quiet or as_json, time_budget) as bar:
        facts = inspect(model, data, time_budget=time_budget, progress=bar)
    if as_json:
        ports = {
            kind: [f"{s.name}: {s.text()}" for s in getattr(facts.signature, kind)] for kind in ("inputs", "outputs")
        }
        body = {"machine": this_machine().as_dict(), "signature": ports, **facts.to_dict()}
        console.emit_json(document("inspect", **body))
        return
    _header(facts)
    if facts.failure:
        console.out(f"  does not run on a synthetic input: {facts.failure}")
        return
    if facts.passes:
        _passes(facts)
    if facts.rewrites:
        _rewrites(facts)
    if nodes:
        _nodes(facts)
    _refusals(facts, None if nodes else _REASONS)


def _header(facts: Inspection) -> None:
    from onnxpress.cli.output import console

    console.out(f"{facts.file}: {console.size(facts.bytes)}, opset {facts.opset}, made by {facts.producer}")
    console.out(f"  sha256 {facts.sha256}")
    console.out(f"  {facts.parameters:,} parameters, {facts.macs:,} multiply-accumulates for {facts.counted_for}")
    for kind, specs in (("input", facts.signature.inputs), ("output", facts.signature.outputs)):
        for spec in specs:
            console.out(f"  {kind} {spec.name}: {spec.text()}")
    operators = "operators: " + ", ".join(f"{op} {count}" for op, count in facts.operators.items())
    console.out(textwrap.fill(operators, console.WIDTH, initial_indent="  ", subsequent_indent="    "))


def _passes(facts: Inspection) -> None:
    """The table of what passes propose, largest savings and ranges of the predicted loss."""
    from onnxpress.cli.output import console

    kind = "synthetic inputs" if facts.synthetic else "samples"
    console.out(f"proposals of passes; losses predicted on {facts.samples} {kind}")
    console.table(
        [("pass", "left"), *((h, "right") for h in ("proposals", "units", "MACs", "bytes", "loss", "refused"))],
        [_pass_row(p, facts) for p in facts.passes],
    )
    for report in facts.passes:
        if report.note:
            console.note(f"{report.name}: {report.note}")


def _pass_row(report: PassReport, facts: Inspection) -> list[str]:
    macs = f"-{report.macs / facts.macs:.0%}" if report.macs and facts.macs else ""
    saved = report.weight_bytes or report.compressed_bytes
    size = f"-{min(saved / max(facts.bytes, 1), 1):.0%}{'' if report.weight_bytes else ' gz'}" if saved else ""
    loss = "" if report.loss is None else "exact" if report.exact else f"{report.loss[0]:.0e}..{report.loss[1]:.0e}"
    refused = sum(report.refused.values())
    return [report.name, str(report.proposals), str(report.units), macs, size, loss, str(refused or "")]


def _rewrites(facts: Inspection) -> None:
    """What is written slowly, and how fast the model is without it."""
    from onnxpress.cli.output import console

    whole = facts.rewritten
    gain = "nothing is faster here" if whole is None else f"{whole.speedup:.2f}x [{whole.low:.2f}, {whole.high:.2f}]"
    console.out(f"written in another form by `rewrite`, timed here: {gain}")
    rows = [
        [
            textwrap.fill(found.summary, 40),
            str(found.nodes),
            f"{found.alone.speedup:.2f}x [{found.alone.low:.2f}, {found.alone.high:.2f}]",
            "yes" if found.kept else "no",
        ]
        for found in facts.rewrites
    ]
    console.table([("form", "left"), ("nodes", "right"), ("alone", "right"), ("kept", "left")], rows)


def _nodes(facts: Inspection) -> None:
    from onnxpress.cli.output import console

    console.table(
        [("node", "left"), ("MACs", "right"), ("weights", "right"), ("passes", "left")],
        [
            [f"{n.op} {n.name}"[-24:], f"{n.macs:,}", f"{n.parameters:,}", textwrap.fill(", ".join(n.proposed), 28)]
            for n in facts.nodes
        ],
    )


def _refusals(facts: Inspection, most: int | None) -> None:
    from onnxpress.cli.output import console

    reasons = {f"{p.name}: {why}": count for p in facts.passes for why, count in p.refused.items()}
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1])[:most]:
        line = f"not {reason} ({count} unit{'s' if count > 1 else ''})"
        console.out(textwrap.fill(line, console.WIDTH, initial_indent="  ", subsequent_indent="    "))
