"""`onnxpress distill STUDENT --teacher TEACHER --data SAMPLES -o FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxpress.cli.options import (
    DataChoice,
    QualityChoice,
    Seconds,
    data_options,
    json_option,
    need_data,
    output_option,
    plan_option,
    print_notes,
    quality_options,
    quiet_option,
)
from onnxpress.errors import EXIT_UNMET, InputProblem

if TYPE_CHECKING:
    from onnxpress.api.distill import DistillResult

_ROWS = 10  # of the selection curve


@click.command("distill")
@click.argument("student", type=click.Path(path_type=Path), required=False)
@click.option("--teacher", "-t", type=click.Path(path_type=Path), required=True, help="Teacher model.")
@data_options(required=True)
@quality_options()
@click.option("--select", metavar="PATH", help="Samples for selecting the weights; default: a fifth of --data.")
@output_option
@click.option(
    "--shrink", "--prune", type=float, help="Without STUDENT: make one by pruning this share of the teacher's channels."
)
@click.option("--closed-form", is_flag=True, help="No training: layers refitted by least squares (no torch).")
@click.option(
    "--mode",
    type=click.Choice(["end-to-end", "blockwise"]),
    default="end-to-end",
    show_default=True,
    help="Train the whole student at once, or block by block.",
)
@click.option("--time-budget", type=Seconds(), default="10m", show_default=True, help="Training time: 90s, 10m, 1h.")
@click.option("--minutes", type=float, help="The time budget in minutes.")
@click.option("--steps", type=int, default=0, help="Updates, instead of a time budget.")
@click.option(
    "--batch", type=int, default=64, show_default=True, help="Batch size; halved if the time allows few steps."
)
@click.option(
    "--lr",
    type=float,
    default=None,
    help="Peak learning rate.  [default: the highest that is stable in short trials]",
)
@click.option("--warmup", type=float, default=0.05, show_default=True, help="Fraction of the steps.")
@click.option("--weight-decay", type=float, default=1e-4, show_default=True, help="Weight decay of AdamW.")
@click.option(
    "--clip", type=float, default=1.0, show_default=True, help="Maximum norm of the gradient; 0: no clipping."
)
@click.option(
    "--ema", type=float, default=0.99, show_default=True, help="Decay of the weight average; 0: the last weights."
)
@click.option(
    "--patience",
    type=int,
    default=12,
    show_default=True,
    help="Evaluations without improvement until training stops; 0: no early stopping.",
)
@click.option(
    "--loss",
    type=click.Choice(["auto", "blend", "kd", "dkd", "mse", "none"]),
    default="auto",
    show_default=True,
    help="auto: selected by short trials; blend: soft targets, with mse at first; none: labels only.",
)
@click.option("--temperature", type=float, default=4.0, show_default=True, help="Temperature of the soft targets.")
@click.option(
    "--labels-weight", type=float, default=0.0, show_default=True, help="Weight of the cross entropy with the labels."
)
@click.option(
    "--features",
    type=click.Choice(["auto", "none", "mse", "cosine", "attention", "relational"]),
    default="auto",
    show_default=True,
    help="Loss on matched intermediate values; auto: selected by short trials.",
)
@click.option(
    "--features-weight", type=float, default=10.0, show_default=True, help="Weight of the loss of --features."
)
@click.option(
    "--match",
    metavar="T=S",
    multiple=True,
    help="Match value T of the teacher with value S of the student; can be repeated.",
)
@click.option(
    "--augment",
    metavar="LIST",
    default="auto",
    show_default=True,
    help="auto, none, or some of flip,shift,stretch,tone,cutout,noise,tokens,mixup,cutmix.",
)
@click.option("--seed", default=0, show_default=True, help="Random seed.")
@click.option("--threads", type=int, default=0, help="Threads of training; default: all available cores.")
@click.option("--resume", is_flag=True, help="Resume the interrupted run of this output, with its settings.")
@plan_option
@json_option
@quiet_option
def command(
    student: Path | None,
    teacher: Path,
    source: DataChoice,
    quality: QualityChoice,
    select: str | None,
    output: str,
    shrink: float | None,
    closed_form: bool,
    mode: str,
    time_budget: float,
    minutes: float | None,
    steps: int,
    batch: int,
    lr: float | None,
    warmup: float,
    weight_decay: float,
    clip: float,
    ema: float,
    patience: int,
    loss: str,
    temperature: float,
    labels_weight: float,
    features: str,
    features_weight: float,
    match: tuple[str, ...],
    augment: str,
    seed: int,
    threads: int,
    resume: bool,
    plan: str | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Train STUDENT towards the outputs of TEACHER on samples; labels are optional.

    Both models have the same inputs and outputs.
    Without STUDENT, --shrink 0.5 makes one with half of the teacher's channels.
    """
    from onnxpress.api.distill import distill
    from onnxpress.api.distillation_session import DistillationOptions, available_cores
    from onnxpress.cli.output.progress_display import progress
    from onnxpress.model.files import check_target
    from onnxpress.train.distillation.feature_matching import parse_match
    from onnxpress.train.settings import TrainingSettings

    settings = TrainingSettings(
        batch=batch,
        lr=0.0 if lr is None else lr,
        warmup=warmup,
        weight_decay=weight_decay,
        clip=clip,
        ema=ema,
        patience=patience,
        mode=mode,
        loss=loss,
        temperature=temperature,
        labels_weight=labels_weight,
        features=features,
        features_weight=features_weight,
        seed=seed,
        threads=threads or available_cores(),
    )
    seconds = time_budget if minutes is None else 60 * minutes
    options = DistillationOptions(
        settings, steps, seconds, augment, tuple(parse_match(match)), shrink, closed_form, resume=resume,
        quality=quality.options(),
    )  # fmt: skip
    options.check()
    check_target(output, teacher, *([student] if student is not None else []))
    if student is None and shrink is None:
        raise InputProblem("no student", "", "neither STUDENT nor --shrink was given", "add --shrink 0.5")
    model = teacher if student is None else student
    data = need_data(source, model, quiet)
    chosen = need_data(source.at(select), model, True) if select is not None else None
    with progress(quiet or as_json) as bar:
        done = distill(
            student,
            teacher,
            data,
            options,
            select=chosen,
            output=output,
            plan=plan,
            progress=bar,
        )
    _show(done, output, as_json, quiet)
    return EXIT_UNMET if source.strict and not done.improved else 0


