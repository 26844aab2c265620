"""Names of classes: how folders and named labels become the numbers that a model's outputs have."""

from __future__ import annotations

import ast
import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxpress.data.readers.files import existing, unreadable
from onnxpress.errors import InputProblem

_WHAT = "cannot read the class names"
_SHOWN = 5  # names in a message


def read_class_names(path: str | Path) -> dict[str, int]:
    """The number of each class by its name.

    A text file has one name a line, in order, or a number and a name; every word of a line names the class as well
    (n01440764 tench). A JSON file has a list, or a mapping from names to numbers or from numbers to names; of a
    config.json, `label2id` or `id2label` counts.

    Raises InputProblem.
    """
    source = existing(Path(path), _WHAT)
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(source, error) from error
    rows = _from_json(text, source) if source.suffix.lower() == ".json" else _from_lines(text)
    if not rows:
        raise InputProblem(_WHAT, source, "there are no names in it", "write one name a line")
    found: dict[str, int] = {}
    twice: set[str] = set()
    for number, name in rows:
        for form in {name, *_forms(name)}:
            if form in found and found[form] != number:
                twice.add(form)
            found.setdefault(form, number)
    whole = {name for _, name in rows}
    for form in twice:
        if form in whole:
            raise InputProblem(_WHAT, source, f"two classes are named {form!r}", "give each a name of its own")
        del found[form]
    return found


def class_names_of(metadata: Mapping[str, str]) -> dict[str, int]:
    """Class names that a model's file holds (`names`, a mapping from numbers, as detectors have); {} without."""
    try:
        given = ast.literal_eval(metadata.get("names", "{}"))
    except (ValueError, SyntaxError):
        return {}
    if not isinstance(given, dict):
        return {}
    return {name: number for number, name in given.items() if isinstance(number, int) and isinstance(name, str)}


def number_names(
    labels: Sequence[Any], known: Mapping[str, int], order: Sequence[str] = (), where: object = ""
) -> tuple[list[Any], tuple[str, ...], list[str]]:
    """Labels with numbers in place of names, the names that were numbered by their order, and notes.

    known: the number of each class; without it names are numbered in sorted order
    order: all names, where more are known than labels have (empty sub-folders)

    Raises InputProblem for a name that is not known.
    """
    named = [v for v in labels if isinstance(v, str)]
    if not named:
        return list(labels), (), []
    if known:
        unknown = next((name for name in named if name not in known), None)
        if unknown is not None:
            close = difflib.get_close_matches(unknown, list(known), n=1)
            hint = f"did you mean {close[0]}?" if close else "add it to the names, or leave its samples out"
            raise InputProblem("a class has no number", where, f"{unknown!r} is not among the class names", hint)
        return [known[v] if isinstance(v, str) else v for v in labels], (), ["classes numbered by their names"]
    names = tuple(order) or tuple(sorted(set(named)))
    index = {name: number for number, name in enumerate(names)}
    shown = ", ".join(f"{name}={i}" for name, i in list(index.items())[:_SHOWN]) + (
        ", …" if len(names) > _SHOWN else ""
    )
    what = f"labels from {len(names)} sub-folders in" if order else f"{len(names)} class names numbered in"
    return [index[v] if isinstance(v, str) else v for v in labels], names, [f"{what} sorted order ({shown})"]


def _from_json(text: str, source: Path) -> list[tuple[int, str]]:
    try:
        given = json.loads(text)
    except ValueError as error:
        raise InputProblem(_WHAT, source, f"not JSON: {error}") from None
    if isinstance(given, dict):
        given = given.get("label2id") or given.get("id2label") or given
    if isinstance(given, list) and all(isinstance(name, str) for name in given):
        return list(enumerate(given))
    if isinstance(given, dict):
        pairs = [(v, k) if isinstance(v, int) else (k, v) for k, v in given.items()]
        if all(str(number).isdecimal() and isinstance(name, str) for number, name in pairs):
            return [(int(number), str(name)) for number, name in pairs]
    raise InputProblem(
        _WHAT, source, "it is no list of names and no mapping of names and numbers", 'write ["cat", "dog"]'
    )


def _from_lines(text: str) -> list[tuple[int, str]]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    split = [line.replace(",", " ").replace(":", " ").split(None, 1) for line in lines]
    if lines and all(len(parts) == 2 and parts[0].isdecimal() for parts in split):
        return [(int(number), name.strip()) for number, name in split]
    if lines and all(" " in line and line.rsplit(None, 1)[1].isdecimal() for line in lines):
        return [(int(line.rsplit(None, 1)[1]), line.rsplit(None, 1)[0]) for line in lines]
    return list(enumerate(lines))


def _forms(name: str) -> set[str]:
    """Other spellings of a class: its first word, what follows it, and with underscores."""
    head, _, rest = name.partition(" ")
    return {form for form in (head, rest.strip(), name.replace(" ", "_")) if form}
