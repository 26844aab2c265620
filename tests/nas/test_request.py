"""Requests of a search: checks, and the way to JSON and back."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("optuna")

import pytest

from onnxpress.errors import InputProblem
from onnxpress.nas.request import NasRequest, request_from_dict

pytestmark = pytest.mark.unit


def test_requests_are_checked() -> None:

    with pytest.raises(InputProblem, match="trainees"):
        NasRequest("cell", trainees=0).check()
    with pytest.raises(InputProblem, match="no such metric"):
        NasRequest("cell", metric="beauty").check()
    given: dict[str, Any] = {"metric": len}
    with pytest.raises(InputProblem, match="cannot read a function"):
        NasRequest("cell", **given).check()


def test_a_request_round_trip() -> None:
    request = NasRequest("cell", latency_ms=2.0, seed=4, proxy="zen", metric="cosine", outputs=("y",))
    assert request_from_dict(json.loads(json.dumps(request.as_dict()))) == request
