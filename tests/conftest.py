"""Tests keep what they measure in a folder of their own, never in the user's cache; and those that measure time run alone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from onnxpress.measure.cache import CACHE_VARIABLE

try:
    import fcntl
except ImportError:  # not a system on which tests run side by side
    fcntl = None

# Tests share the cores among processes: threads of numpy and torch that spin in one would hold up the other.  Read by the processes
# that pytest-xdist starts, after this file.
for variable, value in (("OMP_WAIT_POLICY", "PASSIVE"), ("OMP_NUM_THREADS", "1"), ("OPENBLAS_NUM_THREADS", "1")):
    os.environ.setdefault(variable, value)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Where processes share the tests (`pytest -n 2`), one that is marked `alone` waits for the others' and they for it.

    The fixtures of a test are made within.
    """
    session = getattr(item.config, "workerinput", {}).get("testrunuid")
    if session is None or fcntl is None:
        return (yield)
    with (Path(tempfile.gettempdir()) / f"onnxpress-tests-{session}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        return (yield)


def pytest_unconfigure(config: pytest.Config) -> None:
    session = getattr(config, "workerinput", {}).get("testrunuid")
    if session is not None:
        (Path(tempfile.gettempdir()) / f"onnxpress-tests-{session}.lock").unlink(missing_ok=True)
