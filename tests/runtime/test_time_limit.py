"""Time limits: raised where time is spent, the earlier of nested ones, and not taken for a failure."""

from __future__ import annotations

import pytest

from onnxpress.runtime.session import open_session, run
from onnxpress.runtime.time_limit import OutOfTime, check_time, time_limit
from tests import nets

pytestmark = pytest.mark.unit


def test_without_a_limit_nothing_is_raised() -> None:
    check_time()
    with time_limit(60):
        check_time()


def test_an_outer_limit_that_ends_earlier_holds() -> None:
    with time_limit(-1), time_limit(60), pytest.raises(OutOfTime):
        check_time()
    check_time()


def test_a_run_of_a_model_is_not_begun_and_no_handler_of_failures_hides_it() -> None:
    model = nets.mlp()
    feeds = next(iter(nets.samples(model, 1).batches(1))).inputs
    session = open_session(model)
    assert not issubclass(OutOfTime, Exception)
    with time_limit(-1), pytest.raises(OutOfTime):
        run(session, feeds)
    assert run(session, feeds)
