"""A search from space to files: many candidates built, counted and timed; the promising trained; the best written.

First half: a strategy proposes, a proxy and the clock score (each candidate against one anchor, interleaved).  Second half:
the front is trained by successive halving.  What no other trained candidate beats in both score and time is the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxpress.errors import InputProblem
from onnxpress.measure.score import Score, Scorer
from onnxpress.model.files import save, to_bytes
from onnxpress.nas import worker
from onnxpress.nas.evaluation.candidate_training import SCHEDULE, Pupil, finished, rounds
from onnxpress.nas.evaluation.evaluator import Look
from onnxpress.nas.evaluation.proxies import TRAINING
from onnxpress.nas.rebuild import earlier, write_record
from onnxpress.nas.request import WORST, Request
from onnxpress.nas.strategies import pareto
from onnxpress.nas.strategies.storage import HEARTBEAT
from onnxpress.nas.strategies.study import Entry, Study
from onnxpress.passes.core.contract import Action
from onnxpress.plan.run_record import RunRecord
from onnxpress.runtime.latency import Effort, LatencyComparison, compare_latency

Tell = Callable[[str, float], None]
Form = tuple[tuple[str, str], ...]
_LOOK_SHARE = 0.3  # of the time: proposing and timing
_PACE_SHARE = 0.05  # of the time: how fast the promising train, as far as there are more than are trained
_FINAL_SHARE = 0.05  # of the time: timing the trained ones together
_SHORTEST = (
    6.0  # seconds of a training, below which what precedes its first step (rates tried, steps timed) is most of it
)
_PACED = 4  # times as many as are trained, of which it is measured how fast they train
LEVEL = 0.7  # times the time of a level is that of the next, where time is limited


@dataclass
class Found:
    """A trained candidate.  score: on the validation samples; ms: of one run beside the anchor's, in the last timing; lessons:
    its trainings, to be done again, for which it was given `seconds`."""

    name: str
    choices: Mapping[str, Any]
    model: ir.Model
    select: Score
    score: Score
    lessons: list[Action]
    seconds: float = 0.0
    ms: float = 0.0
    macs: int = 0
    parameters: int = 0
    bytes: int = 0
    peak: int = 0
    on_front: bool = False


@dataclass
class Outcome:
    """found: trained candidates, fastest first; entries: everything looked at; final: their timing in one run; met: whether
    one keeps the limit in time there."""

    found: list[Found]
    entries: list[Entry]
    final: LatencyComparison
    seconds: float
    met: bool = True
    notes: list[str] = field(default_factory=list)


def search(
    look: Look, folder: str | Path, tell: Tell | None = None, role: str = "both", heartbeat: float = HEARTBEAT
) -> Outcome:
    """Search, and write the front into the folder.

    role: "train" leaves times to other workers.  The folder (or the storage) keeps the study, so that the same command goes on
    looking where it was stopped.  Raises InputProblem on bad input.
    """
    request = look.request
    request.check()
    known = [choices for folder_before in request.warm for choices in earlier(folder_before)]
    run = RunRecord(folder, command="nas", request=request.plain(), machine=look.machine.as_dict())
    job = _Job(look, request, tell or (lambda stage, share: None))
    storage = request.storage or run.folder / "study.db"
    try:
        with worker.opened(look, storage, request.seed, heartbeat) as study:
            study.begin_with(known)
            try:
                worker.looked(look, study, storage, role, lambda: job.looks(study), job.told, heartbeat)
            finally:
                worker.closed(study)
            outcome = job.train(study)
        _write(outcome, look, run)
    finally:
        run.close()
    return outcome


class _Job:
    """One search: what is shared by its parts."""

    def __init__(self, look: Look, request: Request, tell: Tell) -> None:
        self.look, self.request, self.tell, self.begun = look, request, tell, time.monotonic()

    @property
    def used(self) -> float:
        return (time.monotonic() - self.begun) / self.request.seconds

    def looks(self, study: Study) -> bool:
        """Whether there is time to look at another candidate; the first one may take longer than its share."""
        return self.used < _LOOK_SHARE or (self.used < 1 and not study.entries())

    def told(self, entry: Entry) -> None:
        share = min(self.used, _LOOK_SHARE)
        self.tell(
            f"candidate {entry.number}: {self.request.proxy} {entry.quality:.4g}, {1e3 * entry.latency:.3g} ms", share
        )

    def train(self, study: Study) -> Outcome:
        """Train what the proxy and the clock promise most of, and time the last ones together."""
        request, look = self.request, self.look
        wish = affordable(request, (1 - _LOOK_SHARE - _PACE_SHARE) * request.seconds)
        chosen = promising(self._paced(study.entries(), wish), wish)
        if not chosen:
            raise InputProblem(
                "no candidate keeps the limits", "--latency-ms, --size-mb", f"{len(study.entries())} were built",
                "allow more, or search longer",
            )  # fmt: skip
        pupils = [Pupil(e.number, look.model(e.choices), lowered(e, request.facts), level) for level, e in chosen]
        start, end = self.used, 1 - _FINAL_SHARE
        left = max(0.2, end - start) * request.seconds

        def tell(stage: str, share: float) -> None:
            self.tell(stage, start + (end - start) * share)

        last = SCHEDULE[request.schedule](look.school, pupils, left, wish.keep, tell, request.limited)
        by_number = {e.number: e for _, e in chosen}
        judge = Scorer(look.like, look.splits.validate, "validation samples")
        found = [self._finished(p, by_number[p.number], judge) for p in last]
        self.tell("timing the trained candidates", end)
        models: dict[str, ir.Model | bytes | str] = {"anchor": look.like, **{f.name: f.model for f in found}}
        final = compare_latency(models, look.feeds, Effort(seconds=max(3.0, 0.5 * _FINAL_SHARE * request.seconds)))
        for f in found:
            f.ms = 1e3 * final.timings[0].median / final.ratio(f.name).speedup
        kept = [f for f in found if f.ms <= 1e3 * request.latency]
        for i in pareto.front(
            [(f.select.drop, f.ms, *(getattr(f, fact) for fact in request.facts)) for f in kept or found]
        ):
            (kept or found)[i].on_front = True
        late = (
            []
            if kept
            else [
                "timed together at the end, no candidate keeps the limit of --latency-ms: allow more, or ask for less"
            ]
        )
        outcome = Outcome(
            sorted(found, key=lambda f: f.ms), study.entries(), final, time.monotonic() - self.begun, not late
        )
        few = [f"time for {wish.pupils} of the {request.pupils} trainings only: give --time-budget more"]
        outcome.notes += [*late, *(few if wish.pupils < request.pupils else []), *final.warnings]
        return outcome

    def _paced(self, entries: list[Entry], wish: Request) -> list[Entry]:
        """The promising ones by what a training can do for them in its time: where work and weights stand for quality, a network
        that takes twice as long a sample learns from half as many."""
        if self.request.proxy != "capacity":
            return entries
        some = promising(entries, replace(wish, pupils=_PACED * wish.pupils))
        self.tell("how fast they train", min(self.used, _LOOK_SHARE))
        found: list[Entry] = []
        for _, entry in some:
            if len(found) >= wish.pupils and self.used > _LOOK_SHARE + _PACE_SHARE:
                break
            found.append(
                replace(
                    entry,
                    quality=entry.quality - float(np.log(self.look.school.pace(self.look.model(entry.choices))[1])),
                )
            )
        return found

    def _finished(self, pupil: Pupil, entry: Entry, judge: Scorer) -> Found:
        model = finished(pupil.model, self.look.learn.take(1), self.look.machine)
        assert pupil.score is not None
        facts = entry.facts
        return Found(
            f"candidate-{pupil.number}", entry.choices, model, pupil.score, judge.score(to_bytes(model)), pupil.lessons, pupil.seconds,
            macs=int(facts["macs"]), parameters=int(facts["parameters"]), bytes=len(to_bytes(model)), peak=int(facts["peak"]),
        )  # fmt: skip


def affordable(request: Request, seconds: float) -> Request:
    """With no more pupils than have a training of some use each in the first round."""
    pupils = next(
        n for n in range(request.pupils, 0, -1) if n == 1 or rounds(n, request.keep)[0] * seconds / n >= _SHORTEST
    )
    return replace(request, pupils=pupils, keep=min(request.keep, pupils))


def lowered(entry: Entry, facts: Sequence[str]) -> tuple[float, ...]:
    """Seconds of a run, and what else is to be lowered."""
    return entry.latency, *(float(entry.facts[fact]) for fact in facts)


def promising(entries: list[Entry], request: Request) -> list[tuple[int, Entry]]:
    """Candidates to train, with their levels: within the limits, each network once, the most promising first.

    Where latency is limited, as many levels of time as candidates are kept: the limit, and each a step below the one before;
    of each level the best by quality of every form in turn.  Else all are of one level: the best by rank of dominance in (quality, latency)
    and the facts that are aims, too.
    """
    good = [e for e in entries if e.twin is None and e.violation == 0 and e.quality > WORST]
    if request.limited:
        return _by_levels(good, request)
    points = [[-e.quality, *lowered(e, request.facts)] for e in good]
    order = pareto.best(np.array(points).reshape(len(good), 2 + len(request.facts)), request.pupils)
    return [(0, good[i]) for i in order]


def _by_levels(good: list[Entry], request: Request) -> list[tuple[int, Entry]]:
    ordered = sorted(good, key=lambda e: (-e.quality, e.latency))
    found: list[tuple[int, Entry]] = []
    levels = [request.latency * LEVEL**n for n in range(request.keep)]
    while len(found) < request.pupils:
        before = len(found)
        for level, limit in enumerate(levels):
            able = [e for e in ordered if e.latency <= limit]
            if able and len(found) < request.pupils:
                chosen = _next(able, {form(e) for at, e in found if at == level}, request)
                found.append((level, chosen))
                ordered.remove(chosen)
        if len(found) == before:
            break
    return found


def _next(able: list[Entry], seen: set[Form], request: Request) -> Entry:
    """The best of a form that none has yet, else the best: a proxy compares networks of one form, of the others only training
    tells.  able: the best first."""
    if request.proxy == TRAINING:
        return able[0]
    return next((e for e in able if form(e) not in seen), able[0])


def form(entry: Entry) -> Form:
    """What a candidate is made of, whatever its numbers: the choices that are words."""
    return tuple(sorted((name, value) for name, value in entry.choices.items() if isinstance(value, str)))


def _write(outcome: Outcome, look: Look, run: RunRecord) -> None:
    """The front as files, with what rebuilds each."""
    target = run.folder / "front"
    target.mkdir(exist_ok=True)
    for old in target.glob("candidate-*"):
        old.unlink()
    for found in outcome.found:
        if found.on_front:
            save(found.model, target / f"{found.name}.onnx")
            write_record(target / f"{found.name}.json", look, found.choices, found.lessons, found.model)
    run.set(outcome=summary(outcome))


def summary(outcome: Outcome) -> dict[str, object]:
    """As JSON."""
    rows = [{k: v for k, v in f.__dict__.items() if k not in ("model", "lessons")} for f in outcome.found]
    return {
        "candidates": rows,
        "looked_at": len(outcome.entries),
        "different": sum(e.twin is None for e in outcome.entries),
        "ratios": outcome.final.ratios,
        "seconds": outcome.seconds,
        "met": outcome.met,
        "notes": outcome.notes,
    }
