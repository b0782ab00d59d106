"""From ``module:attribute`` to the object that it names."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, TracebackType
from typing import Any

from prefork.config.application import Call, parse_reference
from prefork.errors import BootError

_given: dict[str, object] = {}


def load(application: str) -> Any:
    """Import a module and return the attribute of it that ``module:attribute`` names; the attribute may be dotted.

    For ``module:factory(arguments)`` return what the call returns.

    Raises BootError with the traceback of the application's own code, whatever it raised, SystemExit included.
    """
    if application in _given:
        return _given[application]
    reference = parse_reference(application)
    found: Any = import_module(reference.module)
    for part in reference.attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise BootError(
                f"module {reference.module!r} has no {reference.attribute!r}", _hint(found, part, application)
            ) from error
    return found if reference.call is None else _make(found, reference.call)


def _hint(found: object, missing: str, application: str) -> str:
    near = difflib.get_close_matches(missing, [name for name in dir(found) if not name.startswith("_")], 1)
    return f"{application} was to be loaded" + (f"; did you mean {near[0]}?" if near else "")


def _make(factory: Any, call: Call) -> Any:
    """Call a factory. Raises BootError, with the factory's own traceback if it is called and raises."""
    if not callable(factory):
        raise BootError(f"expected a factory to call, found {factory!r}", "leave the parentheses out")
    try:
        inspect.signature(factory).bind(*call.positional, **call.named)
    except TypeError as error:
        found = f"{getattr(factory, '__name__', repr(factory))}{inspect.signature(factory)}"
        raise BootError(
            f"the factory {found} cannot be called so: {error}",
            "its arguments are written in the parentheses, as literals",
        ) from error
    except ValueError:
        pass  # some functions written in C do not tell
    try:
        return factory(*call.positional, **call.named)
    except BaseException as error:
        raise BootError(reason_of(error), traceback=traceback_of(error)) from error


def is_given(application: str) -> bool:
    """Tell whether ``load`` returns an object of this process's for a name, which no other program can import."""
    return application in _given


@contextmanager
def give(application: str, target: object) -> Iterator[None]:
    """Have ``load`` return an object for a name, in this process and those forked from it, for as long as it lasts.

    A text stands for itself: it is imported as ever.
    """
    if not isinstance(target, str):
        _given[application] = target
    try:
        yield
    finally:
        _given.pop(application, None)


def import_module(name: str) -> ModuleType:
    """Return a module. Raises BootError with the traceback of its own code, whatever that has raised."""
    try:
        return importlib.import_module(name)
    except BaseException as error:
        raise BootError(reason_of(error), traceback=traceback_of(error)) from error


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
    """Return an exception as Python prints it, without the frames of the import machinery and of prefork."""
    return "".join(traceback.format_exception(type(error), error, _of_application(error.__traceback__)))


def _of_application(place: TracebackType | None) -> TracebackType | None:
    while place is not None and _is_ours(place.tb_frame.f_code.co_filename):
        place = place.tb_next
    return place


def reason_of(error: BaseException) -> str:
    """Return the last line of what Python would print."""
    return traceback.format_exception_only(error)[-1].strip()


def _is_ours(file: str) -> bool:
    return file in _MACHINERY or os.path.dirname(file) in _CALLERS


_HERE = os.path.dirname(__file__)
# Who calls what people have written: to load it, or to run it.
_CALLERS = {_HERE, os.path.join(os.path.dirname(_HERE), "worker")}
_MACHINERY = {
    importlib.__file__,
    "<frozen importlib._bootstrap>",
    "<frozen importlib._bootstrap_external>",
}
