"""The refit setting that passes share: how it stands among actions, and the remark about its effect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from onnxpress.passes.core.contract import Action, setting

LEAST_SQUARES, NONE = "least-squares", "none"
BIAS = "bias"


class _Errors(Protocol):
    """Relative errors of a refitted layer on held-out rows."""

    @property
    def before(self) -> float: ...

    @property
    def after(self) -> float: ...


def with_refit(actions: Sequence[Action], refit: bool) -> list[Action]:
    """The actions of a plan whose layers are refitted by least squares, or not; empty where there are none."""
    return [*actions, {"refit": LEAST_SQUARES if refit else NONE}] if actions else []


def with_bias_correction(actions: Sequence[Action], refit: bool) -> list[Action]:
    """The actions of a plan; with an explicit setting only where biases are not corrected (the default of these
    passes)."""
    return [*actions, {"refit": NONE}] if actions and not refit else list(actions)


def refit_mode(actions: Sequence[Action], *modes: str) -> str:
    """The refit setting of a plan's actions: one of the modes, the first where none is given; raises InputProblem."""
    return setting(actions, "refit", modes or (LEAST_SQUARES, NONE))


def refit_note(fits: Sequence[_Errors]) -> list[str]:
    """One remark about refitted layers with their mean held-out error before and after; none without layers."""
    if not fits:
        return []
    before, after = (float(np.mean(e)) for e in ([f.before for f in fits], [f.after for f in fits]))
    return [f"refitted {len(fits)} layers, held-out error {before:.4f} -> {after:.4f}"]
