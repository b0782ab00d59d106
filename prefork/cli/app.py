"""The commands and their options; what they do is in run.py and ctl.py.

Those are imported by the commands that need them: what a server imports stays in its memory for as long as it runs.
"""

from __future__ import annotations

import os
import shutil
import sys

import click

from prefork.errors import ConfigError, PreforkError, UsageError
from prefork.units import visible

# What a shell reports of a program that SIGINT ended.
INTERRUPTED = 130

conf = click.argument("conf", metavar="CONF")
target = click.argument("target", metavar="TARGET")
settings = click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Override a key of the file, as in pool.web.workers=8; may be repeated.",
)
# Commands for a running server change nothing of its file.
finder = click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="The same --set master.… as the server was started with, to locate it; may be repeated.",
)
Settings = tuple[str, ...]


def main() -> None:
    """Run the command line of this process, and exit."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    """Run a command line and return its exit code; errors are printed to stderr.

    Raises SystemExit, quietly, when the reader of stdout has left.
    """
    try:
        # Not click's main(): at an interrupt it writes an empty line.
        with commands.make_context("prefork", arguments) as context:
            commands.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except PreforkError as error:
        _print_error(error)
        return error.exit_code
    except click.ClickException as error:  # its own, about the command line
        _print_error(UsageError(error.format_message(), "prefork --help, or prefork COMMAND --help"))
        return UsageError.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    return 0


class Commands(click.Group):
    """The commands in the order in which people need them."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """Return the names as they were declared; click sorts them by itself."""
        return list(self.commands)


@click.group(
    cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option("--version", is_flag=True, help="Print the version.")
@click.pass_context
def commands(context: click.Context, version: bool) -> None:
    """Run and control pre-fork servers: a master and workers that share listening sockets.

    CONF is a TOML file. TARGET is a TOML file, a server's name from prefork list, or the path of a control socket.
    """
    if version:
        from prefork import __version__

        click.echo(f"prefork {__version__}")
        context.exit()
    if context.invoked_subcommand is None:
        _say(context.get_help())
        context.exit(UsageError.exit_code)


@commands.command()
@conf
@settings
@click.pass_context
def run(context: click.Context, conf: str, settings: Settings) -> None:
    """Run a server in the foreground until it is stopped."""
    from prefork.cli import run as local

    context.exit(local.run(conf, settings))


@commands.command()
@conf
@settings
@click.pass_context
def check(context: click.Context, conf: str, settings: Settings) -> None:
    """Check a TOML file and load its applications.

    Each application is loaded in a separate process. A running server is not affected.
    """
    from prefork.cli import run as local

    verdict, failures, doubts = local.check(conf, settings)
    for doubt in doubts:
        _say(f"warning: {doubt}")
    for failure in failures:
        _print_error(failure)
    if failures:
        context.exit(failures[0].exit_code)
    click.echo(verdict)


@commands.command()
@click.argument("directory", metavar="[DIR]", default=".")
def init(directory: str) -> None:
    """Write a small working server: server.toml and app.py."""
    from prefork.cli import run as local

    _say(local.init(directory))


@commands.command()
def schema() -> None:
    """Print the JSON Schema of the TOML file, for editors."""
    from prefork.cli import run as local

    click.echo(local.schema())


@commands.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def list_servers(as_json: bool) -> None:
    """List the running servers: your own, or everyone's for root."""
    from prefork.cli import ctl

    text = f"{ctl.server_list_json()}\n" if as_json else ctl.server_list(*_screen())
    click.echo(text, nl=False)
    if not text:
        _say("no server runs")


@commands.command()
@target
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@finder
def status(target: str, as_json: bool, settings: Settings) -> None:
    """Show the state of a server's pools and workers."""
    from prefork.cli import ctl

    if as_json:
        click.echo(ctl.status_json(target, settings))
    else:
        click.echo(ctl.status(target, settings, *_screen()), nl=False)


@commands.command()
@target
@click.argument("pools", metavar="[POOL]...", nargs=-1)
@finder
def reload(target: str, pools: tuple[str, ...], settings: Settings) -> None:
    """Read the file again and replace the workers.

    No request is lost. If the file is invalid or the new workers fail to start, nothing changes and the command fails.
    With POOL, only these pools are reloaded; other changes in the file are reported and left for a later reload.
    """
    from prefork.cli import ctl

    _say(ctl.reload(target, settings, pools, _say))


@commands.command()
@target
@click.argument("pool", metavar="POOL")
@finder
def restart(target: str, pool: str, settings: Settings) -> None:
    """Replace a pool's workers without reading the file.

    The pool's settings and release stay the same.
    """
    from prefork.cli import ctl

    _say(ctl.restart(target, settings, pool, _say))


@commands.command()
@target
@finder
def upgrade(target: str, settings: Settings) -> None:
    """Re-execute the server with the installed prefork.

    The pid stays the same. The new version is tried first, next to the live server. If that fails, nothing changes and the command fails.
    Otherwise it is executed and all workers are replaced. No request is lost.
    """
    from prefork.cli import ctl

    _say(ctl.upgrade(target, settings, _say))


@commands.command()
@target
@click.argument("pool", metavar="POOL")
@click.argument("workers", metavar="N", type=click.IntRange(min=0))
@finder
def scale(target: str, pool: str, workers: int, settings: Settings) -> None:
    """Set how many workers a pool has.

    Waits until they are ready. 0 stops the pool until it is scaled again; a reload does not start it.
    """
    from prefork.cli import ctl

    _say(ctl.scale(target, settings, pool, workers, _say))


@commands.command(name="signal")
@target
@click.argument("pool", metavar="POOL")
@click.argument("name", metavar="SIGNAL")
@finder
def signal_programs(target: str, pool: str, name: str, settings: Settings) -> None:
    """Send a signal to the programs of a command pool.

    SIGNAL is a name such as USR1.
    """
    from prefork.cli import ctl

    _say(ctl.signal(target, settings, pool, name))


@commands.command()
@target
@click.option("--now", is_flag=True, help="Do not finish requests in flight.")
@finder
def stop(target: str, now: bool, settings: Settings) -> None:
    """Finish all requests and stop the server.

    Returns once the server has ended.
    """
    from prefork.cli import ctl

    _say(ctl.stop(target, settings, now, _say))


@commands.command()
@target
@finder
def reopen(target: str, settings: Settings) -> None:
    """Reopen the log files after they have been renamed."""
    from prefork.cli import ctl

    _say(ctl.reopen(target, settings))


@commands.command()
@target
@click.argument("worker", metavar="[WORKER]", required=False)
@finder
def stacks(target: str, worker: str | None, settings: Settings) -> None:
    """Show the stacks of all threads of the workers.

    WORKER limits this to one worker, such as web/2.
    """
    from prefork.cli import ctl

    click.echo(ctl.stacks(target, settings, worker), nl=False)


def _say(text: str) -> None:
    """Print a message; stdout is for data. What is not meant for a terminal to obey, it shows: much comes from workers."""
    click.echo(visible(text), err=True)


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
