"""Models above protobuf's limit of 2 GB, which is lowered here: passes read and write them with external data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onnxpress
from onnxpress.api.distill import distill
from onnxpress.api.run_pass import PassResult
from onnxpress.errors import InputProblem
from onnxpress.evaluate.compare import compare
from onnxpress.model import files
from onnxpress.passes.pruning.options import PruneOptions
from onnxpress.passes.structure.depth import DepthOptions
from onnxpress.passes.structure.lowrank import LowRankOptions
from onnxpress.plan.plan import apply_plan, read_plan
from onnxpress.search.optimize import optimize
from tests import nets

LEVERS: dict[str, Callable[..., PassResult]] = {
    "simplify": lambda m, d, **to: onnxpress.simplify(m, **to),
    "prune": lambda m, d, **to: onnxpress.prune(m, d, options=PruneOptions(0.5), **to),
    "depth": lambda m, d, **to: onnxpress.depth(m, d, options=DepthOptions(remove=1), **to),
    "lowrank": lambda m, d, **to: onnxpress.lowrank(m, d, options=LowRankOptions(0.5), **to),
    "quantize": lambda m, d, **to: onnxpress.quantize(m, d, **to),
    "sparsify": lambda m, d, **to: onnxpress.sparsify(m, d, **to),
    "share": lambda m, d, **to: onnxpress.share(m, d, **to),
    "weights": lambda m, d, **to: onnxpress.weights(m, d, **to),
    "half": lambda m, d, **to: onnxpress.half(m, **to),
}


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_INLINE_LIMIT", 10_000)


def build() -> ir.Model:
    return nets.residual(width=32, blocks=2)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in ("lowrank", "quantize") else ()) for n in LEVERS]
)
def test_a_pass_writes_external_data(name: str, low_limit: None, tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    files.save(build(), source)
    assert (tmp_path / "in.onnx.data").exists(), "the limit is lowered"
    data, target = nets.samples(build(), 12), tmp_path / "out.onnx"
    to: dict[str, Any] = {"output": target, "plan": tmp_path / "plan.json"}
    done = LEVERS[name](source, data, **to)
    sizes = (target.stat().st_size, (tmp_path / "out.onnx.data").stat().st_size)
    assert done.bytes_after == pytest.approx(sum(sizes), rel=0.2)
    assert sizes[0] < sizes[1]
    written = files.load(target)
    np.testing.assert_allclose(nets.outputs(written, data), nets.outputs(done.model, data), rtol=1e-5, atol=1e-6)
    again = apply_plan(read_plan(tmp_path / "plan.json"), files.load(source), data).model
    assert files.model_hash(again) == files.model_hash(done.model)


def test_the_hash_depends_on_every_weight(low_limit: None) -> None:
    from onnxpress.model import edit, read

    model = build()
    assert files.model_hash(model) == files.model_hash(model.clone())
    changed = model.clone()
    node = next(n for n in changed.graph if n.op_type == "Conv")
    weight = np.array(read.constant(node.inputs[1]))
    weight.flat[-1] += 1
    edit.set_input(changed, node, 1, weight, "w")
    assert files.model_hash(changed) != files.model_hash(model)


def test_unsupported_commands_fail_at_once(low_limit: None, tmp_path: Path) -> None:
    data, target = nets.samples(build(), 24), tmp_path / "out.onnx"
    calls: list[Callable[[], object]] = [
        lambda: optimize(build(), data, output=target),
        lambda: distill(build(), build(), data, output=target),
        lambda: files.to_bytes(build()),
    ]
    for call in calls:
        with pytest.raises(InputProblem, match="too large for this"):
            call()
    assert not list(tmp_path.iterdir()), "no file and no run folder is written"


def test_a_large_model_is_compared_and_its_compressed_size_reported(
    low_limit: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = nets.samples(build(), 8)
    assert compare(build(), build(), data).score.drop == 0
    large = files.compressed_size(build())
    monkeypatch.setattr(files, "_INLINE_LIMIT", 10**9)
    assert large == pytest.approx(files.compressed_size(build()), rel=0.1)
