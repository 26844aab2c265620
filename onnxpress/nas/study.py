"""The study behind a search: what was tried, in optuna's storage, and who chooses what comes next.

A study has two aims, quality (higher) and latency (lower).  A candidate that was built before under other choices is told what
was found then; one beyond the limits is told so by its distance (`violation`), which the strategies lead away from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage, RetryFailedTrialCallback
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from onnxpress.errors import EnvironmentProblem, InputProblem
from onnxpress.nas.evolution import VIOLATION, Evolution

STRATEGIES = ("evolution", "nsga2", "tpe", "random")
_HEARTBEAT, _GRACE = 10, 30  # seconds
_HASH, _TWIN = "hash", "same_as"
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
_RETRIES = 1  # of a candidate whose worker died

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


def sampler(strategy: str, seed: int, population: int = 20) -> BaseSampler:
    """Raises InputProblem for a strategy that does not exist."""
    if strategy == "evolution":
        return Evolution(seed, population)
    if strategy == "nsga2":
        return NSGAIISampler(seed=seed, population_size=population, constraints_func=_limits)
    if strategy == "tpe":
        return TPESampler(seed=seed, constraints_func=_limits)
    if strategy == "random":
        return RandomSampler(seed=seed)
    raise InputProblem("unknown strategy", strategy, "", f"one of {', '.join(STRATEGIES)}")


def _limits(trial: FrozenTrial) -> Sequence[float]:
    return (float(trial.user_attrs.get(VIOLATION, 0.0)),)


class Study:
    """storage: an SQLite file, the address of a database that many machines share, or None: memory."""

    def __init__(self, storage: str | Path | None, name: str, strategy: str, seed: int = 0, population: int = 20) -> None:
        self._refused: InputProblem | None = None
        with _quiet():
            self._study = optuna.create_study(
                storage=None if storage is None else _storage(storage),
                study_name=name,
                directions=["maximize", "minimize"],
                sampler=sampler(strategy, seed, population),
                load_if_exists=True,
            )

    def run(self, build: Build, more: Callable[[int], bool], told: Callable[[Entry], None] | None = None) -> None:
        """Try candidates while `more` (told how many there are) says so.  Raises InputProblem where none could be built.

        build(trial) gives the structure's hash and the function that measures it: (quality, latency, violation, facts).
        """

        def objective(trial: optuna.Trial) -> tuple[float, float]:
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
            return quality, latency

        def after(study: optuna.Study, trial: FrozenTrial) -> None:
            if told is not None and trial.state is TrialState.COMPLETE:
                told(entry(trial))
            if not more(len(study.get_trials(deepcopy=False, states=_ENDED))):
                study.stop()

        with _quiet():
            if more(len(self._study.get_trials(deepcopy=False, states=_ENDED))):
                self._study.optimize(objective, callbacks=[after], catch=())
        if self._refused is not None and not self.entries():
            raise self._refused

    def fact(self, name: str, find: Callable[[], float]) -> float:
        """A number kept with the study; found when it is first asked for."""
        known = self._study.user_attrs.get(name)
        if known is None:
            known = find()
            with _quiet():
                self._study.set_user_attr(name, known)
        return float(known)

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
    quality, latency = trial.values
    attributes = trial.user_attrs
    return Entry(
        trial.number, dict(trial.params), quality, latency, float(attributes.get(VIOLATION, 0.0)),
        attributes.get("facts", {}), attributes.get(_TWIN),
    )  # fmt: skip


def fixed(choices: Mapping[str, Any]) -> FixedTrial:
    """A trial that repeats known choices."""
    return FixedTrial(dict(choices))


def _storage(where: str | Path) -> RDBStorage:
    """Raises EnvironmentProblem where the database does not answer."""
    address = str(where) if "://" in str(where) else f"sqlite:///{where}"
    try:
        return RDBStorage(
            address,
            heartbeat_interval=_HEARTBEAT,
            grace_period=_GRACE,
            failed_trial_callback=RetryFailedTrialCallback(max_retry=_RETRIES),
        )
    except Exception as error:  # drivers raise errors of their own
        reason = str(error).strip().splitlines()[0][:160]
        raise EnvironmentProblem("the study's storage does not answer", str(where), reason, "check its address") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """optuna without its log, and without its remarks on what is experimental."""
    import warnings

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)
