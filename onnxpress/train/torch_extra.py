"""torch is optional: the one line that says so, where it is missing."""

from __future__ import annotations

import importlib.util

from onnxpress.errors import missing_extra


def has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def require_torch(purpose: str = "training") -> None:
    """Raises EnvironmentProblem, naming the extra, where torch is not installed."""
    if not has_torch():
        raise missing_extra("torch", "train", purpose)
