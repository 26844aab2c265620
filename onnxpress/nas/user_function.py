"""User functions, given as FILE.py:function."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from onnxpress.errors import InputProblem


@cache
def load_user_function(name: str, purpose: str) -> Callable[..., Any]:
    """Load the function that FILE.py:function names; the file runs once.

    purpose: of the function, for messages.
    Raises InputProblem where there is no such file or function, or the file raises an error.
    """
    file, _, function = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise InputProblem(f"no such {purpose}", path, "", "give the path of a Python file")
    spec = importlib.util.spec_from_file_location(f"onnxpress_user_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # user code may raise anything; it is reported in one line
        raise InputProblem(f"the {purpose} cannot be loaded", path, f"{type(error).__name__}: {error}") from error
    found: Callable[..., Any] | None = getattr(module, function, None)
    if not callable(found):
        raise InputProblem("the file has no such function", path, function, "give FILE.py:function")
    return found
