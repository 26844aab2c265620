"""A pass of another package, installed as a wheel into a new environment, is reached like a built-in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

import onnxpress
from onnxpress.model.files import save
from tests import nets

PASS = '''
"""dropbias: removes biases of convolutions."""

from dataclasses import dataclass

from onnxpress.measure.output_gain import predicted_loss
from onnxpress.model import edit, read
from onnxpress.passes.core.contract import Applied, Planned, Proposal, Refusal, Saving, proposals
from onnxpress.passes.core.options import PassOptions, check_between, option


@dataclass(frozen=True)
class DropBiasOptions(PassOptions):
    """Which biases are removed."""

    ratio: float = option(0.5, help="Share of the convolutions whose bias is removed.")

    def check(self):
        check_between("ratio", "the ratio", self.ratio, "0.5", 0, 1.01)


class DropBias:
    """Removal of the biases of convolutions."""

    name = "dropbias"
    exact = False
    needs_data = True
    extra = None
    Options = DropBiasOptions

    def propose(self, evidence):
        for node in evidence.model.graph:
            if node.op_type == "Conv":
                bias = read.constant(node.inputs[2]) if len(node.inputs) > 2 else None
                if bias is None:
                    yield Refusal(node.name, "it has no bias")
                    continue
                loss = predicted_loss(evidence, node.name, float((bias**2).mean()))
                saving = Saving(weight_bytes=bias.nbytes)
                yield Proposal(node.name, {"node": node.name}, frozenset({node.name}), saving, loss)

    def plan(self, evidence, options):
        offers = sorted(proposals(self, evidence), key=lambda p: p.loss)
        return Planned([p.action for p in offers[: round(options.ratio * len(offers))]])

    def apply(self, evidence, actions):
        work = evidence.model.clone()
        names = {a["node"] for a in actions}
        for node in work.graph:
            if node.name in names and len(node.inputs) > 2:
                node.resize_inputs(2)
        edit.drop_dead(work)
        return Applied(work, [f"removed {len(names)} biases"])


DROPBIAS = DropBias()
'''
CONFORMANCE = """
from droppass import DROPBIAS
from onnxpress.testing import PassConformance


class TestDropBias(PassConformance):
    subject = DROPBIAS
"""


def wheel(folder: Path) -> Path:
    """A wheel with the pass and its entry point."""
    path = folder / "droppass-1.0-py3-none-any.whl"
    info = "droppass-1.0.dist-info"
    files = {
        "droppass.py": PASS,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: droppass\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[onnxpress.passes]\ndropbias = droppass:DROPBIAS\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)
    return path


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the wheel; packages of this environment are visible behind its own."""
    folder = tmp_path_factory.mktemp("plugin")
    venv.create(folder / "env", with_pip=True)
    interpreter = folder / "env" / "bin" / "python"
    install = [interpreter, "-m", "pip", "install", "-q", "--no-index", "--no-deps", wheel(folder)]
    subprocess.run([str(part) for part in install], check=True, capture_output=True)
    paths = [
        str(Path(onnxpress.__file__).parents[1]),
        sysconfig.get_paths()["purelib"],
        sysconfig.get_paths()["platlib"],
    ]
    site = next((folder / "env" / "lib").glob("python*")) / "site-packages"
    (site / "outer.pth").write_text("\n".join(dict.fromkeys(paths)) + "\n")
    return interpreter


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save(nets.residual(width=32), folder / "m.onnx")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 60)
    np.savez(folder / "d.npz", image=rng.standard_normal((60, 3, 8, 8)).astype(np.float32), labels=labels)
    return folder


def run(python: Path, *arguments: object) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), *map(str, arguments)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_pass_is_a_command_with_its_options(python: Path, files: Path) -> None:
    listed = run(python, "-m", "onnxpress", "--help")
    assert "dropbias" in listed and "(droppass)" in listed
    assert "--ratio" in run(python, "-m", "onnxpress", "dropbias", "--help")
    target, plan = files / "o.onnx", files / "p.json"
    command = ["-m", "onnxpress", "dropbias", files / "m.onnx", "-d", files / "d.npz", "-o", target, "--plan", plan]
    assert "o.onnx: 154" in run(python, *command, "--ratio", "1")
    again = files / "again.onnx"
    run(python, "-m", "onnxpress", "apply", plan, files / "m.onnx", "-d", files / "d.npz", "-o", again)
    assert again.read_bytes() == target.read_bytes()


def test_the_pass_is_a_function(python: Path, files: Path) -> None:
    code = (
        "import inspect, onnxpress\n"
        f"r = onnxpress.dropbias({str(files / 'm.onnx')!r}, {str(files / 'd.npz')!r}, ratio=1.0)\n"
        "assert 'dropbias' in dir(onnxpress) and 'ratio' in inspect.signature(onnxpress.dropbias).parameters\n"
        "print(r.notes)"
    )
    assert "biases" in run(python, "-c", code)


def test_inspect_asks_the_pass(python: Path, files: Path) -> None:
    text = run(python, "-m", "onnxpress", "inspect", files / "m.onnx", "-d", files / "d.npz", "--json")
    report = next(p for p in json.loads(text)["passes"] if p["name"] == "dropbias")
    assert report["package"] == "droppass" and report["proposals"] > 1 and report["loss"][0] > 0


@pytest.mark.alone
def test_optimize_tries_the_pass(python: Path, files: Path) -> None:
    target, small = files / "fast.onnx", files / "small.onnx"
    save(nets.residual(width=8, blocks=1), small)
    arguments = ["-d", files / "d.npz", "--max-drop", "0.5", "--time-budget", "30s", "--goal", "size", "-q"]
    run(python, "-m", "onnxpress", "optimize", small, *arguments, "-o", target)
    record = json.loads((files / "fast.run" / "run.json").read_text())
    assert any(c["name"].startswith("dropbias") and c["stage"] == "pass" for c in record["candidates"]), [
        c["name"] for c in record["candidates"]
    ]


def test_the_pass_passes_the_conformance_suite(python: Path, files: Path) -> None:
    (files / "test_dropbias.py").write_text(CONFORMANCE)
    assert " passed" in run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", files / "test_dropbias.py")


def test_a_broken_package_is_named(tmp_path: Path) -> None:
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[onnxpress.passes]\nbad = no_such_module:BAD\n")
    paths = os.pathsep.join([str(tmp_path), str(Path(onnxpress.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-m", "onnxpress", "bad", "--help"],
        env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "the pass bad cannot be loaded (broken)" in done.stderr and done.stderr.count("\n") == 1
