"""Models above protobuf's 2 GB, which is lowered here: levers run them from a file with its weights beside it, and write such files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxpress.errors import InputProblem
from onnxpress.model import files
from onnxpress.optimize import bits, single
from onnxpress.optimize.compared import compare
from onnxpress.optimize.distill import distill
from onnxpress.optimize.loop import optimize
from onnxpress.optimize.plan import apply_plan, read_plan
from onnxpress.optimize.single import Result
from onnxpress.passes.allocate import Wish
from onnxpress.passes.depth import Wish as DepthWish
from onnxpress.passes.lowrank import Wish as LowRankWish
from tests import nets

LEVERS: dict[str, Callable[..., Result]] = {
    "simplify": lambda m, d, **to: single.simplify(m, **to),
    "prune": lambda m, d, **to: single.prune(m, d, Wish(0.5), **to),
    "depth": lambda m, d, **to: single.depth(m, d, DepthWish(remove=1), **to),
    "lowrank": lambda m, d, **to: single.lowrank(m, d, LowRankWish(0.5), **to),
    "quantize": lambda m, d, **to: single.quantize(m, d, **to),
    "sparsify": lambda m, d, **to: bits.sparsify(m, d, **to),
    "share": lambda m, d, **to: bits.share(m, d, **to),
    "weights": lambda m, d, **to: bits.weights(m, d, **to),
    "half": lambda m, d, **to: bits.half(m, **to),
}


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_INLINE_LIMIT", 10_000)


def build() -> ir.Model:
    return nets.residual(width=32, blocks=2)


@pytest.mark.parametrize("name", LEVERS)
def test_a_lever_writes_weights_beside_the_file(name: str, low_limit: None, tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    files.save(build(), source)
    assert (tmp_path / "in.onnx.data").exists(), "the limit is lowered"
    data, target = nets.samples(build(), 12), tmp_path / "out.onnx"
    to: dict[str, Any] = {"output": target, "plan_path": tmp_path / "plan.json"}
    done = LEVERS[name](source, data, **to)
    sizes = (target.stat().st_size, (tmp_path / "out.onnx.data").stat().st_size)
    assert done.after == pytest.approx(sum(sizes), rel=0.2)
    assert sizes[0] < sizes[1]
    written = files.load(target)
    np.testing.assert_allclose(nets.outputs(written, data), nets.outputs(done.model, data), rtol=1e-5, atol=1e-6)
    again = apply_plan(read_plan(tmp_path / "plan.json"), files.load(source), data).model
    assert files.model_hash(again) == files.model_hash(done.model)


def test_the_hash_knows_every_weight(low_limit: None) -> None:
    from onnxpress.model import edit, read

    model = build()
    assert files.model_hash(model) == files.model_hash(model.clone())
    changed = model.clone()
    node = next(n for n in changed.graph if n.op_type == "Conv")
    weight = np.array(read.constant(node.inputs[1]))
    weight.flat[-1] += 1
    edit.set_input(changed, node, 1, weight, "w")
    assert files.model_hash(changed) != files.model_hash(model)


def test_what_cannot_be_done_says_so_at_once(low_limit: None, tmp_path: Path) -> None:
    data, target = nets.samples(build(), 24), tmp_path / "out.onnx"
    asked: list[Callable[[], object]] = [
        lambda: optimize(build(), data, output=target), lambda: distill(build(), build(), data, output=target), lambda: files.to_bytes(build()),
    ]  # fmt: skip
    for ask in asked:
        with pytest.raises(InputProblem, match="too large for this"):
            ask()
    assert not list(tmp_path.iterdir()), "nothing is written, no run begun"


def test_a_large_model_is_compared_and_its_compressed_size_told(low_limit: None, monkeypatch: pytest.MonkeyPatch) -> None:
    data = nets.samples(build(), 8)
    assert compare(build(), build(), data).score.drop == 0
    large = files.compressed_size(build())
    monkeypatch.setattr(files, "_INLINE_LIMIT", 10**9)
    assert large == pytest.approx(files.compressed_size(build()), rel=0.1)
