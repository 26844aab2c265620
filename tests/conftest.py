"""Tests use a cache folder of their own, never the user's; tests that measure time run alone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from onnxpress.measure.cache import CACHE_VARIABLE

try:
    import fcntl
except ImportError:  # not a system on which tests run in parallel
    fcntl = None

# Test processes share the cores: spinning threads of numpy and torch in one process would slow the other.  The
# processes that pytest-xdist starts read these variables after this file.
for variable, value in (("OMP_WAIT_POLICY", "PASSIVE"), ("OMP_NUM_THREADS", "1"), ("OPENBLAS_NUM_THREADS", "1")):
    os.environ.setdefault(variable, value)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """With several processes (`pytest -n 2`), a test marked `alone` waits for the other processes, and they wait for
    it.

    The fixtures of a test are created within. Who waits holds the gate, so that no other test begins before: a lock by
    itself is not fair, and a process with many short tests would keep one that waits to be alone out for minutes.
    """
    session = getattr(item.config, "workerinput", {}).get("testrunuid")
    if session is None or fcntl is None:
        return (yield)
    with _lock_file(session, "lock").open("w") as lock:
        with _lock_file(session, "gate").open("w") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            fcntl.flock(lock, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        return (yield)


def _lock_file(session: str, name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"onnxpress-tests-{session}.{name}"


def pytest_unconfigure(config: pytest.Config) -> None:
    session = getattr(config, "workerinput", {}).get("testrunuid")
    if session is not None:
        for name in ("lock", "gate"):
            _lock_file(session, name).unlink(missing_ok=True)
