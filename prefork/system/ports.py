"""Whether somebody accepts connections on a port of this machine."""

from __future__ import annotations

import contextlib
import select
import socket

LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
# On loopback the handshake is over at once, unless the backlog is full: then the next try comes soon.
PATIENCE = 0.05


def accepts(port: int) -> bool:
    """Tell whether connections to a TCP port are accepted, over IPv4 or IPv6."""
    return any(_connects(family, host, port) for family, host in LOOPBACK)


def _connects(family: socket.AddressFamily, host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        probe.connect_ex((host, port))
        poll = select.poll()
        poll.register(probe, select.POLLOUT)
        if not poll.poll(PATIENCE * 1000):
            return False
        if probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0:
            return False
        return not _is_own(probe)
    return False


def _is_own(probe: socket.socket) -> bool:
    """Tell whether a socket has connected to itself: the kernel may give it the very port that it asks for."""
    return bool(probe.getsockname()[:2] == probe.getpeername()[:2])
