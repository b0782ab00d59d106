"""Listening sockets that whoever started this process has passed to it: socket activation, sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

FIRST_DESCRIPTOR = 3
VARIABLES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
# What sd_listen_fds_with_names(3) calls a descriptor that was not named.
UNNAMED = "unknown"


def inherited_sockets(environment: Mapping[str, str]) -> dict[str, list[socket.socket]]:
    """Return the sockets that were passed to this very process, by name; programs that it executes get none of them.

    One name may stand for several sockets: all of one .socket unit have the same. A descriptor that is no socket
    is left out. The variables stay as they are, so that this process finds the sockets again after an exec.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return {}
    number = int(environment.get("LISTEN_FDS") or 0)
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[socket.socket]] = {}
    for descriptor in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + number):
        name = next(iter(names[descriptor - FIRST_DESCRIPTOR :]), "") or UNNAMED
        os.set_inheritable(descriptor, False)
        try:
            found.setdefault(name, []).append(socket.socket(fileno=descriptor))
        except OSError:
            continue  # a FIFO or a file: .socket units may pass those as well
    return found


def is_listening(found: socket.socket) -> bool:
    """Tell whether a socket is a stream socket whose connections can be accepted."""
    listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    return bool(listens) and found.type == socket.SOCK_STREAM
