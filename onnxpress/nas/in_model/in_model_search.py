"""A search inside a given model: every place of it is kept or replaced, so that least is harmed within a time.

The model is cut where one value carries everything; each place has a library of cheaper replacements, made in closed form
(`places`), of which a packing is chosen for the time that is to be saved (`packing`).  Times do not quite add up, so that the
whole is timed, and where it is too slow or faster than it need be packed again for more or less.  The same in int8, whose gain
the structure then need not bring; and, where there is time, trained towards the original.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import onnx_ir as ir

from onnxpress.data.dataset import Dataset, Splits
from onnxpress.measure.evidence import evidence_for
from onnxpress.nas.in_model.replacement_allocation import Packer, Packing
from onnxpress.nas.in_model.replacement_survey import Ground, survey
from onnxpress.nas.in_model.replacements import Replacement, steps
from onnxpress.plan.candidate_store import Candidate
from onnxpress.plan.plan import PlanStep
from onnxpress.search import candidate_training
from onnxpress.search.candidate_factory import UnrepairedCandidate
from onnxpress.search.finalists import OptimizeResult
from onnxpress.search.optimize import optimize
from onnxpress.search.request import OptimizeOptions
from onnxpress.search.search import Report, Search

_INT8 = 0.25  # of the time budget: until the mix of int8 and float is found
_LOOKING = 0.2, 0.45  # of the time budget: harms and times of the replacements, at least, and until
_PACKING = 0.68
_ROUNDS = (
    0.0,
    0.6,
    0.85,
    1.0,
)  # of packing for more or less time, until the whole is as fast as wished: when each must end
_ENOUGH, _SURELY, _MORE = 1.01, 1.03, 1.08  # times the wish: what must be reached, is aimed at, and need not be
_STEP = 1.25  # without a wish: how much faster every next packing is to be
_SHARED = 4  # packings that the time left is shared among, at most
_CLOSED: dict[str, object] = {"mode": "closed-form", "teacher": "original", "samples": 128}
_PACKING_WORD = "packed for "
_TAUGHT = 2


def inside(
    model: str | Path | ir.Model,
    data: Dataset | Splits,
    request: OptimizeOptions,
    output: str | Path | None = None,
    run_folder: str | Path | None = None,
    report: Report | None = None,
) -> OptimizeResult:
    """Search inside a model; everything else is as `optimize` does it: the contract, the plan, the record of the run."""
    return optimize(model, data, request, output, run_folder, report, explore=explore, train=train)


def explore(search: Search) -> None:
    """Add the candidates of this search to another: exact, int8, and packings of replacements, each in float and int8."""
    if not search.based():
        return
    search.chosen = search.attempt("int8", lambda: search.int8(_INT8)) or frozenset()
    search.attempt("packing", lambda: _pack(search))


def train(search: Search, seconds: float, report: Report) -> None:
    """Train the packings that came closest to the original."""
    packed = [c for c in search.found if c.name.startswith(_PACKING_WORD) and not c.name.endswith("+ int8")]
    students = sorted(packed, key=lambda c: (c.score.drop, c.score.nmse))[:_TAUGHT]
    for number, student in enumerate(students):
        candidate_training.teach(
            search, student, seconds / len(students), candidate_training.sub_progress(report, number, len(students))
        )


def _pack(search: Search) -> None:
    """Look at the places, and pack for every wished speed."""
    clock = search.clock
    ground = Ground(search.shop.base)

    def say(stage: str) -> None:
        search.say(stage, min(0.5, clock.used / clock.budget))

    until = max(_LOOKING[1], clock.used / clock.budget + _LOOKING[0])
    found = survey(ground, clock.budget, clock.until(until), say)
    if found.empty:
        search.failed.setdefault("places", "nothing was found that is faster in the place of what is there")
        return
    packer = Packer(found.choices, ground.harm, search.shop.seed)
    speeds = {c.name: c.quick or 1.0 for c in search.found}
    base = speeds["exact"]
    gain = max([base, *(v for n, v in speeds.items() if n.startswith("int8"))]) / base
    if search.target:
        targets = {"the goal": search.target}
    else:
        targets = {f"{_STEP**n:.2f}x": base * _STEP**n for n in range(1, 9)}
    wishes = [(n, t, g) for n, t in targets.items() for g in ((1.0, gain) if gain > 1 and search.chosen else (1.0,))]
    for number, (words, target, int8) in enumerate(wishes):
        used = clock.used / clock.budget
        if used >= _PACKING:
            search.failed.setdefault("packing", "no time was left for it: give a longer --time-budget")
            return
        name = f"{_PACKING_WORD}{words}" + (", less" if int8 > 1 else "")  # int8 does the rest
        say(name)
        room = (used, (_PACKING - used) / min(len(wishes) - number, _SHARED))
        aim = _Aim(search, ground, packer, found.seconds * base, target, int8)
        made = search.attempt(name, partial(_packed, aim, name, room))
        if made is not None and not search.target and made.score.drop > 2 * search.max_drop + 0.02:
            return


class _Aim:
    """One wished speed.  whole: seconds of the original, in the places' own time; int8: how much faster int8 makes it."""

    def __init__(
        self, search: Search, ground: Ground, packer: Packer, whole: float, target: float, int8: float
    ) -> None:
        self.search, self.ground, self.packer = search, ground, packer
        self.whole, self.target, self.int8 = whole, target, int8
        self.present = whole / max(next(c.quick or 1.0 for c in search.found if c.name == "exact"), 1e-12)

    def first(self) -> float:
        """Seconds to save, if times added up."""
        return self.capped(self.present - self.int8 * self.whole / self.target)

    def capped(self, seconds: float) -> float:
        """Where the wish is out of reach: as far as can be."""
        return min(max(seconds, 0.0), self.packer.most * (1 - 1e-6))

    def speed(self, packing: Packing) -> float:
        """Times the original's, of the packing as it would be written, measured."""
        names = ", ".join(r.name for r in packing.replaced)
        chosen = self.search.chosen if self.int8 > 1 else frozenset[str]()
        shop = self.search.shop
        model = self.ground.changed(packing.replaced)
        cut = partial(evidence_for, model, self.ground.small.samples(), shop.machine, shop.seed)
        return 1 / shop.pace(f"{names}, int8 {self.int8 > 1}", UnrepairedCandidate(0, cut), chosen)

    def next(self, packing: Packing, speed: float) -> float:
        """Seconds to save, now that the packing's true speed is known."""
        missing = 1 / speed - 1 / (_SURELY * self.target)
        return self.capped(packing.saved + missing * self.whole * self.int8)


