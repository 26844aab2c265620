"""The fixture that users' tests get: in a pytest of its own, with a model made slower by known work."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxpress.model.files import save
from tests import nets

pytest_plugins = ["pytester"]

TESTS = """
import pytest

def test_no_slower(onnx_latency_gate):
    decision = onnx_latency_gate("large.onnx", "small.onnx", fail_slower=0.05, seconds=1.0)
    assert decision.passed and decision.times < 1

def test_slower(onnx_latency_gate):
    onnx_latency_gate("small.onnx", "large.onnx", fail_slower=0.05, seconds=1.0)
"""


@pytest.mark.alone
def test_a_slower_model_fails_a_user_s_test(pytester: pytest.Pytester) -> None:
    for name, width in (("small", 16), ("large", 128)):
        save(nets.residual(width=width), Path(pytester.path) / f"{name}.onnx")
    pytester.makepyfile(TESTS)
    done = pytester.runpytest_inprocess()
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(["*large.onnx takes * times as long as small.onnx*"])
