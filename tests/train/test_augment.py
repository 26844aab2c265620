"""Changes of samples: what an input is told to be, what each change does, and what `auto` dares."""

from __future__ import annotations

import numpy as np
import pytest

from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem
from onnxpress.model.signature import Signature, TensorSpec
from onnxpress.train import augment
from onnxpress.train.augment import AUGMENTATIONS, augment_batch, input_fields, select_applicable, select_automatically
from onnxpress.train.augmentations import InputField

pytestmark = pytest.mark.unit

RNG = np.random.default_rng(0)
F = np.float32


def dataset(**arrays: np.ndarray) -> Dataset:
    specs = tuple(TensorSpec(n, a.dtype, ("N", *a.shape[1:])) for n, a in arrays.items())
    return Dataset.from_arrays(arrays, Signature(specs, (TensorSpec("y", np.dtype(F), ("N", 2)),)))


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal((12, *shape)).astype(F)


@pytest.mark.parametrize(
    ("shape", "kind", "channel", "space"),
    [
        ((3, 32, 32), "image", 1, (2, 3)),
        ((32, 32, 3), "image", 3, (1, 2)),
        ((1, 8, 8), "image", 1, (2, 3)),
        ((49, 10, 1), "spectrogram", 3, (1, 2)),
        ((1, 40, 300), "spectrogram", 1, (3, 2)),
        ((80, 300), "spectrogram", None, (2, 1)),
        ((16, 8, 8), "vector", None, ()),
        ((20,), "vector", None, ()),
    ],
)
def test_what_an_input_is(shape: tuple[int, ...], kind: str, channel: int | None, space: tuple[int, ...]) -> None:
    (found,) = input_fields(dataset(x=numbers(*shape)))
    assert (found.kind, found.channel, found.space) == (kind, channel, space)


def sentences(first: int = 101, mask_token: bool = True) -> dict[str, np.ndarray]:
    ids = RNG.integers(1000, 2000, (12, 10))
    mask = np.ones_like(ids)
    ids[:, 0] = first
    for i in range(12):
        end = 5 + i % 5
        ids[i, end - 1], ids[i, end:], mask[i, end:] = 102, 7, 0
    return {"ids": ids, "mask": mask} if mask_token else {"ids": ids}


def test_tokens_and_their_blank() -> None:
    (bert,) = input_fields(dataset(**sentences()))
    assert (bert.kind, bert.mask, bert.blank) == ("tokens", "mask", 103)
    (other,) = input_fields(dataset(**sentences(first=5)))
    assert other.blank == 7, "the padding, told from where the mask is zero"
    (bare,) = input_fields(dataset(**sentences(first=5, mask_token=False)))
    assert (bare.mask, bare.blank) == (None, None)


def test_token_dropout_spares_ends_and_padding() -> None:
    arrays = sentences()
    found = input_fields(dataset(**arrays))
    known = set(np.unique(arrays["ids"])) | {103}
    touched = np.zeros(arrays["ids"].shape, bool)
    for seed in range(50):
        made, mix = augment_batch(arrays, found, ("tokens",), np.random.default_rng(seed))
        assert mix is None
        assert made["ids"].dtype == np.int64
        assert set(np.unique(made["ids"])) <= known, "every id is in the data"
        assert np.array_equal(made["mask"], arrays["mask"])
        touched |= made["ids"] != arrays["ids"]
    last = arrays["mask"].sum(1) - 1
    assert not touched[:, 0].any()
    assert not touched[np.arange(12), last].any()
    assert not touched[arrays["mask"] == 0].any()
    assert touched[:, 1:4].mean() > 0.9


