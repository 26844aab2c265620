"""Folders of .wav files."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from onnxpress.data.dataset import open_dataset
from tests.data.helpers import refused, sig

pytestmark = pytest.mark.unit

FIXED = sig("x float32 N 1000")


def sound(path: Path, values: np.ndarray, width: int = 2, rate: int = 16000) -> None:
    """values: [frames] or [frames, channels] in [-1, 1)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = np.round(values * 2 ** (8 * width - 1)).astype(np.int64)
    if width == 1:
        data = (whole + 128).astype(np.uint8).tobytes()
    else:
        data = whole.astype("<i8").reshape(-1, 1).view(np.uint8)[:, :width].tobytes()
    with wave.open(str(path), "wb") as stream:
        stream.setparams((1 if values.ndim == 1 else values.shape[1], width, rate, 0, "NONE", ""))
        stream.writeframes(data)


def ramp(count: int) -> np.ndarray:
    return np.linspace(-0.9, 0.9, count)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_widths(tmp_path: Path, width: int) -> None:
    sound(tmp_path / "a.wav", ramp(1000), width)
    data = open_dataset(tmp_path, FIXED)
    np.testing.assert_allclose(data[0].inputs["x"][0], ramp(1000), atol=2.0 ** (1 - 8 * width) + 1e-6)
    assert "16000 Hz as recorded, not resampled" in data.assumed


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("N 1000", (1, 1000)),
        ("N 1 1000", (1, 1, 1000)),
        ("N 1000 1", (1, 1000, 1)),
        ("N T", (1, 500)),
        ("N 1 T", (1, 1, 500)),
        ("T", (500,)),
    ],
)
def test_shapes(tmp_path: Path, model: str, shape: tuple[int, ...]) -> None:
    sound(tmp_path / "a.wav", ramp(500))
    value = open_dataset(tmp_path, sig(f"x float32 {model}"))[0].inputs["x"]
    assert value.shape == shape
    np.testing.assert_allclose(value.reshape(-1)[:500], ramp(500), atol=1e-4)
    assert not value.reshape(-1)[500:].any()


def test_center_crop_mono_and_integers(tmp_path: Path) -> None:
    stereo = np.stack([ramp(2000), -ramp(2000)], axis=1)
    sound(tmp_path / "a.wav", stereo + 0.05)
    data = open_dataset(tmp_path, FIXED)
    np.testing.assert_allclose(data[0].inputs["x"], 0.05, atol=1e-4)
    assert "channels averaged to mono" in data.assumed
    sound(tmp_path / "a.wav", ramp(2000))
    whole = open_dataset(tmp_path, sig("x int16 N 1000"))[0].inputs["x"][0]
    np.testing.assert_array_equal(whole, np.round(ramp(2000)[500:1500] * 32768))


def test_classes_and_label_files(tmp_path: Path) -> None:
    for name in ("yes/1.wav", "no/1.wav", "no/2.wav"):
        sound(tmp_path / "set" / name, ramp(300))
    data = open_dataset(tmp_path / "set", FIXED)
    assert [s.key for s in data] == ["no/1.wav", "no/2.wav", "yes/1.wav"]
    assert data.labels == [0, 0, 1]
    (tmp_path / "l.csv").write_text("file,label\nyes/1.wav,5\nno/2.wav,6\n")
    assert open_dataset(tmp_path / "set", FIXED, labels=str(tmp_path / "l.csv")).labels == [None, 6, 5]


def test_preprocessing(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav", ramp(1000))
    (tmp_path / "r.toml").write_text("[normalize]\nscale = 2\n")
    value = open_dataset(tmp_path, FIXED, preprocess=str(tmp_path / "r.toml"))[0].inputs["x"]
    np.testing.assert_allclose(value[0], 2 * ramp(1000), atol=1e-3)


def test_misuse(tmp_path: Path) -> None:
    good = tmp_path / "good"
    sound(good / "a.wav", ramp(400))
    for model in ("x float32 N 49 10 1", "x float32 N 40", "x float32 N 49 40"):
        refused(lambda m=model: open_dataset(good, sig(m)), "not a waveform", "compute the features")
    refused(lambda: open_dataset(good, sig("x float32 N T", "rate int64")), "feeds one input")
    whole = (good / "a.wav").read_bytes()
    floating = bytearray(whole)
    floating[20:22] = b"\x03\x00"
    bad = {
        "noise": b"nothing",
        "cut": whole[:200],
        "empty": whole[:40] + b"\0\0\0\0",
        "float": bytes(floating),
    }
    says = {"noise": "b.wav", "cut": "truncated", "empty": "no frames", "float": "b.wav"}
    for name, content in bad.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.wav").write_bytes(whole)
        (tmp_path / name / "b.wav").write_bytes(content)
        refused(lambda n=name: open_dataset(tmp_path / n, FIXED), "b.wav", says[name])
    sound(good / "b.wav", ramp(400), rate=8000)
    refused(lambda: open_dataset(good, FIXED), "b.wav at 8000 Hz, a.wav at 16000 Hz")


def test_any_rate_with_a_rate_that_is_named(tmp_path: Path) -> None:
    """A tone of 100 Hz at two rates becomes the same sound."""
    for name, rate in (("a", 8000), ("b", 22050)):
        time = np.arange(rate) / rate
        sound(tmp_path / "s" / f"{name}.wav", 0.5 * np.sin(2 * np.pi * 100 * time), rate=rate)
    refused(lambda: open_dataset(tmp_path / "s", FIXED), "differ in their sampling rate", "rate = 16000")
    (tmp_path / "rate.toml").write_text("[audio]\nrate = 16000\n")
    data = open_dataset(tmp_path / "s", FIXED, preprocess=str(tmp_path / "rate.toml"))
    assert "resampled to 16000 Hz" in data.assumed
    for sample in data:
        found = sample.inputs["x"][0]
        assert found.shape == (1000,) and found.max() == pytest.approx(0.5, abs=0.01)
        crossings = np.sum(np.diff(np.sign(found[found != 0])) != 0)
        assert crossings in (12, 13)  # 100 Hz in a sixteenth of a second


def test_flac_and_float_files(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.flac", ramp(1000), 16000)
    soundfile.write(tmp_path / "b.wav", ramp(1000).astype(np.float32), 16000, subtype="FLOAT")
    data = open_dataset(tmp_path, FIXED)
    for sample in data:
        np.testing.assert_allclose(sample.inputs["x"][0], ramp(1000), atol=1e-4)
    whole = open_dataset(tmp_path, sig("x int16 N 1000"))
    np.testing.assert_allclose(whole[0].inputs["x"][0], 32768 * ramp(1000), atol=1.5)
    (tmp_path / "c.flac").write_bytes(b"noise" * 40)
    refused(lambda: open_dataset(tmp_path, FIXED), "c.flac")