def _show(done: DistillResult, output: str, as_json: bool, quiet: bool) -> None:
    from onnxpress.cli.output import console
    from onnxpress.model.parameter_count import parameters
    from onnxpress.result import document

    if as_json:
        console.emit_json(
            document(
                "distill",
                output=output,
                improved=done.improved,
                bytes_before=done.bytes_before,
                bytes_after=done.bytes_after,
                parameters=parameters(done.model),
                start=done.start,
                score=done.score,
                curve=done.curve,
                best=done.best,
                settings=None if done.settings is None else done.settings.as_dict(),
                notes=done.notes,
                judged_by=done.judged_by,
            )
        )
        return
    print_notes(done.notes, quiet)
    for line in done.judged_by:
        console.note(line)
    assert done.start is not None and done.score is not None
    if done.curve:
        gap = -(-len(done.curve) // _ROWS)
        shown = [p for i, p in enumerate(done.curve, 1) if i % gap == 0 or p.step == done.best or i == len(done.curve)]
        console.table(
            [("step", "right"), ("loss", "right"), ("drop (select)", "right"), ("nmse", "right"), ("", "left")],
            [
                [str(p.step), f"{p.loss:.4f}", f"{p.drop:+.4f}", f"{p.nmse:.4f}", "kept" if p.step == done.best else ""]
                for p in shown
            ],
        )
    console.out(f"before: {done.start.text()}")
    console.out(f"after:  {done.score.text()}" if done.improved else "after:  nothing better was found; as before")
    console.out(
        f"{output}: {console.size(done.bytes_before)} -> {console.size(done.bytes_after)}, "
        f"{parameters(done.model):,} parameters"
    )
