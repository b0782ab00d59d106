"""A socket handler that sends back each line it is sent, until the client has no more to say."""

from __future__ import annotations

import socket


def handle(sock: socket.socket, address: object) -> None:
    """Serve one connection; prefork closes it afterwards."""
    with sock.makefile("rwb") as stream:
        for line in stream:
            stream.write(line)
            stream.flush()