@pytest.mark.parametrize("shape", [(3, 16, 16), (16, 16, 3)])
def test_flip_mirrors_left_and_right(shape: tuple[int, ...]) -> None:
    x = numbers(*shape)
    (found,) = input_fields(dataset(x=x))
    made, _ = augment_batch({"x": x}, [found], ("flip",), np.random.default_rng(0))
    mirrored = np.flip(x, 3 if shape[0] == 3 else 2)
    same = [np.array_equal(a, b) for a, b in zip(made["x"], x, strict=True)]
    turned = [np.array_equal(a, b) for a, b in zip(made["x"], mirrored, strict=True)]
    assert all(a != b for a, b in zip(same, turned, strict=True))
    assert any(same) and any(turned)


def test_shift_moves_at_most_an_eighth_and_keeps_the_middle() -> None:
    x = numbers(3, 16, 16)
    found = input_fields(dataset(x=x))
    made, _ = augment_batch({"x": x}, found, ("shift",), np.random.default_rng(1))
    for new, old in zip(made["x"], x, strict=True):
        moves = [(a, b) for a in range(-2, 3) for b in range(-2, 3)
                 if np.array_equal(new[:, 4:12, 4:12], old[:, 4 + a : 12 + a, 4 + b : 12 + b])]  # fmt: skip
        assert len(moves) == 1


def test_a_spectrum_shifts_along_time_only() -> None:
    x = np.broadcast_to(np.arange(10, dtype=F).reshape(1, 1, 10, 1), (12, 49, 10, 1)).copy()
    found = input_fields(dataset(x=x))
    made, _ = augment_batch({"x": x}, found, ("shift",), np.random.default_rng(0))
    assert np.array_equal(made["x"], x), "what differs in frequency alone stays where it is"


def test_a_stretched_slope_stays_a_line() -> None:
    """A slope along time has one slope inside whatever is stretched, and repeats its ends."""
    x = np.broadcast_to(np.arange(48, dtype=F).reshape(1, 48, 1, 1), (12, 48, 8, 1)).copy()
    found = input_fields(dataset(x=x + 0.01 * numbers(48, 8, 1)))
    made, _ = augment_batch({"x": x}, found, ("stretch",), np.random.default_rng(0))
    slopes = np.diff(made["x"][:, :, 0, 0], axis=1)
    steepest = slopes.max(1)
    assert ((steepest > 0.79) & (steepest < 1.21)).all()
    assert np.ptp(steepest) > 0.1
    inside = (slopes > 1e-3) & (np.abs(slopes - steepest[:, None]) > 1e-3)
    assert (inside.sum(1) <= 2).all(), "the two steps where the border begins"
    assert np.array_equal(made["x"][..., 0, 0], made["x"][..., 5, 0])


def test_a_tone_is_the_same_at_every_position() -> None:
    """Of a picture one factor and an offset a colour; of a spectrum an offset a band."""
    for x, still in ((numbers(3, 16, 16), (2, 3)), (numbers(48, 10, 1), (1,))):
        found = input_fields(dataset(x=x))
        made, _ = augment_batch({"x": x}, found, ("tone",), np.random.default_rng(0))
        assert not np.allclose(made["x"], x, atol=0.01)
        centred = [v - v.mean(still, keepdims=True) for v in (made["x"], x)]
        factor = (centred[0] * centred[1]).sum((1, 2, 3)) / (centred[1] ** 2).sum((1, 2, 3))
        np.testing.assert_allclose(centred[0], factor.reshape(12, 1, 1, 1) * centred[1], atol=1e-4)


def test_cutmix_of_a_spectrum_takes_a_stretch_of_time() -> None:
    x = np.broadcast_to(np.arange(12, dtype=F).reshape(12, 1, 1, 1), (12, 49, 10, 1)).copy()
    found = input_fields(dataset(x=numbers(49, 10, 1)))
    made = next(
        m["x"]
        for s in range(9)
        if (got := augment_batch({"x": x}, found, ("cutmix",), np.random.default_rng(s)))[1] is not None
        and (m := got[0])
    )
    assert (np.ptp(made, axis=(2, 3)) == 0).all()
    assert (np.abs(np.diff(made[:, :, 0, 0], axis=1)) > 0).sum(1).max() <= 2


