"""Progress reporting: the type of the callback, and a callback for one part of a longer task."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float], None]  # called with the name of the stage and the completed fraction in [0, 1]


def no_progress(stage: str, fraction: float) -> None:
    """Progress callback that does nothing."""


def sub_progress(progress: Progress, name: str, start: float, fraction: float) -> Progress:
    """Progress callback for the part of a task that begins at `start` and makes up `fraction` of the whole."""
    return lambda stage, done: progress(f"{name}: {stage}", start + fraction * done)
