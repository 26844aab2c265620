"""Samples that are not what a model expects are doubted, and others are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image

from onnxpress import quantize
from onnxpress.cli.main import run as cli
from onnxpress.data.dataset import Dataset, open_dataset
from onnxpress.measure.sample_doubts import sample_doubts
from onnxpress.model.files import save
from onnxpress.model.signature import signature
from tests import nets

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay")


def brightness_net() -> ir.Model:
    """Class by the brightness of a picture that is normalized to values from -1 to 1."""
    net = nets.image_net()
    mean = net.op("GlobalAveragePool", ["image"], 3)
    one = net.op("Flatten", [net.op("ReduceMean", [mean], 1, axes=[1], keepdims=1)], 1)
    steps = np.linspace(-0.9, 0.9, 10, dtype=np.float32)
    scores = net.op("Sub", [one, net.constant(steps[None])], 10)
    y = net.op("Mul", [net.op("Mul", [scores, scores], 10), net.constant(np.array(-40, np.float32))], 10)
    return net.model(y, nets.IMAGE, ["N", 10])


def pictures(folder: Path, names: tuple[str, ...] = NAMES, count: int = 4) -> Path:
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir(parents=True)
        level = 255 * (NAMES.index(name) * 0.2 + 0.1) / 2
        for i in range(count):
            noise = np.clip(level + rng.uniform(-3, 3, (8, 8, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(noise).save(folder / name / f"{i}.png")
    return folder


def test_the_best_preprocessing_is_named(tmp_path: Path) -> None:
    model = brightness_net()
    data = open_dataset(pictures(tmp_path / "pics"), signature(model))
    (doubt,) = sample_doubts(model, data)
    assert "symmetric" in doubt and "1.000 top-1 instead of 0.100" in doubt
    right = open_dataset(tmp_path / "pics", signature(model), preprocess="symmetric")
    assert sample_doubts(model, right) == []
    stored = {"image": np.stack([255 * (s.inputs["image"][0] + 1) / 2 for s in right]).round().astype(np.float32)}
    arrays = open_dataset({**stored, "labels": np.array(right.labels)}, signature(model))
    assert any("symmetric" in d for d in sample_doubts(model, arrays))


def test_folders_of_some_classes_are_doubted(tmp_path: Path) -> None:
    model = brightness_net()
    folder = pictures(tmp_path / "pics", ("cat", "dog", "hen"), 6)
    few = open_dataset(folder, signature(model), preprocess="symmetric")
    assert "3 classes are named, and the model has 10" in sample_doubts(model, few)[0]
    names = {name: i for i, name in enumerate(NAMES)}
    named = open_dataset(folder, signature(model), preprocess="symmetric", classes=names)
    assert sample_doubts(model, named) == []


def test_labels_of_chance_are_doubted() -> None:
    model = brightness_net()
    data = nets.samples(model, 64)
    labels = np.random.default_rng(0).integers(0, 10, 64)
    arrays = {"image": np.stack([s.inputs["image"][0] for s in data])}
    found = sample_doubts(model, Dataset.from_arrays(arrays, signature(model), labels=labels))
    assert "no more than a guess" in found[0]


@pytest.mark.parametrize("way", ["sub, div", "div", "batchnorm"])
def test_values_that_the_model_would_not_normalize(way: str) -> None:
    net = nets.image_net()
    x = "image"
    if way == "batchnorm":
        parts = [np.ones(3), np.zeros(3), np.full(3, 120.0), np.full(3, 3600.0)]
        x = net.op("BatchNormalization", [x, *(net.constant(p.astype(np.float32)) for p in parts)], 3)
    else:
        if way == "sub, div":
            x = net.op("Sub", [x, net.constant(np.full((3, 1, 1), 120, np.float32))], 3)
        x = net.op("Div", [x, net.constant(np.full((3, 1, 1), 60, np.float32))], 3)
    model = net.model(net.head(net.relu(net.conv(x, 8))), nets.IMAGE, ["N", 10])
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0, 255, (16, 3, 8, 8)).astype(np.float32)
    assert sample_doubts(model, Dataset.from_arrays({"image": pixels}, signature(model))) == []
    (doubt,) = sample_doubts(model, Dataset.from_arrays({"image": pixels / 255}, signature(model)))
    assert "normalizes input image itself" in doubt and "raw" in doubt


def test_commands_and_functions_say_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = brightness_net()
    save(model, tmp_path / "m.onnx")
    folder = pictures(tmp_path / "pics")
    command = ["quantize", str(tmp_path / "m.onnx"), "-d", str(folder), "-o", str(tmp_path / "q.onnx"), "-q"]
    assert cli([*command, "--strict"]) == 2
    assert "--preprocess symmetric" in capsys.readouterr().err and not (tmp_path / "q.onnx").exists()
    assert cli(command) == 0
    assert "warning: with --preprocess symmetric" in capsys.readouterr().err
    assert cli([*command, "--strict", "--preprocess", "symmetric"]) == 0
    assert any(note.startswith("warning: with `preprocess`") for note in quantize(model, folder).notes)
    (tmp_path / "names.txt").write_text("\n".join(reversed(NAMES)))
    assert cli([*command, "--strict", "--preprocess", "symmetric", "--classes", str(tmp_path / "names.txt")]) == 2


def test_class_names_of_the_model_file_are_used_where_they_are_the_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = brightness_net()
    model.metadata_props["names"] = str(dict(enumerate(NAMES)))
    save(model, tmp_path / "m.onnx")
    some = pictures(tmp_path / "some", ("cat", "dog", "hen"), 6)
    command = ["compare", str(tmp_path / "m.onnx"), str(tmp_path / "m.onnx"), "--preprocess", "symmetric", "--strict"]
    assert cli([*command, "-d", str(some)]) == 0
    assert "top-1 1.0000" in capsys.readouterr().out
    (some / "cat").rename(some / "lynx")
    assert cli([*command, "-d", str(some)]) == 2
    assert "3 classes are named" in capsys.readouterr().err
