"""Socket handlers: a function of a connected socket and its peer's address, or a class of the socketserver module.

Or a coroutine function of a pair of asyncio's streams, for which worker/aio.py is.
"""

from __future__ import annotations

import inspect
import socket
import socketserver
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeGuard

from prefork.errors import BootError

if TYPE_CHECKING:
    import asyncio

Handle = Callable[[socket.socket, Any], object]
AsyncHandle = Callable[["asyncio.StreamReader", "asyncio.StreamWriter"], Coroutine[Any, Any, object]]
PLAIN_FORM = "def handle(sock, address)"
ASYNC_FORM = "async def handle(reader, writer)"


class Server:
    """What a ``socketserver.BaseRequestHandler`` finds as ``self.server``: where the connection came in."""

    def __init__(self, connection: socket.socket) -> None:
        self.server_address = connection.getsockname()
        host = self.server_address[0] if isinstance(self.server_address, tuple) else self.server_address
        # As http.server.HTTPServer has them, for its CGI handler and for those who log them.
        self.server_name = str(host)
        self.server_port = self.server_address[1] if isinstance(self.server_address, tuple) else 0


def adapt(target: Any) -> Handle | AsyncHandle:
    """Return the function to be called with each connection and its address, or with its streams: see ``is_async``.

    Raises BootError for what is none of ``def handle(sock, address)``, ``async def handle(reader, writer)`` and a
    ``socketserver.BaseRequestHandler`` class.
    """
    if isinstance(target, type) and issubclass(target, socketserver.BaseRequestHandler):
        handler_class: Any = target
        return lambda connection, address: handler_class(connection, address, Server(connection))
    if not callable(target):
        raise BootError(f"expected {PLAIN_FORM}, found {target!r}")
    _check_signature(target, ASYNC_FORM if is_async(target) else PLAIN_FORM)
    return target  # type: ignore[no-any-return]


def is_async(target: Handle | AsyncHandle) -> TypeGuard[AsyncHandle]:
    """Return whether a call of it gives a coroutine: of a function, a partial one, or an object with such a __call__."""
    return inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(type(target).__call__)


def _check_signature(target: Callable[..., object], expected: str) -> None:
    try:
        signature = inspect.signature(target)
    except ValueError:
        return  # some functions written in C do not tell
    try:
        signature.bind(None, None)
    except TypeError as error:
        name = getattr(target, "__name__", repr(target))
        found = f"{expected.partition('def')[0]}def {name}{signature}"
        raise BootError(f"expected {expected}, found {found}: {error}") from error
