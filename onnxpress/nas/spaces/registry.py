"""Search spaces: functions of a trial that build a network; built-in ones, user functions, and TOML files.

A space gets each choice from its trial (`suggest_int`, `suggest_categorical`, `suggest_float`: the methods of an
optuna trial) and returns the network, so that a choice may depend on earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir

from onnxpress.data.readers.user_function import load_function_once
from onnxpress.errors import InputProblem
from onnxpress.nas.spaces import cells, toml_space
from onnxpress.nas.spaces.io_spec import IoSpec

READY = ("image-small", "image-mobile", "keyword-1d", "tabular-mlp", "text-encoder", "cell")


class Trial(Protocol):
    """The methods of a trial that a space uses: those of an optuna trial."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int: ...

    def suggest_float(self, name: str, low: float, high: float) -> float: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


Space = Callable[[Trial, IoSpec], ir.Model]


def load_space(name: str) -> Space:
    """A space by name: a built-in one, FILE.toml, or FILE.py:function.

    Raises InputProblem where there is none of that name, or the file is invalid.
    """
    if name == "cell":
        return cells.cell_space
    if name in READY:
        text = (resources.files("onnxpress.nas") / "ready" / f"{name}.toml").read_text()
        return toml_space.parse_space(text, name)
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise InputProblem("no such search space", path, "", f"a file, or one of {', '.join(READY)}")
        return toml_space.parse_space(path.read_text(), path)
    if ".py:" in name:
        return _user_space(name)
    raise InputProblem("no such search space", name, "", f"FILE.toml, FILE.py:function, or one of {', '.join(READY)}")


def _user_space(name: str) -> Space:
    found = load_function_once(name, "cannot load the search space")

    def own(trial: Trial, io_spec: IoSpec) -> ir.Model:
        try:
            model = found(trial, io_spec)
        except InputProblem:
            raise
        except Exception as error:  # user code may raise anything; it is reported in one line
            raise InputProblem("the search space failed", name, f"{type(error).__name__}: {error}") from error
        if not isinstance(model, ir.Model):
            raise InputProblem(
                "the search space returned no model", name, type(model).__name__, "return net.model({...})"
            )
        return model

    return own
