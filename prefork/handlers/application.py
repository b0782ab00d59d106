"""What is a WSGI application (PEP 3333), and what only looks like one: told at boot, and not by a 500 per request.

Only what surely cannot be called is refused. What hides its parameters, as C code and most decorators do, goes on.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from prefork.errors import BootError
from prefork.handlers.load import is_async
from prefork.handlers.wsgi import WsgiApp

EXPECTED: Final = "expected a WSGI application, called with (environ, start_response)"
# How modules name their application: the first that is there is worth a hint.
USUAL_NAMES: Final = ("app", "application", "wsgi")
IS_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def adapt(target: Any, written: str) -> WsgiApp:
    """Return the application that was loaded.

    Args:
        target: what was found.
        written: how the configuration names it.

    Raises BootError for what cannot be a WSGI application, with what to write instead.

    """
    if not callable(target):
        raise BootError(f"{EXPECTED}, found {_name(target)}", _hint_for_value(target, written))
    called = _unwrap(target)
    if _is_asynchronous(called):
        raise _is_asgi(called, written)
    if isinstance(called, type):
        _check_class(called, written)
    else:
        _check_parameters(target, written)
    return target  # type: ignore[no-any-return]


def _unwrap(target: Any) -> Any:
    while isinstance(target, functools.partial):
        target = target.func
    return target


def _is_asynchronous(called: Callable[..., Any]) -> bool:
    if isinstance(called, type):
        return False  # a call makes an instance
    return is_async(called) or inspect.isasyncgenfunction(called)


def _is_asgi(called: Any, written: str) -> BootError:
    hint = (
        "prefork has no pools with asgi yet; a server for ASGI can run as a program, at the pool's listeners: "
        f'command = ["uvicorn", "--fd", "3", "{written}"] instead of wsgi'
    )
    return BootError(f"{EXPECTED}, found an asynchronous one (ASGI): {_name(called)}", hint)


def _check_class(found: type, written: str) -> None:
    """Refuse a class whose instances are applications; one that is iterated to get the answer is one itself."""
    is_iterable = hasattr(found, "__iter__") or hasattr(found, "__getitem__")
    may_make_anything = getattr(found, "__new__") is not object.__new__ or type(found) is not type  # noqa: B009
    if is_iterable or may_make_anything:
        return _check_parameters(found, written)
    own_call = getattr(found, "__call__", None) if "__call__" in dir(found) else None  # noqa: B004 - not type's
    if own_call is not None and is_async(own_call):
        raise _is_asgi(found, written)
    is_simple = "(" not in written and _accepts(found, 0)
    hint = f'wsgi = "{written}()" makes one' if is_simple else f"name an instance: app = {found.__name__}(…)"
    raise BootError(f"{EXPECTED}, found {_name(found)}, whose instances are not iterable", hint)


def _check_parameters(target: Callable[..., Any], written: str) -> None:
    if not _accepts(target, 2):
        raise BootError(f"{EXPECTED}, found {_name(target)}", _hint_for_call(target, written))
    if _is_optional_twice(target):
        message = f"{EXPECTED}, found {_name(target)}, which looks like a factory: it needs no argument"
        raise BootError(message, _hint_for_call(target, written))


def _hint_for_call(target: Callable[..., Any], written: str) -> str | None:
    if "(" in written:
        return "what the factory returns has to be the application"
    if _accepts(target, 0):
        return f'if it makes the application, write wsgi = "{written}()"'
    if _accepts(target, 3):
        return "an ASGI application takes three arguments; prefork has no pools with asgi yet"
    if inspect.isfunction(target) and (names := _needed(target)):
        given = ", ".join(f"{name}=…" for name in names)
        return f'if it makes the application, write wsgi = "{written}({given})", with literal arguments'
    return None


def _hint_for_value(target: Any, written: str) -> str | None:
    if inspect.iscoroutine(target):
        target.close()  # or Python warns that it was never awaited
        return "the factory is asynchronous: a WSGI application needs a plain def"
    if isinstance(target, ModuleType):
        names = [name for name in USUAL_NAMES if callable(getattr(target, name, None))]
        return f'write wsgi = "{target.__name__}:{names[0] if names else "app"}"'
    return "what the factory returns has to be the application" if "(" in written else None


def _accepts(target: Callable[..., Any], count: int) -> bool:
    """Return whether so many arguments may be right; what does not tell its parameters may take any."""
    signature = _signature(target)
    if signature is None:
        return True
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def _signature(target: Callable[..., Any]) -> inspect.Signature | None:
    try:
        # Not that of what was decorated: Werkzeug's Request.application and responder make an application of a function
        # of other parameters, and note it as the wrapped one.
        return inspect.signature(target, follow_wrapped=False)
    except Exception:  # noqa: BLE001 - C code tells nothing, and a proxy raises whatever its target does
        return None


def _is_optional_twice(target: Callable[..., Any]) -> bool:
    """Return whether both arguments have defaults and other names than an application's: a factory with settings."""
    signature = _signature(target)
    if signature is None or not inspect.isroutine(target):
        return False
    first = [parameter for parameter in signature.parameters.values() if parameter.kind in IS_POSITIONAL][:2]
    has_defaults = len(first) == 2 and all(parameter.default is not parameter.empty for parameter in first)
    return has_defaults and not (first[0].name.startswith("env") or "start" in first[1].name)


def _needed(target: Callable[..., Any]) -> list[str]:
    signature = _signature(target)
    assert signature is not None
    return [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (*IS_POSITIONAL, inspect.Parameter.KEYWORD_ONLY)
    ]


def _name(target: Any) -> str:
    """Return what was found, as people know it."""
    if isinstance(target, type):
        return f"the class {target.__qualname__}{_signature(target) or ''}"
    if inspect.isroutine(target):
        kind = "async def" if is_async(target) else "def"
        return f"{kind} {target.__name__}{_signature(target) or '(…)'}"
    if callable(target) and not isinstance(target, functools.partial):
        return f"an object of class {type(target).__qualname__}, called with {_signature(target) or '(…)'}"
    return repr(target)[:200]
