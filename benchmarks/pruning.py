"""Pruning without training: accuracy kept at a ratio, beside plain magnitude, and what is left of a small residual net.

    ONNXPRESS_ZOO=path/to/zoo python benchmarks/pruning.py [--cases lite0] [--ratio 0.15] [--scope hidden]

128 calibration samples of the train part, no labels, no training; accuracy on `val`, which nothing was tuned on.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from zoo import dataset, zoo_module

from onnxpress.cli import console
from onnxpress.data.dataset import Dataset
from onnxpress.measure.score import Judge
from onnxpress.model.files import load, to_bytes
from onnxpress.model.read import parameters
from onnxpress.model.signature import signature
from onnxpress.optimize.run import document
from onnxpress.optimize.single import prune
from onnxpress.passes.allocate import Wish
from onnxpress.runtime.machine import this_machine

ROOT = Path(__file__).resolve().parent.parent
RECIPES = {
    "second-order, by harm, repaired": (Wish(0.15, criterion="second-order"), True),
    "second-order, uniform, repaired": (Wish(0.15, spread="uniform"), True),
    "magnitude, uniform, repaired": (Wish(0.15, spread="uniform", criterion="magnitude"), True),
    "magnitude, uniform, plain": (Wish(0.15, spread="uniform", criterion="magnitude"), False),
}

os.environ["ONNXPRESS_CACHE"] = "off"  # nothing measured in an earlier run may help this one


def prune_case(case: Any, ratio: float, scope: str, samples: int) -> list[dict[str, Any]]:
    model = load(case.model)
    sig = signature(model)
    train = dataset(case, "train", sig).take(samples)
    judge = Judge(model, dataset(case, "val", sig))
    rows = []
    for name, (wish, repair) in RECIPES.items():
        start = time.perf_counter()
        made = prune(model, train, Wish(ratio, scope, wish.spread, wish.criterion), repair=repair, samples=samples)
        seconds = time.perf_counter() - start
        score = judge.score(to_bytes(made.model))
        rows.append({"case": case.name, "recipe": name, "parameters": parameters(made.model) / parameters(model),
                     "top1": score.value, "original": score.reference, "low": score.low, "high": score.high, "seconds": seconds})  # fmt: skip
    return rows


def small_residual() -> dict[str, Any]:
    """The residual net of the issue (blocks on one spine, global pooling, Gemm head), half of the channels."""
    spec = importlib.util.spec_from_file_location("tests_nets", ROOT / "tests" / "nets.py")
    assert spec is not None
    assert spec.loader is not None
    nets = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["tests_nets"] = nets
    spec.loader.exec_module(nets)
    model = nets.residual(width=32, blocks=3)
    rng = np.random.default_rng(0)
    data = Dataset.from_arrays({"image": rng.standard_normal((64, 3, 8, 8)).astype(np.float32)}, signature(model))
    ours = prune(model, data, Wish(0.5))
    return {"kept": parameters(ours.model) / parameters(model), "onnxsim": onnxsim_kept(model)}


def onnxsim_kept(model: Any) -> float | None:
    """What onnxsim's own structured pruner keeps of the same net."""
    import onnx
    import onnx_ir as ir
    import onnxsim

    try:
        done = onnxsim.apply_structured_pruning(ir.to_proto(model), 0.5)
        proto = done[0] if isinstance(done, tuple) else done
        size = sum(int(np.prod(t.dims)) for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    except Exception as error:  # another version's signature is not our failure
        console.note(f"onnxsim's pruner did not run: {error}")
        return None
    return size / parameters(model)


@click.command()
@click.option("--zoo", type=click.Path(path_type=Path), default=lambda: os.environ.get("ONNXPRESS_ZOO"))
@click.option("--cases", default="lite0")
@click.option("--ratio", default=0.15)
@click.option("--scope", default="hidden")
@click.option("--samples", default=128)
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=Path("benchmarks/results/pruning.json"))
def main(zoo: Path | None, cases: str, ratio: float, scope: str, samples: int, json_path: Path) -> None:
    """Run the benchmark and print one table."""
    rows: list[dict[str, Any]] = []
    if zoo is not None:
        module = zoo_module(Path(zoo))
        for name in cases.split(","):
            rows += prune_case(module.load(name), ratio, scope, samples)
    console.table(
        [("case", "left"), ("recipe", "left"), ("parameters", "right"), ("top-1 (val)", "right"), ("s", "right")],
        [
            [
                r["case"],
                r["recipe"],
                f"{r['parameters']:.3f}",
                f"{r['top1']:.4f} of {r['original']:.4f}",
                f"{r['seconds']:.0f}",
            ]
            for r in rows
        ],
    )
    residual = small_residual()
    other = "did not run" if residual["onnxsim"] is None else f"{residual['onnxsim']:.1%}"
    console.out(
        f"small residual net at --ratio 0.5: {residual['kept']:.1%} of the parameters kept; onnxsim's pruner: {other}"
    )
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(
        json.dumps(document("pruning", machine=this_machine().as_dict(), rows=rows, residual=residual), indent=1)
    )
    console.out(this_machine().text())


if __name__ == "__main__":
    main()
