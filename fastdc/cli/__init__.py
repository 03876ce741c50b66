"""The command ``fastdc``: cluster a file, plan that, find neighbours, compare labels, look at the installation.

Results go to stdout, progress and warnings to stderr. The exit status is 0, or 2 with one line on stderr
that says what was wrong and how to repair it. Nothing heavy is imported before a command needs it.

A command is a function in a module of its own; ``_methods`` is the table of what ``--method`` may name.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from fastdc._version import __version__
from fastdc.cli import _choose, _cluster, _inspect, _neighbors, _plan

# Typer brings its own copy of click from version 0.20 on: take the base of its errors from what it exports.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="fastdc",
    help="Fast deep clustering.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    _cluster.cluster,
    _plan.plan,
    _choose.choose_k,
    _neighbors.knn,
    _inspect.evaluate,
    _inspect.methods,
    _inspect.demo,
    _inspect.doctor,
):
    app.command(_command.__name__.replace("_", "-"))(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; ``arguments`` are those of the process by default."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    show_traceback = "--traceback" in argv
    before, warnings.showwarning = warnings.showwarning, _show_warning
    try:
        return int(app(argv, prog_name="fastdc", standalone_mode=False) or 0)
    except _USAGE_ERROR as error:
        # The help that a bare `fastdc` prints arrives here too, without a message.
        return _fail(error.format_message())  # type: ignore[attr-defined]
    except typer.Abort:
        return _fail("interrupted", status=130)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError, ArithmeticError) as error:
        if show_traceback:
            raise
        return _fail(" ".join(str(error).split()) or type(error).__name__)
    finally:
        warnings.showwarning = before


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastdc {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error.")] = False,
) -> None:
    pass


def _fail(message: str, status: int = 2) -> int:
    if message:
        typer.echo(f"fastdc: {message}", err=True)
    return status


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    typer.echo(f"fastdc: warning: {' '.join(str(message).split())}", err=True)
