"""Times that some workers want and others take, so that time is taken only on machines of the kind that counts.

A worker of the role "train" places an order for its trial, and goes on; one of the role "latency" claims the orders one by
one (a claim is atomic in the storage), builds the network from the trial's choices, and times it.  The orders are trials of a
second study beside the search's: whose worker died, its order is claimed again.
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
from onnxpress.nas.strategies.storage import HEARTBEAT, connected, quiet, released
from onnxpress.nas.strategies.study import TimeOver

SUFFIX = ", times"
_OF = "of"
_PAUSE = 0.2  # seconds between two looks


class Orders:
    """Of the study of that name in that storage."""

    def __init__(self, storage: str | Path, name: str, heartbeat: float = HEARTBEAT) -> None:
        with quiet():
            self._storage = connected(storage, heartbeat)
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=name + SUFFIX,
                sampler=RandomSampler(0),
                load_if_exists=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        released(self._storage)

    def place(self, number: int) -> None:
        """Ask for the time of a trial's network."""
        with quiet():
            self._study.enqueue_trial({}, user_attrs={_OF: number})

    def wait(self, number: int, in_time: Callable[[], bool]) -> float:
        """Seconds, as soon as some worker has found them.  Raises TimeOver."""
        while in_time():
            for trial in self._trials(TrialState.COMPLETE):
                if trial.user_attrs.get(_OF) == number:
                    return float(trial.value)
            if self._lost(number):
                break
            time.sleep(_PAUSE)
        raise TimeOver

    def _lost(self, number: int) -> bool:
        """Whether whoever took this order failed, and nobody will take it again."""
        mine = [t.state for t in self._study.get_trials(deepcopy=False) if t.user_attrs.get(_OF) == number]
        return bool(mine) and all(state is TrialState.FAIL for state in mine)

    def serve(self, take: Callable[[int], float], open_: Callable[[], bool]) -> int:
        """Take the times of the trials that are asked for, until nothing will be any more; returns how many."""
        served = 0

        def objective(trial: optuna.Trial) -> float:
            nonlocal served
            number = trial.user_attrs.get(_OF)
            if number is None:  # another worker was faster, and this is no order
                raise optuna.TrialPruned
            try:
                seconds = take(int(number))
            except (Problem, ValueError, ArithmeticError, LookupError, RuntimeError) as error:
                raise TimeOver from error  # the order has failed, and who placed it is told so
            served += 1
            return seconds

        with quiet():
            while open_():
                optuna.storages.fail_stale_trials(self._study)
                if self._trials(TrialState.WAITING):
                    with suppress(UpdateFinishedTrialError):  # it took so long that it was given to another worker
                        self._study.optimize(objective, n_trials=1, catch=(TimeOver,))
                else:
                    time.sleep(_PAUSE)
        return served

    def _trials(self, state: TrialState) -> list[FrozenTrial]:
        return list(self._study.get_trials(deepcopy=False, states=(state,)))
