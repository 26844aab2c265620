"""Folders of images: sizes, layouts, classes, preprocessing, and files that are not images."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxpress.data.dataset import open_dataset
from onnxpress.data.readers import images
from onnxpress.errors import EnvironmentProblem
from tests.data.helpers import refused, sig

pytestmark = pytest.mark.unit

NCHW = sig("x float32 N 3 8 8")


def picture(path: Path, height: int = 8, width: int = 8, seed: int = 0, **how: object) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, **how)  # type: ignore[arg-type]
    return pixels


def test_layouts_and_types(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png")
    gray = np.asarray(Image.fromarray(pixels).convert("L"))
    unit = pixels.astype(np.float32) * np.float32(1 / 255)
    cases = [
        ("x float32 N 3 8 8", unit.transpose(2, 0, 1)[None], "layout NCHW from the model's input"),
        ("x float32 N 8 8 3", unit[None], "layout NHWC from the model's input"),
        ("x float32 1 3 8 8", unit.transpose(2, 0, 1)[None], "scaled to [0,1]"),
        ("x float32 3 8 8", unit.transpose(2, 0, 1), "layout NCHW"),
        ("x uint8 N 8 8 3", pixels[None], "values as stored"),
        ("x float32 N 1 8 8", gray[None, None] * np.float32(1 / 255), "scaled to [0,1]"),
        ("x uint8 N 8 8 1", gray[None, :, :, None], "layout NHWC"),
        ("x uint8 N 8 8", gray[None], "layout NHW"),
        ("x float32 N C H W", unit.transpose(2, 0, 1)[None], "layout NCHW assumed"),
        ("x float32 N H W 3", unit[None], "images keep their own size"),
    ]
    for model, expected, note in cases:
        data = open_dataset(tmp_path, sig(model, outputs=("y float32 1 5",)))
        found = data[0].inputs["x"]
        assert found.shape == expected.shape, model
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=model)
        assert any(note in a for a in data.assumed), (model, data.assumed)


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "bmp", "webp", "gif", "tiff", "PNG"])
def test_file_types(tmp_path: Path, suffix: str) -> None:
    picture(tmp_path / f"a.{suffix}")
    assert open_dataset(tmp_path, NCHW)[0].inputs["x"].shape == (1, 3, 8, 8)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16", "LA"])
def test_modes_of_images(tmp_path: Path, mode: str) -> None:
    gray = Image.fromarray(np.full((8, 8), 200, np.uint8))
    image = Image.fromarray(np.full((8, 8), 200 * 257, np.uint16)) if mode == "I;16" else gray.convert(mode)
    image.save(tmp_path / ("a.tiff" if mode == "CMYK" else "a.png"))
    value = open_dataset(tmp_path, NCHW)[0].inputs["x"]
    assert value.shape == (1, 3, 8, 8)
    if mode != "1":
        np.testing.assert_allclose(value, 200 / 255, atol=0.01)


def test_orientation_is_respected(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    found = open_dataset(tmp_path, sig("x uint8 N 8 8 3"))[0].inputs["x"][0]
    np.testing.assert_array_equal(found, np.rot90(pixels, -1))


def test_classes_from_sub_folders(tmp_path: Path) -> None:
    picture(tmp_path / "dog" / "1.png", seed=1)
    picture(tmp_path / "cat" / "7.png", seed=2)
    picture(tmp_path / "cat" / "deep" / "2.png", seed=3)
    picture(tmp_path / ".hidden" / "2.png")
    (tmp_path / "eel").mkdir()
    data = open_dataset(tmp_path, NCHW)
    assert [s.key for s in data] == ["cat/7.png", "cat/deep/2.png", "dog/1.png"]
    assert data.labels == [0, 0, 1]
    assert "labels from 3 sub-folders in sorted order (cat=0, dog=1, eel=2)" in data.assumed


def test_no_classes_without_sub_folders(tmp_path: Path) -> None:
    picture(tmp_path / "only" / "1.png")
    data = open_dataset(tmp_path, NCHW)
    assert not data.labelled
    assert "no labels: 'only' is the only sub-folder" in data.assumed
    picture(tmp_path / "2.png")
    picture(tmp_path / "other" / "1.png")
    assert not open_dataset(tmp_path, NCHW).labelled


def test_label_files(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / "set" / f"{i}.png", seed=i)
    inside = tmp_path / "set" / "labels.csv"
    outside = tmp_path / "marks.txt"
    texts = [
        ("filename,label\n2.png,4\n0.png,5\n1.png,6\n", [5, 6, 4]),
        ("2.png,4\n0.png,5\n1.png,6\n", [5, 6, 4]),
        ("label\n1\n2\n3\n", [1, 2, 3]),
        ("0.png 1\n1.png 2\n2.png 3\n", [1, 2, 3]),
        ("image\ttarget\n2\t4\n0\t5\n", [5, None, 4]),
        ("filename,class,width\n2.png,cat,8\n0.png,dog,8\n1.png,cat,8\n9.png,cat,8\n", [1, 0, 0]),
    ]
    for text, labels in texts:
        outside.write_text(text)
        assert open_dataset(tmp_path / "set", NCHW, labels=str(outside)).labels == labels, text
        inside.write_text(text)
        assert open_dataset(tmp_path / "set", NCHW).labels == labels, text
        inside.unlink()
    for text, says in [
        ("1\n2\n", "2 labels for 3 samples"),
        ("a.png,1\nb.png,2\n", "samples are named like '0.png'"),
        ("", "empty"),
    ]:
        outside.write_text(text)
        refused(lambda: open_dataset(tmp_path / "set", NCHW, labels=str(outside)), "marks.txt", says)
    refused(lambda: open_dataset(tmp_path / "set", NCHW, labels="mark"), "no keys or columns")


def test_imagenet_equals_torchvision(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", height=50, width=37)
    model = sig("x float32 N 3 28 28")
    found = open_dataset(tmp_path, model, preprocess="imagenet")[0].inputs["x"][0]
    image = Image.fromarray(pixels).resize((32, int(32 * 50 / 37)), Image.Resampling.BILINEAR)
    top, left = round((image.height - 28) / 2), round((image.width - 28) / 2)
    cropped = np.asarray(image.crop((left, top, left + 28, top + 28))).astype(np.float32) / 255
    expected = (cropped - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=1e-5)


def test_shipped_preprocessings_on_images(tmp_path: Path) -> None:
    pixels = np.full((20, 20, 3), (10, 100, 250), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    rgb = np.array([10, 100, 250])
    cases = {
        "raw": rgb,
        "unit": rgb / 255,
        "tf": rgb / 127.5 - 1,
        "caffe": rgb[::-1] - [103.939, 116.779, 123.68],
        "clip": (rgb / 255 - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711],
    }
    for name, expected in cases.items():
        for model, axes in (("x float32 N 3 8 8", (2, 3)), ("x float32 N 8 8 3", (1, 2))):
            value = open_dataset(tmp_path, sig(model), preprocess=name)[0].inputs["x"]
            np.testing.assert_allclose(value.mean(axis=axes)[0], expected, atol=1e-4, err_msg=f"{name} {model}")


def test_a_dynamic_size_takes_that_of_the_preprocessing(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 30, 40)
    picture(tmp_path / "b.png", 10, 12)
    model = sig("x float32 N 3 H W")
    assert [s.inputs["x"].shape for s in open_dataset(tmp_path, model)] == [(1, 3, 30, 40), (1, 3, 10, 12)]
    assert open_dataset(tmp_path, model, preprocess="imagenet")[1].inputs["x"].shape == (1, 3, 224, 224)
    assert open_dataset(tmp_path, sig("x float32 N 3 15 W"))[0].inputs["x"].shape == (1, 3, 15, 20)
    assert open_dataset(tmp_path, sig("x float32 N 3 H 20"))[0].inputs["x"].shape == (1, 3, 15, 20)


def test_user_function(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "a.png", 9, 9)
    code = tmp_path / "mine.py"
    code.write_text(
        "import numpy as np\ndef good(a):\n    return a[:8, :8].transpose(2, 0, 1).astype(np.float32) / 2\n"
        "def none(a):\n    pass\ndef bad(a):\n    return 1 / 0\nvalue = 3\n"
    )
    data = open_dataset(tmp_path / "set", NCHW, preprocess=f"{code}:good")
    assert data[0].inputs["x"].shape == (1, 3, 8, 8)
    assert any("preprocessed by" in a for a in data.assumed)
    for name, says in [
        ("none", "returned None"),
        ("bad", "ZeroDivisionError"),
        ("value", "expected a function"),
        ("gone", "has no 'gone'"),
    ]:
        refused(lambda n=name: open_dataset(tmp_path / "set", NCHW, preprocess=f"{code}:{n}"), says)


def test_function_for_an_input_that_is_not_an_image(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "a.png", 9, 9)
    code = tmp_path / "mean.py"
    code.write_text("def colour(a):\n    return a.mean(axis=(0, 1)) / 255\n")
    data = open_dataset(tmp_path / "set", sig("x float32 N 3"), preprocess=f"{code}:colour")
    assert data[0].inputs["x"].shape == (1, 3)
    assert not any("layout" in a for a in data.assumed)


def test_preprocessing_keys_for_images(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "set" / "a.png", 16, 32)
    settings = tmp_path / "r.toml"

    def opened(text: str, model: str) -> np.ndarray:
        settings.write_text(text)
        return open_dataset(tmp_path / "set", sig(model), preprocess=str(settings))[0].inputs["x"][0]

    gray = opened('[image]\nmode = "gray"\nresize = "none"\n', "x uint8 N H W 3")
    assert (gray[:, :, 0] == gray[:, :, 2]).all()
    assert gray.shape == (16, 32, 3)
    cut = opened('[image]\nresize = "none"\ncrop = "center"\n', "x uint8 N 8 8 3")
    np.testing.assert_array_equal(cut, pixels[4:12, 12:20])
    short = opened("[image]\nresize = 8\n", "x uint8 N H W 3")
    assert short.shape == (8, 16, 3)
    free = opened('[image]\nmode = "gray"\n[normalize]\nlayout = "nhwc"\n', "x uint8 N H W C")
    assert free.shape == (16, 32, 1)
    settings.write_text('[image]\nresize = "none"\n')
    model = sig("x float32 N 3 8 8")
    refused(
        lambda: open_dataset(tmp_path / "set", model, preprocess=str(settings)), "a.png", "[3,16,32]", "resize or crop"
    )


def test_images_are_decoded_when_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(5):
        picture(tmp_path / f"{i}.png", seed=i)
    opened: list[str] = []
    load = images.load
    monkeypatch.setattr(images, "load", lambda path, *rest: opened.append(path.name) or load(path, *rest))
    data = open_dataset(tmp_path, NCHW)
    assert opened == ["0.png"]
    assert data[3].key == "3.png"
    assert next(iter(data)).key == "0.png"
    assert opened == ["0.png", "3.png", "0.png"]


def bomb() -> bytes:
    """A PNG that claims 40000 x 40000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    head = (40000).to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_misuse(tmp_path: Path) -> None:
    picture(tmp_path / "good" / "a.png", 16, 16)
    whole = (tmp_path / "good" / "a.png").read_bytes()
    bad = {"b.png": b"no image at all", "c.png": b"", "d.png": bomb()}
    says = {"b.png": "not an image that pillow can read", "c.png": "the file is empty", "d.png": "too large"}
    for name, content in bad.items():
        folder = tmp_path / name.removesuffix(".png")
        folder.mkdir()
        (folder / "a.png").write_bytes(whole)
        (folder / name).write_bytes(content)
        refused(lambda f=folder: open_dataset(f, NCHW), name, says[name])
    (tmp_path / "good" / "cut.png").write_bytes(whole[: len(whole) // 2])
    data = open_dataset(tmp_path / "good", NCHW)  # its header is whole
    refused(lambda: data[1], "cannot read the image", "cut.png")
    for model in ("x float32 N 16 8 8", "x float32 N 10", "x int64 N 3 3 3 3"):
        refused(lambda m=model: open_dataset(tmp_path / "good", sig(m)), "which is not an image")
    refused(
        lambda: open_dataset(tmp_path / "good", sig("x float32 N 3 8 8", "y float32 N 1")),
        "feeds one input, the model has 2",
    )
    refused(
        lambda: open_dataset(tmp_path / "good", sig("x float32 N 1 8 8"), preprocess="imagenet"),
        "has 3 channels, the data 1",
    )
    refused(lambda: open_dataset(tmp_path / "good", sig("x uint8 N 3 8 8"), preprocess="unit"), "with fractions")
    refused(lambda: open_dataset(tmp_path / "good" / "a.png", NCHW), "one sample", "give its folder")
    image = Image.fromarray(np.ones((8, 8), np.float32))
    (tmp_path / "float").mkdir()
    image.save(tmp_path / "float" / "a.tiff")
    refused(lambda: open_dataset(tmp_path / "float", NCHW), "floating-point")


def test_missing_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(EnvironmentProblem, match=r"onnxpress\[images\]"):
        open_dataset(tmp_path, NCHW)
