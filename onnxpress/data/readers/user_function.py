"""Python objects by name: "package.module:function" and "path/to/file.py:function".

Naming an object runs its module, which is what the user asks for.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from onnxpress.data.readers.files import existing
from onnxpress.errors import InputProblem

_FORM = re.compile(r"(?P<place>.+\.py|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*)")


def names_function(text: str) -> bool:
    """Whether text has the form of a named object, and is not an existing file."""
    return len(text) < 1000 and _FORM.fullmatch(text) is not None and not Path(text).exists()


def load_function(text: str, what: str) -> Any:
    """The object that text names.  what: the clause for errors ("cannot read the data").  Raises InputProblem."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise InputProblem(what, text, "expected module:function or file.py:function")
    place, name = match["place"], match["name"]
    module = _from_file(Path(place), text, what) if place.endswith(".py") else _from_name(place, text, what)
    try:
        return getattr(module, name)
    except AttributeError:
        others = [
            n
            for n, v in vars(module).items()
            if not n.startswith("_") and callable(v) and getattr(v, "__module__", "") == module.__name__
        ]
        raise InputProblem(
            what, text, f"{place} has no {name!r}", f"it has {', '.join(others)}" if others else ""
        ) from None


@cache
def load_function_once(text: str, what: str) -> Callable[..., Any]:
    """The same for a function that is called often: its module runs once. Raises InputProblem."""
    found = load_function(text, what)
    if not callable(found):
        raise InputProblem(what, text, f"it is a {type(found).__name__}", "name a function")
    function: Callable[..., Any] = found
    return function


def _from_file(path: Path, text: str, what: str) -> ModuleType:
    existing(path, what)
    alias = f"_onnxpress_named_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(alias, path)
    if spec is None or spec.loader is None:
        raise InputProblem(what, text, f"{path} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module  # dataclasses and pickle look up the module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[alias]
        raise user_code_problem(text, error, what) from error
    return module


def _from_name(place: str, text: str, what: str) -> ModuleType:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)  # an installed command does not have the current folder in it
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(error.name + ".")):
            raise InputProblem(
                what,
                text,
                f"there is no module {error.name!r}",
                "run from its folder, or name the file: path/to/file.py:function",
            ) from None
        raise user_code_problem(text, error, what) from error
    except Exception as error:
        raise user_code_problem(text, error, what) from error
    finally:
        if added:
            sys.path.remove(here)


def user_code_problem(text: str, error: BaseException, what: str) -> InputProblem:
    """The error for user code that raised."""
    lines = str(error).strip().splitlines()
    return InputProblem(
        what,
        text,
        f"it raised {type(error).__name__}" + (f": {lines[0]}" if lines else ""),
        "run it alone to see the traceback",
    )
