"""What results have in common: JSON documents, and how they are shown in a terminal or a notebook."""

from __future__ import annotations

import html
import math
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

SCHEMA = 1


def plain(value: Any) -> Any:
    """The JSON form of a value: dataclasses, arrays and paths; infinities and NaN become null."""
    if isinstance(value, Result):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def document(kind: str, **body: Any) -> dict[str, Any]:
    """One JSON document with its schema version."""
    return {"schema": SCHEMA, "kind": kind, **{k: plain(v) for k, v in body.items()}}


class Result:
    """Base of everything that the Python functions return.

    A result prints as a short table of its facts, in notebooks as HTML, and has `to_dict` for JSON. Fields that hold
    models or file contents are not part of the dictionary.
    """

    _hidden: ClassVar[frozenset[str]] = frozenset(("model", "data"))

    def facts(self) -> list[tuple[str, str]]:
        """The facts that are shown, as pairs of a label and a text."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        own = fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
        shown = [f.name for f in own if f.name not in self._hidden and not f.name.startswith("_")]
        return {name: plain(getattr(self, name)) for name in shown}

    def __repr__(self) -> str:
        rows = self.facts()
        width = max((len(label) for label, _ in rows), default=0)
        lines = [f"  {label:{width}}  {text}" for label, text in rows]
        return "\n".join([type(self).__name__, *lines])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in self.facts())
        return f"<table><caption>{type(self).__name__}</caption>{rows}</table>"


def size_change_text(before: float, after: float) -> str:
    """Two sizes of a file for people, and which is how many times the other."""
    times = max(before, after) / max(min(before, after), 1)
    how = "the same size" if times < 1.005 else f"{times:.2f}x {'larger' if after > before else 'smaller'}"
    return f"{size_text(before)} -> {size_text(after)} ({how})"


def size_text(count: float) -> str:
    """A number of bytes for people, in B, kB or MB (powers of 1000)."""
    return f"{count:.0f} B" if count < 1e3 else f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.2f} MB"
