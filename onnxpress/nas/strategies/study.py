"""The study behind a search: what was tried, in optuna's storage, and who chooses what comes next.

Any number of workers, on any number of machines, may run one study.  Each says by a heartbeat that it lives; the trial of
one that died is tried again by another.

A study has two aims, quality (higher) and latency (lower), and others to be lowered where they are asked for: facts that are
measured of a candidate.  One that was built before under other choices is told what was found then; one beyond the limits is
told so by its distance (`violation`), which the strategies lead away from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import RetryFailedTrialCallback
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from onnxpress.errors import InputProblem
from onnxpress.nas.strategies.evolution import VIOLATION, Evolution
from onnxpress.nas.strategies.storage import HEARTBEAT, connected, quiet, released, silent

STRATEGIES = ("evolution", "nsga2", "tpe", "random")
_PAUSE = 0.5  # seconds between two looks at what others do
_HASH, _TWIN = "hash", "same_as"
_COUNTED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING)

Measured = Mapping[str, Any]
Build = Callable[[Any], tuple[str, Callable[[], tuple[float, float, float, Measured]]]]


@dataclass(frozen=True)
class Entry:
    """A finished trial.  quality: higher is better; latency: seconds; violation: 0 within the limits; twin: the trial that
    built the same network first."""

    number: int
    choices: Mapping[str, Any]
    quality: float
    latency: float
    violation: float
    facts: Measured
    twin: int | None


def sampler(strategy: str, seed: int | None, population: int = 20, first: int | None = None) -> BaseSampler:
    """seed: of this worker, now; first: of the whole study.  Raises InputProblem for a strategy that does not exist."""
    if strategy == "evolution":
        return Evolution(
            first or 0, population
        )  # it draws by the trial's number: no two workers, no two times the same
    if strategy == "nsga2":
        return NSGAIISampler(seed=seed, population_size=population, constraints_func=_limits)
    if strategy == "tpe":
        return TPESampler(seed=seed, constraints_func=_limits)
    if strategy == "random":
        return RandomSampler(seed=seed)
    raise InputProblem("unknown strategy", strategy, "", f"one of {', '.join(STRATEGIES)}")


def _limits(trial: FrozenTrial) -> Sequence[float]:
    return (float(trial.user_attrs.get(VIOLATION, 0.0)),)


class TimeOver(Exception):
    """A worker's time ended before its trial did: the trial counts as failed."""


