"""Functions that test_runtime runs in child processes."""

from __future__ import annotations

import time


def forever() -> None:
    while True:
        time.sleep(0.05)
