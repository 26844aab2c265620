"""One student trained towards one teacher, in either mode: what the pass replays and the command drives."""

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
from onnxpress.train import progressive_resizing
from onnxpress.train.augment import automatic, fields, suitable
from onnxpress.train.augmentations import Field
from onnxpress.train.distillation.blockwise import BlockLessons, blocks, share_steps
from onnxpress.train.distillation.feature_matching import Pair
from onnxpress.train.distillation.objective import Objective
from onnxpress.train.distillation.output_heads import Head, answers, heads, probe
from onnxpress.train.distillation.teacher_batches import Arrays, Lesson, Lessons, Memory, Order, Pool, Teacher, period
from onnxpress.train.exec_mode import Way, full
from onnxpress.train.graph.program import Program
from onnxpress.train.settings import Settings
from onnxpress.train.trainer import Course, Point, Seen, Trainer

Look = Callable[[ir.Model], Seen]
Tell = Callable[[int, int, float, Point | None], None]

_JUDGED = 256  # samples that tell which output answers
_WARM, _TIMED = 2, 6  # steps of the timing run
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
_TRIED = 12  # steps of a trial of a learning rate
_FEW = 300  # steps, below which a rate must do no harm at all: there is no time to pay it back
_INSTANT = 1e-4  # seconds, below which a step's time is not believed
_PATIENCE = 3.0  # seconds of the timing run, from which on one step is enough
_PATIENCE_SHARE = 0.01  # of the seconds that are to be filled: the same, where the training is to be short
_WORSE = (
    1.7  # times the lowest loss of a trial that a faster rate may end with: it pays back later what it costs at first
)
_BLOCK_RATE = 1e-3


@dataclass
class Watch:
    """What stands beside a run: looks at the selection samples, progress, and where its checkpoint is.

    look: (drop, nmse, value, doubt) of a model; start: the drop before training; stop: the step to end at (a replay);
    resume: go on from the checkpoint.
    """

    look: Look | None = None
    tell: Tell | None = None
    stop: int | None = None
    checkpoint: Path | None = None
    every: float = 30.0
    resume: bool = False
    start: float = math.inf


