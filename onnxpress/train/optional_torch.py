"""torch is an optional dependency."""

from __future__ import annotations

import importlib.util
import os

from onnxpress.errors import missing_extra


def has_torch() -> bool:
    """Whether torch is installed."""
    return importlib.util.find_spec("torch") is not None


def require_torch(purpose: str = "training") -> None:
    """Raises EnvironmentProblem, which names the extra, where torch is not installed.

    Sets OMP_WAIT_POLICY, which torch reads when it is imported: spinning threads make a step ten times slower on a busy
    machine.
    """
    if not has_torch():
        raise missing_extra("torch", "train", purpose)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
