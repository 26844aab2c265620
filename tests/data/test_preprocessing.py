"""Preprocessing: shipped ones, TOML files and their errors, and arrays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxpress.data import shipped
from onnxpress.data.dataset import open_dataset
from onnxpress.data.preprocessing import load, names, read_preprocessing
from onnxpress.data.shipped import calibration_folder
from onnxpress.errors import EnvironmentProblem
from tests.data.helpers import floats, refused, sig

pytestmark = pytest.mark.unit


def test_shipped_preprocessings() -> None:
    assert names() == ["caffe", "cifar", "clip", "imagenet", "mnist", "raw", "symmetric", "tf", "unit"]
    assert (calibration_folder() / "recipes" / "imagenet.toml").is_file()
    for name in names():
        found = read_preprocessing(name)
        assert found.name == name
        assert found.description
        assert found.values()


def test_every_key_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'description = "mine"\n[image]\nresize = 40\nratio = 0.5\ncrop = "center"\nsize = 32\n'
        'interpolation = "box"\nmode = "gray"\n[normalize]\nscale = 2\nmean = [1, 2, 3]\nstd = 4\n'
        'layout = "nhwc"\n[text]\nmax_length = 9\nspecial_tokens = false\n'
    )
    found = load(path)
    assert (found.name, found.resize, found.crop, found.size, found.interpolation, found.mode) == (
        "mine",
        40,
        "center",
        32,
        "box",
        "gray",
    )
    assert (found.scale, found.mean, found.std, found.layout, found.max_length) == (
        2.0,
        (1, 2, 3),
        (4,),
        "nhwc",
        9,
    )
    assert not found.special_tokens


MISTAKES = [
    ("[image\n", ":1", "not TOML"),
    ("[image]\ncrop = center\n", ":2", "not TOML"),
    ("a = 1\n", ":1", "unknown section 'a'"),
    ("[image]\n\n[picture]\n", ":3", "unknown section 'picture'"),
    ("[image]\ncrop = 'none'\nresise = 'stretch'\n", ":3", "did you mean resize"),
    ("[image]\ncrop = 'middle'\n", ":2", "expected none or center"),
    ("[image]\nresize = 0\n", ":2", "1 or more"),
    ("[image]\nratio = 1.5\n", ":2", "at most 1"),
    ("[image]\ncrop = 'none'\n[normalize]\nmean = 0\nstd = [1, 0]\n", ":5", "above 0"),
    ("[normalize]\nscale = 'x'\n", ":2", "expected a number"),
    ("[normalize]\nmean = []\n", ":2", "one per channel"),
    ("[text]\nspecial_tokens = 1\n", ":2", "true or false"),
    ("image.crop = 'x'\n", ":1", "expected none or center"),
    ("image = 3\n", ":1", "unknown section"),
]


@pytest.mark.parametrize(("text", "line", "says"), MISTAKES)
def test_errors_have_file_and_line(tmp_path: Path, text: str, line: str, says: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    refused(lambda: load(path), f"bad.toml{line}", says)


def test_unknown_preprocessings(tmp_path: Path) -> None:
    refused(
        lambda: read_preprocessing("imagenett"),
        "shipped are caffe, cifar, clip, imagenet, mnist, raw, symmetric, tf, unit",
        "did you mean imagenet?",
    )
    refused(lambda: read_preprocessing("zzz"), "no such preprocessing", "module:function")
    refused(lambda: read_preprocessing(str(tmp_path / "none.toml")), "does not exist")
    refused(lambda: read_preprocessing("no_such_module_anywhere:f"), "there is no module 'no_such_module_anywhere'")
    assert read_preprocessing("math:sqrt").function is not None


def test_preprocessings_of_arrays() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (4, 8, 9, 3), np.uint8)
    nchw, nhwc = sig("x float32 N 3 8 9"), sig("x float32 N 8 9 3")
    refused(lambda: open_dataset({"x": pictures}, nchw), "NHWC")
    scaled = open_dataset({"x": pictures}, nchw, preprocess="unit")
    np.testing.assert_allclose(scaled[1].inputs["x"][0], pictures[1].transpose(2, 0, 1) / 255, atol=1e-6)
    assert "arrays converted from NHWC to NCHW, the layout of the model's input" in scaled.assumed
    caffe = open_dataset({"x": pictures}, nchw, preprocess="caffe")[1].inputs["x"][0]
    expected = pictures[1][:, :, ::-1] - np.array([103.939, 116.779, 123.68])
    np.testing.assert_allclose(caffe, expected.transpose(2, 0, 1), atol=1e-4)
    same = open_dataset({"x": pictures}, nhwc, preprocess="imagenet")
    assert not any("turned" in a for a in same.assumed)
    plain = open_dataset({"x": pictures}, nhwc)
    assert "uint8 values of 'x' fed as float32 without scaling" in plain.assumed
    np.testing.assert_array_equal(plain[0].inputs["x"][0], pictures[0])
    free = open_dataset({"x": pictures}, sig("x float32 N C H W"), preprocess="unit")
    assert free[0].inputs["x"].shape == (1, 3, 8, 9)


def test_preprocessings_of_other_arrays(tmp_path: Path) -> None:
    path = tmp_path / "int8.toml"
    path.write_text("[normalize]\nscale = 0.5\nmean = 3\n")
    features = np.arange(-10, 10, dtype=np.int8).reshape(2, 10)
    data = open_dataset({"x": features}, sig("x float32 N 10"), preprocess=str(path))
    np.testing.assert_allclose(data[1].inputs["x"][0], features[1] * 0.5 - 3)
    assert any("scale 0.5" in a for a in data.assumed)
    two = sig("x float32 N 3 4 4", "flag int64 N 1")
    both = open_dataset({"x": floats(2, 3, 4, 4), "flag": np.ones((2, 1))}, two, preprocess="unit")
    assert both[0].inputs["flag"] == 1
    assert both[0].inputs["x"].max() < 0.01
    refused(
        lambda: open_dataset({"x": features}, two, preprocess="math:sqrt"),
        "a function takes one array, the model has 2 inputs",
    )
    wrong = sig("x float32 N 10")
    refused(
        lambda: open_dataset({"x": features}, wrong, preprocess="imagenet"),
        "arrays[0]",
        "has 3 channels, the data 10",
    )


def test_preprocessings_are_found_in_a_wheel_and_in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "onnxpress" / "data" / "shipped.py"
    monkeypatch.setattr(shipped, "__file__", str(module))
    with pytest.raises(EnvironmentProblem, match="shipped calibration files are missing"):
        calibration_folder()
    (tmp_path / "calibration" / "recipes").mkdir(parents=True)
    assert calibration_folder() == tmp_path / "calibration"
    (tmp_path / "onnxpress" / "calibration" / "recipes").mkdir(parents=True)
    assert calibration_folder() == tmp_path / "onnxpress" / "calibration"


def test_the_documentation_has_every_recipe(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "samples.md").read_text()
    assert all(f"| `{name}` |" in page for name in names())
    (tmp_path / "imagenet.toml").write_text(page.split("```toml\n")[1].split("```")[0])
    imagenet = load(calibration_folder() / "recipes" / "imagenet.toml")
    assert replace(load(tmp_path / "imagenet.toml"), max_length=None, rate=None) == imagenet
