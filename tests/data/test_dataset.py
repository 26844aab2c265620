"""Views, batches, hashes and splits, which hold for every form of data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.data.dataset import Dataset, open_dataset
from tests.data.helpers import floats, refused, sig, values

pytestmark = pytest.mark.unit

ROWS = sig("x float32 N 4")


def rows(count: int, seed: int = 0) -> Dataset:
    return Dataset.from_arrays({"x": floats(count, 4, seed=seed)}, ROWS, labels=np.arange(count) % 3)


def test_samples_have_batch_axis_label_and_key() -> None:
    data = rows(3)
    sample = data[2]
    assert sample.inputs["x"].shape == (1, 4)
    assert (sample.label, sample.key) == (2, "arrays[2]")
    assert [s.key for s in data] == [s.key for s in data] == ["arrays[0]", "arrays[1]", "arrays[2]"]
    assert data.labelled
    assert data.labels == [0, 1, 2]
    assert len(data) == 3
    assert data[-1].key == "arrays[2]"
    with pytest.raises(IndexError):
        data[3]


def test_samples_cannot_be_changed_and_batches_can() -> None:
    data = rows(3)
    with pytest.raises(ValueError, match="read-only"):
        data[0].inputs["x"][:] = 0
    before = data.hash
    for size in (1, 2):
        for batch in data.batches(size):
            batch.inputs["x"][:] = 0
    assert rows(3).hash == before == Dataset.from_arrays({"x": values(data)}, ROWS, labels=[0, 1, 2]).hash


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 12))
def test_batches_hold_every_sample_once_in_order(count: int, size: int) -> None:
    data = rows(count)
    batches = list(data.batches(size))
    assert [k for b in batches for k in b.keys] == [s.key for s in data]
    assert all(b.count == len(b.labels) == len(b.keys) == len(b.inputs["x"]) <= size for b in batches)
    assert len(batches) == -(-count // size)
    np.testing.assert_array_equal(np.concatenate([b.inputs["x"] for b in batches]), values(data))


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 9))
def test_fixed_batch_is_always_padded(count: int, size: int) -> None:
    model = sig("x float32 4 2", outputs=("y float32 4 3",))
    data = Dataset.from_arrays({"x": floats(count, 2)}, model)
    batches = list(data.batches(size))
    assert all(len(b.inputs["x"]) == 4 for b in batches)
    assert sum(b.count for b in batches) == count
    last = batches[-1]
    for row in range(last.count, 4):
        np.testing.assert_array_equal(last.inputs["x"][row], last.inputs["x"][last.count - 1])
    assert len(last.keys) == len(last.labels) == last.count


def test_batches_never_mix_shapes() -> None:
    lengths = [3, 3, 5, 3, 3, 3]
    items = [{"x": np.ones((n, 2), np.float32)} for n in lengths]
    data = open_dataset(items, sig("x float32 N L 2"))
    assert [b.inputs["x"].shape for b in data.batches(2)] == [(2, 3, 2), (1, 5, 2), (2, 3, 2), (1, 3, 2)]


def test_inputs_without_batch_axis_are_shared_when_equal() -> None:
    model = sig("x float32 N 4", "rate int64")
    same = Dataset.from_arrays({"x": floats(5, 4), "rate": np.int64(16000)}, model)
    assert [b.count for b in same.batches(4)] == [4, 1]
    assert next(same.batches(4)).inputs["rate"] == 16000
    other = Dataset.from_arrays({"x": floats(4, 4), "rate": np.array([8, 8, 16, 16])}, model)
    assert [b.count for b in other.batches(4)] == [2, 2]


def test_batch_axis_after_the_first() -> None:
    model = sig("x float32 batch 6", "state float32 2 batch 3")
    data = Dataset.from_arrays({"x": floats(4, 6), "state": floats(4, 2, 3)}, model)
    assert data[0].inputs["state"].shape == (2, 1, 3)
    assert next(data.batches(4)).inputs["state"].shape == (2, 4, 3)


def test_whole_inputs_of_higher_rank_are_not_batched() -> None:
    model = sig("x float32 N 6", "state float32 2 1 3")
    data = Dataset.from_arrays({"x": floats(4, 6), "state": np.zeros((2, 1, 3), np.float32)}, model)
    assert [b.count for b in data.batches(4)] == [1, 1, 1, 1]
    assert "'state' is the same for every sample" in data.assumed


def test_time_major_input_is_not_a_batch() -> None:
    model = sig("x float32 49 1 10", outputs=("y float32 1 12",))
    data = Dataset.from_arrays({"x": floats(3, 49, 1, 10)}, model)
    assert [b.inputs["x"].shape for b in data.batches(8)] == [(49, 1, 10)] * 3


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 70))
def test_take_spreads_over_the_set(count: int, most: int) -> None:
    data = rows(count)
    part = data.take(most)
    keys = [int(k.removeprefix("arrays[").removesuffix("]")) for k in (s.key for s in part)]
    assert len(keys) == len(set(keys)) == min(most, count)
    assert keys == sorted(keys)
    assert [s.key for s in data.take(most)] == [s.key for s in part]
    if 0 < most < count:
        stretch = count / most
        assert all(int(i * stretch) <= k <= (i + 1) * stretch for i, k in enumerate(keys))


def test_take_does_not_follow_a_period() -> None:
    data = Dataset.from_arrays({"x": floats(100, 4)}, ROWS, labels=np.arange(100) % 2)
    assert 0.2 < np.mean(data.take(50).labels) < 0.8


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 30), st.randoms())
def test_hash_ignores_the_order_only(count: int, random: object) -> None:
    data = rows(count)
    order = list(range(count))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert data.select(order).hash == data.hash
    assert data.select(order[1:]).hash != data.hash
    assert data.select([*order[1:], order[1]]).hash != data.hash


def test_hash_covers_values_labels_and_shapes_but_not_the_stored_type() -> None:
    whole = np.arange(12).reshape(3, 4)
    base = Dataset.from_arrays({"x": whole.astype(np.float32)}, ROWS)
    assert Dataset.from_arrays({"x": whole.astype(np.uint8)}, ROWS).hash == base.hash
    assert Dataset.from_arrays({"x": whole.astype(np.float32) + 1}, ROWS).hash != base.hash
    assert Dataset.from_arrays({"x": whole.astype(np.float32)}, ROWS, labels=[0, 1, 2]).hash != base.hash
    free = sig("x float32 N A B")
    one, two = (Dataset.from_arrays({"x": whole.astype(np.float32).reshape(1, *s)}, free) for s in ((3, 4), (4, 3)))
    assert one.hash != two.hash
    assert len(base.hash) == 64


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=3, max_size=40).filter(lambda v: len(set(v)) >= 3), st.randoms())
def test_split_is_disjoint_complete_and_stable(contents: list[int], random: object) -> None:
    array = np.array(contents, np.float32)[:, None] * np.ones(4, np.float32)

    def parts(order: list[int]) -> list[set[float]]:
        data = Dataset.from_arrays({"x": array[order]}, ROWS, labels=np.arange(len(order)) % 2)
        splits = data.split()
        found = [splits.calibrate, splits.select, splits.validate]
        assert sum(map(len, found)) == len(order)
        assert all(len(p) for p in found)
        return [set(values(p)[:, 0].tolist()) for p in found]

    order = list(range(len(contents)))
    first = parts(order)
    assert first[0].isdisjoint(first[1] | first[2])
    assert first[1].isdisjoint(first[2])
    random.shuffle(order)  # type: ignore[attr-defined]
    assert parts(order) == first


def test_split_fractions() -> None:
    splits = rows(1000).split((0.5, 0.25, 0.25))
    assert (len(splits.calibrate), len(splits.select), len(splits.validate)) == (500, 250, 250)
    assert splits.calibrate.labelled


@pytest.mark.parametrize("count", [1, 2])
def test_split_of_too_few(count: int) -> None:
    refused(rows(count).split, "at least 3 distinct samples", f"found {count}", "`select`")


def test_split_of_duplicates_only() -> None:
    data = Dataset.from_arrays({"x": np.ones((9, 4), np.float32)}, ROWS)
    refused(data.split, "found 1")


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.0), (0.5, 0.5, 0.5), (1.0,)])
def test_split_of_wrong_fractions(fractions: tuple[float, ...]) -> None:
    refused(lambda: rows(9).split(fractions), "three positive numbers")  # type: ignore[arg-type]


def test_wrong_batch_size_and_count() -> None:
    refused(lambda: list(rows(3).batches(0)), "batch size is 0")
    refused(lambda: rows(3).take(-1), "-1 is negative")


def test_a_dataset_is_a_source() -> None:
    data = rows(6)
    assert open_dataset(data, ROWS) is data
    part = open_dataset(data.select([4, 1]), sig("x float64 N 4"))
    assert [s.key for s in part] == ["arrays[4]", "arrays[1]"]
    assert part[0].inputs["x"].dtype == np.float64
    refused(lambda: open_dataset(data, sig("z float32 N 4")), "no array for input z")


def test_views_share_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    data = rows(30)
    splits = data.split()
    reads: list[int] = []
    read = type(data._store.source).read
    monkeypatch.setattr(type(data._store.source), "read", lambda self, i: reads.append(i) or read(self, i))
    assert splits.calibrate.hash != splits.select.hash
    assert data.hash
    assert reads == []


def test_repr_is_short() -> None:
    assert repr(rows(3)) == "Dataset('arrays', 3 samples, labelled)"


def test_few_samples_are_two_halves() -> None:
    signature = sig("x float32 N 4")
    rng = np.random.default_rng(0)
    few, many = (
        Dataset.from_arrays({"x": rng.standard_normal((n, 4)).astype(np.float32)}, signature) for n in (30, 120)
    )
    parts = few.parts()
    assert parts.crossed and parts.select is parts.validate
    assert (len(parts.calibrate), len(parts.select)) == (15, 15)
    keys = [{s.key for s in part} for part in (parts.calibrate, parts.select)]
    assert not keys[0] & keys[1] and len(keys[0] | keys[1]) == 30
    again = few.take(29).parts()
    assert len(again.calibrate) + len(again.select) == 29
    assert not many.parts().crossed
