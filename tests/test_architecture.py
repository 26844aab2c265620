"""The structure of the package: layers of imports, sizes of files, folders and functions, and names of the field."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import onnxpress

pytestmark = pytest.mark.unit

ROOT = Path(onnxpress.__file__).parent
# A module may import its own layer and those before it in the list.
LAYERS = [
    "errors",
    "progress",
    "result",
    "model",
    "runtime",
    "data",
    "measure",
    "train",
    "evaluate",
    "passes",
    "plan",
    "testing",
    "api",
    "search",
    "nas",
    "reporting",
    "cli",
]
# The same among the families of passes.
FAMILIES = ["core", "exact", "weights", "int8", "pruning", "structure", "distillation", "registry"]
FILES = sorted(ROOT.rglob("*.py"))
MOST_LINES, MOST_FILES, FUNCTION_LINES, PARAMETERS = 420, 16, 60, 8

# Words of earlier versions that are no terms of the field, as names of modules, classes, functions and parameters.
REPLACED_NAMES = set(
    """Wish Workshop Shelf Ground Sketch Rung Couple Spread School Pupil Look Here Asking Answers Digest Book Stored
    Seen     Ledger Packer Sides Taught Lesson Lessons Way Watch Wires Judge Outcome Packing Closure
    lever harm wish shop shelf fast_enough fastest safest taught begun told_within side_by_side compared relieved
    downdate chance ranges8 recipe8 weights8 tables8 inner8 compact8 minded centres lean fewbits bit_budget schooling
    lesson pupils pace ways growth look orders described wires alike steady told said tell
    merge_alike known_targets settle plan_path run_folder no_repair spine repair decision decisions""".split()
)
# The gate of `bench` decides; plans of fake quantization and models have targets and pairs of their own.
ALLOWED = {
    "evaluate/gate.py",
    "evaluate/slowdown.py",
    "cli/bench.py",
    "cli/output/bench_tables.py",
    "cli/output/bench_files.py",
    "pytest_plugin.py",
    "reporting/benched.py",
}


def layer(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            pytest.fail(f"{path}: relative imports hide the layer")
    return [name for name in found if name.startswith("onnxpress.")]


@pytest.mark.parametrize("path", [p for p in FILES if layer(p) in LAYERS], ids=short)
def test_imports_run_downwards(path: Path) -> None:
    own = LAYERS.index(layer(path))
    for name in imports(path):
        target = name.split(".")[1]
        if target in LAYERS:
            assert LAYERS.index(target) <= own, f"{short(path)} imports {name}, which is above it"


@pytest.mark.parametrize("path", [p for p in FILES if layer(p) == "passes"], ids=short)
def test_families_of_passes_import_downwards(path: Path) -> None:
    family = path.relative_to(ROOT / "passes").with_suffix("").parts[0]
    for name in imports(path):
        parts = name.split(".")
        if parts[1] == "passes" and family in FAMILIES and parts[2] in FAMILIES:
            assert FAMILIES.index(parts[2]) <= FAMILIES.index(family), f"{short(path)} imports {name}"


def test_every_file_belongs_to_a_layer() -> None:
    known = {*LAYERS, "__init__", "__main__", "calibration", "pytest_plugin"}
    assert {layer(p) for p in FILES} <= known


def test_no_package_has_the_name_of_a_public_function() -> None:
    packages = {p.name for p in ROOT.iterdir() if p.is_dir()}
    modules = {p.stem for p in ROOT.glob("*.py")}
    assert not (packages | modules) & set(dir(onnxpress)) - {"__init__"}


def test_only_the_editor_changes_graphs() -> None:
    words = ("replace_all_uses_with", "graph.remove(", "insert_before(", "insert_after(", "register_initializer")
    for path in FILES:
        if short(path) in {"model/edit.py", "model/submodels.py"}:
            continue
        for line in path.read_text().splitlines():
            for word in words:
                if word in line and f"edit.{word}" not in line and "def " not in line:
                    assert "model.graph.remove(" in line, f"{short(path)}: {line.strip()}"


def test_files_and_folders_have_one_subject() -> None:
    for path in FILES:
        assert len(path.read_text().splitlines()) <= MOST_LINES, f"{short(path)} holds more than one subject"
    for folder in {p.parent for p in FILES}:
        count = len([p for p in folder.glob("*.py") if p.name != "__init__.py"])
        assert count <= MOST_FILES, f"{short(folder)} has {count} files: make folders of them"


def functions(path: Path) -> list[ast.FunctionDef]:
    return [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]


def parameters(function: ast.FunctionDef) -> list[str]:
    found = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return found[1:] if found[:1] in (["self"], ["cls"]) else found


@pytest.mark.parametrize("path", FILES, ids=short)
def test_functions_are_short_and_take_few_parameters(path: Path) -> None:
    for function in functions(path):
        if layer(path) == "cli" and function.name.endswith("command"):
            continue  # one parameter for each option
        where = f"{short(path)}: {function.name}"
        lines = (function.end_lineno or 0) - function.lineno + 1
        assert lines <= FUNCTION_LINES, f"{where} has {lines} lines"
        assert len(parameters(function)) <= PARAMETERS, f"{where} has {len(parameters(function))} parameters"


@pytest.mark.parametrize("path", [p for p in FILES if short(p) not in ALLOWED], ids=short)
def test_names_are_terms_of_the_field(path: Path) -> None:
    names = {path.stem, path.parent.name}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.FunctionDef):
            names |= {node.name, *parameters(node)}
    found = sorted(n for n in names if n.strip("_") in REPLACED_NAMES)
    assert not found, f"{short(path)}: {', '.join(found)}"


def test_no_flags_of_the_command_line_below_it() -> None:
    flag = re.compile(r"(?<![\w`-])--[a-z][a-z-]+")
    for path in FILES:
        if layer(path) == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = re.sub(r"`[^`]* [^`]*`", "", node.value)  # whole commands in backticks
                found = flag.findall(text)
                assert not found, f"{short(path)}, line {node.lineno}: {found[0]}"


TESTS = Path(__file__).parent
TEST_FILES = [p.relative_to(TESTS) for p in sorted(TESTS.rglob("test_*.py")) if p.parent != TESTS]


@pytest.mark.parametrize(
    "path", [p for p in TEST_FILES if p.parts[0] not in ("integration", "conformance")], ids=lambda p: p.as_posix()
)
def test_the_tests_of_a_module_have_its_name(path: Path) -> None:
    """Tests of several modules are in tests/integration."""
    module = path.parent / path.name.removeprefix("test_")
    assert (ROOT / module).is_file(), f"tests/{path.as_posix()}: there is no onnxpress/{module.as_posix()}"
