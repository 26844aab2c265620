"""Peak memory of quantize against the number of samples, for every range method; onnxruntime's calibrators beside it.

    python benchmarks/calibration.py [--samples 32,512]

Each measurement is a fresh process that reads VmHWM (ru_maxrss would inherit the parent's peak).  The model is a stack of
convolutions on 64 x 64 pictures with large inner tensors; samples are made one by one, so that they take no memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

METHODS = ("minmax", "percentile", "entropy", "mse")

os.environ["ONNXPRESS_CACHE"] = "off"  # nothing measured in an earlier run may help this one


def model_file(folder: Path) -> Path:
    """conv-relu x 6 with 32 channels on 64 x 64: 6 MB of inner values a sample."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    nodes, tensors, x, width = [], [], "image", 3
    for i in range(6):
        weight = (rng.standard_normal((32, width, 3, 3)) / np.sqrt(width * 4.5)).astype(np.float32)
        tensors.append(numpy_helper.from_array(weight, f"w{i}"))
        tensors.append(numpy_helper.from_array(np.zeros(32, np.float32), f"b{i}"))
        nodes.append(
            helper.make_node(
                "Conv", [x, f"w{i}", f"b{i}"], [f"c{i}"], name=f"conv{i}", kernel_shape=[3, 3], pads=[1] * 4
            )
        )
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], name=f"relu{i}"))
        x, width = f"r{i}", 32
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["y"], name="pool"))
    graph = helper.make_graph(
        nodes, "stack", [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 64, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 32, 1, 1])], tensors)  # fmt: skip
    path = folder / "stack.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def pictures(count: int) -> Iterator[dict[str, np.ndarray]]:
    for i in range(count):
        yield {"image": np.random.default_rng(i).standard_normal((1, 3, 64, 64)).astype(np.float32)}


def peak_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def child(tool: str, method: str, count: int, path: str) -> None:
    """In a fresh process: quantize, then print the peak over what the imports and one plain run took."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    if tool == "onnxpress":
        import onnxpress
        from onnxpress.optimize.single import quantize

        data = onnxpress.open_dataset(_Lazy(count), onnxpress.signature(onnxpress.load(path)))
        for feeds in pictures(2):
            session.run(None, feeds)
        base = peak_mb()
        quantize(path, data, method=method, samples=count)
    else:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, quantize_static

        for feeds in pictures(2):
            session.run(None, feeds)
        base = peak_mb()
        kind = {
            "minmax": CalibrationMethod.MinMax,
            "percentile": CalibrationMethod.Percentile,
            "entropy": CalibrationMethod.Entropy,
        }[method]
        quantize_static(
            path,
            path + ".q.onnx",
            _Reader(count),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            calibrate_method=kind,
        )
    print(json.dumps({"base": base, "over": peak_mb() - base}))


class _Lazy:
    """Re-iterable samples that are made when asked for."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return pictures(self.count)


class _Reader:
    def __init__(self, count: int) -> None:
        self._left = pictures(count)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def measure(tool: str, method: str, count: int, path: Path) -> float | None:
    command = [sys.executable, __file__, "--child", f"{tool},{method},{count},{path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1])["over"] if done.returncode == 0 and lines else None


@click.command()
@click.option("--samples", default="32,512")
@click.option("--peers/--no-peers", default=True)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), default=Path("benchmarks/results/calibration.json")
)
@click.option("--child", "child_spec", hidden=True)
def main(samples: str, peers: bool, json_path: Path, child_spec: str | None) -> None:
    """Run the benchmark and print one table."""
    if child_spec:
        tool, method, count, path = child_spec.split(",", 3)
        child(tool, method, int(count), path)
        return
    from onnxpress.cli import console
    from onnxpress.optimize.run import document
    from onnxpress.runtime.machine import this_machine

    counts = [int(c) for c in samples.split(",")]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = model_file(Path(folder))
        for tool in ("onnxpress", "onnxruntime") if peers else ("onnxpress",):
            for method in METHODS if tool == "onnxpress" else METHODS[:3]:
                rows.append(
                    {"tool": tool, "method": method, "over_mb": [measure(tool, method, c, path) for c in counts]}
                )
    console.table(
        [("tool", "left"), ("ranges", "left"), *((f"{c} samples, MB", "right") for c in counts)],
        [[r["tool"], r["method"], *("failed" if v is None else f"{v:.0f}" for v in r["over_mb"])] for r in rows],
    )
    console.out("peak memory over imports and a plain run, fresh process each; " + this_machine().text())
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(
        json.dumps(document("calibration", machine=this_machine().as_dict(), samples=counts, rows=rows), indent=1)
    )


if __name__ == "__main__":
    main()
