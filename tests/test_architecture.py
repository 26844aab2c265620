"""The order of the floors: a module may import its own floor and those below, never one above."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import onnxpress

ROOT = Path(onnxpress.__file__).parent
FLOORS = [
    "errors",
    "model",
    "runtime",
    "data",
    "measure",
    "train",
    "evaluate",
    "passes",
    "plan",
    "api",
    "search",
    "nas",
    "reporting",
    "cli",
]
FILES = sorted(ROOT.rglob("*.py"))


def floor(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            pytest.fail(f"{path}: relative imports hide the floor")
    return [name for name in found if name.startswith("onnxpress.")]


@pytest.mark.parametrize("path", [p for p in FILES if floor(p) in FLOORS], ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path: Path) -> None:
    own = FLOORS.index(floor(path))
    for name in imports(path):
        target = name.split(".")[1]
        if target in FLOORS:
            assert FLOORS.index(target) <= own, f"{path.relative_to(ROOT)} imports {name}, which is above it"


def test_every_room_stands_on_a_floor() -> None:
    known = {*FLOORS, "__init__", "__main__", "calibration", "pytest_plugin", "result"}
    assert {floor(p) for p in FILES} <= known


def test_only_the_editor_changes_graphs() -> None:
    words = ("replace_all_uses_with", "graph.remove(", "insert_before(", "insert_after(", "register_initializer")
    for path in FILES:
        text = path.read_text()
        if path.relative_to(ROOT).as_posix() in {"model/edit.py", "model/submodels.py"}:
            continue
        for word in words:
            for line in text.splitlines():
                if word in line and f"edit.{word}" not in line and "def " not in line:
                    assert "model.graph.remove(" in line, f"{path.relative_to(ROOT)}: {line.strip()}"


def test_rooms_are_not_heaps() -> None:
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 420, f"{path.relative_to(ROOT)} holds more than one subject"
