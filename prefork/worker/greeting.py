"""The PROXY header that a balancer sends before its client's first byte, read off a socket without one byte more."""

from __future__ import annotations

import socket
import time

from prefork.handlers.peer import End, Header, ProxyError, read_header

# More than any header of use: addresses and a few additional fields; the rest of a longer one comes next time.
PEEK_SIZE = 4096


class Greeting:
    """A PROXY header that is being read."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending = b""

    def read(self, sock: socket.socket) -> Header | None:
        """Return the header, or None if its end has not come yet; what follows it stays in the socket.

        Raises ProxyError if there is none, and OSError as ``recv`` does or if the peer left.
        """
        data = sock.recv(PEEK_SIZE, socket.MSG_PEEK)
        if not data:
            raise ConnectionAbortedError("the peer left")
        header = read_header(self._pending + data)
        mine = len(data) if header is None else header.size - len(self._pending)
        self._pending += sock.recv(mine)
        return header


def read_blocking(sock: socket.socket, seconds: float) -> Header:
    """Return the header that a connection begins with, within so many seconds; the socket is blocking again then.

    Raises ProxyError if there is none by then, and OSError as ``recv`` does or if the peer left.
    """
    greeting, until = Greeting(), time.monotonic() + seconds
    header = None
    while header is None:
        left = until - time.monotonic()
        if left <= 0:
            raise ProxyError(f"it did not come within {seconds:g} s")
        sock.settimeout(left)
        try:
            header = greeting.read(sock)
        except TimeoutError:
            continue
    sock.settimeout(None)
    return header


def address_of(end: End) -> object:
    """Return the address of one end in the form that ``accept`` and ``getsockname`` give it."""
    if not end.host:
        return ""
    return (end.host, end.port, 0, 0) if ":" in end.host else (end.host, end.port)


def name_of(address: object) -> bytes:
    """Return a peer's address for people; a client of a Unix socket has none."""
    if isinstance(address, tuple):
        host, port = address[:2]
        return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode("latin-1", "replace")
    return b"unix socket"
