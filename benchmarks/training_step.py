"""A training step of onnxpress.train, compared with the same network written by hand in torch.

    python benchmarks/training_step.py [--seconds 60] [--json FILE]

A step is forward, backward and AdamW.  Each network is built twice with the same weights: as an ONNX graph (run by
Program) and as a torch module; outputs are checked to be equal first.  Steps are timed in interleaved pairs in random
order, with one warm pair before; the result is the ratio of speeds (above 1: Program is faster) with a 95 % bootstrap
interval over pairs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from onnxpress.cli.output import console
from onnxpress.train.graph.program import Program


class Graph:
    """An ONNX graph written node by node; weights are those of a torch module's tensors."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def weight(self, tensor: Any) -> str:
        array = tensor.detach().numpy() if isinstance(tensor, torch.Tensor) else tensor
        self.tensors.append(numpy_helper.from_array(np.array(array, order="C"), f"w{len(self.tensors)}"))
        return self.tensors[-1].name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def model(self, output: str, shape: list[Any]) -> ir.Model:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", 10])],
            self.tensors,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        onnx.checker.check_model(proto)
        return ir.from_proto(proto)


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm around a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norms[0](self.convs[0](x)))
        return functional.relu(x + self.norms[1](self.convs[1](y)))

    def write(self, g: Graph, x: str) -> str:
        y = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = g.op("Conv", y, g.weight(conv.weight), pads=[1] * 4)
            stats = [g.weight(t) for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)]
            y = g.op("BatchNormalization", y, *stats)
            y = g.op("Relu", y) if i == 0 else y
        return g.op("Relu", g.op("Add", x, y))


class ImageNet(nn.Module):
    """Stem, residual blocks, global pooling, linear head; batch norm with fixed statistics, as in a trained model."""

    def __init__(self, width: int = 32, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(Residual(width) for _ in range(blocks))
        self.head = nn.Linear(width, 10)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))

    def write(self, g: Graph) -> str:
        x = g.op("Relu", g.op("Conv", "x", g.weight(self.stem.weight), g.weight(self.stem.bias), pads=[1] * 4))
        for block in self.blocks:
            x = block.write(g, x)
        x = g.op("Flatten", g.op("GlobalAveragePool", x))
        return g.op("Gemm", x, g.weight(self.head.weight), g.weight(self.head.bias), transB=1)


