"""Small networks of eight tasks beside classification, trained on data that packages ship, with samples and labels.

    pip install scikit-learn onnxscript  # in addition to the extra `train`
    python benchmarks/task_models.py FOLDER [--only detector] [--minutes 2]

For each task FOLDER/TASK.onnx and TASK.npz are written: 256 samples with labels, drawn like the training samples from
other digits.  The digits are those of scikit-learn (1,797 of 8 x 8), the photographs its two sample images.

detector:   a YOLO-like network (SiLU, cross-stage blocks, pyramid pooling, upsampling) for boxes of digits on a canvas
            of 128 x 128; output [N, 4 + 10, anchors], centres, sizes and class probabilities
encoder:    patches of a digit through a transformer; one vector of 64 with norm 1; labels are the classes
segmenter:  U-Net; scores of 11 classes for each pixel
superres:   photographs of 32 x 32 to 64 x 64, pixels in [0, 1]
recognizer: lines of digits, a recurrent network behind convolutions; log probabilities [N, steps, 11], CTC, blank 10
regressor:  position, size and angle of a digit
streaming:  a GRU that reads a digit column by column; its state is an input and an output
chunked:    convolutions and a GRU that read a digit in chunks of four columns, as models of sound do; the same
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

_VALIDATION = 256
Sample = tuple[np.ndarray, ...]  # inputs, then what the loss needs


def digits() -> tuple[np.ndarray, np.ndarray]:
    """[1797, 8, 8] in [0, 1], and their classes."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.images / 16).astype(np.float32), found.target


@cache
def photographs() -> list[np.ndarray]:
    """The two sample images, [height, width, 3] in 0 to 255."""
    from sklearn.datasets import load_sample_images

    return list(load_sample_images().images)


class Drawer:
    """Draws training samples from one part of the digits."""

    def __init__(self, training: bool, seed: int) -> None:
        images, classes = digits()
        part = np.arange(len(images)) % 5 != 0 if training else np.arange(len(images)) % 5 == 0
        self.images, self.classes, self.rng = images[part], classes[part], np.random.default_rng(seed)
        self.training = training

    def digit(self, size: int) -> tuple[np.ndarray, int]:
        """A digit of size x size, and its class."""
        index = int(self.rng.integers(len(self.images)))
        image = torch.from_numpy(self.images[index])[None, None]
        scaled = F.interpolate(image, (size, size), mode="bilinear", align_corners=False)
        return scaled[0, 0].numpy(), int(self.classes[index])

    def canvas(self, side: int, count: int, sizes: tuple[int, int]) -> tuple[np.ndarray, list[tuple[int, ...]]]:
        """Digits on noise: [side, side], and (x1, y1, x2, y2, class) of each."""
        scene = self.rng.uniform(0, 0.3, (side, side)).astype(np.float32)
        boxes: list[tuple[int, ...]] = []
        for _ in range(20 * count):
            size = int(self.rng.integers(*sizes))
            x, y = (int(v) for v in self.rng.integers(0, side - size, 2))
            if len(boxes) < count and all(x > b[2] or y > b[3] or x + size < b[0] or y + size < b[1] for b in boxes):
                image, kind = self.digit(size)
                scene[y : y + size, x : x + size] = np.maximum(scene[y : y + size, x : x + size], image)
                boxes.append((x, y, x + size, y + size, kind))
        return scene, boxes


def conv(inside: int, outside: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outside), nn.SiLU()
    )


