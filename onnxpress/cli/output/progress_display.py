"""Progress of a command: a bar with elapsed and remaining time on a terminal, else a line now and then on stderr.

A step may take long and report nothing: where a command has a time budget, the bar follows the clock in between; where
it has none, it shows that work goes on, and for how long.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Report = Callable[[str, float], None]
_REFRESH = 0.25  # seconds
_FIRST_LINE, _NEXT_LINE, _SAME_LINE = 10.0, 10.0, 30.0  # seconds until a line: the first; of another stage; of the same
_MOST = 0.99  # of the bar, by the clock alone


@dataclass
class Stage:
    """What a command does at the moment.

    budget: seconds that it may take; 0: unknown. name, reported: last given. Time in seconds.
    """

    budget: float = 0.0
    name: str = "starting"
    reported: float = 0.0
    known: bool = False
    start: float = field(default_factory=time.monotonic)

    def report(self, name: str, share: float) -> None:
        """The callback of the work."""
        self.name, self.reported, self.known = name, max(self.reported, share), True

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start

    @property
    def share(self) -> float | None:
        """Share that is done, by what was reported and by the clock; None where neither tells."""
        if not self.budget:
            return self.reported if self.known else None
        return max(self.reported, min(self.elapsed / self.budget, _MOST))


@contextmanager
def progress(quiet: bool = False, budget: float = 0.0, name: str = "starting") -> Iterator[Report]:
    """Show the progress of what runs within, unless `quiet`; gives its callback.

    budget: seconds that it may take; 0: unknown. name: of the first stage.
    """
    if quiet:
        yield lambda stage, share: None
        return
    stage = Stage(budget, name)
    with _bar(stage) if sys.stderr.isatty() else _lines(stage):
        yield stage.report


@contextmanager
def _bar(stage: Stage) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(stage.name, total=None)

        def show() -> None:
            share = stage.share
            bar.update(task, description=stage.name[:34], completed=share or 0.0, total=None if share is None else 1.0)

        with _every(_REFRESH, show):
            yield


@contextmanager
def _lines(stage: Stage) -> Iterator[None]:
    shown, last = "", 0.0

    def show() -> None:
        nonlocal shown, last
        elapsed = stage.elapsed
        if (
            stage.reported >= 1
            or elapsed < _FIRST_LINE
            or elapsed - last < (_SAME_LINE if stage.name == shown else _NEXT_LINE)
        ):
            return
        shown, last = stage.name, elapsed
        print(line(stage), file=sys.stderr, flush=True)

    with _every(_REFRESH, show):
        yield


def line(stage: Stage) -> str:
    """A stage as a line of text."""
    share = stage.share
    done = "" if share is None else f", {share:.0%}"
    return f"{stage.elapsed:.0f} s{done}: {stage.name}"


@contextmanager
def _every(seconds: float, show: Callable[[], None]) -> Iterator[None]:
    """Call a function again and again, in a thread of its own, while something runs within."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(seconds):
            show()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
