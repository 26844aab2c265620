"""Calls in a child process: time limit, crash and error."""

from __future__ import annotations

import time

import pytest

from onnxpress.runtime import isolate


@pytest.mark.alone
def test_isolation_reports_time_crash_and_error() -> None:
    assert isolate.call("os:abort", seconds=20).reason == "crash"
    assert isolate.call("os:remove", "/nowhere/at/all", seconds=20).reason == "error"
    start = time.perf_counter()
    assert isolate.call("tests.runtime.helpers:forever", seconds=0.5).reason == "time"
    assert time.perf_counter() - start < 10


@pytest.mark.alone
def test_a_fork_server_reports_time_crash_and_error_and_goes_on() -> None:
    server = isolate.ForkServer("tests.runtime.helpers:nothing")
    assert server.call("os:abort", seconds=20).reason == "crash"
    failed = server.call("os:remove", "/nowhere/at/all", seconds=20)
    assert failed.reason == "error" and "/nowhere/at/all" in failed.detail
    start = time.perf_counter()
    assert server.call("tests.runtime.helpers:forever", seconds=0.5).reason == "time"
    assert server.call("os:getcwd", seconds=20).ok
    assert time.perf_counter() - start < 10


def test_a_server_that_is_gone_is_started_again() -> None:
    server = isolate.ForkServer("tests.runtime.helpers:nothing")
    assert server.call("os:getcwd", seconds=20).ok
    assert server._process is not None
    server._process.kill()
    assert server.call("os:getcwd", seconds=20).ok
