"""The options of `bench` in groups, and what each group becomes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from onnxpress.errors import InputProblem

F = TypeVar("F", bound=Callable[..., Any])


class Numbers(click.ParamType[tuple[int, ...]]):
    """Whole numbers with commas between: 1 or 1,2,4."""

    name = "numbers"

    def __init__(self, least: int = 1) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(dict.fromkeys(int(part) for part in str(value).split(",")))
        except ValueError:
            self.fail(f"{value!r} is not a number or a list such as 1,2,4", param, ctx)
        if min(found) < self._least:
            self.fail(f"{min(found)} is below {self._least}", param, ctx)
        return found


class Share(click.ParamType[float]):
    """A share of a time: 5% or 0.05."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) * (0.01 if text.endswith("%") else 1.0)
        except ValueError:
            self.fail(f"{value!r} is not a share such as 5% or 0.05", param, ctx)
        if not 0 <= share < 10:
            self.fail(f"{value!r} is out of range: 5% and 0.05 mean the same", param, ctx)
        return share


def _grouped(
    options: Sequence[Callable[[F], F]], names: Sequence[str], into: str, build: Callable[..., Any]
) -> Callable[[F], F]:
    """Options that reach the command as one argument, which build makes of their values."""

    def wrap(function: F) -> F:
        @functools.wraps(function)
        def command(*args: Any, **given: Any) -> Any:
            parts = {name: given.pop(name) for name in names}
            return function(*args, **{into: build(**parts)}, **given)

        for option in reversed(options):
            command = option(command)
        return cast(F, command)

    return wrap


def conditions_options(function: F) -> F:
    """Under which conditions to measure; the command gets `conditions: Conditions`."""
    options = (
        click.option(
            "--threads", type=Numbers(), default="1", show_default=True, help="Threads of a session; a list is a sweep."
        ),
        click.option("--batch", type=Numbers(), help="Batch size; a list is a sweep."),
        click.option("--pin", type=Numbers(0), help="Pin the process to these CPUs."),
        click.option(
            "--graph-opt",
            type=click.Choice(["none", "basic", "all"]),
            default="all",
            show_default=True,
            help="Graph optimization level of onnxruntime.",
        ),
        click.option("--spinning", is_flag=True, help="Let idle threads of a session spin."),
        click.option(
            "--session-config",
            multiple=True,
            metavar="K=V",
            help="Session configuration entry of onnxruntime; can be repeated.",
        ),
        click.option("--provider", default="CPU", show_default=True, help="Execution provider of onnxruntime."),
    )
    names = ("threads", "batch", "pin", "graph_opt", "spinning", "session_config", "provider")
    return _grouped(options, names, "conditions", _conditions)(function)


def _conditions(
    threads: tuple[int, ...],
    batch: tuple[int, ...] | None,
    pin: tuple[int, ...] | None,
    graph_opt: str,
    spinning: bool,
    session_config: tuple[str, ...],
    provider: str,
) -> Any:
    from onnxpress.evaluate.bench import BenchConditions
    from onnxpress.runtime.session import SessionSettings, find_provider

    entries = tuple(_pair(text, "--session-config") for text in session_config)
    settings = SessionSettings(level=graph_opt, config=entries, spinning=spinning, provider=find_provider(provider))
    return BenchConditions(threads, batch or (), {}, pin or (), settings)


def _pair(text: str, option: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise InputProblem(f"cannot read {option}", text, "there is no NAME=VALUE in it", f"write {option} NAME=VALUE")
    return name, value


def measurement_options(function: F) -> F:
    """What to look at besides the latency; the command gets `ask: Ask`."""
    options = (
        click.option("--profile", is_flag=True, help="Time by operator and by node."),
        click.option("--cold", is_flag=True, help="Time to load and of the first run, each in a fresh process."),
        click.option("--memory", is_flag=True, help="Peak memory, in a fresh process."),
        click.option("--throughput", is_flag=True, help="Inferences per second of concurrent callers."),
        click.option(
            "--callers", type=click.IntRange(1, 512), help="Number of callers of --throughput; default: one per core."
        ),
        click.option(
            "--self-check",
            is_flag=True,
            help="Also measure a second session of the first model; its ratio should be 1.",
        ),
    )
    names = ("profile", "cold", "memory", "throughput", "callers", "self_check")
    return _grouped(options, names, "options", _bench_options)(function)


def _bench_options(
    profile: bool, cold: bool, memory: bool, throughput: bool, callers: int | None, self_check: bool
) -> Any:
    from onnxpress.evaluate.bench import BenchOptions

    if callers and not throughput:
        raise InputProblem("--callers belongs to --throughput", "", "no --throughput was given", "add --throughput")
    return BenchOptions(profile, cold, memory, (callers or -1) if throughput else 0, self_check)


def gate_options(function: F) -> F:
    """What to decide and to keep; the command gets `gate: Gate`."""
    options = (
        click.option(
            "--fail-slower",
            type=Share(),
            metavar="5%",
            help="Exit 1 if the whole interval says that a model is slower than the first by more than this.",
        ),
        click.option(
            "--baseline",
            type=click.Path(path_type=Path),
            help="Compare with a saved baseline; its model is measured again if the file exists.",
        ),
        click.option("--force", is_flag=True, help="Accept a baseline of another machine."),
        click.option(
            "--save-baseline", type=click.Path(path_type=Path), metavar="FILE", help="Save this model as a baseline."
        ),
    )
    return _grouped(options, ("fail_slower", "baseline", "force", "save_baseline"), "gate", _gate)(function)


def _gate(fail_slower: float | None, baseline: Path | None, force: bool, save_baseline: Path | None) -> Any:
    from onnxpress.evaluate.gate import GateOptions

    return GateOptions(fail_slower, baseline, force, save_baseline)
