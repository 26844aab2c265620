"""Preprocessing as model hubs keep it in JSON beside a model.

`preprocessor_config.json` of transformers: do_resize, size, resample, do_center_crop, crop_size, do_rescale,
rescale_factor, do_normalize, image_mean, image_std; for sounds sampling_rate.
`config.json` of timm: pretrained_cfg (or the keys themselves) with input_size, mean, std, crop_pct, interpolation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxpress.errors import InputProblem

_WHAT = "cannot use the preprocessing"
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}  # as pillow numbers them
_NAMES = ("nearest", "bilinear", "bicubic", "lanczos", "box")
_KEYS = ("image_mean", "do_normalize", "do_rescale", "image_std", "rescale_factor")


def hub_settings(path: Path) -> dict[str, Any]:
    """The settings of a Preprocessing that a file means.  Raises InputProblem."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputProblem(_WHAT, path, f"not JSON: {error}") from None
    if not isinstance(given, dict):
        raise InputProblem(_WHAT, path, "it holds no settings")
    inner = given.get("pretrained_cfg", given)
    try:
        if isinstance(inner, dict) and "mean" in inner and "std" in inner:
            return _of_timm(inner)
        if "sampling_rate" in given:
            return {"description": "preprocessor_config.json", "rate": int(given["sampling_rate"])}
        if any(key in given for key in _KEYS):
            return _of_transformers(given)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise InputProblem(_WHAT, path, f"a setting has an unexpected form: {error}") from None
    raise InputProblem(
        _WHAT, path, "there are no settings for images or sounds in it", "give preprocessor_config.json, or a TOML file"
    )


def _of_transformers(given: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {"description": "preprocessor_config.json"}
    size, crop = _side(given.get("size")), _side(given.get("crop_size"))
    shortest = isinstance(given.get("size"), int) or "shortest_edge" in (given.get("size") or {})
    if not given.get("do_resize", True) or size is None:
        settings["resize"] = "none"
    else:
        settings |= {"resize": size if shortest else "stretch", "size": size}
    if given.get("do_center_crop", False):
        settings |= {"crop": "center", "size": crop or size}
        settings["resize"] = settings["resize"] if size is None else size
    if isinstance(given.get("resample"), int):
        settings["interpolation"] = _RESAMPLE[given["resample"]]
    settings["scale"] = float(given.get("rescale_factor", 1 / 255)) if given.get("do_rescale", True) else 1.0
    if given.get("do_normalize", True) and "image_mean" in given:
        settings |= {"mean": _numbers(given["image_mean"]), "std": _numbers(given["image_std"])}
    return {key: value for key, value in settings.items() if value is not None}


def _of_timm(given: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "description": "pretrained_cfg",
        "resize": "cover",
        "ratio": float(given.get("crop_pct", 0.875)),
        "crop": "center",
        "scale": 1 / 255,
        "mean": _numbers(given["mean"]),
        "std": _numbers(given["std"]),
    }
    if "input_size" in given:
        settings["size"] = int(given["input_size"][-1])
    if given.get("interpolation") in _NAMES:
        settings["interpolation"] = given["interpolation"]
    if given.get("crop_mode") == "squash":
        settings |= {"resize": "stretch", "crop": "none"}
    return settings


def _side(size: Any) -> int | None:
    """The side of a square that a size means; the height of another one."""
    if isinstance(size, dict):
        size = size.get("shortest_edge", size.get("height"))
    return None if size is None else int(size)


def _numbers(values: Any) -> tuple[float, ...]:
    found = tuple(float(v) for v in (values if isinstance(values, list) else [values]))
    if not found or not np.isfinite(found).all():
        raise ValueError(f"{values!r}")
    return found
