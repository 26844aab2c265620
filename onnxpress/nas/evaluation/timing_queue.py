"""Queue of networks to time, so that latency is measured on machines of the right kind only.

A worker with the role "train" puts its trial into the queue and goes on; one with the role "latency" claims the
requests one by one (a claim is atomic in the storage), builds the network from the trial's choices and times it.
Requests are trials of a second study; the request of a worker that died is claimed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState

from onnxpress.errors import Problem
from onnxpress.nas.strategies.storage import HEARTBEAT, close_storage, connect, quiet_optuna
from onnxpress.nas.strategies.study import TimeBudgetExceeded

SUFFIX = ", times"  # of the name of the second study
_TRIAL = "of"  # attribute of a request: number of the trial to time
_POLL = 0.2  # seconds between two checks


class TimingQueue:
    """The queue of a study.

    storage: of the study.
    name: of the study.
    heartbeat: seconds between heartbeats.
    """

    def __init__(self, storage: str | Path, name: str, heartbeat: float = HEARTBEAT) -> None:
        with quiet_optuna():
            self._storage = connect(storage, heartbeat)
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=name + SUFFIX,
                sampler=RandomSampler(0),
                load_if_exists=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        close_storage(self._storage)

    def put(self, number: int) -> None:
        """Request the latency of a trial's network."""
        with quiet_optuna():
            self._study.enqueue_trial({}, user_attrs={_TRIAL: number})

    def wait(self, number: int, in_time: Callable[[], bool]) -> float:
        """Wait for the latency of a trial, in seconds.  Raises TimeBudgetExceeded where it does not come in time."""
        while in_time():
            for trial in self._trials(TrialState.COMPLETE):
                if trial.user_attrs.get(_TRIAL) == number:
                    return float(trial.value)
            if self._failed(number):
                break
            time.sleep(_POLL)
        raise TimeBudgetExceeded

    def _failed(self, number: int) -> bool:
        """Whether the request failed and will not be repeated."""
        states = [t.state for t in self._study.get_trials(deepcopy=False) if t.user_attrs.get(_TRIAL) == number]
        return bool(states) and all(state is TrialState.FAIL for state in states)

    def serve(self, measure: Callable[[int], float], is_open: Callable[[], bool]) -> int:
        """Measure requested latencies until the queue is closed; returns their number."""
        served = 0

        def objective(trial: optuna.Trial) -> float:
            nonlocal served
            number = trial.user_attrs.get(_TRIAL)
            if number is None:  # another worker claimed the last request; this is an empty trial
                raise optuna.TrialPruned
            try:
                seconds = measure(int(number))
            except (Problem, ValueError, ArithmeticError, LookupError, RuntimeError) as error:
                raise TimeBudgetExceeded from error  # marks the request as failed
            served += 1
            return seconds

        with quiet_optuna():
            while is_open():
                optuna.storages.fail_stale_trials(self._study)
                if self._trials(TrialState.WAITING):
                    with suppress(UpdateFinishedTrialError):  # it took so long that another worker got the request
                        self._study.optimize(objective, n_trials=1, catch=(TimeBudgetExceeded,))
                else:
                    time.sleep(_POLL)
        return served

    def _trials(self, state: TrialState) -> list[FrozenTrial]:
        return list(self._study.get_trials(deepcopy=False, states=(state,)))