class Encoder(nn.Module):
    """One pre-norm transformer layer, as written by hand with torch's own attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, s, width = x.shape
        q, k, v = self.qkv(self.norms[0](x)).reshape(b, s, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, width)
        x = x + self.out(seen)
        return x + self.down(functional.gelu(self.up(self.norms[1](x))))

    def write(self, g: Graph, x: str) -> str:
        """As exporters write it: linear layers as MatMul and Add, attention and Gelu decomposed, sizes from Shape."""
        width = self.out.out_features

        def linear(layer: nn.Linear, value: str) -> str:
            return g.op("Add", g.op("MatMul", value, g.weight(layer.weight.t())), g.weight(layer.bias))

        def ints(*numbers: int) -> str:
            return g.weight(np.array(numbers, np.int64))

        y = g.op("LayerNormalization", x, g.weight(self.norms[0].weight), g.weight(self.norms[0].bias))
        lead = g.op("Slice", g.op("Shape", x), ints(0), ints(2))
        split = g.op("Concat", lead, ints(3, self.heads, width // self.heads), axis=0)
        parts = g.op("Transpose", g.op("Reshape", linear(self.qkv, y), split), perm=[2, 0, 3, 1, 4])
        q, k, v = (g.op("Gather", parts, g.weight(np.array(i, np.int64)), axis=0) for i in range(3))
        scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = g.op("Mul", scores, g.weight(np.float32((width // self.heads) ** -0.5)))
        seen = g.op("Transpose", g.op("MatMul", g.op("Softmax", scores), v), perm=[0, 2, 1, 3])
        x = g.op("Add", x, linear(self.out, g.op("Reshape", seen, g.op("Concat", lead, ints(width), axis=0))))
        y = g.op("LayerNormalization", x, g.weight(self.norms[1].weight), g.weight(self.norms[1].bias))
        y = linear(self.up, y)
        half = g.op("Add", g.op("Erf", g.op("Div", y, g.weight(np.float32(2**0.5)))), g.weight(np.float32(1)))
        y = g.op("Mul", g.op("Mul", y, half), g.weight(np.float32(0.5)))
        return g.op("Add", x, linear(self.down, y))


class TextNet(nn.Module):
    """Transformer layers and a linear head on the mean position."""

    def __init__(self, width: int = 128, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Encoder(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))

    def write(self, g: Graph) -> str:
        x = "x"
        for layer in self.layers:
            x = layer.write(g, x)
        x = g.op("ReduceMean", x, g.weight(np.array([1], np.int64)), keepdims=0)
        return g.op("Gemm", x, g.weight(self.head.weight), g.weight(self.head.bias), transB=1)


@dataclass(frozen=True)
class Result:
    """ratio: speed of Program over handwritten torch; medians of the milliseconds per step."""

    network: str
    ratio: float
    low: float
    high: float
    program_ms: float
    torch_ms: float
    pairs: int


def stepper(module: nn.Module, forward: Callable[[], torch.Tensor], labels: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(module.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(forward(), labels).backward()
        optimizer.step()

    return step


def measure(name: str, by_hand: Any, x: torch.Tensor, shape: list[Any], seconds: float) -> Result:
    graph = Graph()
    program = Program(graph.model(by_hand.write(graph), shape))
    labels = torch.arange(len(x)) % 10

    def run() -> torch.Tensor:
        (result,) = program({"x": x}).values()
        return result

    torch.testing.assert_close(run(), by_hand(x), rtol=1e-4, atol=1e-4)
    expected, held = (sum(p.numel() for p in m.parameters()) for m in (by_hand, program))
    if expected != held:
        raise RuntimeError(f"{name}: torch trains {expected} numbers, Program {held}")
    steps = [stepper(program, run, labels), stepper(by_hand, lambda: by_hand(x), labels)]
    for step in steps * 2:
        step()
    rng, times, start = np.random.default_rng(0), [], time.perf_counter()
    while time.perf_counter() - start < seconds or len(times) < 10:
        pair = [0.0, 0.0]
        for i in rng.permutation(2):
            begin = time.perf_counter()
            steps[i]()
            pair[i] = time.perf_counter() - begin
        times.append(pair)
    table = np.array(times)
    ratios = np.log(table[:, 1] / table[:, 0])
    boot = [np.median(rng.choice(ratios, len(ratios))) for _ in range(2000)]
    low, high = np.exp(np.percentile(boot, [2.5, 97.5]))
    mine, hand = np.median(table, 0) * 1000
    return Result(name, float(np.exp(np.median(ratios))), float(low), float(high), float(mine), float(hand), len(times))


@click.command()
@click.option("--seconds", default=20.0, help="Of timing for each network.")
@click.option("--threads", default=1)
@click.option("--json", "json_path", type=click.Path(path_type=Path))
def main(seconds: float, threads: int, json_path: Path | None) -> None:
    """Run the benchmark and print one table."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    results = [
        measure("residual, batch 32", ImageNet(), torch.randn(32, 3, 32, 32), ["N", 3, 32, 32], seconds),
        measure("residual, batch 4", ImageNet(16), torch.randn(4, 3, 16, 16), ["N", 3, 16, 16], seconds),
        measure("transformer, batch 16", TextNet(), torch.randn(16, 64, 128), ["N", "S", 128], seconds),
        measure("transformer, batch 2", TextNet(64), torch.randn(2, 16, 64), ["N", "S", 64], seconds),
    ]
    console.table(
        [("network", "left"), ("speed", "right"), ("95 % interval", "right"), ("ms", "right"), ("torch ms", "right")],
        [
            [r.network, f"{r.ratio:.3f}x", console.interval(r.low, r.high), f"{r.program_ms:.2f}", f"{r.torch_ms:.2f}"]
            for r in results
        ],
    )
    if json_path is not None:
        document = {
            "schema": 1,
            "benchmark": "training_step",
            "threads": threads,
            "results": [asdict(r) for r in results],
        }
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
