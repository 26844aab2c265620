"""The training loop: AdamW, warm-up and cosine, clipping, averaged weights, early stopping, checkpoints.

The number of steps is fixed before the first, and everything random is drawn from (seed, step), so that the state of a
run is its step, its weights, its moments and its average.  A run that is killed and resumed from its checkpoint, or
repeated up to its best step, therefore ends with the same bits.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onnxpress.errors import EnvironmentProblem, InputProblem
from onnxpress.model.files import write_atomic
from onnxpress.train.settings import Settings

_FORMAT = 2
_RECENT = 20  # steps

Loss = Callable[[int], Tensor | Iterator[Tensor]]
Seen = tuple[float, float, float, float]


@dataclass(frozen=True)
class Point:
    """One look at the selection samples: drop against the teacher (lower is better), uncertain by `doubt`, and nmse."""

    step: int
    loss: float
    drop: float
    nmse: float
    value: float
    doubt: float = 0.0

    @property
    def sound(self) -> bool:
        return math.isfinite(self.nmse) and math.isfinite(self.drop)


@dataclass
class Course:
    """How a run went: the selection curve, the step whose weights were kept, and why it ended."""

    curve: list[Point] = field(default_factory=list)
    best: int = 0
    ended: str = "all steps done"

    def add(self, point: Point, start: float = math.inf) -> bool:
        """Note a look; whether its weights are the ones to keep so far.

        The metric on some hundred samples is noisy, and the best of many looks is lucky: among looks whose drop is the
        lowest, give or take its doubt, the one closest to the teacher counts.  `start`: the drop before training,
        above which nothing is kept that need not be.
        """
        top = next((p for p in self.curve if p.step == self.best), None)
        self.curve.append(point)
        if not point.sound:
            return False
        lowest = min(p.drop for p in self.curve if p.sound)
        allowed = max(lowest, min(lowest + point.doubt, start))
        if (
            top is None
            or top.drop > allowed
            or (point.drop <= allowed and (point.nmse, point.drop) < (top.nmse, top.drop))
        ):
            self.best = point.step
            return True
        return False

    @property
    def overfitted(self) -> bool:
        """The last look is farther from the teacher than the best one while the training loss went on falling."""
        top = next((p for p in self.curve if p.step == self.best), None)
        if len(self.curve) < 3 or top is None:
            return False
        last = self.curve[-1]
        return last.nmse > 1.05 * top.nmse and last.loss < top.loss


class Trainer:
    """Trains `module` (and what `extra` holds, which is thrown away) on losses that are a function of the step.

    loss(step): one tensor, or an iterator of parts whose gradients are added before the weights move.
    mark: what the run is made of (model, data, settings), so that a checkpoint of another run is refused.
    """

    def __init__(
        self, module: nn.Module, loss: Loss, settings: Settings, extra: nn.Module | None = None, mark: str = ""
    ) -> None:
        self.module, self.loss, self.settings, self.mark = module, loss, settings, mark
        self.extra = extra
        own = [p for p in module.parameters() if p.requires_grad]
        more = [p for p in extra.parameters() if p.requires_grad] if extra is not None else []
        self.parameters, self._own = own + more, own
        flat = [p for p in self.parameters if p.ndim <= 1]
        deep = [p for p in self.parameters if p.ndim > 1]
        groups = [{"params": deep, "weight_decay": settings.decay}, {"params": flat, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.lr, betas=(0.9, 0.99))
        self.average = [p.detach().clone() for p in own]
        self._statistics = list(module.buffers())
        self._mean_statistics = [b.detach().clone() for b in self._statistics]  # averaged as the weights are
        self.done = 0
        self.course = Course()
        self._losses: list[float] = []
        self._best: tuple[list[Tensor], list[Tensor]] | None = None  # averaged weights, statistics

    def rate(self, step: int) -> float:
        """Learning rate of a step (0-based): linear warm-up, then half a cosine to a hundredth."""
        warm = max(1, round(self.settings.warmup * self.settings.steps))
        if step < warm:
            return self.settings.lr * (step + 1) / warm
        part = (step - warm) / max(1, self.settings.steps - warm)
        return self.settings.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, part))))

    def step(self) -> float:
        """One update; returns the loss.  Raises EnvironmentProblem where it is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.done)
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.loss(self.done)
        total = 0.0
        for part in [parts] if isinstance(parts, Tensor) else parts:
            part.backward()
            total += float(part.detach())
        if not math.isfinite(total):
            raise EnvironmentProblem(
                "training diverged", f"step {self.done + 1}", "the loss is not finite", "lower the learning rate (--lr)"
            )
        for (
            p
        ) in self.parameters:  # the gradient through a mask of -inf is not a number; what does not pass it still learns
            if p.grad is not None:
                p.grad.nan_to_num_(0.0, 0.0, 0.0)
        if self.settings.clip:
            nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimizer.step()
        self.done += 1
        keep = min(self.settings.ema, self.done / (10 + self.done))
        with torch.no_grad():
            means, places = self.average + self._mean_statistics, self._own + self._statistics
            for mean, now in zip(means, places, strict=True):
                mean.lerp_(now.detach(), 1 - keep)
        self._losses.append(total)
        return total

    @property
    def recent_loss(self) -> float:
        """Mean over the last steps since a look; 0 before the first."""
        last = self._losses[-_RECENT:]
        return sum(last) / max(1, len(last))

    @contextmanager
    def averaged(self, weights: Sequence[Tensor] | None = None) -> Iterator[None]:
        """The module with its averaged (or other) weights, for a look; its own come back afterwards."""
        own, seen = ([p.detach().clone() for p in some] for some in (self._own, self._statistics))
        self._put(self.average if weights is None else weights)
        _set(self._statistics, self._mean_statistics)
        try:
            yield
        finally:
            self._put(own)
            _set(self._statistics, seen)

    def _put(self, weights: Sequence[Tensor]) -> None:
        _set(self._own, weights)

    def run(
        self,
        look: Callable[[], Seen] | None = None,
        *,
        start: float = math.inf,
        stop: int | None = None,
        tell: Callable[[int, float, Point | None], None] | None = None,
        checkpoint: Path | None = None,
        every: float = 30.0,
    ) -> Course:
        """Train to the last step (or to `stop`, for a replay) and leave the chosen averaged weights in the module.

        look(): (drop, nmse, value, doubt of the drop) of the module as it stands, on the selection samples; called about
        `settings.looks` times; without it the last step's weights are taken.  start: the drop before training.
        checkpoint: written every so many seconds.
        """
        last = self.settings.steps if stop is None else stop
        saved = time.monotonic()
        while self.done < last and self.course.ended == "all steps done":
            loss = self.step()
            if look is not None and self._looks(self.done):
                self._look(look, start)
            if tell is not None:
                tell(self.done, loss, self.course.curve[-1] if self.course.curve else None)
            if checkpoint is not None and (time.monotonic() - saved >= every or self.done == last):
                self.save(checkpoint)
                saved = time.monotonic()
        if look is not None and self._best is not None:
            self._put(self._best[0])
            _set(self._statistics, self._best[1])
        else:
            self._put(self.average)
            _set(self._statistics, self._mean_statistics)
        if look is None:
            self.course.best = self.done
        return self.course

    def _looks(self, step: int) -> bool:
        gap = max(1, self.settings.steps // max(1, self.settings.looks))
        return step % gap == 0 or step == self.settings.steps

    def _look(self, look: Callable[[], Seen], start: float) -> None:
        with self.averaged():
            drop, nmse, value, doubt = look()
        mean = sum(self._losses) / max(1, len(self._losses))
        self._losses.clear()
        if self.course.add(Point(self.done, mean, drop, nmse, value, doubt), start):
            self._best = copy.deepcopy((self.average, self._mean_statistics))
        since = sum(p.step > self.course.best for p in self.course.curve)
        if self.settings.patience and since >= self.settings.patience:
            self.course.ended = f"no better for {since} looks at the selection samples"

    def save(self, path: Path) -> None:
        """Write the whole state at once (tensors and plain values only)."""
        state = {
            "format": _FORMAT,
            "mark": self.mark,
            "done": self.done,
            "module": [p.detach() for p in self._own],
            "extra": None if self.extra is None else self.extra.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "best": self._best,
            "statistics": self._statistics,
            "mean_statistics": self._mean_statistics,
            "losses": self._losses,
            "course": asdict(self.course),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(path, buffer.getvalue())

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint; raises InputProblem where it is of another run or damaged."""
        state = read_checkpoint(path, self.mark)
        self._put(state["module"])
        _set(self._statistics, state["statistics"])
        self._mean_statistics = state["mean_statistics"]
        if self.extra is not None:
            self.extra.load_state_dict(state["extra"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self._best = state["average"], state["best"]
        self.done, self._losses = int(state["done"]), list(state["losses"])
        course = state["course"]
        self.course = Course([Point(**p) for p in course["curve"]], course["best"], course["ended"])


def _set(places: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for place, value in zip(places, values, strict=True):
            place.copy_(value)


def read_checkpoint(path: Path, mark: str) -> dict[str, Any]:
    """The content of a run's checkpoint; nothing in the file is executed.  Raises InputProblem where it is another's."""
    try:
        state = torch.load(path, weights_only=True)
    except FileNotFoundError as error:
        raise InputProblem("no checkpoint to resume from", path, "", "run without --resume") from error
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise InputProblem("the checkpoint is damaged", path, str(error)[:120], "delete it, and start anew") from error
    if not isinstance(state, dict):
        raise InputProblem("the checkpoint is damaged", path, "it holds no state", "delete it, and start anew")
    if state.get("format") != _FORMAT or state.get("mark") != mark:
        raise InputProblem(
            "the checkpoint is of another run",
            path,
            "its models, samples or settings differ",
            "give the same options as before, or delete it",
        )
    return state
