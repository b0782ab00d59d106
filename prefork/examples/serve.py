"""A server from a Python program, without a TOML file:  python -m prefork.examples.serve, then  nc 127.0.0.1 7000."""

from __future__ import annotations

import socket

import prefork


def handle(sock: socket.socket, address: object) -> None:
    """Answer each line with its letters in reverse; prefork closes the connection afterwards."""
    with sock.makefile("rw", encoding="utf-8") as stream:
        for line in stream:
            stream.write(line.rstrip("\n")[::-1] + "\n")
            stream.flush()


if __name__ == "__main__":
    raise SystemExit(prefork.serve(handle, listen="127.0.0.1:7000", workers=2, threads=4, request_timeout=0))
