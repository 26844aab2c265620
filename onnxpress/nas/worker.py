"""Another worker joins a search: on this machine or on any other that reaches the study's storage.

It needs the samples and the model that the search was begun with, and what is asked for stands in the study.  The search
itself is a worker, too, that afterwards trains the best.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxpress.data.dataset import Splits
from onnxpress.errors import InputProblem
from onnxpress.nas.evaluation.evaluator import Look, clocked
from onnxpress.nas.evaluation.timing_queue import SUFFIX, Orders
from onnxpress.nas.request import read_request
from onnxpress.nas.strategies.storage import HEARTBEAT, names, shown
from onnxpress.nas.strategies.study import Entry, Study
from onnxpress.runtime.machine import Machine, this_machine

ROLES = ("both", "train", "latency")
_REQUEST, _PARTS, _TEACH, _LOOKED, _BEAT = "request", "parts", "teach", "looked", "heartbeat"


@dataclass(frozen=True)
class Shift:
    """What a worker did: trials that it scored, times that it took; and the study's trials by their states."""

    study: str
    scored: int
    timed: int
    states: dict[str, int]


def opened(look: Look, storage: str | Path, seed: int | None, heartbeat: float = HEARTBEAT) -> Study:
    """The study of a search, with what later workers need to know."""
    study = Study(storage, look.name, look.request.strategy, seed, heartbeat=heartbeat, aims=look.request.facts)
    study.note(_REQUEST, look.request.plain())
    study.note(_PARTS, look.parts)
    study.note(_TEACH, look.school.teacher is not None)
    study.note(_LOOKED, False)
    study.note(_BEAT, heartbeat)  # one for all: who beats less often than another waits for would be taken for dead
    return study


def looked(
    look: Look,
    study: Study,
    storage: str | Path,
    role: str,
    in_time: Callable[[], bool],
    told: Callable[[Entry], None] | None = None,
    heartbeat: float = HEARTBEAT,
) -> int:
    """Do a role's part of the looking, until there are enough candidates or time is over; returns the times taken."""
    if role == "both":
        study.run(clocked(look, study, None, in_time), look.request.trials, told, in_time)
        return 0
    with Orders(storage, look.name, heartbeat) as orders:
        if role == "train":
            study.run(clocked(look, study, orders, in_time), look.request.trials, told, in_time)
            return 0
        anchor = look.anchor(study)

        def take(number: int) -> float:
            return look.seconds(look.model(study.choices(number)), anchor)

        return orders.serve(take, in_time)


def closed(study: Study) -> None:
    """No candidate will be looked at any more: those who take times may go."""
    study.note(_LOOKED, True)


def work(
    storage: str,
    like: ir.Model,
    splits: Splits,
    role: str = "both",
    name: str = "",
    seconds: float = 3600.0,
    told: Callable[[Entry], None] | None = None,
    machine: Machine | None = None,
) -> Shift:
    """Join the study of that name (a part of it does; none: the only one) for so many seconds, in a role.

    Raises InputProblem where there is no such study or the files here are not the study's, EnvironmentProblem where the
    storage does not answer.
    """
    if role not in ROLES:
        raise InputProblem("unknown role", role, "", f"one of {', '.join(ROLES)}")
    begun = time.monotonic()
    full = _found(storage, name)
    with Study(storage, full, "random", None) as known:
        body, parts, teach, heartbeat = (known.known(n) for n in (_REQUEST, _PARTS, _TEACH, _BEAT))
    if None in (body, parts, teach, heartbeat):
        raise InputProblem("the study is not begun yet, or by another version", full, "", "begin the search, then join")
    request = read_request(body)
    request.check()
    look = Look(like, splits, request, bool(teach), machine or this_machine())
    wrong = [k for k, v in parts.items() if look.parts.get(k) != v]
    if wrong:
        raise InputProblem(
            "these are not the study's files", full, f"other: {', '.join(wrong)}", "give those it was begun with"
        )
    scored = 0

    def tell(entry: Entry) -> None:
        nonlocal scored
        scored += 1
        if told is not None:
            told(entry)

    with Study(storage, full, request.strategy, None, heartbeat=heartbeat, aims=request.facts) as study:

        def in_time() -> bool:
            return time.monotonic() - begun < seconds and not study.known(_LOOKED)

        timed = looked(look, study, storage, role, in_time, tell, heartbeat)
        return Shift(full, scored, timed, study.states())


def _found(storage: str, part: str) -> str:
    if "://" not in storage and not Path(storage).is_file():
        raise InputProblem(
            "no such study", storage, "the file does not exist", "give the study.db of a search, or an address"
        )
    every = [n for n in names(storage) if n.startswith("nas ") and not n.endswith(SUFFIX)]
    some = [n for n in every if part in n]
    if len(some) != 1:
        what = "no search to join" if not some else "several searches could be meant"
        raise InputProblem(
            what, shown(storage), ", ".join(some or every) or "it holds none", "begin one, or give --study NAME"
        )
    return some[0]
