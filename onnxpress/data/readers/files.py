"""Files: existing paths, the contents of folders, classes from sub-folders."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from onnxpress.errors import InputProblem


def existing(path: Path, what: str = "cannot read the data") -> Path:
    """The path where it exists.  Raises InputProblem with the closest existing name."""
    try:
        if path.exists():
            return path
    except OSError as error:  # a name that is too long, or a folder without permission
        raise InputProblem(what, str(path)[:80], error.strerror or "the path cannot be accessed") from None
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    wanted = path.relative_to(folder).parts[0] if folder in path.parents and folder != path else path.name
    try:
        names = sorted(p.name for p in folder.iterdir())
    except OSError:
        names = []
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
    hint = f"did you mean {folder / close[0]}?" if close else "check the path"
    raise InputProblem(what, path, "it does not exist", hint)


def listing(folder: Path, suffixes: Iterable[str], leave: Iterable[Path] = ()) -> list[Path]:
    """All files below a folder with one of these suffixes (lower case), sorted by relative path; no hidden files."""
    wanted, left = frozenset(suffixes), {p.resolve() for p in leave}
    found = [p for p in _walk(folder) if p.suffix.lower() in wanted and (not left or p.resolve() not in left)]
    return sorted(found, key=lambda p: p.relative_to(folder).parts)


def suffixes(folder: Path) -> Counter[str]:
    """Number of files below a folder by suffix (lower case, "" without one)."""
    return Counter(p.suffix.lower() for p in _walk(folder))


def _walk(folder: Path) -> Iterable[Path]:
    """Files below a folder; linked folders are entered once, hidden files and folders are skipped."""
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                yield Path(root) / name


def relative(folder: Path, files: Sequence[Path]) -> list[str]:
    """The files' names below the folder, with forward slashes: the keys of their samples."""
    return [p.relative_to(folder).as_posix() for p in files]


def classes(folder: Path, files: Sequence[Path]) -> tuple[list[str] | None, tuple[str, ...], list[str]]:
    """The class of each file by the first level of sub-folders, all classes in sorted order, and notes.

    None where files lie in the folder itself, or where there is only one sub-folder.  An empty sub-folder is a class
    without samples.
    """
    parts = [p.relative_to(folder).parts for p in files]
    if any(len(part) < 2 for part in parts):
        some = any(len(part) > 1 for part in parts)
        return None, (), ["no labels: files lie outside the sub-folders"] if some else []
    used = {part[0] for part in parts}
    empty = {p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and not any(p.iterdir())}
    names = tuple(sorted(used | empty))
    if len(names) < 2:
        return None, (), [f"no labels: {names[0]!r} is the only sub-folder"] if names else []
    return [part[0] for part in parts], names, []


def unreadable(path: Path | str, error: BaseException, hint: str = "") -> InputProblem:
    """The error for a file that exists and cannot be read or decoded."""
    why = str(error).strip().splitlines()
    return InputProblem(
        "cannot read the data",
        path,
        why[0] if why else type(error).__name__,
        hint or "check that the file is complete",
    )
