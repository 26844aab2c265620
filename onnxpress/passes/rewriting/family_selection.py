"""Which families of rewrites are kept: the clock decides.

Each family is timed alone against the model as it is, and all together, in one interleaved run. Those that gain, and
all that hardly lose (some help only where others made room for them, such as gates behind a reduction that became
pooling), are then timed as combinations. Of the best one, families that gain nothing alone are left out where it is as
fast without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxpress.measure.evidence import Evidence
from onnxpress.passes.rewriting.families import apply_families
from onnxpress.runtime.latency import SLOWER, Effort, Ratio, compare_latency

Names = tuple[str, ...]
_MODEL = "model"
_HARMLESS = 0.98  # speed alone, of a family that may still make room for another
_ALONE, _COMBINED, _WITHOUT, _LAST = 0.45, 0.3, 0.15, 0.1  # shares of the time, of the four runs


@dataclass(frozen=True)
class RewriteTimes:
    """Times of the families that apply, each alone against the model, and of those that are kept.

    together: of all that are kept; None where none is.
    """

    families: tuple[Ratio, ...]
    kept: Names
    together: Ratio | None = None


class _Clock:
    """Times combinations of families against the model, or another combination."""

    def __init__(self, evidence: Evidence, forms: Mapping[str, ir.Model], seconds: float) -> None:
        self._evidence, self._seconds = evidence, seconds
        self._forms: dict[Names, ir.Model] = {(name,): form for name, form in forms.items()}
        self._forms[()] = evidence.model

    def speeds(self, combinations: Sequence[Names], share: float, base: Names = ()) -> dict[Names, Ratio]:
        """The speed of each relative to the base, in one interleaved run of a share of the time."""
        by_name = {_title(names): names for names in combinations}
        models = {_title(base): self._form(base), **{title: self._form(names) for title, names in by_name.items()}}
        feeds: list[dict[str, np.ndarray]] = [self._evidence.probe]
        seen = compare_latency(models, feeds, Effort(seconds=share * self._seconds))
        return {names: seen.ratio(title) for title, names in by_name.items()}

    def _form(self, names: Names) -> ir.Model:
        if names not in self._forms:
            evidence = self._evidence
            self._forms[names] = apply_families(evidence.model, evidence.probe, names, evidence.trace)[0]
        return self._forms[names]


def choose(evidence: Evidence, forms: Mapping[str, ir.Model], seconds: float) -> RewriteTimes:
    """The families that together make a model the fastest, by so many seconds of timing.

    forms: the model rewritten by each family that applies to it.
    """
    clock, names = _Clock(evidence, forms, seconds), tuple(forms)
    first = clock.speeds(list(dict.fromkeys([*((n,) for n in names), names])), _ALONE if len(names) > 1 else 1.0)
    alone = {name: first[(name,)] for name in names}
    times = tuple(alone.values())
    gaining = tuple(n for n in names if alone[n].low > 1)
    if len(names) == 1:
        return RewriteTimes(times, gaining, times[0] if gaining else None)
    harmless = tuple(n for n in names if alone[n].high > _HARMLESS)
    if not gaining and harmless == names and first[names].low <= 1:
        return RewriteTimes(times, ())
    best = max(names, key=lambda n: alone[n].low)
    combinations = [c for c in dict.fromkeys([(best,), gaining, harmless, names]) if c]
    chosen, ratio = _best_combination(clock.speeds(combinations, _COMBINED), gaining)
    if chosen and set(chosen) - set(gaining):
        chosen, ratio = _without_idle(clock, chosen, ratio, gaining)
    return RewriteTimes(times, chosen, replace(ratio, name=_title(chosen)) if ratio is not None else None)


def _best_combination(speeds: Mapping[Names, Ratio], gaining: Names) -> tuple[Names, Ratio | None]:
    """The fastest combination, none where no one gains. One with families that gain nothing alone must be faster than
    the one before for certain."""
    chosen: Names = ()
    ratio: Ratio | None = None
    for names, found in speeds.items():
        if found.low <= 1:
            continue
        proved = set(names) <= set(gaining)
        if ratio is None or (found.speedup >= ratio.speedup if proved else found.low > ratio.speedup):
            chosen, ratio = names, found
    return chosen, ratio


def _without_idle(clock: _Clock, chosen: Names, ratio: Ratio | None, gaining: Names) -> tuple[Names, Ratio | None]:
    """A combination without the families that it is as fast without, of those that gain nothing alone."""
    rest = {name: tuple(n for n in chosen if n != name) for name in chosen if name not in gaining}
    slower = clock.speeds([names for names in rest.values() if names], _WITHOUT, chosen)
    idle = {name for name, names in rest.items() if names and slower[names].verdict != SLOWER}
    fewer = tuple(n for n in chosen if n not in idle)
    if not idle or not fewer:
        return chosen, ratio
    last = clock.speeds([chosen, fewer], _LAST)
    return (fewer, last[fewer]) if last[fewer].speedup >= last[chosen].low else (chosen, last[chosen])


def _title(names: Names) -> str:
    return " + ".join(names) or _MODEL
