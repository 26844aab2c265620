"""Distillation of one student from one teacher, end to end or blockwise, and selection of the training parameters."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxpress.data.dataset import Dataset
from onnxpress.errors import EnvironmentProblem
from onnxpress.measure.evidence import Evidence
from onnxpress.measure.score import Scorer
from onnxpress.model.files import model_hash
from onnxpress.progress import Progress, no_progress
from onnxpress.train import progressive_resizing
from onnxpress.train.augment import Augmentation, input_fields, select_applicable, select_automatically
from onnxpress.train.augmentations import InputField
from onnxpress.train.distillation.blockwise import BlockBatches, ModelBlock, divide_steps, model_blocks
from onnxpress.train.distillation.feature_matching import FeaturePair
from onnxpress.train.distillation.objective import Objective
from onnxpress.train.distillation.output_heads import OutputHead, example_batch, output_heads, to_logits
from onnxpress.train.distillation.teacher_batches import (
    Arrays,
    BatchOrder,
    SamplePool,
    Teacher,
    TeacherBatch,
    TeacherBatches,
    TeacherCache,
    repeat_period,
)
from onnxpress.train.exec_mode import ExecMode, to_float32
from onnxpress.train.graph.program import Program
from onnxpress.train.settings import TrainingSettings
from onnxpress.train.trainer import CurvePoint, Evaluation, Trainer, TrainingHistory

EvaluateModel = Callable[[ir.Model], Evaluation]
StepCallback = Callable[[int, int, float, CurvePoint | None], None]  # step, number of steps, loss, last evaluation

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
_HEAD_SAMPLES = 256  # from which the outputs are classified
_WARMUP_STEPS, _TIMED_STEPS = 2, 6  # of a timing run
_TRIAL_STEPS, _LEAST_TRIAL_STEPS = 12, 8  # of the trial of a learning rate: fewer show the first, noisy steps alone
# In a run of fewer steps a trial may increase the loss by less, in one of very few not at all.
_SHORT_RUN, _SHORT_RUN_RATIO, _VERY_SHORT_RUN = 300, 1.35, 40
_MIN_STEP_SECONDS = 1e-4
_TIMING_SECONDS = 3.0  # a timing run ends with the first step after this time
_TIMING_FRACTION = 0.01  # of the time budget: the same limit for short trainings
_MAX_LOSS_RATIO = 1.7  # to the lowest loss of a trial: a higher learning rate makes up for it later
_BLOCKWISE_LEARNING_RATE = 1e-3


@dataclass
class RunOptions:
    """Options of a run that do not change its training steps.

    evaluate: model -> (drop, nmse, value, uncertainty) on the selection samples.
    on_step: called after each step.
    stop: step at which to end (to replay a plan); default: the last one.
    checkpoint: path of the checkpoint.
    checkpoint_interval: seconds between checkpoints.
    resume: continue from the checkpoint.
    initial_drop: drop before training.
    more_time: whether training may go on; where not, it ends with the best so far.
    """

    evaluate: EvaluateModel | None = None
    on_step: StepCallback | None = None
    stop: int | None = None
    checkpoint: Path | None = None
    checkpoint_interval: float = 30.0
    resume: bool = False
    initial_drop: float = math.inf
    more_time: Callable[[], bool] = lambda: True


@dataclass
class Distillation:
    """Training of a student towards a teacher.

    student, teacher: canonical models with their evidence.
    data: training samples.
    settings: of the training.
    pairs: inner values to match.
    cache: shared with other trainings that have the same teacher and samples.
    """

    student: Evidence
    teacher: Evidence
    data: Dataset
    settings: TrainingSettings
    pairs: Sequence[FeaturePair] = ()
    cache: TeacherCache | None = None
    output_heads: list[OutputHead] = field(init=False)

    def __post_init__(self) -> None:
        judge = Scorer(self.teacher.model, self.data.take(_HEAD_SAMPLES))
        self.output_heads = output_heads(self.student.model, self.teacher.model, judge)
        labelled = next((h for h in self.output_heads if h.labelled), None)
        self._classes = labelled.classes if labelled is not None and self.settings.labels_weight else 0
        self._pool: SamplePool | None = None
        self._scale: float | None = None  # of the images, while steps are timed
        self._timing_seconds = _TIMING_SECONDS
        # by (mode, batch, augmentations): seconds of a step with and without running the teacher
        self._step_seconds: dict[tuple[str, int, tuple[str, ...]], tuple[float, float]] = {}

    @property
    def pool(self) -> SamplePool:
        """The training samples."""
        if self._pool is None:
            self._pool = SamplePool(self.data, self._classes)
        return self._pool

    @property
    def fingerprint(self) -> str:
        """Hash of the models, the data and the settings, by which a checkpoint is recognized."""
        body = [model_hash(self.student.model), model_hash(self.teacher.model), self.data.hash]
        text = json.dumps([*body, self.settings.as_dict(), [p.as_dict() for p in self.pairs]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def run(self, options: RunOptions) -> tuple[ir.Model, TrainingHistory]:
        """Train; returns the student with the selected weights, and the history of the training."""
        with torch_threads(self.settings.threads):
            if self.settings.mode == "blockwise":
                return self._run_blockwise(options)
            return self._run_end_to_end(options)

    # end to end

    def _trainer(self) -> tuple[Program, Trainer]:
        names = self._teacher_names()
        example = Teacher(self.teacher.model, names, self.data)(example_batch(self.data))
        shapes = self.student.trace.shapes
        widths = {p.student: shapes[p.student][p.channel] for p in self.pairs}
        torch.manual_seed(self.settings.seed)
        objective = Objective(self.settings, self.output_heads, self.pairs, example, widths)
        program = Program(self.student.model, outputs=objective.student_values, from_scratch=self.settings.from_scratch)
        batches = self._batches(Teacher(self.teacher.model, names, self.data))
        resizing = self.settings.progressive_resizing and not objective.pairs
        images = self._resizable_fields(program) if resizing else []

        def loss(step: int) -> Iterator[Tensor]:
            objective.set_step(step)
            scale = self._scale or progressive_resizing.scale_at(step, self.settings.steps)
            for batch in batches(step):
                inputs = {n: torch.from_numpy(v) for n, v in batch.inputs.items()}
                inputs = progressive_resizing.resize_images(inputs, images if scale < 1 else [], scale)
                yield _batch_loss(program, objective, batch, inputs)

        return program, Trainer(program, loss, self.settings, objective, self.fingerprint)

    def _resizable_fields(self, program: Program) -> list[InputField]:
        few = self.pool.stack(range(min(2, len(self.pool.data))))
        inputs = {n: torch.from_numpy(v) for n, v in few.items()}
        return progressive_resizing.resizable_fields(program, input_fields(self.data), inputs)

    def _teacher_names(self) -> list[str]:
        inner = [p.teacher for p in self.pairs] if self.settings.features != "none" else []
        return [h.teacher for h in self.output_heads] + inner

    def _batches(self, teacher: Teacher) -> TeacherBatches:
        s = self.settings
        augmentation = Augmentation(tuple(s.augment), input_fields(self.data) if s.augment else ())
        return TeacherBatches(
            self.pool, teacher, s.batch, s.seed, augmentation, self.student.batchable, s.steps, self.cache
        )

    def _run_end_to_end(self, options: RunOptions) -> tuple[ir.Model, TrainingHistory]:
        program, trainer = self._trainer()
        if options.resume and options.checkpoint is not None:
            trainer.restore(options.checkpoint)
        history = trainer.run(
            None if options.evaluate is None else lambda: options.evaluate(program.to_model()),  # type: ignore[misc]
            initial_drop=options.initial_drop,
            more_time=options.more_time,
            stop=options.stop,
            on_step=_with_total_steps(options.on_step, self.settings.steps),
            checkpoint=options.checkpoint,
            checkpoint_interval=options.checkpoint_interval,
        )
        return program.to_model(), history

    # blockwise

    def _output_pairs(self) -> list[FeaturePair]:
        """The compared outputs as pairs."""
        heads = [h for h in self.output_heads if h.student_probabilities == h.teacher_probabilities]
        return [FeaturePair(h.student, h.teacher, 1) for h in heads]

    def _run_blockwise(self, options: RunOptions) -> tuple[ir.Model, TrainingHistory]:
        """Train block after block, with one evaluation after each; the best model is kept, where a replay stops."""
        model = self.student.model.clone()
        blocks = model_blocks(self.pairs, self._output_pairs())
        steps_of = divide_steps(self.settings.steps, len(blocks))
        history, done, best = TrainingHistory(), 0, model
        for number, (block, steps) in enumerate(zip(blocks, steps_of, strict=True)):
            if options.stop is not None and done >= options.stop:
                break
            path = None if options.checkpoint is None else options.checkpoint.with_suffix(f".{number}.ckpt")
            model, loss = self._train_block(model, block, steps, done, replace(options, checkpoint=path))
            done += steps
            if options.evaluate is not None:
                if history.add(CurvePoint(done, loss, *options.evaluate(model)), options.initial_drop):
                    best = model
            else:
                history.best_step, best = done, model
        return best, history

    def _train_block(
        self, model: ir.Model, block: ModelBlock, steps: int, steps_before: int, options: RunOptions
    ) -> tuple[ir.Model, float]:
        """The model with the block trained, and the loss at the end.  options.checkpoint: of this block."""
        batches = BlockBatches(self.pool, self.teacher.model, block, self.settings.batch, self.settings.seed)
        inputs = [v.name or "" for v in model.graph.inputs]
        inner = [block.first.student] if block.first is not None else []
        program = Program(model, outputs=[block.last.student], inputs=[*inner, *inputs])
        if not list(program.parameters()):
            return model, 0.0
        settings = replace(self.settings, steps=steps)
        trainer = Trainer(
            program,
            lambda step: batches.step_losses(program, step, self.student.batchable),
            settings,
            None,
            f"{self.fingerprint}/{block.name}",
        )
        if options.resume and options.checkpoint is not None and options.checkpoint.exists():
            trainer.restore(options.checkpoint)

        def on_step(step: int, loss: float, point: CurvePoint | None) -> None:
            if options.on_step is not None:
                options.on_step(steps_before + step, self.settings.steps, loss, None)

        trainer.run(on_step=on_step, checkpoint=options.checkpoint, checkpoint_interval=options.checkpoint_interval)
        return program.to_model(), trainer.recent_loss

    # selection of the learning rate and the number of steps

    def find_learning_rate(
        self, steps: int = _SHORT_RUN, fraction: float = 1.0, progress: Progress = no_progress
    ) -> float:
        """The highest of LEARNING_RATES that is stable in a short trial.

        The loss after the trial must not be far above the best trial's, nor, in a run of few steps, above the loss
        before training.  Networks without normalization (which is folded into weights in most files) differ by a
        factor of thirty in the learning rate that they tolerate.

        steps: of the training to come.
        fraction: of these steps, which all trials may take together.
        """
        before = self.settings
        if before.mode == "blockwise":
            return _BLOCKWISE_LEARNING_RATE
        trial_steps = int(min(_TRIAL_STEPS, max(_LEAST_TRIAL_STEPS, fraction * steps / len(LEARNING_RATES))))
        selected, short = LEARNING_RATES[0], steps < _SHORT_RUN
        max_ratio = _MAX_LOSS_RATIO if not short else _SHORT_RUN_RATIO if steps >= _VERY_SHORT_RUN else 1.0
        try:
            self.settings = replace(before, lr=LEARNING_RATES[0], steps=trial_steps, warmup=0.5)
            with torch_threads(before.threads):
                lowest = self._trial_loss(0) if short else math.inf
            for number, rate in enumerate(LEARNING_RATES):
                self.settings = replace(before, lr=rate, steps=trial_steps, warmup=0.5)
                with torch_threads(before.threads):
                    loss = self._trial_loss(trial_steps)
                progress("selecting the learning rate", (number + 1) / len(LEARNING_RATES))
                if not loss <= max_ratio * lowest:
                    break
                selected, lowest = rate, min(lowest, loss)
        finally:
            self.settings = before
        return selected

    def _trial_loss(self, steps: int) -> float:
        """The loss on three batches after some steps; infinite where training diverges."""
        _, trainer = self._trainer()
        try:
            for _ in range(steps):
                trainer.step()
        except EnvironmentProblem:
            return math.inf
        with torch.no_grad():
            return sum(float(part) for step in range(3) for part in trainer.loss(step)) / 3

    def step_seconds(self) -> float:
        """Measured seconds of a step (the mean over the sizes of progressive resizing); the student is not changed."""
        with torch_threads(self.settings.threads):
            if self.settings.mode == "blockwise":
                return self._block_step_seconds()
            _, trainer = self._trainer()
            stages = progressive_resizing.stages() if self.settings.progressive_resizing else [(1.0, 1.0)]
            try:
                return sum(fraction * self._timed_step(trainer, scale) for fraction, scale in stages)
            finally:
                self._scale = None

    def steps_within(self, seconds: float) -> int:
        """Number of steps that fit into a time; repeated batches need no run of the teacher."""
        s = self.settings
        key = (s.mode, s.batch, s.augment)
        self._timing_seconds = min(_TIMING_SECONDS, _TIMING_FRACTION * seconds)
        if key not in self._step_seconds:  # the second measurement finds the teacher's values in the cache
            first = max(self.step_seconds(), _MIN_STEP_SECONDS)
            again = first if s.mode == "blockwise" or self.cache is None else min(self.step_seconds(), first)
            self._step_seconds[key] = first, max(again, _MIN_STEP_SECONDS)
        first, again = self._step_seconds[key]
        if first == again:
            return max(1, int(seconds / first))
        order = BatchOrder(self.pool.buckets, min(s.batch, len(self.data)), s.seed)
        period = repeat_period(self.pool, order, s.augment)
        return max(1, int(min(seconds / first, period + max(0.0, seconds - period * first) / again)))

    def _timed_step(self, trainer: Trainer, scale: float) -> float:
        self._scale = scale
        start = time.perf_counter()
        for done in range(_WARMUP_STEPS):
            if not done or time.perf_counter() - start < self._timing_seconds:
                trainer.step()
        start, done = time.perf_counter(), 0
        while done < _TIMED_STEPS and (not done or time.perf_counter() - start < self._timing_seconds):
            trainer.step()
            done += 1
        return (time.perf_counter() - start) / done

    def _block_step_seconds(self) -> float:
        """Mean seconds of a step over the blocks, including the preparation of each block."""
        blocks = model_blocks(self.pairs, self._output_pairs())
        start = time.perf_counter()
        for block in blocks:
            self._train_block(self.student.model.clone(), block, _TIMED_STEPS, 0, RunOptions())
        return (time.perf_counter() - start) / (_TIMED_STEPS * len(blocks))


def _batch_loss(program: Program, objective: Objective, batch: TeacherBatch, inputs: Mapping[str, Tensor]) -> Tensor:
    mode = ExecMode.from_settings(objective.settings)
    with mode.autocast():
        student = to_float32(program(mode.to_layout(inputs)))
    teacher = {n: torch.from_numpy(np.ascontiguousarray(v)) for n, v in batch.targets.items()}
    labels = None if batch.labels is None else torch.from_numpy(batch.labels)
    found = objective(student, teacher, labels) * batch.weight
    assert isinstance(found, Tensor)
    return found


def _with_total_steps(
    on_step: StepCallback | None, steps: int
) -> Callable[[int, float, CurvePoint | None], None] | None:
    return None if on_step is None else lambda step, loss, point: on_step(step, steps, loss, point)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Context in which torch uses a number of threads, on which the last bits of sums depend."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def select_augmentations(augment: str, data: Dataset, job: Distillation) -> tuple[str, ...]:
    """Names of the augmentations that `augment` ("auto", "none", or names separated by commas) stands for."""
    if augment == "none":
        return ()
    found = input_fields(data)
    if augment != "auto":
        return select_applicable([w.strip() for w in augment.split(",") if w.strip()], found)
    head = next((h for h in job.output_heads if h.labelled), job.output_heads[0])
    teacher = Teacher(job.teacher.model, [head.teacher], data)

    def teacher_logits(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        values = to_logits(teacher(Arrays(inputs))[head.teacher], head.teacher_probabilities)
        return values.reshape(len(values), -1)

    labelled = bool(job.settings.labels_weight) and data.labelled
    return select_automatically(found, data, teacher_logits, labelled)
