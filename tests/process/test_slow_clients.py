"""Clients that send half a request, and clients that send nothing for long, keep nobody else from being served."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.clients import read_answer
from tests.faulty import pool
from tests.harness import PATIENCE, Server
from tests.process.conftest import Start
from tests.process.test_shortages import share_of_cpu

HALF, IDLE = 500, 5000
REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def connect(clients: ExitStack, server: Server, count: int, data: bytes) -> list[socket.socket]:
    """Return so many connections, on each of which the same was sent."""
    address = server.address()
    found = [clients.enter_context(socket.create_connection(address, PATIENCE)) for _ in range(count)]
    for client in found:
        client.sendall(data)
    return found


def seconds_for_an_answer(address: tuple[str, int]) -> float:
    began = time.monotonic()
    with socket.create_connection(address, PATIENCE) as client:
        client.sendall(REQUEST)
        assert read_answer(client)[0] == 200
    return time.monotonic() - began


def outcome(client: socket.socket) -> int | str:
    """Return the status that a client is answered with, or that it was closed without one."""
    try:
        return read_answer(client)[0]
    except (EOFError, ConnectionError):
        return "closed"


@pytest.mark.parametrize("threads", [1, 2])
def test_half_sent_requests_delay_nobody_and_are_ended(
    start: Start, clients: ExitStack, threads: int
) -> None:
    server = start(pool("web:app", kind="wsgi", threads=threads, read_timeout=2)).wait_serving()
    address = server.address()
    slow = connect(clients, server, HALF, REQUEST[:-2])
    began = time.monotonic()
    assert max(seconds_for_an_answer(address) for _ in range(20)) < 1
    assert {outcome(client) for client in slow} <= {408, "closed"}
    assert time.monotonic() - began < 2 + PATIENCE / 2
    assert seconds_for_an_answer(address) < 1


def test_thousands_of_idle_connections_cost_nothing_and_are_served(
    start: Start, clients: ExitStack, make_room: Callable[[int], None]
) -> None:
    make_room(IDLE)
    server = start(pool("web:app", kind="wsgi", max_connections=IDLE + 1000)).wait_serving()
    idle = connect(clients, server, IDLE, REQUEST)
    assert {read_answer(client)[::2] for client in idle} == {(200, True)}
    (worker,) = server.workers()
    assert worker["connections"] == IDLE
    assert share_of_cpu(worker["pid"], 0.5) < 0.2  # 0.1 s of 0.5 s
    for client in idle[:: IDLE // 50]:
        client.sendall(REQUEST)
        assert read_answer(client)[0] == 200