class CrossStage(nn.Module):
    """Half of the channels through bottlenecks, all parts joined (as C2f of YOLOv8)."""

    def __init__(self, width: int, depth: int = 1) -> None:
        super().__init__()
        half = width // 2
        self.first, self.last = conv(width, width, 1), conv(half * (2 + depth), width, 1)
        self.inner = nn.ModuleList(nn.Sequential(conv(half, half), conv(half, half)) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for block in self.inner:
            parts.append(parts[-1] + block(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Detector(nn.Module):
    """Two scales (strides 8 and 16); box sizes relative to the stride by exp, classes by sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(1, 16, 3, 2), conv(16, 32, 3, 2), CrossStage(32), conv(32, 64, 3, 2))
        self.middle, self.down = CrossStage(64, 2), conv(64, 128, 3, 2)
        self.deep, self.pool = CrossStage(128), nn.MaxPool2d(5, 1, 2)
        self.pooled = conv(512, 128, 1)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.joined = conv(192, 64, 1)
        self.fused = CrossStage(64)
        self.heads = nn.ModuleList(nn.Sequential(conv(w, 64), nn.Conv2d(64, 14, 1)) for w in (64, 128))
        for head in self.heads:
            head[1].bias.data[4:] = -4.0

    def raw(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.middle(self.stem(x))
        deep = self.deep(self.down(x))
        pools = [deep]
        for _ in range(3):
            pools.append(self.pool(pools[-1]))
        deep = self.pooled(torch.cat(pools, 1))
        return [self.heads[0](self.fused(self.joined(torch.cat([x, self.up(deep)], 1)))), self.heads[1](deep)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = []
        for level, stride in zip(self.raw(x), (8, 16), strict=True):
            side = 128 // stride
            place = (torch.arange(side) + 0.5) * stride
            grid = torch.stack([place.repeat(side), place.repeat_interleave(side)])
            flat = level.flatten(2)
            boxes = torch.cat([grid + flat[:, :2] * stride, flat[:, 2:4].clamp(-3, 3).exp() * stride * 2], 1)
            found.append(torch.cat([boxes, flat[:, 4:].sigmoid()], 1))
        return torch.cat(found, 2)

    @staticmethod
    def draw(drawer: Drawer) -> Sample:
        scene, boxes = drawer.canvas(128, int(drawer.rng.integers(1, 6)), (16, 40))
        rows = np.full((5, 5), -1, np.float32)
        rows[: len(boxes)] = boxes
        return scene[None], rows

    def loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        """Every digit is assigned to the cells near its centre, of the scale of its size."""
        x, boxes = batch
        total = torch.zeros(())
        for level, stride, (least, most) in zip(self.raw(x), (8, 16), ((0, 26), (26, 99)), strict=True):
            side = 128 // stride
            place = (torch.arange(side) + 0.5) * stride
            wanted = torch.zeros(len(x), 10, side, side)
            for n, b in [(i, b) for i, rows in enumerate(boxes) for b in rows if b[4] >= 0]:
                size, cx, cy = b[2] - b[0], (b[0] + b[2]) / 2, (b[1] + b[3]) / 2
                if not least <= size < most:
                    continue
                near = ((place - cy).abs()[:, None] < 0.8 * stride) & ((place - cx).abs()[None] < 0.8 * stride)
                rows, columns = near.nonzero(as_tuple=True)
                wanted[n, int(b[4]), rows, columns] = 1
                aim = torch.stack(
                    [(cx - place[columns]) / stride, (cy - place[rows]) / stride]
                    + [(size / (2 * stride)).log().expand(len(rows))] * 2
                )
                total = total + F.smooth_l1_loss(level[n, :4, rows, columns], aim, reduction="sum") / len(x)
            scores = level[:, 4:]
            weight = (scores.sigmoid() - wanted).abs() ** 2
            total = total + (F.binary_cross_entropy_with_logits(scores, wanted, reduction="none") * weight).sum() / len(
                x
            )
        return total


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 96, 4, 4)
        self.place = nn.Parameter(torch.randn(1, 64, 96) * 0.02)
        layer = nn.TransformerEncoderLayer(96, 4, 384, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(96, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = self.layers(self.patch(x).flatten(2).transpose(1, 2) + self.place)
        return F.normalize(self.head(states.mean(1)), dim=-1)

    @staticmethod
    def draw(drawer: Drawer) -> Sample:
        scene, boxes = drawer.canvas(32, 1, (20, 31))
        return scene[None], np.array(boxes[0][4])

    def loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        """Supervised contrastive loss (Khosla et al., 2020)."""
        x, classes = batch
        vectors = self(x)
        near = vectors @ vectors.T / 0.1 - 1e9 * torch.eye(len(x))
        same = (classes[:, None] == classes[None]).float() - torch.eye(len(x))
        log = near - near.logsumexp(1, keepdim=True)
        return -((log * same).sum(1) / same.sum(1).clamp(1)).mean()


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = conv(1, 24), nn.Sequential(conv(24, 48), conv(48, 48)), conv(48, 96)
        self.deep = nn.Sequential(conv(96, 96), conv(96, 96))
        self.up_two, self.up_one = conv(144, 48), conv(72, 24)
        self.head = nn.Conv2d(24, 11, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = self.one(x)
        two = self.two(F.max_pool2d(one, 2))
        deep = self.deep(self.three(F.max_pool2d(two, 2)))
        two = self.up_two(torch.cat([two, F.interpolate(deep, scale_factor=2.0)], 1))
        return self.head(self.up_one(torch.cat([one, F.interpolate(two, scale_factor=2.0)], 1)))

    @staticmethod
    def draw(drawer: Drawer) -> Sample:
        scene, boxes = drawer.canvas(64, 3, (16, 30))
        mask = np.zeros((64, 64), np.int64)
        for x1, y1, x2, y2, kind in boxes:
            part = mask[y1:y2, x1:x2]
            part[scene[y1:y2, x1:x2] > 0.4] = kind + 1
        return scene[None], mask

    def loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]), batch[1], weight=torch.tensor([0.3] + [1.0] * 10))


class SuperResolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 48, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(48, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 48, 3, padding=1)) for _ in range(4)
        )
        self.last = nn.Sequential(nn.Conv2d(48, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        for block in self.blocks:
            y = y + block(y)
        return (F.interpolate(x, scale_factor=2.0, mode="bilinear") + self.last(y)).clamp(0, 1)

    @staticmethod
    def draw(drawer: Drawer) -> Sample:
        photo = photographs()[int(drawer.rng.integers(2))]
        y = int(drawer.rng.integers(0, photo.shape[0] - 64))
        split = photo.shape[1] * 4 // 5  # the right fifth is for validation
        x = int(
            drawer.rng.integers(0, split - 64) if drawer.training else drawer.rng.integers(split, photo.shape[1] - 64)
        )
        large = (photo[y : y + 64, x : x + 64].transpose(2, 0, 1) / 255).astype(np.float32)
        return large.reshape(3, 32, 2, 32, 2).mean((2, 4)), large

    def loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return F.l1_loss(self(batch[0]), batch[1])


class Recognizer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            conv(1, 32),
            nn.MaxPool2d(2),
            conv(32, 64),
            nn.MaxPool2d((2, 1)),
            conv(64, 96),
            nn.MaxPool2d((2, 1)),
            conv(96, 96),
        )
        self.recurrent = nn.GRU(96 * 3, 64, bidirectional=True, batch_first=True)
        self.head = nn.Linear(128, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.convs(x).flatten(1, 2).transpose(1, 2)
        return self.head(self.recurrent(y)[0]).log_softmax(-1)

    @staticmethod
    def draw(drawer: Drawer) -> Sample:
        line = drawer.rng.uniform(0, 0.3, (24, 128)).astype(np.float32)
        text = np.full(6, -1, np.int64)
        x = int(drawer.rng.integers(0, 8))
        for place in range(int(drawer.rng.integers(3, 7))):
            size = int(drawer.rng.integers(14, 21))
            if x + size > 128:
                break
            y = int(drawer.rng.integers(0, 24 - size))
            image, text[place] = drawer.digit(size)
            line[y : y + size, x : x + size] = np.maximum(line[y : y + size, x : x + size], image)
            x += size - int(drawer.rng.integers(0, 3))
        return line[None], text

    def loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        x, text = batch
        found = self(x).transpose(0, 1)
        lengths = torch.full((len(x),), len(found))
        return F.ctc_loss(found, text.clamp(0), lengths, (text >= 0).sum(1), blank=10, zero_infinity=True)


class Regressor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [conv(1, 24, 3, 2), conv(24, 48, 3, 2), conv(48, 48), conv(48, 96, 3, 2), conv(96, 96)]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 36, 64), nn.ReLU())
        self.head = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))

    @staticmethod
    def draw(drawer: Drawer) -> Sample:
        scene, boxes = drawer.canvas(48, 1, (12, 36))
        x1, y1, x2, y2, _ = boxes[0]
        return scene[None], np.array([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1], np.float32) / 48

    def loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return F.mse_loss(self(batch[0]), batch[1])


class Streaming(nn.Module):
    """One column a call: input [1, 1, 8] and state [2, 1, 128]; scores [1, 10] and the next state."""

    given = (1, 1, 8), (2, 1, 128)  # shapes of input and state
    judged = (4, 6, 7)  # calls from which samples are taken

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(8, 128, 2)
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states, state = self.recurrent(x, state)
        return self.head(states[-1]), state

    @staticmethod
    def calls(image: np.ndarray) -> np.ndarray:
        """What each call reads of an image."""
        return image[:, None, None]

    @staticmethod
    def draw(drawer: Drawer) -> Sample:
        image, kind = drawer.digit(8)
        noisy = image + drawer.rng.uniform(0, 0.2, (8, 8)).astype(np.float32)
        return noisy.T.copy(), np.array(kind)

    def loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        x, classes = batch
        states, _ = self.recurrent(x.transpose(0, 1))
        return F.cross_entropy(self.head(states[4:]).flatten(0, 1), classes.repeat(4))


class Chunked(nn.Module):
    """Four columns a call: input [1, 1, 16, 4] and state [1, 1, 64]; scores [1, 10] and the next state."""

    given = (1, 1, 16, 4), (1, 1, 64)
    judged = (2, 3)

    def __init__(self) -> None:
        super().__init__()
        widths = ((1, 32, 1), (32, 64, 2), (64, 64, 2))
        layers = [(nn.Conv2d(a, b, 3, stride, 1), nn.ReLU()) for a, b, stride in widths]
        self.encode = nn.Sequential(*(layer for pair in layers for layer in pair), nn.Flatten())
        self.recurrent = nn.GRU(256, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states, state = self.recurrent(self.encode(x)[None], state)
        return self.head(states[-1]), state

    @staticmethod
    def calls(image: np.ndarray) -> np.ndarray:
        return np.stack([image[:, None, None, a : a + 4] for a in range(0, 16, 4)]).transpose(0, 2, 3, 1, 4)

    @staticmethod
    def draw(drawer: Drawer) -> Sample:
        image, kind = drawer.digit(16)
        return image + drawer.rng.uniform(0, 0.2, (16, 16)).astype(np.float32), np.array(kind)

    def loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        x, classes = batch
        chunks = torch.stack([self.encode(c[:, None]) for c in x.split(4, dim=2)])
        states, _ = self.recurrent(chunks)
        return F.cross_entropy(self.head(states[2:]).flatten(0, 1), classes.repeat(2))


TASKS: dict[str, tuple[Callable[[], nn.Module], float, str, str]] = {  # module, rate, output, label key
    "detector": (Detector, 2e-3, "output0", "labels"),
    "encoder": (Encoder, 1e-3, "embedding", "labels"),
    "segmenter": (Segmenter, 3e-3, "output", "labels"),
    "superres": (SuperResolution, 1e-3, "output", "labels"),
    "recognizer": (Recognizer, 2e-3, "output", "labels"),
    "regressor": (Regressor, 2e-3, "output", "labels"),
    "streaming": (Streaming, 3e-3, "output", "labels"),
    "chunked": (Chunked, 3e-3, "output", "labels"),
}


def batches(module: Any, drawer: Drawer, size: int) -> Iterator[list[torch.Tensor]]:
    while True:
        rows = [module.draw(drawer) for _ in range(size)]
        yield [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]


def trained(task: str, minutes: float) -> nn.Module:
    make, rate, *_ = TASKS[task]
    torch.manual_seed(0)
    module: Any = make().train()
    optimizer = torch.optim.AdamW(module.parameters(), rate)
    end, begin, losses = time.monotonic() + 60 * minutes, time.monotonic(), []
    for batch in batches(module, Drawer(True, 1), 32):
        done = min((time.monotonic() - begin) / (end - begin), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * max(1 - done, 0.01)
        optimizer.zero_grad()
        loss = module.loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if time.monotonic() > end:
            break
    click.echo(f"{task}: {len(losses)} steps, loss {np.mean(losses[:10]):.4f} -> {np.mean(losses[-20:]):.4f}", err=True)
    return module.eval()


def streaming_samples(module: Any, drawer: Drawer, count: int) -> dict[str, np.ndarray]:
    """Single steps with the states that the network itself reached."""
    inputs, states, labels = [], [], []
    while len(inputs) < count:
        image, kind = module.draw(drawer)
        state = torch.zeros(module.given[1])
        for step, call in enumerate(module.calls(image)):
            x = torch.from_numpy(np.ascontiguousarray(call))
            if step in module.judged:
                inputs.append(x.numpy())
                states.append(state.numpy())
                labels.append(int(kind))
            with torch.no_grad():
                _, state = module(x, state)
    return {"x": np.stack(inputs[:count]), "state": np.stack(states[:count]), "labels": np.array(labels[:count])}


def export(task: str, module: Any, folder: Path) -> None:
    *_, output, key = TASKS[task]
    drawer = Drawer(False, 2)
    if hasattr(module, "calls"):
        arrays = streaming_samples(module, drawer, _VALIDATION)
        given = tuple(torch.zeros(shape) for shape in module.given)
        names, outputs, axes = ["x", "state"], [output, "next_state"], {}
    else:
        first, label = next(batches(module, drawer, _VALIDATION))
        arrays = {"x": first.numpy(), key: label.numpy()}
        given, names, outputs = (first[:2],), ["x"], [output]
        axes = {"x": {0: "batch"}, output: {0: "batch"}}
    torch.onnx.export(
        module, given, str(folder / f"{task}.onnx"), input_names=names, output_names=outputs, dynamic_axes=axes,
        opset_version=17, dynamo=False,
    )  # fmt: skip
    np.savez_compressed(folder / f"{task}.npz", **arrays)


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--only", multiple=True, type=click.Choice(list(TASKS)))
@click.option("--minutes", default=2.0, help="Training of each.")
def main(folder: Path, only: tuple[str, ...], minutes: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for task in only or TASKS:
        export(task, trained(task, minutes), folder)


if __name__ == "__main__":
    main()
