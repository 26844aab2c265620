"""Differences of values with the same name, in the order of the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxpress import prune, quantize
from onnxpress.cli.main import run as cli
from onnxpress.evaluate.tensor_differences import intermediate_differences, tensor_differences
from onnxpress.model import edit, read
from onnxpress.model.files import save
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.passes.pruning.options import PruneOptions
from tests import nets


def test_everything_before_the_changed_layer_is_equal() -> None:
    model = canonical(nets.residual(width=16))
    other = model.clone()
    convs = [n for n in other.graph if n.op_type == "Conv"]
    weight = read.constant(convs[2].inputs[1])
    assert weight is not None
    edit.set_input(other, convs[2], 1, 1.1 * weight, "changed")
    found = intermediate_differences(model, other, nets.samples(model, 4))
    names = [d.name for d in found]
    place = names.index(convs[2].outputs[0].name)
    assert all(d.max_abs == 0 and d.sqnr_db > 100 for d in found[:place])
    assert found[place].max_abs > 0
    assert found[place].op == "Conv"
    assert len(found) == len(list(model.graph)), "same graph: every value has a counterpart"


def test_a_difference_by_hand() -> None:
    model = canonical(nets.residual(width=16))
    data = nets.samples(model, 3)
    output = model.graph.outputs[0].name or ""
    (found,) = tensor_differences(model, quantize(model, data).model, [output], data)
    one, two = (nets.outputs(m, data).astype(np.float64) for m in (model, quantize(model, data).model))
    assert found.max_abs == pytest.approx(np.abs(one - two).max(), rel=1e-3)
    assert found.sqnr_db == pytest.approx(10 * np.log10((one**2).sum() / ((one - two) ** 2).sum()), rel=1e-2)


def test_values_of_other_shapes_have_no_counterpart() -> None:
    model = nets.residual(width=64)
    data = nets.samples(model, 8)
    pruned = prune(model, data, options=PruneOptions(0.5, allocation="uniform")).model
    found = intermediate_differences(model, pruned, data)
    assert 0 < len(found) < len(list(canonical(model).graph))


def test_the_command_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = nets.residual(width=16)
    data = nets.samples(model, 4)
    save(model, tmp_path / "a.onnx")
    save(quantize(model, data).model, tmp_path / "b.onnx")
    np.savez(tmp_path / "d.npz", **{n: np.concatenate([s.inputs[n] for s in data]) for n in data[0].inputs})
    assert (
        cli(["compare", str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx"), "-d", str(tmp_path / "d.npz"), "--layers"])
        == 0
    )
    out = capsys.readouterr().out
    assert "made by" in out
    assert "Conv" in out
    assert max(len(line) for line in out.splitlines() if "drop" not in line) <= 80
