"""What went wrong, where, and what to do about it; and the exit codes that say so to programs.

Every failure a user can cause or cure is a `Problem`: one line, no traceback.  The subclass decides the
exit code, so that scripts can tell a wrong file (2) from a full disk (3) from a goal that was not met (1).
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_UNMET = 1
EXIT_INPUT = 2
EXIT_ENVIRONMENT = 3
EXIT_INTERRUPTED = 130


class Problem(Exception):
    """`error: WHAT (WHERE): WHY. TRY: …` in one line.

    what:  the thing that failed, a short clause ("cannot read the model")
    where: the file, sample, node or option concerned ("" where there is none)
    why:   the observed fact, with expected and found values where that helps
    hint:  what the user can do next
    """

    exit_code = EXIT_INPUT

    def __init__(self, what: str, where: object = "", why: str = "", hint: str = "") -> None:
        self.what, self.where, self.why, self.hint = what, str(where), why, hint
        super().__init__(self.line())

    def line(self) -> str:
        text = self.what
        if self.where:
            text += f" ({self.where})"
        if self.why:
            text += f": {self.why.rstrip('.')}"
        text += "."
        if self.hint:
            text += f" TRY: {self.hint.rstrip('.')}."
        return " ".join(text.split())

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.what, self.where, self.why, self.hint))


class InputProblem(Problem):
    """The user's model, data or options are wrong (exit 2)."""

    exit_code = EXIT_INPUT


class EnvironmentProblem(Problem):
    """The machine fails: memory, disk, a missing extra, a crashed child process (exit 3)."""

    exit_code = EXIT_ENVIRONMENT


class Unmet(Problem):
    """A gate or goal was not met although everything worked (exit 1)."""

    exit_code = EXIT_UNMET


def missing_extra(package: str, extra: str, purpose: str) -> EnvironmentProblem:
    """The error for an optional dependency that is not installed."""
    return EnvironmentProblem(
        f"{purpose} needs the package {package}",
        "",
        "it is not installed",
        f"pip install 'onnxpress[{extra}]'",
    )
