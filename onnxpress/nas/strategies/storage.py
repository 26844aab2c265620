"""Storage of a study: an SQLite file, or the address of a shared database."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.storages import RDBStorage, RetryFailedTrialCallback

from onnxpress.errors import EnvironmentProblem

HEARTBEAT = 10.0  # seconds; a worker without one for three intervals is taken for dead
_RETRIES = 1  # of a trial whose worker died
_PATIENCE = 60.0  # seconds to wait for a lock of the SQLite file


def connect(where: str | Path, heartbeat: float = HEARTBEAT) -> RDBStorage:
    """A storage with heartbeats.  Raises EnvironmentProblem where it cannot be reached."""
    address = str(where) if "://" in str(where) else f"sqlite:///{where}"
    address = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", address)  # the driver of the extra `nas`
    try:
        return RDBStorage(
            address,
            engine_kwargs={"connect_args": {"timeout": _PATIENCE}} if address.startswith("sqlite") else None,
            heartbeat_interval=max(1, round(heartbeat)),
            grace_period=max(3, round(3 * heartbeat)),
            failed_trial_callback=RetryFailedTrialCallback(max_retry=_RETRIES),
        )
    except Exception as error:  # drivers raise their own errors
        raise storage_problem(where, error) from error


def storage_problem(where: str | Path, error: Exception) -> EnvironmentProblem:
    """EnvironmentProblem for a failed storage, without passwords."""
    reason = str(error.__cause__ or error).strip().splitlines()[0][:160]
    return EnvironmentProblem(
        "the study's storage cannot be reached", without_password(where), without_password(reason), "check its address"
    )


def without_password(text: str | Path) -> str:
    """A text with passwords in addresses replaced by ***."""
    return re.sub(r"(://[^:/@\s]+):[^@\s]+@", r"\1:***@", str(text))


def close_storage(storage: RDBStorage) -> None:
    """Close all connections."""
    storage.remove_session()
    storage.engine.dispose()


def study_names(where: str | Path) -> list[str]:
    """Names of the studies in a storage."""
    with quiet_optuna():
        storage = connect(where)
        try:
            return [str(n) for n in optuna.get_all_study_names(storage)]
        finally:
            close_storage(storage)


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Context without optuna's log and warnings about experimental features."""
    import warnings

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)
