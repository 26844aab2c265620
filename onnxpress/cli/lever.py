"""What the commands of one lever share: a model and samples in, a file and its plan out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import click

from onnxpress.cli.options import (
    DataChoice,
    data_options,
    json_option,
    need_data,
    output_option,
    plan_option,
    quiet_option,
)

if TYPE_CHECKING:
    from onnxpress.api.one_pass import Result

F = TypeVar("F", bound=Callable[..., Any])


class _Wish(Protocol):
    def check(self) -> None: ...


@dataclass(frozen=True)
class Asked:
    """What every lever is asked.  repair: None where it has nothing to repair."""

    model: Path
    source: DataChoice
    output: str
    samples: int
    seed: int
    plan_path: str | None
    as_json: bool
    quiet: bool
    repair: bool | None = None

    def do(self, name: str, work: Callable[..., Result], *wish: _Wish, **ways: Any) -> Result:
        """Check the wish before anything is read, do the work, and show the result."""
        from onnxpress.cli.result import show
        from onnxpress.model.files import check_target

        for one in wish:
            one.check()
        check_target(self.output, self.model)
        data = need_data(self.source, self.model, self.quiet)
        if self.repair is not None:
            ways["repair"] = self.repair
        kept = {"output": self.output, "plan_path": self.plan_path, "samples": self.samples, "seed": self.seed}
        result = work(self.model, data, *wish, **kept, **ways)
        show(name, result, self.output, self.as_json, self.quiet)
        return result


def lever(function: F, data: bool = True) -> F:
    """MODEL, samples and output in front of a command's own options; with `ending` behind them the function gets `asked`.

    data: whether samples are needed.
    """

    @functools.wraps(function)
    def command(**given: Any) -> Any:
        repair = not given.pop("no_repair") if "no_repair" in given else None
        common = {
            name: given.pop(name)
            for name in ("model", "source", "output", "samples", "seed", "plan_path", "as_json", "quiet")
        }
        return function(asked=Asked(**common, repair=repair), **given)

    for option in (
        output_option,
        data_options(required=data),
        click.argument("model", type=click.Path(path_type=Path)),
    ):
        command = option(command)
    return cast(F, command)


def ending(no_repair: str = "") -> Callable[[F], F]:
    """Options behind a command's own.  no_repair: what --no-repair does; "": there is none."""

    def wrap(function: F) -> F:
        options: list[Callable[[Any], Any]] = (
            [click.option("--no-repair", is_flag=True, help=no_repair)] if no_repair else []
        )
        options.append(
            click.option("--samples", default=128, show_default=True, help="Samples at most that feed statistics.")
        )
        options.append(click.option("--seed", default=0, show_default=True))
        for option in reversed((*options, plan_option, json_option, quiet_option)):
            function = option(function)
        return function

    return wrap
