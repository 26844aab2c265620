"""torch is optional: the one line that says so, where it is missing."""

from __future__ import annotations

import importlib.util
import os

from onnxpress.errors import missing_extra


def has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def require_torch(purpose: str = "training") -> None:
    """Raises EnvironmentProblem, naming the extra, where torch is not installed.

    Threads that spin while they wait make a step ten times slower on a busy machine; torch reads this when it is loaded.
    """
    if not has_torch():
        raise missing_extra("torch", "train", purpose)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
