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
