"""`onnxpress completion SHELL`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    onnxpress completion bash > ~/.local/share/bash-completion/completions/onnxpress
    """
    from onnxpress.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "onnxpress", "_ONNXPRESS_COMPLETE").source())
