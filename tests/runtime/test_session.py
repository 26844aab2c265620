"""Sessions of onnxruntime: settings, errors, and the shapes of one run."""

from __future__ import annotations

import pytest

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import evidence_for
from onnxpress.runtime.session import SessionSettings, open_session, trace
from tests import nets

pytestmark = pytest.mark.unit


def test_trace_records_shapes() -> None:
    model = nets.residual(width=8, blocks=1)
    evidence = evidence_for(model, nets.samples(model, 1))
    found = trace(evidence.model, evidence.probe)
    assert found.shapes["image"] == (1, 3, 8, 8)
    assert all(len(s) in (2, 4) for s in found.shapes.values())


def test_session_errors_are_one_line() -> None:
    with pytest.raises(InputProblem) as caught:
        open_session(b"nothing", where="x.onnx")
    assert "\n" not in caught.value.line()


def test_settings_reach_onnxruntime() -> None:
    model = nets.residual(width=8, blocks=1)
    session = open_session(model, SessionSettings(threads=2, level="basic"))
    assert session.get_session_options().intra_op_num_threads == 2


def test_session_options_reach_onnxruntime() -> None:
    settings = SessionSettings(threads=2, level="none", spinning=True, config=(("session.use_env_allocators", "0"),))
    options = open_session(nets.residual(width=8, blocks=1), settings).get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert options.get_session_config_entry("session.use_env_allocators") == "0"
