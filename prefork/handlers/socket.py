"""Socket handlers: a function of a connected socket and its peer's address, or a class of the socketserver module.

Or a coroutine function of a pair of asyncio's streams, for which worker/aio.py is.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from prefork.errors import BootError
from prefork.handlers.load import check_signature, is_async

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
    if _is_request_handler(target):
        return lambda connection, address: target(connection, address, Server(connection))
    if not callable(target):
        raise BootError(f"expected {PLAIN_FORM}, found {target!r}")
    check_signature(target, ASYNC_FORM if is_async(target) else PLAIN_FORM, 2)
    return target  # type: ignore[no-any-return]


def _is_request_handler(target: Any) -> bool:
    # Whoever has such a class has imported the module; the others need not wait for it.
    module = sys.modules.get("socketserver")
    return module is not None and isinstance(target, type) and issubclass(target, module.BaseRequestHandler)
