"""`onnxpress view MODEL`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("view")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--port", default=0, help="Port of the local server; 0: any free port.")
def command(model: Path, port: int) -> None:
    """Show the graph of MODEL in the browser, with netron; Ctrl-C stops the server."""
    from onnxpress.errors import missing_extra
    from onnxpress.model.files import load

    load(model)  # what is no model is said here, in one line
    try:
        import netron
    except ImportError as error:
        raise missing_extra("netron", "view", "looking at graphs") from error
    netron.start(str(model), ("localhost", port) if port else None)
    netron.wait()
