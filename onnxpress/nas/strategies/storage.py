"""The database behind a study: an SQLite file, or an address that many machines share."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.storages import RDBStorage, RetryFailedTrialCallback

from onnxpress.errors import EnvironmentProblem

HEARTBEAT = 10.0  # seconds between two signs of life; after three without one a worker is dead
_RETRIES = 1  # of a candidate whose worker died
_PATIENCE = 60.0  # seconds that a worker waits while others write to the same SQLite file


def connect(where: str | Path, heartbeat: float = HEARTBEAT) -> RDBStorage:
    """A database with signs of life.  Raises EnvironmentProblem where it does not answer."""
    address = str(where) if "://" in str(where) else f"sqlite:///{where}"
    address = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", address)  # the driver that the extra brings
    try:
        return RDBStorage(
            address,
            engine_kwargs={"connect_args": {"timeout": _PATIENCE}} if address.startswith("sqlite") else None,
            heartbeat_interval=max(1, round(heartbeat)),
            grace_period=max(3, round(3 * heartbeat)),
            failed_trial_callback=RetryFailedTrialCallback(max_retry=_RETRIES),
        )
    except Exception as error:  # drivers raise errors of their own
        raise storage_problem(where, error) from error


def storage_problem(where: str | Path, error: Exception) -> EnvironmentProblem:
    """The problem of a database that failed; passwords are not shown."""
    reason = str(error.__cause__ or error).strip().splitlines()[0][:160]
    return EnvironmentProblem(
        "the study's storage does not answer", without_password(where), without_password(reason), "check its address"
    )


def without_password(text: str | Path) -> str:
    """Text that holds an address, without the password."""
    return re.sub(r"(://[^:/@\s]+):[^@\s]+@", r"\1:***@", str(text))


def close_storage(storage: RDBStorage) -> None:
    """Close the connections, which a pool would keep open."""
    storage.remove_session()
    storage.engine.dispose()


def study_names(where: str | Path) -> list[str]:
    """The studies that a database holds."""
    with quiet_optuna():
        storage = connect(where)
        try:
            return [str(n) for n in optuna.get_all_study_names(storage)]
        finally:
            close_storage(storage)


@contextmanager
def quiet_optuna() -> Iterator[None]:
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
