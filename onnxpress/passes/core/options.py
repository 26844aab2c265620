"""Options of passes: dataclasses whose fields hold the text and the choices that every interface shows.

The command line, the Python signature and the reference documentation of a pass are made from its options class:

    @dataclass(frozen=True)
    class MyOptions(PassOptions):
        ratio: float = option(0.3, help="Share of the channels to remove.")

A field of type bool becomes a flag (`--no-NAME` where it is True by default), a tuple of strings an option that can be
repeated, a field with choices a choice; `float | None` and the like are optional.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, get_args, get_type_hints

from onnxpress.errors import InputProblem
from onnxpress.measure.quality import QualityOptions
from onnxpress.runtime.machine import TARGETS, Machine, machine_for

TARGET_CPUS = ("auto", *TARGETS)


def option(default: Any, *, help: str, unit: str = "", choices: Sequence[Any] = (), metavar: str = "") -> Any:
    """A dataclass field with what the interfaces show.

    default: the value where nothing is given. help: one or two sentences. unit: of a number, such as "MB". choices: the
    allowed values (empty: any of the type). metavar: the name of the value on the command line.
    """
    return field(default=default, metadata={"help": help, "unit": unit, "choices": tuple(choices), "metavar": metavar})


@dataclass(frozen=True)
class OptionSpec:
    """One field of an options class, as interfaces show it. type: of one value; many: whether the field is a tuple of
    them."""

    name: str
    type: type
    default: Any
    help: str
    unit: str
    choices: tuple[Any, ...]
    metavar: str
    many: bool


@dataclass(frozen=True)
class PassOptions:
    """Base of the options of a pass.

    example: options for the example in the documentation. quality: how results are judged, for all passes alike.
    """

    example: ClassVar[dict[str, Any]] = {}

    quality: QualityOptions = field(default_factory=QualityOptions, kw_only=True)

    def check(self) -> None:
        """Check values that types and choices do not exclude; raises InputProblem that names the field in backticks."""

    def target_machine(self, machine: Machine) -> Machine:
        """The machine to plan for, given the machine that runs the process."""
        return machine

    def checked(self) -> None:
        """Check choices, then values; raises InputProblem."""
        for spec in option_specs(type(self)):
            value = getattr(self, spec.name)
            if spec.choices and value is not None:
                for one in value if spec.many else (value,):
                    if one not in spec.choices:
                        known = ", ".join(str(c) for c in spec.choices)
                        raise InputProblem(f"unknown value of `{spec.name}`", str(one), "", f"one of {known}")
        self.check()


@dataclass(frozen=True)
class TargetCpuOptions(PassOptions):
    """Options of passes that write integer types for a kind of CPU."""

    target_cpu: str = option("auto", help="CPU that the file is written for; auto: this machine.", choices=TARGET_CPUS)

    def target_machine(self, machine: Machine) -> Machine:
        return machine if self.target_cpu == "auto" else machine_for(self.target_cpu)


def option_specs(options: type[PassOptions]) -> list[OptionSpec]:
    """The fields of an options class that were made with `option`: its own ones first, then those of its bases."""
    hints = get_type_hints(options)
    depth = {
        name: place
        for place, base in reversed(list(enumerate(options.__mro__)))
        for name in vars(base).get("__annotations__", {})
    }
    found = []
    for item in sorted(fields(options), key=lambda f: depth[f.name]):
        if "help" not in item.metadata:
            continue
        hint = hints[item.name]
        many = getattr(hint, "__origin__", None) is tuple
        kinds = [k for k in get_args(hint) if k not in (type(None), Ellipsis)] or [hint]
        meta = item.metadata
        kind = next((k for k in (bool, int, float, str) if k in kinds), str)
        found.append(
            OptionSpec(
                item.name, kind, item.default, meta["help"], meta["unit"], meta["choices"], meta["metavar"], many
            )
        )
    return found


def only_one(names: Sequence[str], values: Sequence[Any], example: str) -> str:
    """The name of the one option that is given (not None); raises InputProblem where none or several are."""
    given = [n for n, v in zip(names, values, strict=True) if v is not None]
    if len(given) != 1:
        raise InputProblem(
            "exactly one goal is needed",
            ", ".join(f"`{n}`" for n in names),
            f"{len(given)} were given",
            f"give {example}",
        )
    return given[0]


def check_between(name: str, what: str, value: float | None, example: str, low: float = 0.0, high: float = 1.0) -> None:
    """Raises InputProblem where a given value does not lie strictly between two numbers. what: the value, in words."""
    if value is not None and not low < value < high:
        raise InputProblem(
            f"{what} must lie between {low:g} and {high:g}", f"`{name}`", f"got {value:g}", f"give {example}"
        )
