"""Whether two versions of onnxpress write the same models: a digest of the initializers of every result, and their
comparison.

    ONNXPRESS_ZOO=path/to/zoo python benchmarks/same_initializers.py run before.json
    ONNXPRESS_ZOO=path/to/zoo python benchmarks/same_initializers.py run after.json
    python benchmarks/same_initializers.py diff before.json after.json

`run` calls the installed command line on every case of the zoo, so that the two runs may be made by two checkouts
(PYTHONPATH names one). A digest covers the element type, the shape and the bytes of every initializer, and the
operators of the graph; names are not part of it. `diff` exits with 1 where a digest differs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from onnx import numpy_helper

SAMPLES = 256  # of the training split: more than the statistics of any of the commands read
COMMANDS = {
    "quantize": ["quantize"],
    "prune --macs 0.7": ["prune", "--macs", "0.7"],
    "weights --bits 4": ["weights", "--bits", "4"],
    "share": ["share"],
    "depth --keep 0.7": ["depth", "--keep", "0.7"],
}


def digest(path: Path) -> str:
    """SHA-256 of a model's initializers and operator counts, independent of names and order."""
    graph = onnx.load(path).graph
    arrays = [numpy_helper.to_array(t) for t in graph.initializer]
    parts = sorted(hashlib.sha256(f"{a.dtype}{a.shape}".encode() + a.tobytes()).hexdigest() for a in arrays)
    operators = sorted(Counter(n.op_type for n in graph.node).items())
    return hashlib.sha256(json.dumps([parts, operators]).encode()).hexdigest()


def zoo_module(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("zoo_cases", folder / "cases.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["zoo_cases"] = module
    spec.loader.exec_module(module)
    return module


@click.group()
def main() -> None:
    """Digests of what the commands write, and their comparison."""


@main.command()
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--zoo", envvar="ONNXPRESS_ZOO", required=True, type=click.Path(path_type=Path))
@click.option("--cases", default="", help="Comma-separated; default: all.")
def run(output: Path, zoo: Path, cases: str) -> None:
    """Write the digests of all cases and commands to OUTPUT."""
    module = zoo_module(zoo)
    found: dict[str, dict[str, str]] = json.loads(output.read_text()) if output.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in cases.split(",") if cases else module.names():
            case = module.load(name)
            inputs, labels = case.data("train", 0, SAMPLES)
            data, made = Path(folder) / "data.npz", Path(folder) / "made.onnx"
            np.savez(data, **inputs, labels=labels)
            for title, arguments in COMMANDS.items():
                if title in found.get(name, {}):
                    continue
                start = time.perf_counter()
                command = [
                    sys.executable,
                    "-m",
                    "onnxpress",
                    *arguments,
                    str(case.model),
                    "--data",
                    str(data),
                    "-o",
                    str(made),
                ]
                done = subprocess.run(
                    command, env={**os.environ, "ONNXPRESS_CACHE": "off"}, capture_output=True, text=True, check=False
                )
                found.setdefault(name, {})[title] = digest(made) if done.returncode == 0 else done.stderr.strip()[-300:]
                made.unlink(missing_ok=True)
                click.echo(f"{name:12} {title:18} {time.perf_counter() - start:6.1f} s  {found[name][title][:16]}")
                output.write_text(json.dumps(found, indent=1) + "\n")


@main.command()
@click.argument("before", type=click.Path(exists=True, path_type=Path))
@click.argument("after", type=click.Path(exists=True, path_type=Path))
def diff(before: Path, after: Path) -> None:
    """Compare two files that `run` wrote."""
    first, second = json.loads(before.read_text()), json.loads(after.read_text())
    different = 0
    for name in sorted({*first, *second}):
        for title in COMMANDS:
            one, two = first.get(name, {}).get(title), second.get(name, {}).get(title)
            different += one != two
            click.echo(f"{name:12} {title:18} {'same' if one == two else 'DIFFERENT'}")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
