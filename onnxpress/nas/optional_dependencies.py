"""optuna is an optional dependency."""

from __future__ import annotations

import importlib.util

from onnxpress.errors import missing_extra


def require_optuna(purpose: str = "nas") -> None:
    """Raises EnvironmentProblem, which names the extra, where optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise missing_extra("optuna", "nas", purpose)
