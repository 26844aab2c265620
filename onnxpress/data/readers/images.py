"""Folders of images, with classes from sub-folders or a label file.

Images are decoded when read, then resized and cropped by the preprocessing.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxpress.data import labels as labelling
from onnxpress.data.checks import is_float
from onnxpress.data.layout import BatchLayout
from onnxpress.data.prepare import run_function
from onnxpress.data.preprocessing import Preprocessing, read_preprocessing
from onnxpress.data.readers.arrays import single_port
from onnxpress.data.readers.files import classes, relative, unreadable
from onnxpress.data.readers.pixels import ImageSpec, image_spec, normalize, not_an_image_input, to_input_layout
from onnxpress.data.source import LoadedSource, SampleSource
from onnxpress.errors import InputProblem, missing_extra
from onnxpress.model.signature import Signature

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
LABELS = "labels.csv"
_PIXELS = 2**28  # larger images need `trust`: a small file can decode to any size
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class Images(SampleSource):
    """Images as samples of one input, decoded on every read."""

    def __init__(
        self,
        files: Sequence[Path],
        keys: Sequence[str],
        labels: Sequence[Any | None],
        spec: ImageSpec,
        preprocessing: Preprocessing,
        trust: bool,
    ) -> None:
        self._files, self._keys, self.labels = files, keys, labels
        self._spec, self._preprocessing, self._trust = spec, preprocessing, trust

    def read(self, index: int) -> dict[str, np.ndarray]:
        return {self._spec.port.name: load(self._files[index], self._spec, self._preprocessing, self._trust)}

    def key(self, index: int) -> str:
        return self._keys[index]


def open_images(
    folder: Path,
    files: Sequence[Path],
    signature: Signature,
    layout: BatchLayout,
    label_file: Path | None,
    preprocess: str | None,
    trust: bool,
) -> LoadedSource:
    """A source of images; the header of every file is read now.

    Raises InputProblem, or EnvironmentProblem without pillow.
    """
    _pillow()
    port = single_port(layout, folder, "a folder of images")
    preprocessing = read_preprocessing(preprocess or ("unit" if is_float(port.spec.dtype) else "raw"))
    spec = image_spec(port, preprocessing)
    if spec is None and preprocessing.function is not None:  # a function may return any array
        spec = ImageSpec(port, "NHWC", 3, None, None)
    if spec is None:
        raise not_an_image_input(port, folder)
    for path in files:
        check(path, trust)
    keys = relative(folder, files)
    inside = folder / LABELS
    if label_file is None and inside.is_file():
        label_file = inside
    order: tuple[str, ...] = ()
    if label_file is not None:
        values, notes = labelling.read_file(label_file, keys)
        labelling.check_label_count(values, len(files), label_file)
        labels, more = labelling.normalize_labels(values, signature, label_file)
        notes = [f"labels from {label_file.name}", *notes, *more]
    else:
        named, order, notes = classes(folder, files)
        labels = list(named) if named is not None else [None] * len(files)
    assumed = [
        preprocessing.values(),
        *([] if preprocessing.function else [spec.note]),
        *_geometry_notes(spec, preprocessing),
        *notes,
    ]
    return LoadedSource(
        Images(files, keys, labels, spec, preprocessing, trust), folder.name, assumed, ready=True, class_names=order
    )


def _geometry_notes(spec: ImageSpec, preprocessing: Preprocessing) -> list[str]:
    if preprocessing.function is not None:
        return []
    height, width = target_size(spec, preprocessing)
    if height is None and width is None and not isinstance(preprocessing.resize, int):
        return ["images keep their own size"]
    size = f"{height or 'own'} x {width or 'own'}"
    candidates = {
        "stretch": f"resized to {size}",
        "none": f"cropped to {size}" if preprocessing.crop == "center" else "not resized",
        "cover": f"resized to cover {size} / {preprocessing.ratio:g}",
    }
    text = candidates.get(str(preprocessing.resize), f"short side resized to {preprocessing.resize}")
    return [
        text + (f", centre {size} cropped" if preprocessing.crop == "center" and preprocessing.resize != "none" else "")
    ]


def _pillow() -> None:
    try:
        import_module("PIL.Image")
    except ImportError:
        raise missing_extra("pillow", "images", "reading images") from None


def check(path: Path, trust: bool) -> None:
    """Read the header only.  Raises InputProblem for anything but an image, an empty file, or too many pixels."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                width, height = image.size
    except Image.DecompressionBombError:
        raise _too_large(path, "") from None
    except Exception as error:
        # decoders of malicious or truncated files raise nearly anything (struct.error, SyntaxError,
        # IndexError, …)
        raise _no_image(path, error) from error
    if not trust and width * height > _PIXELS:
        raise _too_large(path, f"{width} x {height} pixels")


