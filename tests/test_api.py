"""The public Python functions: natural calls, models and samples in any form, results, and errors that name
arguments."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxpress
from onnxpress.errors import InputProblem
from onnxpress.model.files import save, to_bytes
from onnxpress.passes.core.options import option_specs
from onnxpress.passes.registry import all_passes
from tests import nets

FLAG = "--"


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return nets.residual(width=16, blocks=1)


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"image": rng.standard_normal((24, 3, 8, 8)).astype(np.float32)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: ir.Model, arrays: dict[str, np.ndarray]) -> Path:
    path = tmp_path_factory.mktemp("api")
    save(model, path / "m.onnx")
    np.savez(path / "d.npz", **arrays)
    return path


def test_dir_lists_the_public_names() -> None:
    names = set(dir(onnxpress))
    assert names >= {
        "optimize",
        "bench",
        "compare",
        "inspect",
        "distill",
        "nas_search",
        "prune",
        "quantize",
        "PruneOptions",
    }
    assert names >= set(all_passes())
    for name in names:
        assert getattr(onnxpress, name) is not None


def test_every_public_function_says_what_it_does() -> None:
    for name in dir(onnxpress):
        value = getattr(onnxpress, name)
        if callable(value):
            assert (inspect.getdoc(value) or "").strip(), name


def test_signatures_are_made_from_the_options() -> None:
    for name, one in all_passes().items():
        if name == "distill":
            continue  # a function of its own: it takes two models
        parameters = inspect.signature(getattr(onnxpress, name)).parameters
        for spec in option_specs(one.Options):
            assert parameters[spec.name].default == spec.default
            assert spec.name in (getattr(onnxpress, name).__doc__ or "")


@pytest.mark.parametrize("form", ["path", "text", "bytes", "proto", "ir"])
def test_models_in_any_form(form: str, folder: Path, model: ir.Model) -> None:
    path = folder / "m.onnx"
    given: Any = {
        "path": path,
        "text": str(path),
        "bytes": path.read_bytes(),
        "proto": onnx.load(path),
        "ir": model,
    }[form]
    done = onnxpress.half(given)
    assert done.bytes_after < done.bytes_before


class Loader:
    """Batches as torch's DataLoader gives them: an iterable of (inputs, labels), without a length."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __iter__(self) -> Any:
        for start in range(0, len(self.array), 8):
            yield {"image": self.array[start : start + 8]}


@pytest.mark.parametrize("form", ["path", "dict", "array", "list", "batches", "dataset"])
def test_samples_in_any_form(form: str, folder: Path, model: ir.Model, arrays: dict[str, np.ndarray]) -> None:
    given: Any = {
        "path": str(folder / "d.npz"),
        "dict": arrays,
        "array": arrays["image"],
        "list": [{"image": row[None]} for row in arrays["image"]],
        "batches": Loader(arrays["image"]),
        "dataset": onnxpress.open_dataset(arrays, onnxpress.signature(model)),
    }[form]
    done = onnxpress.prune(model, given, ratio=0.5)
    assert done.parameters < onnxpress.simplify(model).parameters


def test_a_torch_loader_without_an_adapter(model: ir.Model, arrays: dict[str, np.ndarray]) -> None:
    torch = pytest.importorskip("torch")
    loader = torch.utils.data.DataLoader(torch.tensor(arrays["image"]), batch_size=6)
    assert onnxpress.quantize(model, loader, rounding="nearest").notes


def test_results_read_well(folder: Path, model: ir.Model, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    done = onnxpress.quantize(str(folder / "m.onnx"), arrays, rounding="nearest", ranges="minmax")
    assert "smaller" in repr(done) and repr(done).startswith("PassResult")
    assert done._repr_html_().startswith("<table>")
    assert done.to_dict()["bytes_after"] == done.bytes_after
    done.save(tmp_path / "q.onnx")
    found = onnxpress.compare(folder / "m.onnx", tmp_path / "q.onnx", arrays, layers=True)
    assert found.layers and "original 1.0000: drop" in repr(found)
    timed = onnxpress.bench(folder / "m.onnx", tmp_path / "q.onnx", effort=onnxpress.Effort(seconds=0.2, rebuilds=1))
    assert [t.name for t in timed.timings] == ["m.onnx", "q.onnx"] and "ms" in repr(timed)


def test_inspect_and_report_can_be_called_twice(model: ir.Model) -> None:
    for _ in range(2):
        assert onnxpress.inspect(model, time_budget=0).parameters > 0
        assert callable(onnxpress.report)


@pytest.mark.slow
@pytest.mark.alone
def test_optimize_takes_options_by_name(folder: Path, tmp_path: Path) -> None:
    result = onnxpress.optimize(
        folder / "m.onnx", folder / "d.npz", max_drop=0.5, time_budget=6, output=tmp_path / "f.onnx"
    )
    assert (tmp_path / "f.onnx").read_bytes() == result.data
    assert result.chosen in repr(result)
    assert result.to_dict()["chosen_id"]


WRONG: dict[str, Any] = {
    "model": lambda m, d: onnxpress.prune(3, d, ratio=0.3),  # type: ignore[arg-type]
    "data": lambda m, d: onnxpress.prune(m, 3, ratio=0.3),  # type: ignore[arg-type]
    "ratio": lambda m, d: onnxpress.prune(m, d, ratio=3.0),
    "options": lambda m, d: onnxpress.prune(m, d, options=onnxpress.QuantizeOptions()),
    "scope": lambda m, d: onnxpress.prune(m, d, ratio=0.3, scope="everything"),
    "samples": lambda m, d: onnxpress.prune(m, d, ratio=0.3, samples=0),
    "max_drop": lambda m, d: onnxpress.quantize(m, d, max_drop=2.0),
    "exclude": lambda m, d: onnxpress.dynamic(m, exclude="ghost"),
    "teacher": lambda m, d: onnxpress.distill(m, 3, d),  # type: ignore[arg-type]
    "student": lambda m, d: onnxpress.distill(None, m, d),
}


@pytest.mark.parametrize("argument", WRONG)
def test_errors_name_the_argument(argument: str, model: ir.Model, arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(InputProblem) as caught:
        WRONG[argument](model, arrays)
    line = caught.value.line()
    assert f"`{argument}`" in line and "\n" not in line and FLAG not in line


def test_unknown_options_are_type_errors(model: ir.Model, arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(TypeError, match="ratios"):
        onnxpress.prune(model, arrays, ratios=0.3)
    with pytest.raises(TypeError, match="drop"):
        onnxpress.optimize(model, arrays, drop=0.3)
    with pytest.raises(AttributeError):
        _ = onnxpress.no_such_pass  # type: ignore[attr-defined]


def test_a_plan_is_applied_again(model: ir.Model, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    done = onnxpress.share(model, arrays, plan=tmp_path / "p.json")
    again = onnxpress.apply(onnxpress.read_plan(tmp_path / "p.json"), model, arrays)
    assert to_bytes(again.model) == to_bytes(done.model)


def test_importing_costs_nothing() -> None:
    code = "import sys, onnxpress; print(any(m in sys.modules for m in ('onnx', 'onnxruntime', 'numpy')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
