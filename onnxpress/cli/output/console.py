"""How results look: tables within 80 columns on stdout, everything else on stderr, JSON on request.

Colours never carry the only meaning (rich honours NO_COLOR). Progress: `progress_display.py`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import click

WIDTH = 80
_ARGUMENT = re.compile(r"`([a-z][a-z0-9_]*)`")


def out(text: str = "") -> None:
    click.echo(text)


def note(text: str) -> None:
    """Print a note on stderr, with arguments as options."""
    click.echo(with_options(text), err=True)


def with_options(text: str) -> str:
    """The text with every Python argument in backticks as the option of the same name: `max_drop` becomes --max-drop.

    Backticked text of several words (a command to run) stays as it is.
    """
    return _ARGUMENT.sub(lambda found: f"--{found[1].replace('_', '-')}", text)


def emit_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, indent=1))


def table(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """columns: (heading, "left" | "right"); long cells of the first column are folded."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout, width=WIDTH, highlight=False, soft_wrap=False)
    grid = Table(title=title or None, box=SIMPLE_HEAD, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    for index, (heading, side) in enumerate(columns):
        grid.add_column(heading, justify="right" if side == "right" else "left", overflow="fold", no_wrap=index > 0)
    for row in rows:
        grid.add_row(*[_escape(cell) for cell in row])
    console.print(grid)


def _escape(cell: str) -> str:
    from rich.markup import escape

    return escape(cell)


def ms(seconds: float) -> str:
    """A time with three significant digits, in ms."""
    value = seconds * 1e3
    return (
        f"{value:.4f}"
        if value < 1
        else f"{value:.3f}"
        if value < 10
        else f"{value:.2f}"
        if value < 100
        else f"{value:.1f}"
    )


def size(count: float) -> str:
    """Bytes in B, kB or MB (powers of 1000)."""
    return f"{count:.0f} B" if count < 1e3 else f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.2f} MB"


def interval(low: float, high: float, digits: int = 3) -> str:
    return f"[{low:.{digits}f}, {high:.{digits}f}]"
