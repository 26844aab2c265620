"""Sessions of onnxruntime: settings, errors, and the shapes of one run."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import evidence_for
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.runtime import latency, session
from onnxpress.runtime.session import (
    SessionSettings,
    all_cores,
    default_settings,
    open_session,
    sessions_with,
    trace,
)
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


def test_what_runs_within_is_timed_with_the_given_settings() -> None:
    """No pass has to hand threads and provider on."""
    model = nets.residual(width=8, blocks=1)
    with sessions_with(SessionSettings(threads=2)):
        assert open_session(model).get_session_options().intra_op_num_threads == 2
        assert open_session(model, SessionSettings(threads=1)).get_session_options().intra_op_num_threads == 1
        assert default_settings().threads == 2
        assert all_cores().provider == default_settings().provider
    assert open_session(model).get_session_options().intra_op_num_threads == 1
    with sessions_with(SessionSettings(provider="AzureExecutionProvider")):
        assert all_cores("basic").provider == "AzureExecutionProvider"


def test_timings_of_a_search_take_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    opened = latency.open_session

    def counted(model: object, settings: SessionSettings, where: object = "") -> object:
        seen.append(settings.threads)
        return opened(model, settings, where)  # type: ignore[arg-type]

    monkeypatch.setattr(latency, "open_session", counted)
    model = nets.residual(width=8, blocks=1)
    feeds = [evidence_for(model, nets.samples(model, 1)).probe]
    short = latency.Effort(seconds=0.05, rebuilds=1)
    with sessions_with(SessionSettings(threads=2)):
        latency.compare_latency({"a": model}, feeds, short)
        latency.compare_latency({"a": model}, feeds, latency.Effort(seconds=0.05, rebuilds=1, threads=1))
    latency.compare_latency({"a": model}, feeds, short)
    assert list(dict.fromkeys(seen)) == [2, 1]


@pytest.mark.parametrize("name", sorted(nets.NETWORKS))
def test_a_trace_is_the_same_whether_values_are_held_or_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = canonical(nets.NETWORKS[name]())
    feeds = dict(next(iter(nets.samples(model, 1, sequence=24).batches(1))).inputs)
    wanted = trace(model, feeds)
    monkeypatch.setattr(session, "_HELD_BYTES", 0)
    found = trace(model, feeds)
    assert (found.shapes, found.floats) == (wanted.shapes, wanted.floats)
    assert found.values.keys() == wanted.values.keys()
    assert all(np.array_equal(found.values[k], wanted.values[k]) for k in wanted.values)


def test_undefined_and_infinite_values_are_told_apart_without_holding_them(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y)
    { l = Log(x) n = Neg(l) s = Sub(l, l) y = Add(n, s) }"""
    model = canonical(ir.from_proto(onnx.parser.parse_model(text)))
    feeds = {"x": np.array([0.0, np.inf], np.float32)}
    wanted = trace(model, feeds).floats
    monkeypatch.setattr(session, "_HELD_BYTES", 0)
    assert trace(model, feeds).floats == wanted
    assert wanted == {"x": False, "l": False, "n": False, "s": True, "y": True}