def _packed(aim: _Aim, name: str, room: tuple[float, float]) -> Candidate | None:
    """The least harmful packing that is as fast as wished, or the fastest that was found, as a candidate; with int8 also in
    int8.  room: where in the time budget this begins, and how much of it it may take."""
    if aim.search.shop.shelf.recall(name) is not None:  # by a run that was stopped
        return _made(aim, name, [])
    wish = aim.first()
    best: tuple[bool, float, Packing] | None = None
    for number, share in enumerate(_ROUNDS):
        more = aim.search.clock.until(room[0] + share * room[1])
        packing = aim.packer.pack(wish, more)
        if packing is None or not packing.replaced:
            break
        speed = aim.speed(packing)
        reached = speed >= _ENOUGH * aim.target
        rated = (reached, -packing.harm if reached else speed, packing)
        if best is None or rated[:2] > best[:2]:
            best = rated
        again = aim.next(packing, speed)
        close = reached and speed <= _MORE * aim.target
        in_time = aim.search.clock.until(sum(room))
        if (close and number) or not in_time() or (not close and abs(again - wish) < 1e-3 * aim.whole):
            break
        wish = wish if close else again
    if best is None:
        return None
    return _made(aim, name, best[2].replaced)


def _made(aim: _Aim, name: str, replaced: Sequence[Replacement]) -> Candidate:
    """The whole with its replacements, all layers refitted to the original's in the end; in int8 where wished."""
    search = aim.search
    plan = [*steps(replaced), PlanStep("distill", (_CLOSED,))]
    candidate = search.keep(search.shop.changed(name, plan, [r.name for r in replaced]))
    if aim.int8 == 1:
        return candidate
    evidence = search.shop.evidence(candidate)
    return search.keep(search.shop.int8(f"{name} + int8", search.chosen, candidate, evidence))
