"""Workers of a search, on this machine or on others that reach the study's storage.

A worker needs the samples and the model with which the search was begun; the request is stored with the study.  The
search itself is a worker, too, and trains the best candidates afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxpress.data.dataset import Splits
from onnxpress.errors import InputProblem
from onnxpress.nas.evaluation.evaluator import Evaluator, trial_builder
from onnxpress.nas.evaluation.timing_queue import SUFFIX, TimingQueue
from onnxpress.nas.request import request_from_dict
from onnxpress.nas.strategies.storage import HEARTBEAT, study_names, without_password
from onnxpress.nas.strategies.study import Study, TrialResult
from onnxpress.runtime.machine import Machine, this_machine

ROLES = ("both", "train", "latency")
# keys of the study
_REQUEST, _HASHES, _USE_TEACHER, _CLOSED, _HEARTBEAT = "request", "hashes", "use_teacher", "closed", "heartbeat"


@dataclass(frozen=True)
class WorkerSession:
    """What a worker did.

    study: name of the study.
    scored: number of trials that it scored.
    timed: number of latencies that it measured for others.
    states: number of all trials of the study by state.
    """

    study: str
    scored: int
    timed: int
    states: dict[str, int]


def open_study(evaluator: Evaluator, storage: str | Path, seed: int | None, heartbeat: float = HEARTBEAT) -> Study:
    """Open or create the study of a search, and store what workers that join need."""
    request = evaluator.request
    facts = request.minimized_facts
    study = Study(storage, evaluator.study_name, request.strategy, seed, heartbeat=heartbeat, minimized_facts=facts)
    study.set(_REQUEST, request.as_dict())
    study.set(_HASHES, evaluator.hashes)
    study.set(_USE_TEACHER, evaluator.trainer.teacher is not None)
    study.set(_CLOSED, False)
    study.set(_HEARTBEAT, heartbeat)  # the same for all: a worker with a longer interval would be taken for dead
    return study


def evaluate_candidates(
    evaluator: Evaluator,
    study: Study,
    storage: str | Path,
    role: str,
    in_time: Callable[[], bool],
    on_result: Callable[[TrialResult], None] | None = None,
    heartbeat: float = HEARTBEAT,
) -> int:
    """Evaluate candidates in a role until there are enough or time is over; returns the number of latencies for
    others.
    """
    trials = evaluator.request.trials
    if role == "both":
        study.run(trial_builder(evaluator, study, None, in_time), trials, on_result, in_time)
        return 0
    with TimingQueue(storage, evaluator.study_name, heartbeat) as queue:
        if role == "train":
            study.run(trial_builder(evaluator, study, queue, in_time), trials, on_result, in_time)
            return 0
        anchor = evaluator.anchor_latency(study)

        def measure(number: int) -> float:
            return evaluator.latency(evaluator.model(study.choices(number)), anchor)

        return queue.serve(measure, in_time)


def end_evaluation(study: Study) -> None:
    """Tell the workers that no more candidates will be evaluated."""
    study.set(_CLOSED, True)


def run_worker(
    storage: str,
    reference: ir.Model,
    splits: Splits,
    role: str = "both",
    study: str = "",
    time_budget: float = 3600.0,
    on_result: Callable[[TrialResult], None] | None = None,
    machine: Machine | None = None,
) -> WorkerSession:
    """Join the study of a search.

    storage: an SQLite file, or the address of a database.
    reference: the model with which the search was begun.
    splits: the samples with which the search was begun.
    role: one of ROLES.
    study: name of the study, or a part of it (default: the only one).
    time_budget: seconds after which the worker leaves.
    on_result: called with each trial that this worker finishes.
    machine: default: this machine.
    Raises InputProblem where there is no such study or the files differ from the study's, EnvironmentProblem where the
    storage cannot be reached.
    """
    if role not in ROLES:
        raise InputProblem("unknown role", role, "", f"one of {', '.join(ROLES)}")
    begin = time.monotonic()
    name = _find_study(storage, study)
    with Study(storage, name, "random", None) as stored:
        body, hashes, teacher, heartbeat = (stored.get(k) for k in (_REQUEST, _HASHES, _USE_TEACHER, _HEARTBEAT))
    if None in (body, hashes, teacher, heartbeat):
        raise InputProblem(
            "the study has no request", name, "the search has not begun, or has another version", "begin it, then join"
        )
    request = request_from_dict(body)
    request.check()
    evaluator = Evaluator(reference, splits, request, bool(teacher), machine or this_machine())
    different = [k for k, v in hashes.items() if evaluator.hashes.get(k) != v]
    if different:
        raise InputProblem(
            "the files differ from the study's", name, f"different: {', '.join(different)}", "use those of the search"
        )
    scored = 0

    def count(result: TrialResult) -> None:
        nonlocal scored
        scored += 1
        if on_result is not None:
            on_result(result)

    facts = request.minimized_facts
    with Study(storage, name, request.strategy, None, heartbeat=heartbeat, minimized_facts=facts) as joined:

        def in_time() -> bool:
            return time.monotonic() - begin < time_budget and not joined.get(_CLOSED)

        timed = evaluate_candidates(evaluator, joined, storage, role, in_time, count, heartbeat)
        return WorkerSession(name, scored, timed, joined.states())


def _find_study(storage: str, part: str) -> str:
    """The name of the only study whose name contains a text."""
    if "://" not in storage and not Path(storage).is_file():
        raise InputProblem(
            "no such study", storage, "the file does not exist", "give the study.db of a search, or an address"
        )
    names = [n for n in study_names(storage) if n.startswith("nas ") and not n.endswith(SUFFIX)]
    matching = [n for n in names if part in n]
    if len(matching) != 1:
        what = "no search to join" if not matching else "the name of the study is ambiguous"
        found = ", ".join(matching or names) or "the storage has no search"
        raise InputProblem(what, without_password(storage), found, "begin a search, or give `study`")
    return matching[0]
