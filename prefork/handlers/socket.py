"""Socket handlers: a function of a connected socket and its peer's address, or a class of the socketserver module."""

from __future__ import annotations

import inspect
import socket
import socketserver
from collections.abc import Callable
from typing import Any

from prefork.errors import BootError
from prefork.handlers.load import check_signature

Handle = Callable[[socket.socket, Any], object]


class Server:
    """What a ``socketserver.BaseRequestHandler`` finds as ``self.server``: where the connection came in."""

    def __init__(self, connection: socket.socket) -> None:
        self.server_address = connection.getsockname()
        host = self.server_address[0] if isinstance(self.server_address, tuple) else self.server_address
        # As http.server.HTTPServer has them, for its CGI handler and for those who log them.
        self.server_name = str(host)
        self.server_port = self.server_address[1] if isinstance(self.server_address, tuple) else 0


def adapt(target: Any) -> Handle:
    """Return the function to be called with each connection and its address.

    Raises BootError for what is neither ``def handle(sock, address)`` nor a ``socketserver.BaseRequestHandler`` class.
    """
    if isinstance(target, type) and issubclass(target, socketserver.BaseRequestHandler):
        handler_class: Any = target
        return lambda connection, address: handler_class(connection, address, Server(connection))
    if not callable(target):
        raise BootError(f"expected def handle(sock, address), found {target!r}")
    if inspect.iscoroutinefunction(target):
        raise BootError(
            f"expected def handle(sock, address), found async def {target.__name__}",
            "asynchronous handlers are not served yet",
        )
    check_signature(target, "def handle(sock, address)", 2)
    return target  # type: ignore[no-any-return]
