"""`onnxpress COMMAND`: the group, its lazily imported commands, and the one place where errors become exit codes."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from onnxpress import __version__
from onnxpress.errors import EXIT_ENVIRONMENT, EXIT_INTERRUPTED, Problem

COMMANDS = {
    "optimize": "make a smaller, faster, verified model (start here)",
    "bench": "measure latency, of several models in one interleaved run",
    "compare": "measure how far one model is from another on samples",
    "inspect": "show what a model contains, and what each pass proposes",
    "distill": "train a student towards a teacher, or refit it in closed form",
    "nas": "architecture search with measured latency",
    "apply": "replay a plan: same plan, model and samples, same bytes",
    "report": "write a run as one HTML file with charts, Markdown or JSON",
    "view": "show a model's graph in the browser, with netron",
    "demo": "optimize the included digits model",
    "completion": "print the shell completion script",
}


class Lazy(click.Group):
    """Imports a command when it is run, so that --help answers at once; passes get their commands from the registry."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from onnxpress.passes.registry import pass_names

        return [*COMMANDS, *(n for n in pass_names() if n not in COMMANDS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            command = import_module(f"onnxpress.cli.{cmd_name}").command
            assert isinstance(command, click.Command)
            return command
        if cmd_name in self.list_commands(ctx):
            from onnxpress.cli.pass_command import pass_command

            return pass_command(cmd_name)
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from onnxpress.passes.registry import package_of, pass_names, summary

        passes = [n for n in pass_names() if n not in COMMANDS]
        own = [n for n in passes if package_of(n) == "onnxpress"]
        others = [(n, f"{summary(n)} ({package_of(n)})") for n in passes if n not in own]
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))
        with formatter.section("Passes (one at a time)"):
            formatter.write_dl([(n, summary(n)) for n in own])
        if others:
            with formatter.section("Passes of other packages"):
                formatter.write_dl(others)


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(__version__, "--version", message="onnxpress %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Make a trained ONNX model smaller and faster on this CPU, verified on your data.

    \b
    onnxpress optimize model.onnx --data samples/ --max-drop 0.01 -o fast.onnx
    """
    ctx.obj = {"debug": debug}


def main(argv: list[str] | None = None) -> None:
    """Run the command line; never returns."""
    arguments = sys.argv[1:] if argv is None else argv
    sys.exit(run(arguments))


def run(arguments: list[str]) -> int:
    """Run one command; its exit code (see errors.py)."""
    debug = "--debug" in arguments
    try:
        result: Any = cli.main(args=arguments, prog_name="onnxpress", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except Problem as problem:
        if debug:
            raise
        _print_error(problem.line())
        return problem.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return 2
    except click.ClickException as error:
        where = f" ({error.ctx.command_path})" if isinstance(error, click.UsageError) and error.ctx else ""
        _print_error(f"{error.format_message().rstrip('.')}{where}. TRY: add --help")
        return 2
    except (KeyboardInterrupt, click.Abort):
        _print_error("interrupted; nothing was written but the run record")
        return EXIT_INTERRUPTED
    except MemoryError:
        _print_error("out of memory. TRY: smaller samples, or a machine with more memory")
        return EXIT_ENVIRONMENT
    except BrokenPipeError:
        return 0
    except Exception as error:
        if debug:
            raise
        _print_error(
            f"internal error ({type(error).__name__}): {' '.join(str(error).split())[:300]}. "
            "TRY: --debug, and report it"
        )
        return EXIT_ENVIRONMENT


def _print_error(line: str) -> None:
    from onnxpress.cli.output.console import with_options

    click.echo(f"error: {with_options(line)}", err=True)
