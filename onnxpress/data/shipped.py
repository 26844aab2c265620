"""Files that come with the package: calibration sets and preprocessing settings."""

from __future__ import annotations

from pathlib import Path

from onnxpress.errors import EnvironmentProblem


def calibration_folder() -> Path:
    """The folder `calibration`: in the installed package, or next to the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "calibration", package.parent / "calibration"):
        if (folder / "recipes").is_dir():
            return folder
    raise EnvironmentProblem("the shipped calibration files are missing", package, "", "install onnxpress again")
