"""The cache of measured arrays: content-addressed, bounded, and never a cause of failure."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from onnxpress.measure.cache import CACHE_VARIABLE, Cache, user_cache
from onnxpress.measure.evidence import Evidence, evidence_for
from onnxpress.measure.ranges import collect_histograms
from onnxpress.passes.pruning.error_curves import error_curves
from tests import nets

pytestmark = pytest.mark.unit


def test_arrays_are_restored(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "not" / "there")
    arrays = {"a b": np.arange(6.0).reshape(2, 3), "c": np.array(True)}
    assert cache.get("k") is None
    cache.put("k", arrays)
    found = cache.get("k")
    assert found is not None
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x80\x04pickle"])
def test_a_corrupt_entry_is_a_miss(tmp_path: Path, content: bytes) -> None:
    cache = Cache(tmp_path)
    (tmp_path / "k.npz").write_bytes(content)
    assert cache.get("k") is None
    cache.put("k", {"x": np.ones(1)})
    assert cache.get("k") is not None


def test_a_truncated_entry_is_a_miss(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put("k", {"x": np.random.default_rng(0).random(1000)})
    whole = (tmp_path / "k.npz").read_bytes()
    (tmp_path / "k.npz").write_bytes(whole[: len(whole) // 2])
    assert cache.get("k") is None


def test_the_least_recently_used_are_deleted(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).random(1000)
    cache = Cache(tmp_path, limit=20_000)
    for i, key in enumerate("abc"):
        cache.put(key, {"x": noise})
        os.utime(tmp_path / f"{key}.npz", (i, i)) if (tmp_path / f"{key}.npz").exists() else None
    assert cache.get("a") is None
    assert cache.get("c") is not None


def test_a_folder_that_cannot_be_written_is_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file")
    cache.put("k", {"x": np.ones(1)})
    assert cache.get("k") is None


def test_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "off")
    assert user_cache().folder is None


def prepared(folder: Path, count: int = 8) -> Evidence:
    model = nets.residual(width=16)
    evidence = evidence_for(model, nets.samples(model, count))
    evidence.cache = Cache(folder)
    return evidence


def test_a_second_evidence_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared(tmp_path)
    names = [n.outputs[0].name or "" for n in first.model.graph][:4]
    spreads, shapes = collect_histograms(first, names, {names[0]: 1}), error_curves(first)
    monkeypatch.setattr(Evidence, "stream", lambda *a, **k: pytest.fail("observed again"))
    second = prepared(tmp_path)
    again = collect_histograms(second, names, {names[0]: 1})
    for name, spread in spreads.items():
        for field, value in vars(spread).items():
            np.testing.assert_array_equal(getattr(again[name], field), value)
    assert error_curves(second) == shapes


def test_other_samples_are_measured(tmp_path: Path) -> None:
    names = [n.outputs[0].name or "" for n in prepared(tmp_path).model.graph][:1]
    few, more = collect_histograms(prepared(tmp_path, 4), names), collect_histograms(prepared(tmp_path, 8), names)
    assert few[names[0]].counts.sum() < more[names[0]].counts.sum()