@dataclass
class Distillation:
    """student, teacher: canonical models with their evidence; data: the samples to learn from; pairs: inner values; memory:
    shared with other trainings of the same teacher and samples."""

    student: Evidence
    teacher: Evidence
    data: Dataset
    settings: Settings
    pairs: Sequence[Pair] = ()
    memory: Memory | None = None
    heads: list[Head] = field(init=False)

    def __post_init__(self) -> None:
        self.heads = heads(self.student.model, self.teacher.model, Scorer(self.teacher.model, self.data.take(_JUDGED)))
        answering = next((h for h in self.heads if h.answer), None)
        self._classes = answering.classes if answering is not None and self.settings.labels else 0
        self._pool: Pool | None = None
        self._scale: float | None = None  # of the pictures, while steps are timed
        self._patience = _PATIENCE
        self._paces: dict[
            tuple[str, int, tuple[str, ...]], tuple[float, float]
        ] = {}  # seconds of a new step, of a heard one

    @property
    def pool(self) -> Pool:
        if self._pool is None:
            self._pool = Pool(self.data, self._classes)
        return self._pool

    @property
    def mark(self) -> str:
        """What the run is made of, for its checkpoint."""
        body = [model_hash(self.student.model), model_hash(self.teacher.model), self.data.hash]
        text = json.dumps([*body, self.settings.plain(), [p.plain() for p in self.pairs]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def run(self, watch: Watch) -> tuple[ir.Model, Course]:
        """Train; returns the student with the chosen weights, and how it went."""
        with threads(self.settings.threads):
            if self.settings.mode == "blockwise":
                return self._blockwise(watch)
            return self._whole(watch)

    # end to end

    def _trainer(self) -> tuple[Program, Trainer]:
        names = self._teacher_names()
        example = Teacher(self.teacher.model, names, self.data)(probe(self.data))
        shapes = self.student.trace.shapes
        widths = {p.student: shapes[p.student][p.channel] for p in self.pairs}
        torch.manual_seed(self.settings.seed)
        objective = Objective(self.settings, self.heads, self.pairs, example, widths)
        program = Program(self.student.model, outputs=objective.taps, from_scratch=self.settings.from_scratch)
        lessons = self._lessons(Teacher(self.teacher.model, names, self.data))
        pictures = self._pictures(program) if self.settings.growing and not objective.pairs else []

        def loss(step: int) -> Iterator[Tensor]:
            objective.at(step)
            scale = self._scale or progressive_resizing.scale_at(step, self.settings.steps)
            for lesson in lessons(step):
                inputs = {n: torch.from_numpy(v) for n, v in lesson.inputs.items()}
                yield _loss(
                    program,
                    objective,
                    lesson,
                    progressive_resizing.scaled(inputs, pictures if scale < 1 else [], scale),
                )

        return program, Trainer(program, loss, self.settings, objective, self.mark)

    def _pictures(self, program: Program) -> list[Field]:
        few = self.pool.stack(range(min(2, len(self.pool.data))))
        return progressive_resizing.growing(
            program, fields(self.data), {n: torch.from_numpy(v) for n, v in few.items()}
        )

    def _teacher_names(self) -> list[str]:
        inner = [p.teacher for p in self.pairs] if self.settings.features != "none" else []
        return [h.teacher for h in self.heads] + inner

    def _lessons(self, teacher: Teacher) -> Lessons:
        s = self.settings
        found: tuple[Field, ...] = fields(self.data) if s.augment else ()
        return Lessons(
            self.pool, teacher, s.batch, s.seed, found, s.augment, self.student.batchable, s.steps, self.memory
        )

    def _whole(self, watch: Watch) -> tuple[ir.Model, Course]:
        program, trainer = self._trainer()
        if watch.resume and watch.checkpoint is not None:
            trainer.restore(watch.checkpoint)
        course = trainer.run(
            None if watch.look is None else lambda: watch.look(program.written()),  # type: ignore[misc]
            start=watch.start,
            stop=watch.stop,
            tell=_counted(watch.tell, self.settings.steps),
            checkpoint=watch.checkpoint,
            every=watch.every,
        )
        return program.written(), course

    # block by block

    def _ends(self) -> list[Pair]:
        """The outputs as pairs, by what they are compared by."""
        return [Pair(h.student, h.teacher, 1) for h in self.heads if h.student_log == h.teacher_log]

    def _blockwise(self, watch: Watch) -> tuple[ir.Model, Course]:
        """Every block in turn.  One look after each block: the best so far is kept, a replay stops there."""
        model = self.student.model.clone()
        parts = blocks(self.pairs, self._ends())
        budget = share_steps(self.settings.steps, len(parts))
        course, done, best = Course(), 0, model
        for number, (part, steps) in enumerate(zip(parts, budget, strict=True)):
            if watch.stop is not None and done >= watch.stop:
                break
            place = None if watch.checkpoint is None else watch.checkpoint.with_suffix(f".{number}.ckpt")
            model, loss = self._block(model, part, steps, done, watch, place)
            done += steps
            if watch.look is not None:
                if course.add(Point(done, loss, *watch.look(model)), watch.start):
                    best = model
            else:
                course.best, best = done, model
        return best, course

    def _block(
        self, model: ir.Model, part: object, steps: int, before: int, watch: Watch, place: Path | None
    ) -> tuple[ir.Model, float]:
        from onnxpress.train.distillation.blockwise import Block

        assert isinstance(part, Block)
        lessons = BlockLessons(self.pool, self.teacher.model, part, self.settings.batch, self.settings.seed)
        inputs = [v.name or "" for v in model.graph.inputs]
        inner = [part.first.student] if part.first is not None else []
        program = Program(model, outputs=[part.last.student], inputs=[*inner, *inputs])
        if not list(program.parameters()):
            return model, 0.0
        settings = replace(self.settings, steps=steps)
        trainer = Trainer(
            program,
            lambda step: lessons.parts(program, step, self.student.batchable),
            settings,
            None,
            f"{self.mark}/{part.name}",
        )
        if watch.resume and place is not None and place.exists():
            trainer.restore(place)

        def tell(step: int, loss: float, point: Point | None) -> None:
            if watch.tell is not None:
                watch.tell(before + step, self.settings.steps, loss, None)

        trainer.run(tell=tell, checkpoint=place, every=watch.every)
        return program.written(), trainer.recent_loss

    # how fast, and how long

    def find_rate(self, steps: int = _FEW, share: float = 1.0, tell: Callable[[float], None] | None = None) -> float:
        """The fastest of RATES that a short trial on a copy stands: its loss is not far above the best trial's, nor, where
        few `steps` will follow, above what it was before.  share: of the steps that trials may take in all.

        Networks without normalization (it is folded in most files) differ by a factor of thirty in what they stand.
        """
        before = self.settings
        if before.mode == "blockwise":
            return _BLOCK_RATE
        tried = int(min(_TRIED, max(2, share * steps / len(RATES))))
        chosen, worse = RATES[0], _WORSE if steps >= _FEW else 1.0
        try:
            self.settings = replace(before, lr=RATES[0], steps=tried, warmup=0.5)
            with threads(before.threads):
                least = math.inf if steps >= _FEW else self._trial(0)
            for number, rate in enumerate(RATES):
                self.settings = replace(before, lr=rate, steps=tried, warmup=0.5)
                with threads(before.threads):
                    loss = self._trial(tried)
                if tell is not None:
                    tell((number + 1) / len(RATES))
                if not loss <= worse * least:
                    break
                chosen, least = rate, min(least, loss)
        finally:
            self.settings = before
        return chosen

    def _trial(self, steps: int) -> float:
        """The loss on three batches after so many steps; infinite where it diverges."""
        _, trainer = self._trainer()
        try:
            for _ in range(steps):
                trainer.step()
        except EnvironmentProblem:
            return math.inf
        with torch.no_grad():
            return sum(float(part) for step in range(3) for part in trainer.loss(step)) / 3

    def step_seconds(self) -> float:
        """Seconds a step takes (the mean, where pictures grow), measured on a copy that is thrown away."""
        with threads(self.settings.threads):
            if self.settings.mode == "blockwise":
                return self._block_seconds()
            _, trainer = self._trainer()
            stages = progressive_resizing.shares() if self.settings.growing else [(1.0, 1.0)]
            try:
                return sum(share * self._timed(trainer, scale) for share, scale in stages)
            finally:
                self._scale = None

    def steps_in(self, seconds: float) -> int:
        """How many fit in the time: what the teacher was asked before it need not be asked again."""
        s = self.settings
        key = (s.mode, s.batch, s.augment)
        self._patience = min(_PATIENCE, _PATIENCE_SHARE * seconds)
        if key not in self._paces:  # once: the second time the teacher's answers to the first steps are known
            first = max(self.step_seconds(), _INSTANT)
            again = first if s.mode == "blockwise" or self.memory is None else min(self.step_seconds(), first)
            self._paces[key] = first, max(again, _INSTANT)
        first, again = self._paces[key]
        if first == again:
            return max(1, int(seconds / first))
        heard = period(self.pool, Order(self.pool.buckets, min(s.batch, len(self.data)), s.seed), s.augment)
        return max(1, int(min(seconds / first, heard + max(0.0, seconds - heard * first) / again)))

    def _timed(self, trainer: Trainer, scale: float) -> float:
        self._scale = scale
        start = time.perf_counter()
        for done in range(_WARM):
            if not done or time.perf_counter() - start < self._patience:
                trainer.step()
        start, done = time.perf_counter(), 0
        while done < _TIMED and (not done or time.perf_counter() - start < self._patience):
            trainer.step()
            done += 1
        return (time.perf_counter() - start) / done

    def _block_seconds(self) -> float:
        """Mean over the blocks, what a block needs to be ready included a step."""
        parts = blocks(self.pairs, self._ends())
        start = time.perf_counter()
        for part in parts:
            self._block(self.student.model.clone(), part, _TIMED, 0, Watch(), None)
        return (time.perf_counter() - start) / (_TIMED * len(parts))


def _loss(program: Program, objective: Objective, lesson: Lesson, inputs: Mapping[str, Tensor]) -> Tensor:
    way = Way.of(objective.settings)
    with way():
        student = full(program(way.laid(inputs)))
    teacher = {n: torch.from_numpy(np.ascontiguousarray(v)) for n, v in lesson.targets.items()}
    labels = None if lesson.labels is None else torch.from_numpy(lesson.labels)
    found = objective(student, teacher, labels) * lesson.share
    assert isinstance(found, Tensor)
    return found


def _counted(tell: Tell | None, steps: int) -> Callable[[int, float, Point | None], None] | None:
    return None if tell is None else lambda step, loss, point: tell(step, steps, loss, point)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch on so many threads, which the last bits of sums depend on."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_augment(wish: str, data: Dataset, job: Distillation) -> tuple[str, ...]:
    """The changes that `--augment` means for these samples and this teacher."""
    if wish == "none":
        return ()
    found = fields(data)
    if wish != "auto":
        return suitable([w.strip() for w in wish.split(",") if w.strip()], found)
    head = next((h for h in job.heads if h.answer), job.heads[0])
    teacher = Teacher(job.teacher.model, [head.teacher], data)

    def ask(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        values = answers(teacher(inputs)[head.teacher], head.teacher_log)
        return values.reshape(len(values), -1)

    labelled = bool(job.settings.labels) and data.labelled
    return automatic(found, data, lambda inputs: ask(Arrays(inputs)), labelled)
