"""Preprocessing: how images, arrays or text become what the model was trained on.

A preprocessing is a shipped name (`unit`, `imagenet`, …), a TOML file, "module:function" (array -> array), or a JSON
file that model hubs keep beside a model: `preprocessor_config.json`, or a `config.json` with `pretrained_cfg`
(`hub_preprocessing.py`).
The TOML file has these sections, all keys optional:

    description = "one line"
    [image]
    resize = "stretch"        # to the size of the input; "none"; a number: the short side in pixels;
                              # "cover": such that the crop is `ratio` of the short side
    ratio = 1.0               # for "cover": 0.875 resizes to 256 for a crop of 224
    crop = "none"             # "center"
    size = 224                # where height and width are dynamic; without it images keep their size
    interpolation = "bilinear"  # "nearest", "bicubic", "lanczos", "box"
    mode = "rgb"              # "bgr", "gray"
    [normalize]               # (value * scale - mean) / std; mean and std: one number, or one per channel
    scale = 1.0
    mean = 0.0
    std = 1.0
    layout = "auto"           # "nchw", "nhwc": where the model's shape is ambiguous
    [audio]
    rate = 16000              # sounds are resampled to it
    [text]
    max_length = 512
    special_tokens = true
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxpress.data.hub_preprocessing import hub_settings
from onnxpress.data.readers.files import existing
from onnxpress.data.readers.user_function import load_function, names_function
from onnxpress.data.shipped import calibration_folder
from onnxpress.errors import InputProblem

_WHAT = "cannot use the preprocessing"
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box")


@dataclass(frozen=True)
class Preprocessing:
    """Settings of a preprocessing; the module's docstring explains each key.

    function: in place of all other settings
    """

    name: str
    description: str = ""
    resize: str | int = "stretch"
    ratio: float = 1.0
    crop: str = "none"
    size: int | None = None
    interpolation: str = "bilinear"
    mode: str = "rgb"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str = "auto"
    max_length: int | None = None
    special_tokens: bool = True
    rate: int | None = None
    function: Callable[[np.ndarray], Any] | None = None

    @property
    def plain(self) -> bool:
        """Whether values stay unchanged."""
        return (
            self.function is None
            and self.scale == 1
            and set(self.mean) == {0.0}
            and set(self.std) == {1.0}
            and self.mode != "bgr"
        )

    def values(self) -> str:
        """What happens to the values, for notes."""
        if self.function is not None:
            return f"preprocessed by {self.name}"
        if self.plain:
            return "values as stored"
        if set(self.mean) == {0.0} and set(self.std) == {1.0} and np.isclose(self.scale, 1 / 255):
            return "scaled to [0,1]"
        parts = [f"scale {self.scale:.6g}"] if self.scale != 1 else []
        parts += [f"mean {_numbers(self.mean)}", f"std {_numbers(self.std)}"]
        return f"normalised ({', '.join(parts)})" + (", channels BGR" if self.mode == "bgr" else "")


def _numbers(values: tuple[float, ...]) -> str:
    return "/".join(f"{v:.6g}" for v in values)


def names() -> list[str]:
    """Names of the shipped preprocessings."""
    return sorted(p.stem for p in (calibration_folder() / "recipes").glob("*.toml"))


def read_preprocessing(text: str) -> Preprocessing:
    """The preprocessing of a shipped name, a TOML file or a function.  Raises InputProblem."""
    if names_function(text):
        function = load_function(text, _WHAT)
        if not callable(function):
            raise InputProblem(_WHAT, text, f"it is a {type(function).__name__}, expected a function (array -> array)")
        return Preprocessing(text, function=function)
    if text.lower().endswith(".toml"):
        return load(existing(Path(text), _WHAT))
    if text.lower().endswith(".json"):
        return Preprocessing(text, **hub_settings(existing(Path(text), _WHAT)))
    known = names()
    if text in known:
        return load(calibration_folder() / "recipes" / f"{text}.toml")
    close = difflib.get_close_matches(text, known, n=1)
    raise InputProblem(
        _WHAT,
        text,
        f"there is no such preprocessing; shipped are {', '.join(known)}",
        f"did you mean {close[0]}?" if close else "name one of them, a .toml or .json file, or module:function",
    )


def load(path: Path) -> Preprocessing:
    """The preprocessing of a TOML file.  Raises InputProblem with file and line."""
    try:
        text = path.read_text(encoding="utf-8")
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        place = f"{path}:{line[1]}" if line else f"{path}:{text.count(chr(10)) + 1}"
        raise InputProblem(_WHAT, place, f"not TOML: {str(error).split(' (at')[0]}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputProblem(_WHAT, path, str(error)) from error
    return _Reader(path, text).preprocessing(given)


_Check = Callable[[Any], Any]


def _one_of(*choices: str) -> _Check:
    def check(value: Any) -> Any:
        if value not in choices:
            raise ValueError(f"expected {' or '.join(choices)}")
        return value

    return check


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise ValueError("expected a number")
    return float(value)


def _positive(value: Any) -> float:
    number = _number(value)
    if number <= 0:
        raise ValueError("expected a number above 0")
    return number


def _pixels(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("expected a whole number, 1 or more")
    return value


def _share(value: Any) -> float:
    number = _number(value)
    if not 0 < number <= 1:
        raise ValueError("expected a number above 0 and at most 1")
    return number


def _channels(value: Any) -> tuple[float, ...]:
    found = tuple(_number(v) for v in value) if isinstance(value, list) else (_number(value),)
    if not found:
        raise ValueError("expected a number, or one per channel")
    return found


def _deviations(value: Any) -> tuple[float, ...]:
    found = _channels(value)
    if min(found) <= 0:
        raise ValueError("expected numbers above 0")
    return found


def _resize(value: Any) -> str | int:
    if isinstance(value, str):
        return str(_one_of("stretch", "cover", "none")(value))
    return _pixels(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


_SECTIONS: dict[str, dict[str, _Check]] = {
    "image": {
        "resize": _resize,
        "ratio": _share,
        "crop": _one_of("none", "center"),
        "size": _pixels,
        "interpolation": _one_of(*INTERPOLATIONS),
        "mode": _one_of("rgb", "bgr", "gray"),
    },
    "normalize": {
        "scale": _positive,
        "mean": _channels,
        "std": _deviations,
        "layout": _one_of("auto", "nchw", "nhwc"),
    },
    "audio": {"rate": _pixels},
    "text": {"max_length": _pixels, "special_tokens": _flag},
}


class _Reader:
    """Checks the tables of one file, and finds the line of an error."""

    def __init__(self, path: Path, text: str) -> None:
        self._path, self._lines = path, text.splitlines()

    def preprocessing(self, given: dict[str, Any]) -> Preprocessing:
        values: dict[str, Any] = {}
        for name, table in given.items():
            if name == "description" and isinstance(table, str):
                values[name] = table
            elif name not in _SECTIONS or not isinstance(table, dict):
                raise self._wrong(name, "", f"unknown section {name!r}", f"the sections are {', '.join(_SECTIONS)}")
            else:
                for key, value in table.items():
                    values[key] = self._value(name, key, value)
        return Preprocessing(self._path.stem, **values)

    def _value(self, section: str, key: str, value: Any) -> Any:
        checks = _SECTIONS[section]
        if key not in checks:
            close = difflib.get_close_matches(key, list(checks), n=1)
            raise self._wrong(
                section,
                key,
                f"unknown key {key!r} in [{section}]",
                f"did you mean {close[0]}?" if close else f"the keys are {', '.join(checks)}",
            )
        try:
            return checks[key](value)
        except ValueError as error:
            raise self._wrong(section, key, f"{key} = {value!r}: {error}") from None

    def _wrong(self, section: str, key: str, why: str, hint: str = "") -> InputProblem:
        inside, line = False, 1
        for number, text in enumerate(self._lines, 1):
            if re.match(rf"\s*\[\s*{re.escape(section)}\s*\]|\s*{re.escape(section)}\s*[.=]", text):
                inside, line = True, number
            elif re.match(r"\s*\[", text) and "=" not in text:
                inside = False
            if inside and key and re.search(rf"(^|[.\s{{,]){re.escape(key)}\s*=", text):
                line = number
                break
        return InputProblem(_WHAT, f"{self._path}:{line}", why, hint)