class Study:
    """storage: an SQLite file, the address of a database that many machines share, or None: memory.

    aims: facts to be lowered besides latency; seed: None for a worker that joins, so that it proposes other candidates than those before it.
    """

    def __init__(
        self,
        storage: str | Path | None,
        name: str,
        strategy: str,
        seed: int | None = 0,
        population: int = 20,
        heartbeat: float = HEARTBEAT,
        aims: Sequence[str] = (),
    ) -> None:
        self._aims = tuple(aims)
        self._refused: InputProblem | None = None
        self._where = storage or "memory"
        self._busy = -1  # the trial that this worker is at
        with quiet():
            self._storage = None if storage is None else connected(storage, heartbeat)
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=name,
                directions=["maximize", "minimize", *("minimize" for _ in self._aims)],
                load_if_exists=True,
            )
            begun = len(self._study.get_trials(deepcopy=False))  # a study that goes on must not draw the same again
            self._study.sampler = sampler(strategy, None if seed is None else seed + begun, population, seed)

    def begin_with(self, choices: Sequence[Mapping[str, Any]]) -> None:
        """Try these first, where nothing was tried yet; what a space does not know of them is drawn."""
        if not self._count(*TrialState):
            with quiet():
                for each in choices:
                    self._study.enqueue_trial(dict(each), skip_if_exists=True)

    def close(self) -> None:
        """Let the database go."""
        if self._storage is not None:
            released(self._storage)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(
        self,
        build: Build,
        wanted: int,
        told: Callable[[Entry], None] | None = None,
        in_time: Callable[[], bool] = lambda: True,
    ) -> None:
        """Try candidates until there are as many as wanted, those of other workers included, or time is over.

        build(trial) gives the structure's hash and the function that measures it: (quality, latency, violation, facts).
        Stays until no other worker has a trial left that it could die of.  Raises InputProblem where none could be built.
        """

        own: list[Exception] = []

        def objective(trial: optuna.Trial) -> tuple[float, ...]:
            self._busy = trial.number
            try:
                return tried(trial)
            except (optuna.TrialPruned, TimeOver, UpdateFinishedTrialError):
                raise
            except Exception as error:
                own.append(error)
                raise

        def tried(trial: optuna.Trial) -> tuple[float, ...]:
            try:
                key, measure = build(trial)
            except InputProblem as problem:  # these choices make no network; others may
                self._refused = problem
                raise optuna.TrialPruned from problem
            trial.set_user_attr(_HASH, key)
            twin = self._twin(key, trial.number)
            if twin is not None:
                trial.set_user_attr(_TWIN, twin.number)
                quality, latency, violation, facts = twin.quality, twin.latency, twin.violation, twin.facts
            else:
                quality, latency, violation, facts = measure()
            trial.set_user_attr(VIOLATION, violation)
            trial.set_user_attr("facts", dict(facts))
            return quality, latency, *(float(facts[aim]) for aim in self._aims)

        def after(study: optuna.Study, trial: FrozenTrial) -> None:
            if told is not None and trial.state is TrialState.COMPLETE:
                told(entry(trial))
            if self._count(*_COUNTED) >= wanted or not in_time():
                study.stop()

        def go(trials: int | None) -> None:
            try:
                self._study.optimize(objective, n_trials=trials, callbacks=[after], catch=(TimeOver,))
            except (RuntimeError, ValueError):
                if own or not self._lost():
                    raise

        try:
            with quiet():
                while self._count(*_COUNTED) < wanted and in_time():
                    go(None)
                while in_time() and self._count(TrialState.RUNNING, TrialState.WAITING):
                    optuna.storages.fail_stale_trials(self._study)
                    if self._count(TrialState.WAITING):
                        go(1)
                    else:
                        time.sleep(_PAUSE)
        except StorageInternalError as error:
            raise silent(self._where, error) from error
        if self._refused is not None and not self.entries():
            raise self._refused

    def _lost(self) -> bool:
        """Whether others took this worker for dead (it slept, or its machine did) and its trial is theirs."""
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        return any(t.number == self._busy for t in trials)

    def _count(self, *states: TrialState) -> int:
        return len(self._study.get_trials(deepcopy=False, states=states))

    def fact(self, name: str, find: Callable[[], Any]) -> Any:
        """What is kept with the study under a name (plain values); found when it is first asked for.  Of two workers that find
        it at once both go by what the study holds in the end."""
        if name not in self._study.user_attrs:
            found = find()
            with quiet():
                self._study.set_user_attr(name, found)
        return self._study.user_attrs[name]

    def note(self, name: str, value: Any) -> None:
        with quiet():
            self._study.set_user_attr(name, value)

    def known(self, name: str) -> Any:
        """What is kept under a name; None where nothing is."""
        return self._study.user_attrs.get(name)

    def choices(self, number: int) -> Mapping[str, Any]:
        """What a trial chose so far."""
        trials = self._study.get_trials(deepcopy=False)
        return dict(next(t for t in trials if t.number == number).params)

    def states(self) -> dict[str, int]:
        """Trials by what became of them: complete, pruned, fail, running, waiting."""
        names = [t.state.name.lower() for t in self._study.get_trials(deepcopy=False)]
        return {name: names.count(name) for name in sorted(set(names))}

    def failed(self) -> list[int]:
        """Numbers of the trials whose worker died or ran out of time."""
        return [t.number for t in self._study.get_trials(deepcopy=False, states=(TrialState.FAIL,))]

    def retried(self) -> list[int]:
        """Numbers of the trials that try again what another worker died of."""
        known = RetryFailedTrialCallback.retried_trial_number
        with quiet():
            return [t.number for t in self._study.get_trials(deepcopy=False) if known(t) is not None]

    def entries(self) -> list[Entry]:
        """Finished trials in the order of their numbers."""
        done = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return [entry(t) for t in sorted(done, key=lambda t: t.number)]

    def _twin(self, key: str, number: int) -> Entry | None:
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if trial.user_attrs.get(_HASH) == key and trial.number != number and _TWIN not in trial.user_attrs:
                return entry(trial)
        return None


def entry(trial: FrozenTrial) -> Entry:
    quality, latency = trial.values[:2]
    attributes = trial.user_attrs
    return Entry(
        trial.number, dict(trial.params), quality, latency, float(attributes.get(VIOLATION, 0.0)),
        attributes.get("facts", {}), attributes.get(_TWIN),
    )  # fmt: skip


def fixed(choices: Mapping[str, Any]) -> FixedTrial:
    """A trial that repeats known choices."""
    return FixedTrial(dict(choices))
