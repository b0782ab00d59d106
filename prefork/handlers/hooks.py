"""The user's functions for fixed moments of a worker's life: the module that [hooks] names. None runs in the master.

before_fork(worker)  in the template of a pool with preload, right before it forks that worker
after_fork(worker)   in the worker, as whom it is to run, before its handler is loaded (with preload: right after the fork)
ready(worker)        in the worker, right before it says that it is ready
drain(worker)        in the worker, in a thread of its own, when its drain begins
exit(worker)         in the worker, after its drain, before functions registered with atexit
ended(worker)        in a process of its own, as whom the worker ran, once the worker is dead, however it has ended

One of the first three that fails is a boot that has failed. A failing drain or ended is logged, so is a failing exit, after
which the worker's exit code is 1.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from prefork.errors import BootError
from prefork.handlers.context import EndedWorker, Worker, end_copy
from prefork.handlers.load import import_module, reason_of, traceback_of
from prefork.log import logger

NAMES = ("before_fork", "after_fork", "ready", "drain", "exit", "ended")
# How alike a name has to be to one of those to be taken for a mistake: "drian" is, "prepare" is not.
ALIKE = 0.8

Hook = Callable[[Any], object]


class Hooks:
    """The functions of a module.

    Attributes:
        doubts: what looks like a mistake in the module, in words.

    """

    def __init__(self, functions: Mapping[str, Hook], doubts: tuple[str, ...] = ()) -> None:
        self.doubts = doubts
        self._functions = functions

    def has(self, name: str) -> bool:
        """Tell whether there is a function for this moment."""
        return name in self._functions

    def run(self, name: str, worker: Worker) -> None:
        """Call the function for a moment of booting, if there is one. Raises BootError if it fails."""
        try:
            self._call(name, worker)
        except BaseException as error:
            raise BootError(
                f"hook {name} failed: {reason_of(error)}", traceback=traceback_of(error)
            ) from error

    def try_run(self, name: str, worker: Worker | EndedWorker) -> bool:
        """Call the function for a moment that comes anyway, if there is one; log its failure, and return False then."""
        try:
            self._call(name, worker)
        except BaseException as error:  # noqa: BLE001 - sys.exit() in a hook must not keep the worker from leaving
            logger.error("hook %s failed: %s\n%s", name, reason_of(error), traceback_of(error).rstrip())
            return False
        return True

    def _call(self, name: str, worker: Worker | EndedWorker) -> None:
        try:
            self._functions.get(name, _do_nothing)(worker)
        finally:
            end_copy()


def load_hooks(module: str | None) -> Hooks:
    """Return the hooks in a module, none if no module is given. Raises BootError if it cannot be loaded or used."""
    if module is None:
        return NO_HOOKS
    try:
        found = import_module(module)
        functions = {name: _checked(name, getattr(found, name)) for name in NAMES if hasattr(found, name)}
    except BootError as error:
        raise BootError(f"[hooks] {module}: {error.message}", error.hint, error.traceback) from error
    return Hooks(functions, tuple(_doubts(found)))


def _checked(name: str, function: Hook) -> Hook:
    expected = f"expected def {name}(worker), found"
    if not callable(function):
        raise BootError(f"{expected} {function!r}")
    if inspect.iscoroutinefunction(function):
        raise BootError(f"{expected} async def", "use asyncio.run() within it")
    if not _takes_a_worker(function):
        raise BootError(f"{expected} def {name}{inspect.signature(function)}")
    return function


def _takes_a_worker(function: Hook) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:
        return True  # some functions written in C do not tell
    return True


def _doubts(module: ModuleType) -> Iterator[str]:
    """Yield what is said of the module's own functions that nobody calls though they have nearly a hook's name."""
    for name, function in inspect.getmembers(module, inspect.isfunction):
        near = difflib.get_close_matches(name.lower(), NAMES, 1, ALIKE)
        is_own = function.__module__ == module.__name__
        if near and name not in NAMES and is_own and _takes_a_worker(function):
            yield f"[hooks] {module.__name__}: nobody calls {name}; did you mean {near[0]}?"


def _do_nothing(_worker: object) -> None:
    """Be the hook that a module does not have."""


NO_HOOKS = Hooks({})
