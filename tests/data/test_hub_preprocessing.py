"""Preprocessing as model hubs keep it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxpress.data.preprocessing import read_preprocessing
from tests.data.helpers import refused

pytestmark = pytest.mark.unit


def read(given: object, tmp_path: Path) -> dict[str, object]:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(given))
    found = read_preprocessing(str(path))
    keys = ("resize", "ratio", "crop", "size", "interpolation", "scale", "mean", "std")
    return {key: getattr(found, key) for key in keys}


def test_vit(tmp_path: Path) -> None:
    found = read(
        {"do_resize": True, "size": 224, "resample": 2, "do_normalize": True, "image_mean": [0.5] * 3,
         "image_std": [0.5] * 3},
        tmp_path,
    )  # fmt: skip
    assert (found["resize"], found["size"], found["crop"], found["mean"], found["std"]) == (
        224, 224, "none", (0.5,) * 3, (0.5,) * 3
    )  # fmt: skip
    assert found["scale"] == pytest.approx(1 / 255) and found["interpolation"] == "bilinear"


def test_clip(tmp_path: Path) -> None:
    found = read(
        {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True,
         "resample": 3, "do_rescale": False, "image_mean": [1, 2, 3], "image_std": [4, 5, 6]},
        tmp_path,
    )  # fmt: skip
    assert (found["resize"], found["crop"], found["size"], found["scale"]) == (224, "center", 224, 1.0)
    assert (found["mean"], found["std"], found["interpolation"]) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), "bicubic")


def test_fixed_height_and_width_stretch(tmp_path: Path) -> None:
    found = read({"size": {"height": 384, "width": 384}, "do_rescale": True, "rescale_factor": 0.5}, tmp_path)
    assert (found["resize"], found["size"], found["scale"], found["mean"]) == ("stretch", 384, 0.5, (0.0,))


def test_timm(tmp_path: Path) -> None:
    cfg = {"input_size": [3, 240, 240], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
           "crop_pct": 0.95, "interpolation": "bicubic"}  # fmt: skip
    found = read({"architecture": "x", "pretrained_cfg": cfg}, tmp_path)
    assert (found["resize"], found["ratio"], found["crop"], found["size"]) == ("cover", 0.95, "center", 240)
    assert read({**cfg, "crop_mode": "squash"}, tmp_path)["resize"] == "stretch"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"vocab_size": 3}, "no settings for images or sounds"),
        ([1], "no settings"),
        ({"image_mean": ["a"], "image_std": [1], "size": 3}, "unexpected form"),
        ({"mean": [1], "std": "x"}, "unexpected form"),
    ],
)
def test_wrong_files(given: object, says: str, tmp_path: Path) -> None:
    refused(lambda: read(given, tmp_path), says, "preprocessor_config.json")
