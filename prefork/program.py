"""The same server from a program of the user's own: ``prefork.serve(handle)`` and ``prefork.run(config)``.

The program becomes the master: workers are forked from it, so what they are given needs no name that can be imported.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from setproctitle import getproctitle, setproctitle

from prefork.cli.run import source
from prefork.config.load import load, name_for
from prefork.config.schema import Config, Pool, Unit, options
from prefork.control.registry import absolute
from prefork.errors import BootError, ConfigError, PreforkError, Problem, UsageError
from prefork.handlers import context
from prefork.handlers.load import give
from prefork.log import logger
from prefork.master import start, upgrade
from prefork.master.release import start_folder

POOL = "main"


def serve(
    handle: object,
    listen: str | list[str] | list[dict[str, Any]] | None = "127.0.0.1:7000",
    workers: int | str = 4,
    threads: int = 1,
    *,
    kind: str = "handler",
    **more: Any,
) -> int:
    """Run a server of one pool, without a file, until it is told to stop; return its exit code.

    A reload replaces all workers, but their code stays what the program had loaded when it called this. An upgrade in
    place executes the whole program anew.

    Args:
        handle: what each worker runs: a function, a class, an application; or ``"module:attribute"``, to be imported.
        listen: an address, or a list as in the TOML file; None for what has no clients, such as a task.
        workers: how many processes, or ``"auto"``.
        threads: how many connections or requests each of them handles at once.
        kind: what ``handle`` is: the name of a pool's key, as in ``"handler"``, ``"wsgi"`` or ``"task"``.
        more: further keys of a pool, as in ``request_timeout=60``.

    Raises what ``run`` does.

    """
    known = [name for name, option in options(Pool).items() if option.unit is Unit.APPLICATION]
    if kind not in known:
        raise ConfigError([Problem(f"kind: expected one of {', '.join(known)}, found {kind!r}")])
    addresses = [listen] if isinstance(listen, str) else listen
    application = handle if isinstance(handle, str) else _name_of(handle)
    pool = {kind: application, "listen": addresses, "workers": workers, **more}
    pool |= {"threads": threads} if threads != 1 else {}  # which not every kind has
    with give(application, handle):
        return run({"pool": {POOL: pool}})


def run(config: str | os.PathLike[str] | Mapping[str, Any] | Config) -> int:
    """Run a server until it is told to stop; return its exit code. Signal handlers are as before afterwards.

    Args:
        config: the path of a TOML file, which a reload reads again; or what it would contain, as a dictionary.

    Raises ConfigError, ListenError, BootError if an application does not load, and UsageError where the server cannot
    run: outside of the main thread, or within a worker.

    """
    _check_place()
    _warn_of_threads()
    read, name, file = _reader(config)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()  # or each worker would write it as well
    rehearses = os.environ.get(upgrade.VARIABLE, "").startswith(upgrade.REHEARSE)
    try:
        with _process_as_it_was():
            code = start.run(read, name, file)
    except PreforkError as error:
        _explain(error)
        raise
    if rehearses:  # before an upgrade: what the program does after its server is not for this process to do
        raise SystemExit(code)
    return code


def _check_place() -> None:
    """Raise UsageError where no master can be."""
    here = threading.current_thread()
    if here is not threading.main_thread():
        expected = "expected to be called in the main thread, where Python handles signals"
        raise UsageError(f"prefork.serve(), prefork.run(): {expected}; found the thread {here.name}")
    if (worker := context.current_if_any()) is not None:
        error = UsageError(
            f"prefork.serve(), prefork.run(): expected to be called once, found a call in {worker}",
            'its code was imported there: put the call below if __name__ == "__main__":',
        )
        _explain(error)
        raise error


def _warn_of_threads() -> None:
    """Tell of threads that workers will miss, instead of leaving it to be found out."""
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if others:
        found = f"the program has started threads, which workers do not have: {', '.join(others)}"
        warnings.warn(f"{found}; the hook after_fork can start them", RuntimeWarning, stacklevel=3)


def _reader(
    config: str | os.PathLike[str] | Mapping[str, Any] | Config,
) -> tuple[Callable[[], Config], str, str]:
    """Return what reads the configuration, now and at each reload, what it is called, and its file."""
    if isinstance(config, Config):
        return lambda: config, config.master.name, _script_path()
    if isinstance(config, Mapping):
        reader = _ValuesReader(_plain(config), _script())
        return reader, _script(), reader.file
    path = os.fspath(config)
    found = source(path, [])
    return found.read, path, found.file


class _ValuesReader:
    """Reads a configuration that was given as values; the surroundings are those of the call."""

    def __init__(self, values: dict[str, Any], script: str) -> None:
        self._values = values
        self._script = script
        self._directory = start_folder()
        self._environment = dict(os.environ)
        self.file = _script_path()

    def __call__(self) -> Config:
        return load(
            _plain(self._values),  # a copy: settings from the environment are written into it
            source=self._script,
            directory=self._directory,
            runtime_directory=start.runtime_directory(),
            cpus=start.usable_cpus(),
            environment=self._environment,
            settings=(),
            file=self.file or None,
        )


def _plain(value: Any) -> Any:
    """Return a value as TOML would give it: no None, no tuples, no paths."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _script() -> str:
    """Return what the program is called, by its file."""
    file = getattr(sys.modules["__main__"], "__file__", None) or "prefork"
    return name_for(os.path.basename(file).removesuffix(".py"))


def _script_path() -> str:
    """Return the absolute path of the program as it was given; nothing if it has no file."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    return absolute(start_folder(), file) if file else ""


def _name_of(handle: object) -> str:
    """Return ``module:attribute`` for an object, for people, as nobody imports it."""
    named = handle if hasattr(handle, "__qualname__") else type(handle)
    module, name = (getattr(named, key, "") or "" for key in ("__module__", "__qualname__"))
    parts = (".".join(filter(str.isidentifier, text.split("."))) for text in (module, name))
    return ":".join(part or "unnamed" for part in parts)


def _explain(error: PreforkError) -> None:
    """Have Python show what the command line would print beside the message, if nobody catches the error."""
    problems = error.problems if isinstance(error, ConfigError) else [Problem(error.message, error.hint)]
    traceback = error.traceback if isinstance(error, BootError) else ""
    hints = [f"hint: {problem.hint}" for problem in problems if problem.hint]
    for note in filter(None, [*hints, traceback.rstrip()]):
        error.add_note(note)


@contextmanager
def _process_as_it_was() -> Iterator[None]:
    """Put signal handlers, the process's title and prefork's logger back afterwards."""
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    title, log = getproctitle(), (logger.handlers[:], logger.level, logger.propagate)
    try:
        yield
    finally:
        _restore_signals(handlers, wakeup)
        setproctitle(title)
        logger.handlers[:], logger.propagate = log[0], log[2]
        logger.setLevel(log[1])


def _restore_signals(handlers: Mapping[signal.Signals, Any], wakeup: int) -> None:
    signal.set_wakeup_fd(wakeup)
    for number, handler in handlers.items():
        # None: not set by Python; those of SIGKILL and SIGSTOP are nobody's to set.
        if handler is not None and handler is not signal.getsignal(number):
            signal.signal(number, handler)
