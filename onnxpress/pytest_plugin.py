"""A pytest fixture for users' tests, which fails a test when a model has become slower.

    def test_the_new_model_is_no_slower(onnx_latency_gate):
        onnx_latency_gate("old.onnx", "new.onnx", data="samples.npz", fail_slower=0.05)

pytest finds it where onnxpress is installed.  Nothing is imported before a test uses it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from onnxpress.data.dataset import Dataset
    from onnxpress.evaluate.slowdown import SlowdownDecision


class LatencyGate(Protocol):
    def __call__(
        self,
        old: str | Path,
        new: str | Path,
        *,
        data: str | Path | Dataset | None = None,
        fail_slower: float = 0.05,
        seconds: float = 10.0,
    ) -> SlowdownDecision: ...


@pytest.fixture
def onnx_latency_gate() -> LatencyGate:
    """A function that fails the test when the new model is slower than allowed; it returns the decision.

    old, new:    model files
    data:        samples, or a path to them; None: synthetic inputs
    fail_slower: additional time at which the test fails (0.05: 5 %), if the whole 95 % interval is above it; an
                 inconclusive interval passes
    seconds:     maximum time of the measurement

    Raises InputProblem on bad input.
    """

    def gate(
        old: str | Path,
        new: str | Path,
        *,
        data: str | Path | Dataset | None = None,
        fail_slower: float = 0.05,
        seconds: float = 10.0,
    ) -> SlowdownDecision:
        from onnxpress.data.dataset import open_dataset
        from onnxpress.evaluate.bench import REBUILDS
        from onnxpress.evaluate.gate import GateOptions, run_gate
        from onnxpress.model.files import load
        from onnxpress.model.signature import signature
        from onnxpress.runtime.latency import Effort

        samples = open_dataset(str(data), signature(load(old))) if isinstance(data, (str, Path)) else data
        models = {str(old): old, str(new) if str(new) != str(old) else f"{new} (again)": new}
        found = run_gate(
            models, samples, Effort(seconds=seconds, rebuilds=REBUILDS), gate=GateOptions(fail_slower=fail_slower)
        )
        (decision,) = found.decisions
        if not decision.passed:
            pytest.fail(decision.why, pytrace=False)
        return decision

    return gate
