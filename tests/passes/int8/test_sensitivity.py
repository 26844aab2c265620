"""Sensitivity of layers to int8, and the fewest layers in float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxpress import quantize
from onnxpress.cli.main import run as cli
from onnxpress.data.dataset import Dataset
from onnxpress.errors import InputProblem
from onnxpress.measure.evidence import evidence_for
from onnxpress.measure.quality import QualityOptions
from onnxpress.measure.score import Scorer
from onnxpress.model import edit, read
from onnxpress.model.files import to_bytes
from onnxpress.model.normal_forms.canonical import canonical
from onnxpress.passes.int8.qdq import placement
from onnxpress.passes.int8.qdq.write import histograms_for, quantization_grid
from onnxpress.passes.int8.quantization_recipe import RecipeOptions
from onnxpress.passes.int8.sensitivity import int8_candidates, layer_sensitivity, match_nodes
from onnxpress.runtime.machine import this_machine
from tests import nets


def fragile() -> tuple[ir.Model, Dataset, list[str]]:
    """A chain with one value that int8 cannot represent.

    One channel is a thousand times as large as the others, and only the others are read. Both the producer and the
    reader must be in float.
    """
    net = nets.image_net()
    x = net.relu(net.conv("image", 16))
    y = net.relu(net.conv(x, 16, k=1))
    model = net.model(net.head(net.relu(net.conv(y, 16))), nets.IMAGE, ["N", 10])
    model = canonical(model)
    convs = [n for n in model.graph if n.op_type == "Conv"]
    weight = np.array(read.constant(convs[1].inputs[1]))
    weight[0] *= 1000
    edit.set_input(model, convs[1], 1, weight, "w")
    reader = np.array(read.constant(convs[2].inputs[1]))
    reader[:, 0] = 0
    edit.set_input(model, convs[2], 1, reader, "r")
    return model, nets.samples(model, 64), [n.name or "" for n in convs[1:3]]


def test_the_fragile_layers_are_found() -> None:
    model, data, names = fragile()
    evidence = evidence_for(model, data)
    found = layer_sensitivity(evidence, int8_candidates(evidence, (), ())[0])
    alone = {layer.node: layer.one_at_a_time for layer in found.layers}
    assert sorted(alone, key=lambda n: -alone[n])[:2] == sorted(names, key=lambda n: -alone[n])
    assert min(alone[n] for n in names) > 100 * max(v for n, v in alone.items() if n not in names)
    assert [layer.leave_one_out for layer in found.layers] == sorted(layer.leave_one_out for layer in found.layers)
    assert all(layer.int8 for layer in found.layers)


def test_the_fewest_layers_stay_in_float() -> None:
    model, data, names = fragile()
    evidence = evidence_for(model, data, quality=QualityOptions("agreement"))
    chosen = int8_candidates(evidence, (), ())[0]
    assert layer_sensitivity(evidence, chosen).drop > 0.05
    found = layer_sensitivity(evidence, chosen, 0.05)
    assert found.drop <= 0.05
    floats = [layer for layer in found.layers if not layer.int8]
    assert {layer.node for layer in floats} == set(names)
    assert all("keep the drop" in layer.reason for layer in floats)
    assert layer_sensitivity(evidence, chosen, 0.99).chosen == chosen, "nothing goes back that need not"


def test_all_layers_stay_in_float_if_necessary() -> None:
    """With nearly equal class scores every layer is sensitive: all return to float, which is noted."""
    model, data, _ = fragile()
    evidence = evidence_for(model, data)
    (head,) = [n.name or "" for n in evidence.model.graph if n.op_type == "Gemm"]
    chosen = int8_candidates(evidence, (), (head,))[0]
    found = layer_sensitivity(evidence, chosen, 0.0)
    done = quantize(model, data, max_drop=0.0, exclude=(head,))
    assert found.drop <= 0.0
    assert Scorer(model, data).score(to_bytes(done.model)).drop <= 0.0
    assert any("layers stay in float" in n for n in done.notes)
    assert not any("no operator" in n for n in done.notes)


def test_quantize_keeps_the_drop_and_notes_it() -> None:
    model, data, _ = fragile()
    done = quantize(model, data, max_drop=0.05)
    assert Scorer(model, data).score(to_bytes(done.model)).drop <= 0.05
    assert any("layers stay in float" in n for n in done.notes)
    assert len(done.details.layers) >= 3
    assert quantize(model, data).details is None, "what was not asked for is not measured"


def test_sqnr_follows_from_the_histogram() -> None:
    """The reported SQNR is that of the tensor on its quantization grid."""
    model, data, _ = fragile()
    evidence = evidence_for(model, data)
    found = layer_sensitivity(
        evidence, int8_candidates(evidence, (), ())[0], options=RecipeOptions("minmax", False, "nearest")
    )
    layer = next(x for x in found.layers if x.node == found.layers[-1].node and x.op == "Conv")
    node = next(n for n in evidence.model.graph if n.name == layer.node)
    name = placement.final_output(node).name or ""
    values = np.concatenate([v[name].ravel() for v in evidence.stream([name])]).astype(np.float64)
    grid = quantization_grid(histograms_for(evidence)[name].low, histograms_for(evidence)[name].high)
    rounded = (grid.quantize(values) - grid.zero_point) * float(grid.scale)
    true = 10 * np.log10((values**2).sum() / ((values - rounded) ** 2).sum())
    assert layer.output_sqnr == pytest.approx(true, abs=3.0)
    assert layer.types == "u8 x s8 -> u8"
    assert (layer.low, layer.high, layer.clipped) == (pytest.approx(values.min()), pytest.approx(values.max()), 0), (
        "minmax cuts nothing"
    )
    shares, _ = np.histogram(values, len(layer.density), (layer.low, layer.high))
    assert np.abs(np.array(layer.density) - shares / len(values)).max() < 0.02
    assert sum(layer.density) == pytest.approx(1.0, abs=0.01)


@pytest.mark.slow
@pytest.mark.alone
def test_times_before_and_after_are_reported() -> None:
    net = nets.image_net()
    x = net.relu(net.conv("image", 64))
    model = net.model(
        net.head(net.relu(net.conv(x, 64))), nets.IMAGE, ["N", 10]
    )  # each far above what the profiler itself takes
    data = nets.samples(model, 32)
    done = quantize(model, data, report=True)
    assert done.details.profile is not None
    assert {p.name for p in done.details.profile.operators} >= {"Conv", "QLinearConv"}
    assert all(
        x.seconds_before is not None and x.seconds_after is not None and x.seconds_before > 0 and x.seconds_after > 0
        for x in done.details.layers
        if x.op == "Conv"
    )
    assert sum(x.op == "Conv" for x in done.details.layers) == 2
    assert [p.before == p.after for p in done.details.profile.widths] == [True] * len(done.details.profile.widths)
    other = quantize(model, data, report=True, target_cpu="avx2" if this_machine().int8_exact else "vnni")
    assert other.details.layers
    assert all(x.seconds_after is None for x in other.details.layers), "times are of this machine"


def test_patterns_match_names_operators_or_expressions() -> None:
    names, ops = ["stem", "block.1.conv", "block.2.conv", "head"], ["Conv", "Conv", "Conv", "Gemm"]
    assert match_nodes(names, ops, ("head",), "`exclude`") == {"head"}
    assert match_nodes(names, ops, ("Gemm", "stem"), "`exclude`") == {"head", "stem"}
    assert match_nodes(names, ops, (r"block\.\d\..*",), "`exclude`") == {"block.1.conv", "block.2.conv"}
    with pytest.raises(InputProblem, match="matches no node"):
        match_nodes(names, ops, ("block",), "`exclude`")
    with pytest.raises(InputProblem, match="regular expression"):
        match_nodes(names, ops, ("(",), "`exclude`")


def test_only_what_is_included_runs_in_int8() -> None:
    model, data, (name, _) = fragile()
    evidence = evidence_for(model, data)
    kernels = {n.name for n in evidence.model.graph if n.op_type in ("Conv", "Gemm")}
    assert int8_candidates(evidence, (name,), ())[0] & kernels == {name}
    assert name not in int8_candidates(evidence, (), (name,))[0]
    assert int8_candidates(evidence, ("Conv",), ("Conv",))[0] & kernels == frozenset()


@pytest.mark.slow
def test_the_report_is_a_table_of_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, samples = nets.written(nets.residual(width=32), tmp_path)
    assert cli(["quantize", model, "-d", samples, "-o", f"{tmp_path}/o.onnx", "--samples", "32", "--report"]) == 0
    out = capsys.readouterr().out
    assert "most sensitive first" in out
    assert "int8" in out
    assert max(len(line) for line in out.splitlines() if str(tmp_path) not in line) <= 80
