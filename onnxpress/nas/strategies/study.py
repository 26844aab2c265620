"""The study of a search: evaluated candidates in optuna's storage, and the strategy that proposes new ones.

Any number of workers on any number of machines may run one study.  Workers send heartbeats; the trial of a worker that
died is repeated by another one.

A study maximizes quality and minimizes latency, and optionally further facts of the candidates.  A network that was
built before from other choices gets the values measured then.  The `violation` of a candidate is how far it exceeds the
limits, which strategies avoid.
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
from onnxpress.nas.strategies.evolution import VIOLATION, RegularizedEvolution
from onnxpress.nas.strategies.storage import HEARTBEAT, close_storage, connect, quiet_optuna, storage_problem

STRATEGIES = ("evolution", "nsga2", "tpe", "random")
_POLL = 0.5  # seconds between two checks of the other workers' trials
_HASH, _DUPLICATE, _FACTS = "hash", "same_as", "facts"  # attributes of a trial
_COUNTED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING)

Facts = Mapping[str, Any]
Measurement = tuple[float, float, float, Facts]  # quality, latency in seconds, violation, facts
BuildTrial = Callable[[Any], tuple[str, Callable[[], Measurement]]]  # trial -> (hash of the network, measure)


@dataclass(frozen=True)
class TrialResult:
    """A finished trial.

    number: of the trial.
    choices: made in the search space.
    quality: higher is better.
    latency: in seconds.
    violation: of the limits; 0 where all are met.
    facts: measured besides.
    duplicate_of: number of the trial that built the same network first, else None.
    """

    number: int
    choices: Mapping[str, Any]
    quality: float
    latency: float
    violation: float
    facts: Facts
    duplicate_of: int | None


def make_sampler(strategy: str, seed: int | None, population: int = 20, study_seed: int | None = None) -> BaseSampler:
    """The sampler of a strategy.  Raises InputProblem for an unknown one.

    seed: of this worker.
    study_seed: of the whole study; evolution draws by it and the trial's number.
    """
    if strategy == "evolution":
        return RegularizedEvolution(study_seed or 0, population)
    if strategy == "nsga2":
        return NSGAIISampler(seed=seed, population_size=population, constraints_func=_constraints)
    if strategy == "tpe":
        return TPESampler(seed=seed, constraints_func=_constraints)
    if strategy == "random":
        return RandomSampler(seed=seed)
    raise InputProblem("unknown strategy", strategy, "", f"one of {', '.join(STRATEGIES)}")


def _constraints(trial: FrozenTrial) -> Sequence[float]:
    return (float(trial.user_attrs.get(VIOLATION, 0.0)),)


class TimeBudgetExceeded(Exception):
    """A worker's time ended before its trial did: the trial counts as failed."""


