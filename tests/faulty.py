"""What the tests with faulty handlers share: configurations, and conversations with tests/apps/faults.py."""

from __future__ import annotations

import socket

from tests.harness import PATIENCE, Server, read_to_end, wait_until


def pool(handler: str = "faults:act", name: str = "work", kind: str = "handler", **options: object) -> str:
    """Return a pool's table; it listens on a port of the kernel's choice."""
    values = {"listen": ["127.0.0.1:0"], kind: handler, "workers": 1, "graceful_timeout": 5, **options}
    lines = (
        f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}"
        for key, value in values.items()
    )
    return "\n".join([f"[pool.{name}]", *lines, ""]).replace("'", '"')


def say(server: Server, line: str, name: str | None = None) -> socket.socket:
    """Return a connection on which a line has been sent."""
    client = server.connect(name)
    client.sendall(line.encode() + b"\n")
    return client


def ask(server: Server, line: str, name: str | None = None) -> str:
    """Return the whole answer to a line; what a dead worker's reset cuts off is left out."""
    with say(server, line, name) as client:
        try:
            return read_to_end(client).decode()
        except ConnectionResetError:
            return ""


def begin(server: Server, line: str, name: str | None = None) -> socket.socket:
    """Return a connection whose handler has said ``began`` or ``waiting``: it is in the middle of its work."""
    client = say(server, line, name)
    expect(client)
    return client


def expect(client: socket.socket) -> None:
    """Wait for the first word of a handler, which ends with a blank."""
    client.settimeout(PATIENCE)
    word = b""
    while not word.endswith(b" "):
        data = client.recv(1)
        assert data, f"expected a word, found the end after {word!r}"
        word += data


def wait_replaced(server: Server, before: set[int], name: str | None = None) -> None:
    """Wait until none of these workers is left, and all that are wanted are ready."""

    def are_replaced() -> bool:
        pool = server.pool(name)
        return pool["ready"] == pool["wanted"] and before.isdisjoint(
            worker["pid"] for worker in pool["workers"]
        )

    wait_until(are_replaced, f"the workers {before} are replaced")