def _no_image(path: Path, error: BaseException) -> InputProblem:
    if path.stat().st_size == 0:
        return InputProblem("cannot read the image", path, "the file is empty", "remove it or restore it")
    problem = unreadable(path, error)
    why = "it is not an image that pillow can read" if "cannot identify" in problem.why else problem.why
    return InputProblem("cannot read the image", path, why, "remove it or restore it")


def _too_large(path: Path, why: str) -> InputProblem:
    return InputProblem(
        "the image is too large",
        path,
        why or "it claims too many pixels",
        "shrink it, or pass `trust` if the file is known good",
    )


def load(path: Path, spec: ImageSpec, preprocessing: Preprocessing, trust: bool = False) -> np.ndarray:
    """One image as the input's array without batch axis.  Raises InputProblem."""
    from PIL import Image, ImageOps

    check(path, trust)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings on metadata and sizes are not relevant here
            with Image.open(path) as opened:
                opened.load()
                image = _to_mode(ImageOps.exif_transpose(opened), spec, preprocessing)
    except InputProblem:
        raise
    except Exception as error:
        raise _no_image(path, error) from error
    if preprocessing.function is not None:
        return run_function(preprocessing, np.asarray(image))
    values = np.asarray(_resize_and_crop(image, spec, preprocessing))
    values = values[:, :, None] if values.ndim == 2 else values
    if preprocessing.mode == "gray" and spec.channels == 3:
        values = np.repeat(values[:, :, :1], 3, axis=2)
    return to_input_layout(normalize(values, preprocessing, path.name), spec)


def _to_mode(image: Image, spec: ImageSpec, preprocessing: Preprocessing) -> Image:
    """The image in 8 bits and the input's channels."""
    from PIL import Image as Images

    if image.mode == "F":
        raise InputProblem(
            "cannot read the image",
            image.filename if hasattr(image, "filename") else "",
            "it holds floating-point values",
            "save it with 8 bits, or give arrays",
        )
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.int64)
        image = Images.fromarray((deep >> 8 if deep.max(initial=0) > 255 else deep).clip(0, 255).astype(np.uint8))
    return image.convert("L" if preprocessing.mode == "gray" else _MODES[spec.channels])


def target_size(spec: ImageSpec, preprocessing: Preprocessing) -> tuple[int | None, int | None]:
    """Height and width of the result; None where an image keeps its own."""
    if spec.height is None and spec.width is None and preprocessing.size is not None:
        return preprocessing.size, preprocessing.size
    return spec.height, spec.width


def _resize_and_crop(image: Image, spec: ImageSpec, preprocessing: Preprocessing) -> Image:
    """The image resized and cropped.

    Sizes are rounded as in torchvision, so that its preprocessing gives the same pixels.
    """
    height, width = target_size(spec, preprocessing)
    own_width, own_height = image.size
    if height is None and width is not None:
        height = max(1, round(own_height * width / own_width))
    elif width is None and height is not None:
        width = max(1, round(own_width * height / own_height))
    size: tuple[int, int] | None = None  # width, height
    if isinstance(preprocessing.resize, int):
        size = _cover_size(own_width, own_height, preprocessing.resize, preprocessing.resize)
    elif height is not None and width is not None:
        if preprocessing.resize == "stretch":
            size = (width, height)
        elif preprocessing.resize == "cover":
            size = _cover_size(
                own_width, own_height, round(width / preprocessing.ratio), round(height / preprocessing.ratio)
            )
    if size is not None and size != image.size:
        from PIL import Image as Images

        image = image.resize(size, getattr(Images.Resampling, preprocessing.interpolation.upper()))
    if (
        preprocessing.crop == "center"
        and height is not None
        and width is not None
        and image.width >= width
        and image.height >= height
    ):
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        image = image.crop((left, top, left + width, top + height))
    return image


def _cover_size(width: int, height: int, to_width: int, to_height: int) -> tuple[int, int]:
    """The smallest size with the same aspect ratio that covers to_width x to_height; the longer side rounds down."""
    if width * to_height <= height * to_width:
        return to_width, max(to_height, int(to_width * height / width))
    return max(to_width, int(to_height * width / height)), to_height
