"""Errors that a user can cause or fix, and the exit codes of the command line.

Every such failure is a `Problem`: one line, no traceback.  The subclass determines the exit code, so that scripts can
tell wrong input (2) from a full disk (3) and from a goal that was not met (1).
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_UNMET = 1
EXIT_INPUT = 2
EXIT_ENVIRONMENT = 3
EXIT_INTERRUPTED = 130


class Problem(Exception):
    """An error of one line: `WHAT (WHERE): WHY. TRY: HINT.`

    what:  what failed, a short clause ("cannot read the model")
    where: the file, sample, node or argument concerned; "" where there is none
    why:   the observed fact, with expected and found values where they help
    hint:  what the user can do

    Arguments of Python functions are named in backticks (`data`, `max_drop`). The command line shows its options
    instead.
    """

    exit_code = EXIT_INPUT

    def __init__(self, what: str, where: object = "", why: str = "", hint: str = "") -> None:
        self.what, self.where, self.why, self.hint = what, str(where), why, hint
        super().__init__(self.line())

    def line(self) -> str:
        """The message in one line."""
        text = self.what
        if self.where:
            text += f" ({self.where})"
        if self.why:
            text += f": {self.why.rstrip('.')}"
        text += "."
        if self.hint:
            text += f" TRY: {self.hint.rstrip('.')}" + ("" if self.hint.endswith("?") else ".")
        return " ".join(text.split())

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.what, self.where, self.why, self.hint))


class InputProblem(Problem):
    """The model, the data or the options are wrong (exit code 2)."""

    exit_code = EXIT_INPUT


class EnvironmentProblem(Problem):
    """The machine fails: memory, disk, a missing optional package, a crashed child process (exit code 3)."""

    exit_code = EXIT_ENVIRONMENT


class Unmet(Problem):
    """A gate or goal was not met although everything worked (exit code 1)."""

    exit_code = EXIT_UNMET


def missing_extra(package: str, extra: str, purpose: str) -> EnvironmentProblem:
    """The error for an optional package that is not installed.  extra: the extra of onnxpress that installs it."""
    return EnvironmentProblem(
        f"{purpose} needs the package {package}",
        "",
        "it is not installed",
        f"pip install 'onnxpress[{extra}]'",
    )
