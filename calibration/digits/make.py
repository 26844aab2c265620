"""Rebuild the digits calibration set and its demo model: data, training, export, check.

    pip install 'onnxpress[train]' onnx onnxruntime
    python calibration/digits/make.py

The pictures are scikit-learn's copy of the UCI handwritten digits (1,797 of 8 x 8 pixels, values 0..16).  The network
is a small residual one with a depthwise-separable block and a concat of two branches, trained on the train part alone.
Everything is seeded; on another CPU the last digits of the weights may differ.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
SIZES = {"train": 900, "select": 300}  # the rest is validate
EPOCHS = 60
SEED = 7


def split_digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Shuffled, duplicates removed, three disjoint parts: (images [n,1,8,8] uint8, labels [n] int64)."""
    digits = load_digits()
    images, first = np.unique(digits.images.astype(np.uint8).reshape(-1, 64), axis=0, return_index=True)
    labels = digits.target[first].astype(np.int64)
    order = np.random.default_rng(SEED).permutation(len(images))
    images, labels = images[order].reshape(-1, 1, 8, 8), labels[order]
    ends = np.cumsum([SIZES["train"], SIZES["select"], len(images)])
    starts = [0, ends[0], ends[1]]
    names = ("train", "select", "validate")
    return {n: (images[a:b], labels[a:b]) for n, a, b in zip(names, starts, ends, strict=True)}


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the width or the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first, self.second = conv(inputs, outputs, stride=stride), conv(outputs, outputs)
        self.shortcut = conv(inputs, outputs, 1, stride) if stride != 1 or inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(functional.relu(self.first(x)))
        return functional.relu(y + self.shortcut(x))


class Digits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, 48)
        self.block1, self.block2 = Residual(48, 48), Residual(48, 64, stride=2)
        self.depthwise, self.pointwise = conv(64, 64, groups=64), conv(64, 64, 1)
        self.left, self.right = conv(64, 32, 1), conv(64, 32, 3)
        self.block3 = Residual(64, 96, stride=2)
        self.head = nn.Linear(96, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem(x * (1 / 16)))
        x = self.block2(self.block1(x))
        x = functional.relu(self.pointwise(functional.relu(self.depthwise(x))))
        x = functional.relu(torch.cat([self.left(x), self.right(x)], dim=1))
        x = self.block3(x)
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shifts of up to a pixel, small rotations and scalings, noise; values stay in 0..16."""
    n = len(x)
    angle, scale = (torch.rand(2, n, generator=generator) - 0.5) * torch.tensor([[0.4], [0.2]])
    shift = (torch.rand(n, 2, generator=generator) - 0.5) * 0.4
    cos, sin = (1 + scale) * torch.cos(angle), (1 + scale) * torch.sin(angle)
    theta = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    moved = functional.grid_sample(x, grid, align_corners=False)
    return (moved + 0.4 * torch.randn(x.shape, generator=generator)).clamp(0, 16)


def train(parts: dict[str, tuple[np.ndarray, np.ndarray]]) -> Digits:
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    generator = torch.Generator().manual_seed(SEED)
    model = Digits()
    x, y = torch.tensor(parts["train"][0], dtype=torch.float32), torch.tensor(parts["train"][1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=2e-2)
    steps = EPOCHS * -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in range(EPOCHS):
        model.train()
        for part in torch.randperm(len(x), generator=generator).split(64):
            loss = functional.cross_entropy(model(augment(x[part], generator)), y[part], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


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


def accuracy(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return float((session.run(None, {"image": images.astype(np.float32)})[0].argmax(1) == labels).mean())


def main() -> None:
    parts = split_digits()
    for name, (images, labels) in parts.items():
        np.savez_compressed(HERE / f"{name}.npz", image=images, labels=labels)
    model = train(parts)
    path = HERE / "digits.onnx"
    export(model, path)
    probe = parts["select"][0][:8].astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        gap = np.abs(session.run(None, {"image": probe})[0] - model(torch.tensor(probe)).numpy()).max()
    if gap > 1e-3:
        raise RuntimeError(f"the exported model differs from the trained one by {gap}")
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {path.stat().st_size:,} bytes")
    for name, (images, labels) in parts.items():
        print(f"{name}: {len(labels)} pictures, top-1 {accuracy(path, images, labels):.4f}")


if __name__ == "__main__":
    main()
