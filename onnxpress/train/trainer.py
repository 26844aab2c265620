"""The training loop: AdamW, warm-up and cosine decay, gradient clipping, weight averaging, early stopping, checkpoints.

The number of steps is fixed before training, and everything random is drawn from (seed, step), so that the state of
a run is its step, its weights, the optimizer moments and the averaged weights.  A run that is resumed from a
checkpoint, or repeated up to its best step, therefore gives the same bits.
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
from onnxpress.train.settings import TrainingSettings

_FORMAT = 2
_LOSS_WINDOW = 20  # steps that `recent_loss` averages

LossFunction = Callable[[int], Tensor | Iterator[Tensor]]
Evaluation = tuple[float, float, float, float]


@dataclass(frozen=True)
class CurvePoint:
    """One evaluation on the selection samples.

    step: number of steps done.
    loss: mean training loss since the evaluation before.
    drop: loss of the metric against the teacher (lower is better).
    nmse: normalized mean squared error of the outputs to the teacher's.
    value: of the metric.
    uncertainty: standard error of the drop.
    """

    step: int
    loss: float
    drop: float
    nmse: float
    value: float
    uncertainty: float = 0.0

    @property
    def finite(self) -> bool:
        """Whether drop and nmse are finite."""
        return math.isfinite(self.nmse) and math.isfinite(self.drop)


@dataclass
class TrainingHistory:
    """The history of a run: the selection curve, the step whose weights were kept, and why training stopped."""

    curve: list[CurvePoint] = field(default_factory=list)
    best_step: int = 0
    stop_reason: str = "all steps done"

    def add(self, point: CurvePoint, initial_drop: float = math.inf) -> bool:
        """Record an evaluation; returns whether its weights are the best so far.

        The metric on some hundred samples is noisy, and the best of many evaluations is so partly by chance: among
        those whose drop is the lowest within its uncertainty, the one with the lowest nmse is the best.

        initial_drop: the drop before training; a drop within the uncertainty but above it is not accepted.
        """
        best = next((p for p in self.curve if p.step == self.best_step), None)
        self.curve.append(point)
        if not point.finite:
            return False
        lowest = min(p.drop for p in self.curve if p.finite)
        allowed = max(lowest, min(lowest + point.uncertainty, initial_drop))
        if (
            best is None
            or best.drop > allowed
            or (point.drop <= allowed and (point.nmse, point.drop) < (best.nmse, best.drop))
        ):
            self.best_step = point.step
            return True
        return False

    @property
    def overfitted(self) -> bool:
        """Whether the last evaluation has a higher nmse than the best one, although the training loss decreased."""
        best = next((p for p in self.curve if p.step == self.best_step), None)
        if len(self.curve) < 3 or best is None:
            return False
        last = self.curve[-1]
        return last.nmse > 1.05 * best.nmse and last.loss < best.loss


class Trainer:
    """Trains `module`, and an auxiliary module that is discarded, on losses that are functions of the step.

    loss(step): one tensor, or an iterator of tensors whose gradients are added before the weights are updated.
    fingerprint: hash of models, data and settings; a checkpoint with another one is rejected.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: LossFunction,
        settings: TrainingSettings,
        auxiliary: nn.Module | None = None,
        fingerprint: str = "",
    ) -> None:
        self.module, self.loss, self.settings, self.fingerprint = module, loss, settings, fingerprint
        self.auxiliary = auxiliary
        own = [p for p in module.parameters() if p.requires_grad]
        more = [p for p in auxiliary.parameters() if p.requires_grad] if auxiliary is not None else []
        self.parameters, self._module_parameters = own + more, own
        flat = [p for p in self.parameters if p.ndim <= 1]
        deep = [p for p in self.parameters if p.ndim > 1]
        groups = [{"params": deep, "weight_decay": settings.weight_decay}, {"params": flat, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.lr, betas=(0.9, 0.99))
        self.average = [p.detach().clone() for p in own]
        self._statistics = list(module.buffers())
        self._mean_statistics = [b.detach().clone() for b in self._statistics]  # averaged like the weights
        self.steps_done = 0
        self.history = TrainingHistory()
        self._losses: list[float] = []
        self._best: tuple[list[Tensor], list[Tensor]] | None = None  # averaged weights, statistics

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step (0-based): linear warm-up, then cosine decay to a hundredth."""
        warm = max(1, round(self.settings.warmup * self.settings.steps))
        if step < warm:
            return self.settings.lr * (step + 1) / warm
        part = (step - warm) / max(1, self.settings.steps - warm)
        return self.settings.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, part))))

    def step(self) -> float:
        """Do one update; returns the loss.  Raises EnvironmentProblem where the loss is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.steps_done)
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.loss(self.steps_done)
        total = 0.0
        for part in [parts] if isinstance(parts, Tensor) else parts:
            part.backward()
            total += float(part.detach())
        if not math.isfinite(total):
            raise EnvironmentProblem(
                "training diverged", f"step {self.steps_done + 1}", "the loss is not finite", "use a smaller `lr`"
            )
        for p in self.parameters:  # gradients through a mask of -inf are NaN
            if p.grad is not None:
                p.grad.nan_to_num_(0.0, 0.0, 0.0)
        if self.settings.clip:
            nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimizer.step()
        self.steps_done += 1
        keep = min(self.settings.ema, self.steps_done / (10 + self.steps_done))
        with torch.no_grad():
            means, places = self.average + self._mean_statistics, self._module_parameters + self._statistics
            for mean, now in zip(means, places, strict=True):
                mean.lerp_(now.detach(), 1 - keep)
        self._losses.append(total)
        return total

    @property
    def recent_loss(self) -> float:
        """Mean loss of the last steps since an evaluation; 0 before the first step."""
        last = self._losses[-_LOSS_WINDOW:]
        return sum(last) / max(1, len(last))

    @contextmanager
    def averaged_weights(self, weights: Sequence[Tensor] | None = None) -> Iterator[None]:
        """Context in which the module has its averaged (or the given) weights."""
        own, statistics = ([p.detach().clone() for p in some] for some in (self._module_parameters, self._statistics))
        self._load(self.average if weights is None else weights)
        _copy_into(self._statistics, self._mean_statistics)
        try:
            yield
        finally:
            self._load(own)
            _copy_into(self._statistics, statistics)

    def _load(self, weights: Sequence[Tensor]) -> None:
        _copy_into(self._module_parameters, weights)

    def run(
        self,
        evaluate: Callable[[], Evaluation] | None = None,
        *,
        initial_drop: float = math.inf,
        more_time: Callable[[], bool] = lambda: True,
        stop: int | None = None,
        on_step: Callable[[int, float, CurvePoint | None], None] | None = None,
        checkpoint: Path | None = None,
        checkpoint_interval: float = 30.0,
    ) -> TrainingHistory:
        """Train to the last step (or to `stop`, to replay a run); the module then has the best averaged weights.

        evaluate: returns (drop, nmse, value, uncertainty) of the module on the selection samples; called about
            `settings.evaluations` times.  Without it the weights of the last step are taken.
        initial_drop: the drop before training.
        more_time: whether training may go on; where not, it ends with an evaluation.
        on_step: called after each step with the step, the loss and the last evaluation.
        checkpoint: path of the checkpoint, written every `checkpoint_interval` seconds.
        """
        last = self.settings.steps if stop is None else stop
        saved = time.monotonic()
        while self.steps_done < last and self.history.stop_reason == "all steps done":
            loss = self.step()
            over = not more_time()
            if over:
                self.history.stop_reason = "its time was over"
            if evaluate is not None and (over or self._evaluates_at(self.steps_done)):
                self._evaluate(evaluate, initial_drop)
            if on_step is not None:
                on_step(self.steps_done, loss, self.history.curve[-1] if self.history.curve else None)
            if checkpoint is not None and (time.monotonic() - saved >= checkpoint_interval or self.steps_done == last):
                self.save(checkpoint)
                saved = time.monotonic()
        if evaluate is not None and self._best is not None:
            self._load(self._best[0])
            _copy_into(self._statistics, self._best[1])
        else:
            self._load(self.average)
            _copy_into(self._statistics, self._mean_statistics)
        if evaluate is None:
            self.history.best_step = self.steps_done
        return self.history

    def _evaluates_at(self, step: int) -> bool:
        gap = max(1, self.settings.steps // max(1, self.settings.evaluations))
        return step % gap == 0 or step == self.settings.steps

    def _evaluate(self, evaluate: Callable[[], Evaluation], initial_drop: float) -> None:
        with self.averaged_weights():
            drop, nmse, value, uncertainty = evaluate()
        mean = sum(self._losses) / max(1, len(self._losses))
        self._losses.clear()
        if self.history.add(CurvePoint(self.steps_done, mean, drop, nmse, value, uncertainty), initial_drop):
            self._best = copy.deepcopy((self.average, self._mean_statistics))
        since = sum(p.step > self.history.best_step for p in self.history.curve)
        if self.settings.patience and since >= self.settings.patience:
            self.history.stop_reason = f"no improvement in {since} evaluations on the selection samples"

    def save(self, path: Path) -> None:
        """Write the state of the run (tensors and plain values only)."""
        state = {
            "format": _FORMAT,
            "fingerprint": self.fingerprint,
            "done": self.steps_done,
            "module": [p.detach() for p in self._module_parameters],
            "auxiliary": None if self.auxiliary is None else self.auxiliary.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "best": self._best,
            "statistics": self._statistics,
            "mean_statistics": self._mean_statistics,
            "losses": self._losses,
            "history": asdict(self.history),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(path, buffer.getvalue())

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint.  Raises InputProblem where it is damaged or belongs to another run."""
        state = read_checkpoint(path, self.fingerprint)
        self._load(state["module"])
        _copy_into(self._statistics, state["statistics"])
        self._mean_statistics = state["mean_statistics"]
        if self.auxiliary is not None:
            self.auxiliary.load_state_dict(state["auxiliary"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self._best = state["average"], state["best"]
        self.steps_done, self._losses = int(state["done"]), list(state["losses"])
        history = state["history"]
        self.history = TrainingHistory(
            [CurvePoint(**p) for p in history["curve"]], history["best_step"], history["stop_reason"]
        )


def _copy_into(places: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for place, value in zip(places, values, strict=True):
            place.copy_(value)


def read_checkpoint(path: Path, fingerprint: str) -> dict[str, Any]:
    """The content of a checkpoint; no code in the file is executed.

    Raises InputProblem where it is damaged or belongs to another run.
    """
    try:
        state = torch.load(path, weights_only=True)
    except FileNotFoundError as error:
        raise InputProblem("no checkpoint to resume from", path, "", "run without `resume`") from error
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise InputProblem("the checkpoint is damaged", path, str(error)[:120], "delete it, and start again") from error
    if not isinstance(state, dict):
        raise InputProblem("the checkpoint is damaged", path, "it holds no state", "delete it, and start again")
    if state.get("format") != _FORMAT or state.get("fingerprint") != fingerprint:
        raise InputProblem(
            "the checkpoint belongs to another run",
            path,
            "its models, samples or settings differ",
            "use the same options as before, or delete it",
        )
    return state