class Study:
    """A study.

    storage: an SQLite file, the address of a shared database, or None (memory).
    name: of the study; an existing one is continued.
    strategy: one of STRATEGIES.
    seed: None for a worker that joins, so that it proposes other candidates than those before it.
    population: of the strategy.
    heartbeat: seconds between heartbeats.
    minimized_facts: names of the facts to minimize besides latency.
    """

    def __init__(
        self,
        storage: str | Path | None,
        name: str,
        strategy: str,
        seed: int | None = 0,
        population: int = 20,
        heartbeat: float = HEARTBEAT,
        minimized_facts: Sequence[str] = (),
    ) -> None:
        self._minimized_facts = tuple(minimized_facts)
        self._rejected: InputProblem | None = None
        self._error: Exception | None = None
        self._address = storage or "memory"
        self._current = -1  # number of the trial in progress
        with quiet_optuna():
            self._storage = None if storage is None else connect(storage, heartbeat)
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=name,
                directions=["maximize", "minimize", *("minimize" for _ in self._minimized_facts)],
                load_if_exists=True,
            )
            count = len(self._study.get_trials(deepcopy=False))  # a continued study must not draw the same again
            self._study.sampler = make_sampler(strategy, None if seed is None else seed + count, population, seed)

    def begin_with(self, choices: Sequence[Mapping[str, Any]]) -> None:
        """Evaluate these choices first, if the study is new; parameters that they lack are drawn."""
        if not self._count(*TrialState):
            with quiet_optuna():
                for each in choices:
                    self._study.enqueue_trial(dict(each), skip_if_exists=True)

    def close(self) -> None:
        """Close the connection to the storage."""
        if self._storage is not None:
            close_storage(self._storage)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(
        self,
        build: BuildTrial,
        wanted: int,
        on_result: Callable[[TrialResult], None] | None = None,
        in_time: Callable[[], bool] = lambda: True,
    ) -> None:
        """Evaluate candidates until there are `wanted` trials, including those of other workers, or time is over.

        Then waits until no other worker has an unfinished trial, which would have to be repeated if that worker died.

        build: builds a trial's network.
        on_result: called with each finished trial of this worker.
        Raises InputProblem where no network could be built.
        """
        self._error = None

        def after_trial(study: optuna.Study, trial: FrozenTrial) -> None:
            if on_result is not None and trial.state is TrialState.COMPLETE:
                on_result(trial_result(trial))
            if self._count(*_COUNTED) >= wanted or not in_time():
                study.stop()

        def optimize(trials: int | None) -> None:
            try:
                self._study.optimize(
                    lambda trial: self._objective(trial, build),
                    n_trials=trials,
                    callbacks=[after_trial],
                    catch=(TimeBudgetExceeded,),
                )
            except (RuntimeError, ValueError):
                if self._error is not None or not self._lost_trial():
                    raise

        try:
            with quiet_optuna():
                while self._count(*_COUNTED) < wanted and in_time():
                    optimize(None)
                while in_time() and self._count(TrialState.RUNNING, TrialState.WAITING):
                    optuna.storages.fail_stale_trials(self._study)
                    if self._count(TrialState.WAITING):
                        optimize(1)
                    else:
                        time.sleep(_POLL)
        except StorageInternalError as error:
            raise storage_problem(self._address, error) from error
        if self._rejected is not None and not self.results():
            raise self._rejected

    def _objective(self, trial: optuna.Trial, build: BuildTrial) -> tuple[float, ...]:
        """The objectives of a trial; other errors than optuna's are recorded as the user's."""
        self._current = trial.number
        try:
            return self._evaluate(trial, build)
        except (optuna.TrialPruned, TimeBudgetExceeded, UpdateFinishedTrialError):
            raise
        except Exception as error:
            self._error = error
            raise

    def _evaluate(self, trial: optuna.Trial, build: BuildTrial) -> tuple[float, ...]:
        """Build and measure a trial's network, or copy the measurement of an equal one."""
        try:
            key, measure = build(trial)
        except InputProblem as problem:  # these choices give no network; others may
            self._rejected = problem
            raise optuna.TrialPruned from problem
        trial.set_user_attr(_HASH, key)
        original = self._find_equal(key, trial.number)
        if original is not None:
            trial.set_user_attr(_DUPLICATE, original.number)
            quality, latency, violation, facts = (
                original.quality, original.latency, original.violation, original.facts,
            )  # fmt: skip
        else:
            quality, latency, violation, facts = measure()
        trial.set_user_attr(VIOLATION, violation)
        trial.set_user_attr(_FACTS, dict(facts))
        return quality, latency, *(float(facts[name]) for name in self._minimized_facts)

    def _lost_trial(self) -> bool:
        """Whether other workers took this worker for dead (its machine slept) and repeat its trial."""
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        return any(t.number == self._current for t in trials)

    def _count(self, *states: TrialState) -> int:
        return len(self._study.get_trials(deepcopy=False, states=states))

    def get_or_compute(self, name: str, compute: Callable[[], Any]) -> Any:
        """A value (JSON) stored with the study; computed where missing.

        Where two workers compute it at once, both use the one that the storage holds in the end.
        """
        if name not in self._study.user_attrs:
            value = compute()
            with quiet_optuna():
                self._study.set_user_attr(name, value)
        return self._study.user_attrs[name]

    def set(self, name: str, value: Any) -> None:
        """Store a value (JSON) with the study."""
        with quiet_optuna():
            self._study.set_user_attr(name, value)

    def get(self, name: str) -> Any:
        """A value stored with the study; None where there is none."""
        return self._study.user_attrs.get(name)

    def choices(self, number: int) -> Mapping[str, Any]:
        """The choices of a trial so far."""
        trials = self._study.get_trials(deepcopy=False)
        return dict(next(t for t in trials if t.number == number).params)

    def states(self) -> dict[str, int]:
        """Number of trials by state: complete, pruned, fail, running, waiting."""
        names = [t.state.name.lower() for t in self._study.get_trials(deepcopy=False)]
        return {name: names.count(name) for name in sorted(set(names))}

    def failed(self) -> list[int]:
        """Numbers of the trials whose worker died or ran out of time."""
        return [t.number for t in self._study.get_trials(deepcopy=False, states=(TrialState.FAIL,))]

    def retried(self) -> list[int]:
        """Numbers of the trials that repeat one whose worker died."""
        original = RetryFailedTrialCallback.retried_trial_number
        with quiet_optuna():
            return [t.number for t in self._study.get_trials(deepcopy=False) if original(t) is not None]

    def results(self) -> list[TrialResult]:
        """Finished trials in the order of their numbers."""
        done = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return [trial_result(t) for t in sorted(done, key=lambda t: t.number)]

    def _find_equal(self, key: str, number: int) -> TrialResult | None:
        """The first finished trial with the same network."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if trial.user_attrs.get(_HASH) == key and trial.number != number and _DUPLICATE not in trial.user_attrs:
                return trial_result(trial)
        return None


def trial_result(trial: FrozenTrial) -> TrialResult:
    """The result of a finished optuna trial."""
    quality, latency = trial.values[:2]
    attributes = trial.user_attrs
    return TrialResult(
        trial.number, dict(trial.params), quality, latency, float(attributes.get(VIOLATION, 0.0)),
        attributes.get(_FACTS, {}), attributes.get(_DUPLICATE),
    )  # fmt: skip


def fixed_trial(choices: Mapping[str, Any]) -> FixedTrial:
    """A trial that repeats known choices."""
    return FixedTrial(dict(choices))
