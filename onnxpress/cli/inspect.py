"""`onnxpress inspect MODEL`."""

from __future__ import annotations

import textwrap
from pathlib import Path

import click

from onnxpress.cli.options import json_option


@click.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--nodes", is_flag=True, help="List every weighted node with what each lever could do.")
@json_option
def command(model: Path, nodes: bool, as_json: bool) -> None:
    """Show what MODEL holds, what could be done to it on this CPU, and why not where it could not."""
    from onnxpress.api.inspection import inspect
    from onnxpress.cli import console
    from onnxpress.result import document
    from onnxpress.runtime.machine import this_machine

    facts = inspect(model)
    if as_json:
        body = {**facts.__dict__}
        body["signature"] = {
            "inputs": [s.name + ": " + s.text() for s in facts.signature.inputs],
            "outputs": [s.name + ": " + s.text() for s in facts.signature.outputs],
        }
        console.emit_json(document("inspect", machine=this_machine().as_dict(), **body))
        return
    console.out(f"{facts.file}: {console.size(facts.bytes)}, opset {facts.opset}, made by {facts.producer}")
    console.out(f"  sha256 {facts.sha256}")
    console.out(f"  {facts.parameters:,} parameters, {facts.macs:,} multiply-accumulates a sample")
    for kind, specs in (("input", facts.signature.inputs), ("output", facts.signature.outputs)):
        for spec in specs:
            console.out(f"  {kind} {spec.name}: {spec.text()}")
    operators = "operators: " + ", ".join(f"{op} {count}" for op, count in facts.operators.items())
    console.out(textwrap.fill(operators, console.WIDTH, initial_indent="  ", subsequent_indent="    "))
    if facts.runs:
        console.out(f"  does not run on a synthetic input: {facts.runs}")
        return
    able = [n for n in facts.nodes if not n.int8]
    console.out(f"  int8: {len(able)} of {len(facts.nodes)} weighted nodes have an integer kernel")
    console.out(
        f"  channels: {len(facts.groups)} groups can be narrowed, {sum(g[1] for g in facts.groups)} channels in all"
    )
    reasons: dict[str, int] = {}
    for node in facts.nodes:
        for lever, why in (("int8", node.int8), ("prune", node.prune)):
            if why:
                reasons[f"{lever}: {why}"] = reasons.get(f"{lever}: {why}", 0) + 1
    if nodes:
        console.table(
            [("node", "left"), ("MACs", "right"), ("weights", "right"), ("int8", "left"), ("prune", "left")],
            [
                [
                    f"{n.op} {n.name}"[-30:],
                    f"{n.macs:,}",
                    f"{n.parameters:,}",
                    "no" if n.int8 else "yes",
                    "no" if n.prune else "yes",
                ]
                for n in facts.nodes
            ],
        )
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1])[: None if nodes else 6]:
        console.out(f"  not {reason} ({count} node{'s' if count > 1 else ''})")
