"""`onnxpress report RUN -o FILE`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    help="Output file; default for html: report.html in the run folder, "
    "or the name of the JSON file; otherwise: stdout.",
)
@click.option(
    "--format",
    type=click.Choice(["html", "md", "json"]),
    default="html",
    show_default=True,
    help="One HTML file with charts, Markdown, or the figures as JSON.",
)
def command(run: Path, output: Path | None, format: str) -> None:
    """Write the report of RUN: the folder of an optimize or nas run, or the --json output of a command."""
    from onnxpress.cli.output import console
    from onnxpress.model.files import check_target, write_atomic
    from onnxpress.reporting.page import render
    from onnxpress.reporting.reading import page, read

    if output is not None:
        check_target(output, run)
    text = render(page(read(run)), format)
    if output is None and format != "html":
        console.out(text.rstrip("\n"))
        return
    target = output or (run / "report.html" if run.is_dir() else run.with_suffix(".html"))
    write_atomic(target, text.encode())
    console.out(f"{target}: {console.size(len(text.encode()))}, opens without a network")