def test_cutout_leaves_the_mean_in_a_box() -> None:
    x = numbers(3, 16, 16)
    made, _ = augment_batch({"x": x}, input_fields(dataset(x=x)), ("cutout",), np.random.default_rng(0))
    changed = made["x"] != x
    assert (changed.reshape(12, -1).sum(1) == 3 * 4 * 4).all()
    assert made["x"][0][changed[0]] == pytest.approx(x[0].mean())


@pytest.mark.parametrize("way", ["mixup", "cutmix"])
def test_mixing_returns_its_matrix(way: str) -> None:
    """With pictures of one colour each, the mean of a mixed one is the matrix times the means."""
    x = np.broadcast_to(np.arange(12, dtype=F).reshape(12, 1, 1, 1), (12, 3, 16, 16)).copy()
    found = input_fields(dataset(x=x))
    matrices = []
    for seed in range(8):
        made, matrix = augment_batch({"x": x}, found, (way,), np.random.default_rng(seed))
        if matrix is None:
            assert np.array_equal(made["x"], x)
            continue
        matrices.append(matrix)
        np.testing.assert_allclose(matrix.sum(1), 1)
        np.testing.assert_allclose(made["x"].mean((1, 2, 3)), matrix @ np.arange(12), rtol=1e-4, atol=1e-4)
    assert 0 < len(matrices) < 8


def test_the_given_batch_is_not_changed() -> None:
    x = numbers(3, 16, 16)
    before = x.copy()
    augment_batch(
        {"x": x}, input_fields(dataset(x=x)), tuple(n for n in AUGMENTATIONS if n != "tokens"), np.random.default_rng(0)
    )
    assert np.array_equal(x, before)


def test_the_same_draw_gives_the_same_batch() -> None:
    x = numbers(3, 16, 16)
    found = input_fields(dataset(x=x))
    names = ("flip", "shift", "noise", "cutmix")
    one, two = (augment_batch({"x": x}, found, names, np.random.default_rng([3, 4]))[0]["x"] for _ in range(2))
    assert one.tobytes() == two.tobytes()


def test_auto_leaves_out_what_changes_the_answers() -> None:
    """The first teacher evaluations at which side is brighter, the second at the whole: flips are for the second
    only.
    """
    x = numbers(3, 16, 16)
    x[:, :, :, :8] += np.where(np.arange(12) % 2, 2, -2).reshape(12, 1, 1, 1).astype(F)
    data = dataset(x=x)
    found = input_fields(data)

    def sides(inputs: dict[str, np.ndarray]) -> np.ndarray:
        left, right = inputs["x"][..., :8].mean((1, 2, 3)), inputs["x"][..., 8:].mean((1, 2, 3))
        return np.stack([left, right], 1)

    def whole(inputs: dict[str, np.ndarray]) -> np.ndarray:
        mean = inputs["x"].mean((1, 2, 3))
        return np.stack([mean, np.zeros_like(mean)], 1)

    assert "flip" not in select_automatically(found, data, sides, labelled=False)
    assert "flip" in select_automatically(found, data, whole, labelled=False)
    assert "flip" not in select_automatically(found, data, whole, labelled=True)


def test_unsuitable_augmentations_are_refused() -> None:
    found = input_fields(dataset(x=numbers(20)))
    assert select_applicable(["mixup", "noise"], found) == ("noise", "mixup")
    with pytest.raises(InputProblem, match=r"flip.*vector"):
        select_applicable(["flip"], found)
    with pytest.raises(InputProblem, match="blur"):
        augment.check_augmentations(["blur"])
    with pytest.raises(InputProblem, match="no input"):
        select_applicable(["noise"], [])


def test_an_integer_picture_is_left_alone() -> None:
    assert input_fields(dataset(x=RNG.integers(0, 2, (12, 8)))) == ()
    assert InputField("x", "vector").space == ()
