"""Results as JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onnxpress.result import plain

pytestmark = pytest.mark.unit


def test_json_has_no_infinities() -> None:
    assert json.loads(json.dumps(plain({"a": float("inf"), "b": np.float32(2), "c": (1, np.int64(3))}))) == {
        "a": None, "b": 2.0, "c": [1, 3]}  # fmt: skip
