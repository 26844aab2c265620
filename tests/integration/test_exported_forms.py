"""Every command on random networks in the forms that exporters write: an answer or a reason, never an internal error.

The files that are written run on all samples; where a pass is exact, with the answers of the original.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from onnxpress.cli.main import run
from onnxpress.testing.networks import IMAGE, image_net
from tests.exported_forms import Exported, exported

GRAPHS = 200
EXACT = {"simplify": 1e-4, "rewrite": 1e-3, "equalize": 1e-3}  # largest difference beside the largest answer
COMMANDS: dict[str, Sequence[str]] = {
    "inspect": ["MODEL", "--time-budget", "20s"],
    "simplify": ["MODEL", "-o", "OUT"],
    "rewrite": ["MODEL", "--keep", "all", "-o", "OUT"],
    "half": ["MODEL", "-o", "OUT"],
    "dynamic": ["MODEL", "-o", "OUT"],
    "weights": ["MODEL", "-o", "OUT"],
    "quantize": ["MODEL", "-d", "DATA", "-o", "OUT"],
    "prune": ["MODEL", "-d", "DATA", "--ratio", "0.3", "-o", "OUT"],
    "depth": ["MODEL", "-d", "DATA", "--remove", "1", "-o", "OUT"],
    "lowrank": ["MODEL", "-d", "DATA", "--ratio", "0.7", "-o", "OUT"],
    "kernels": ["MODEL", "-d", "DATA", "-o", "OUT"],
    "attention": ["MODEL", "-d", "DATA", "-o", "OUT"],
    "equalize": ["MODEL", "-d", "DATA", "-o", "OUT"],
    "share": ["MODEL", "-d", "DATA", "-o", "OUT"],
    "sparsify": ["MODEL", "-d", "DATA", "-o", "OUT"],
    "compare": ["MODEL", "MODEL", "-d", "DATA"],
    "bench": ["MODEL", "--seconds", "0.2"],
}


def answers(path: Path, made: Exported) -> list[list[np.ndarray]]:
    """Of each sample alone; samples of models without a batch axis are whole inputs."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rows = [
        {name: array[i] if made.whole else array[i : i + 1] for name, array in made.samples.items()}
        for i in range(len(next(iter(made.samples.values()))))
    ]
    return [session.run(None, feeds) for feeds in rows]


def difference(wanted: list[list[np.ndarray]], found: list[list[np.ndarray]]) -> float:
    """Largest difference beside the largest answer, over all samples and outputs; infinite where shapes differ."""
    worst = 0.0
    for one, other in zip(wanted, found, strict=True):
        for a, b in zip(one, other, strict=True):
            if a.shape != b.shape:
                return float("inf")
            x, y = (np.nan_to_num(v.astype(np.float64)) for v in (a, b))
            worst = max(worst, float(np.abs(x - y).max(initial=0)) / (float(np.abs(x).max(initial=0)) + 1e-6))
    return worst


def problems(made: Exported, folder: Path) -> list[str]:
    """What is wrong with the commands on one network."""
    model, data, out = (folder / name for name in ("model.onnx", "data.npz", "out.onnx"))
    onnx.save(made.model, str(model))
    np.savez(data, allow_pickle=False, **made.samples)
    try:
        wanted = answers(model, made)
    except Exception:  # onnxruntime cannot run a few of the combinations
        return []
    found = []
    for command, template in COMMANDS.items():
        out.unlink(missing_ok=True)
        places = {"MODEL": str(model), "DATA": str(data), "OUT": str(out)}
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            code = run([command, *(places.get(word, word) for word in template)])
        text = said.getvalue()
        if code == 3 or "Warning" in text:
            found.append(f"{command}: exit {code}: {text[-300:]}")
        if code == 2 and "TRY" not in text:
            found.append(f"{command}: no way out is named: {text[-300:]}")
        if out.exists():
            apart = difference(wanted, answers(out, made))
            if apart > EXACT.get(command, 1e3) + (1e-2 if made.half else 0):
                found.append(f"{command}: the answers differ by {apart:.2g}")
    return found


def each(count: int, number: int, check: Callable[[Exported], None]) -> None:
    """Draw networks and check them; all of them, whatever happens to some."""

    @seed(number)
    @settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(exported())
    def drawn(made: Exported) -> None:
        check(made)

    drawn()


def wrong_in(count: int, number: int, folder: Path) -> list[str]:
    wrong: list[str] = []
    each(count, number, lambda made: wrong.extend(f"{made.form}: {p}" for p in problems(made, folder)))
    return wrong


def test_commands_answer_on_exported_forms(tmp_path: Path) -> None:
    assert not wrong_in(4, 7, tmp_path)


def test_values_whose_squares_are_too_large_for_float32(tmp_path: Path) -> None:
    """As in the networks of the onnx wheel, whose weights are all one number."""
    net = image_net()
    x = "image"
    for width in (16, 24, 24):
        x = net.relu(net.conv(x, width))
    for tensor in net.tensors:
        tensor.CopyFrom(onnx.numpy_helper.from_array(2e6 * onnx.numpy_helper.to_array(tensor), tensor.name))
    model = ir.to_proto(net.model(net.head(x), IMAGE, ["N", 10]))
    pictures = np.random.default_rng(0).normal(size=(12, 3, 8, 8)).astype(np.float32)
    assert not problems(Exported(model, {"image": pictures}, "large values"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(GRAPHS // 20))
def test_commands_answer_on_many_exported_forms(number: int, tmp_path: Path) -> None:
    assert not wrong_in(20, number, tmp_path)
