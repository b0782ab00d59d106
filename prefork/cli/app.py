"""The commands and their options; what they do is in run.py and ctl.py.

Those are imported by the commands that need them: what a server imports stays in its memory for as long as it runs.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import Annotated

import typer

from prefork.errors import ConfigError, PreforkError, UsageError

# What a shell reports of a program that SIGINT ended.
INTERRUPTED = 130

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Conf = Annotated[str, typer.Argument(metavar="CONF", help="The TOML file.")]
Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="The server's TOML file, or its control socket's path.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Set a key of the file, as in pool.web.workers=8; may be repeated."
    ),
]


def main() -> None:
    """Run the command line of this process, and exit."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    """Run a command line and return its exit code; errors are printed to stderr.

    Raises SystemExit, quietly, when the reader of stdout has left.
    """
    try:
        code = app(args=arguments, prog_name="prefork", standalone_mode=False)
    except PreforkError as error:
        _print_error(error)
        return error.exit_code
    except typer.TyperException as error:  # its own, about the command line
        _print_error(UsageError(error.format_message(), "prefork --help, or prefork COMMAND --help"))
        return UsageError.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    return code or 0


@app.callback(invoke_without_command=True)
def about(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Run and control pre-fork servers: processes that share listening sockets, watched by a master."""
    if version:
        from prefork import __version__

        typer.echo(f"prefork {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        _say(context.get_help())
        raise typer.Exit(UsageError.exit_code)


@app.command()
def run(conf: Conf, settings: Set = None) -> None:
    """Run a server until it is told to stop."""
    from prefork.cli import run as local

    raise typer.Exit(local.run(conf, settings or []))


@app.command()
def check(conf: Conf, settings: Set = None) -> None:
    """Find what is wrong with a TOML file and its applications.

    Every application is loaded, in a process of its own. Nothing is changed.
    """
    from prefork.cli import run as local

    verdict, failures, doubts = local.check(conf, settings or [])
    for doubt in doubts:
        _say(f"warning: {doubt}")
    for failure in failures:
        _print_error(failure)
    if failures:
        raise typer.Exit(failures[0].exit_code)
    typer.echo(verdict)


@app.command()
def init(directory: Annotated[str, typer.Argument(metavar="[DIR]")] = ".") -> None:
    """Write a small server that runs at once: server.toml and app.py."""
    from prefork.cli import run as local

    _say(local.init(directory))


@app.command()
def schema() -> None:
    """Print the JSON Schema of the TOML file, for editors."""
    from prefork.cli import run as local

    typer.echo(local.schema())


@app.command()
def status(
    target: Target,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything known, for programs.")] = False,
    settings: Set = None,
) -> None:
    """Show what a server's pools and workers do right now."""
    from prefork.cli import ctl

    if as_json:
        typer.echo(ctl.status_json(target, settings or []))
    else:
        typer.echo(ctl.status(target, settings or [], *_screen()), nl=False)


@app.command()
def reload(target: Target, settings: Set = None) -> None:
    """Read the file again and replace all workers, losing no request.

    If the file is wrong or no new worker gets ready, nothing changes and the command fails.
    """
    from prefork.cli import ctl

    _say(ctl.reload(target, settings or [], _say))


@app.command()
def upgrade(target: Target, settings: Set = None) -> None:
    """Become the version that is installed now, under the same pid.

    The program is tried beside the running one first. If it fails, nothing changes and the command fails; otherwise it
    is executed, and all workers are replaced, losing no request.
    """
    from prefork.cli import ctl

    _say(ctl.upgrade(target, settings or [], _say))


@app.command()
def scale(
    target: Target,
    pool: Annotated[str, typer.Argument(metavar="POOL", help="The pool's name.")],
    workers: Annotated[int, typer.Argument(metavar="N", help="How many workers it is to have.", min=0)],
    settings: Set = None,
) -> None:
    """Set how many workers a pool has."""
    from prefork.cli import ctl

    _say(ctl.scale(target, settings or [], pool, workers, _say))


@app.command()
def stop(
    target: Target,
    now: Annotated[bool, typer.Option("--now", help="Cut off what is in flight.")] = False,
    settings: Set = None,
) -> None:
    """Finish all requests and stop; return once the server has ended."""
    from prefork.cli import ctl

    _say(ctl.stop(target, settings or [], now, _say))


@app.command()
def reopen(target: Target, settings: Set = None) -> None:
    """Reopen the log files, after they were renamed."""
    from prefork.cli import ctl

    _say(ctl.reopen(target, settings or []))


@app.command()
def stacks(
    target: Target,
    worker: Annotated[str | None, typer.Argument(metavar="[WORKER]", help="Only this one: web/2.")] = None,
    settings: Set = None,
) -> None:
    """Show where the threads of all workers are in their code by now."""
    from prefork.cli import ctl

    typer.echo(ctl.stacks(target, settings or [], worker), nl=False)


def _say(text: str) -> None:
    """Print a message; stdout is for data."""
    typer.echo(text, err=True)


def _screen() -> tuple[int | None, bool]:
    """Return the width of the terminal on stdout, None for a pipe, and whether colours are wanted (no-color.org)."""
    if not sys.stdout.isatty():
        return None, False
    color = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return shutil.get_terminal_size().columns, color


def _print_error(error: PreforkError) -> None:
    traceback = getattr(error, "traceback", "")
    if traceback:
        _say(traceback.rstrip())
    if isinstance(error, ConfigError):
        for problem in error.problems:
            _print_fault(problem.message, problem.hint)
    else:
        _print_fault(error.message, error.hint)


def _print_fault(message: str, hint: str | None) -> None:
    """Print an error. One from a server may be several, with their hints between them, a line each."""
    for line in message.splitlines():
        _say(line if line.startswith("hint: ") else f"error: {line}")
    if hint:
        _say(f"hint: {hint}")
