"""From ``module:attribute`` to the object that it names."""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

from prefork.errors import BootError


def load(application: str) -> Any:
    """Import a module and return the attribute of it that ``module:attribute`` names; the attribute may be dotted.

    Raises BootError with the traceback of the application's own code, whatever it raised, SystemExit included.
    """
    name, _, path = application.partition(":")
    try:
        found: Any = importlib.import_module(name)
    except BaseException as error:
        raise BootError(reason_of(error), traceback=traceback_of(error)) from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise BootError(
                f"module {name!r} has no {path!r}", hint=f"{application} was to be loaded"
            ) from error
    return found


def is_async(target: Callable[..., object]) -> bool:
    """Return whether a call gives a coroutine: of a function, a partial one, or an object with such a __call__."""
    return inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(type(target).__call__)


def check_signature(target: Callable[..., object], expected: str, arguments: int) -> None:
    """Raise BootError if a function cannot be called with so many arguments; ``expected`` is how it should look."""
    try:
        signature = inspect.signature(target)
    except ValueError:
        return  # some functions written in C do not tell
    try:
        signature.bind(*[None] * arguments)
    except TypeError as error:
        found = f"{'async ' * is_async(target)}def {getattr(target, '__name__', repr(target))}{signature}"
        raise BootError(f"expected {expected}, found {found}: {error}") from error


def traceback_of(error: BaseException) -> str:
    """Return an exception as Python prints it, without the frames of the import machinery and of this file."""
    return "".join(traceback.format_exception(type(error), error, _of_application(error.__traceback__)))


def _of_application(place: TracebackType | None) -> TracebackType | None:
    while place is not None and place.tb_frame.f_code.co_filename in _OURS:
        place = place.tb_next
    return place


def reason_of(error: BaseException) -> str:
    """Return the last line of what Python would print."""
    return traceback.format_exception_only(error)[-1].strip()


_OURS = {
    __file__,
    importlib.__file__,
    "<frozen importlib._bootstrap>",
    "<frozen importlib._bootstrap_external>",
}
