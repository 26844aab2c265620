"""Rebuild the digits calibration set and its demo model: data, training, selection, export, check.

    pip install 'onnxpress[train]'
    python calibration/digits/make.py

The pictures are scikit-learn's copy of the UCI handwritten digits (8 x 8 pixels, values 0..16).  The network is a small
residual CNN with a depthwise-separable block and a concat of two branches.  It learns from `train` alone; the epoch
that is kept is chosen on `select`; `validate` is looked at once, at the end.  The network takes the raw values: the
stem's BatchNormalization learns their scale and is folded into the convolution at export.

The files are written beside this script, or into the folder of `--output`.  Everything is seeded: the same machine
gives the same bytes; another CPU or another version of torch may give slightly other weights.  It takes minutes on two
free cores; where other work occupies them, `OMP_WAIT_POLICY=PASSIVE` in the environment keeps the two threads from
waiting busily.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional

Part = tuple[np.ndarray, np.ndarray]  # images [n,1,8,8] uint8 in 0..16, labels [n] int64

TRAIN, SELECT = 900, 300  # the rest is validate
BATCH = 50
EPOCHS = 80
CHECK_EVERY = 4
SEED = 7
TOLERANCE = 1e-4


def split_digits() -> dict[str, Part]:
    """Exact duplicates removed, then three disjoint parts with the same share of each class."""
    digits = load_digits()
    flat, first = np.unique(digits.images.astype(np.uint8).reshape(-1, 64), axis=0, return_index=True)
    images, labels = flat.reshape(-1, 1, 8, 8), digits.target[first].astype(np.int64)
    train, rest = train_test_split(np.arange(len(labels)), train_size=TRAIN, stratify=labels, random_state=SEED)
    select, validate = train_test_split(rest, train_size=SELECT, stratify=labels[rest], random_state=SEED)
    return {n: (images[i], labels[i]) for n, i in (("train", train), ("select", select), ("validate", validate))}


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias and its BatchNormalization."""
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the width or the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first, self.second = conv(inputs, outputs, stride=stride), conv(outputs, outputs)
        self.shortcut = conv(inputs, outputs, 1, stride) if stride != 1 or inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(functional.relu(self.first(x)))
        return functional.relu(y + self.shortcut(x))


class Separable(nn.Module):
    """A depthwise 3x3 convolution, then a pointwise one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.pointwise = conv(width, width, groups=width), conv(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.pointwise(functional.relu(self.depthwise(x))))


class Branches(nn.Module):
    """A 1x1 and a 3x3 convolution side by side, concatenated."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.left, self.right = conv(inputs, outputs // 2, 1), conv(inputs, outputs // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([functional.relu(self.left(x)), functional.relu(self.right(x))], dim=1)


class Digits(nn.Module):
    """[N,1,8,8] raw values to [N,10] logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, 64)
        self.blocks = nn.Sequential(*(Residual(64, 64) for _ in range(3)))
        self.separable, self.branches = Separable(64), Branches(64, 64)
        self.down = Residual(64, 80, stride=2)
        self.head = nn.Linear(80, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(functional.relu(self.stem(x)))
        x = self.down(self.branches(self.separable(x)))
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shifts of up to a pixel, rotations of up to 0.2 rad, scalings of up to 10 %, noise; values stay in 0..16."""
    n, pixel = len(x), 2 / x.shape[-1]
    angle, scale = (torch.rand(2, n, generator=generator) - 0.5) * torch.tensor([[0.4], [0.2]])
    shift = (torch.rand(n, 2, generator=generator) * 2 - 1) * pixel
    cos, sin = (1 + scale) * torch.cos(angle), (1 + scale) * torch.sin(angle)
    theta = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    moved = functional.grid_sample(x, grid, align_corners=False)
    return (moved + 0.4 * torch.randn(x.shape, generator=generator)).clamp(0, 16)


def tensors(part: Part) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(part[0], dtype=torch.float32), torch.tensor(part[1])


def judge(model: Digits, part: Part) -> tuple[float, float]:
    """Accuracy and negative loss: greater is better, the loss breaks ties."""
    x, y = tensors(part)
    model.eval()
    with torch.no_grad():
        logits = model(x)
    return float((logits.argmax(1) == y).float().mean()), -float(functional.cross_entropy(logits, y))


def train(learn: Part, select: Part) -> Digits:
    """The network of the epoch that is best on `select`."""
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    generator = torch.Generator().manual_seed(SEED)
    model, (x, y) = Digits(), tensors(learn)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=2e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, EPOCHS * -(-len(x) // BATCH))
    best, kept = (0.0, float("-inf")), copy.deepcopy(model)
    for epoch in range(1, EPOCHS + 1):
        model.train()
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            loss = functional.cross_entropy(model(augment(x[rows], generator)), y[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch % CHECK_EVERY == 0 and (score := judge(model, select)) > best:
            best, kept = score, copy.deepcopy(model)
            print(f"epoch {epoch}: select top-1 {score[0]:.4f}, loss {-score[1]:.4f}")
    return kept.eval()


def export(model: Digits, path: Path) -> None:
    torch.onnx.export(
        model,
        (torch.zeros(1, 1, 8, 8),),
        str(path),
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
        opset_version=17,
        dynamo=False,
    )
    onnx.checker.check_model(str(path), full_check=True)


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def logits(path: Path, images: np.ndarray) -> np.ndarray:
    return np.asarray(session(path).run(None, {"image": images.astype(np.float32)})[0])


def check(model: Digits, path: Path, part: Part) -> float:
    """The greatest difference between the file and the trained network; an error where it is not small."""
    with torch.no_grad():
        expected = model(tensors(part)[0]).numpy()
    gap = float(np.abs(logits(path, part[0]) - expected).max())
    if not gap <= TOLERANCE:
        raise RuntimeError(f"the exported model differs from the trained one by {gap:.2e}, allowed is {TOLERANCE:.0e}")
    return gap


def latency(path: Path, image: np.ndarray, runs: int = 2000) -> float:
    """Median milliseconds of one picture on one thread."""
    run, feed = session(path).run, {"image": image[None].astype(np.float32)}
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run(None, feed)
        times.append(time.perf_counter() - start)
    return float(np.median(times[runs // 10 :])) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description="Rebuild the digits calibration set and its demo model.")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent, help="folder of the files")
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    parts = split_digits()
    for name, (images, labels) in parts.items():
        np.savez_compressed(folder / f"{name}.npz", image=images, labels=labels)
    model = train(parts["train"], parts["select"])
    path = folder / "digits.onnx"
    export(model, path)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters in training, {path.stat().st_size:,} bytes")
    print(f"greatest difference to torch: {check(model, path, parts['select']):.1e}")
    print(f"batch 1, one thread: {latency(path, parts['select'][0][0]):.3f} ms")
    for name, (images, labels) in parts.items():
        top = float((logits(path, images).argmax(1) == labels).mean())
        print(f"{name}: {len(labels)} pictures, top-1 {top:.4f}")


if __name__ == "__main__":
    main()
