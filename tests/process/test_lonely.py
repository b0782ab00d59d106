"""One client, alone: nobody comes after it who would wake the workers that a lost wake-up has left asleep."""

from __future__ import annotations

import os
import signal
import socket
import threading

import pytest

from tests.faulty import pool
from tests.harness import PATIENCE, Server, read_to_end, wait_until

KINDS = {
    "wsgi": {"handler": "web:app", "kind": "wsgi"},
    "wsgi in threads": {"handler": "web:app", "kind": "wsgi", "threads": 4},
    "socket handler": {"handler": "sockets:pid"},
    "socket handler in threads": {"handler": "sockets:pid", "threads": 4},
    "asyncio": {"handler": "streams:pid"},
}


def connect(address: tuple[str, int], kind: str) -> socket.socket:
    """Return a client of a kind of worker; a socket handler here reads nothing, so its client must not say anything."""
    client = socket.create_connection(address, timeout=PATIENCE)
    if kind.startswith("wsgi"):
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    return client


def ask(address: tuple[str, int], kind: str) -> bytes:
    with connect(address, kind) as client:
        return read_to_end(client)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_lonely_client_is_answered_while_workers_are_recycled(start, repetitions, kind, workers):
    server = start(pool(**KINDS[kind], workers=workers, max_requests=1, max_requests_jitter=0))
    server.wait_ready(workers)
    births = repetitions(2000, 20)
    while len([line for line in server.lines if "ready in" in line]) < births:
        assert ask(server.address(), kind)


@pytest.mark.parametrize("kind", ["wsgi", "socket handler in threads"])
def test_a_lonely_client_is_answered_after_a_worker_was_killed(start, repetitions, kind):
    """A halted worker is woken in vain; once it is killed, another one has to look, and not only its successor."""
    server = start(pool(**KINDS[kind], workers=2))
    address = server.wait_ready(2).address()
    halted = 0
    for _ in range(repetitions(100, 2)):
        halted = wait_until(lambda gone=halted: _one_of_two(server, gone), "both are ready")
        os.kill(halted, signal.SIGSTOP)
        with connect(address, kind) as client:
            os.kill(halted, signal.SIGKILL)
            assert client.recv(4096)


def test_what_waits_at_a_stop_is_shared_by_those_who_can_serve_it(start):
    server: Server = start(pool("web:routes", kind="wsgi", workers=2, graceful_timeout=30))
    address = server.wait_ready(2).address()
    clients = [socket.create_connection(address, timeout=PATIENCE) for _ in range(8)]
    for client in clients:
        client.sendall(b"GET /sleep/0.5 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    wait_until(lambda: sum(len(each["current"]) for each in server.workers()) == 2, "both are at work")
    server.signal(signal.SIGTERM)
    pids: list[bytes] = []
    readers = [threading.Thread(target=lambda c=client: pids.append(_read(c))) for client in clients]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(PATIENCE)
    for client in clients:
        client.close()
    assert len(pids) == 8
    assert min(pids.count(pid) for pid in pids) >= 3, pids  # 4, but for a busy machine
    assert server.wait_exit() == 0


def _one_of_two(server: Server, gone: int) -> int:
    """Return a worker's pid once two are ready, neither of which is the one that was killed; 0 before."""
    ready = [each["pid"] for each in server.workers() if each["state"] == "ready"]
    return ready[0] if len(ready) == 2 and gone not in ready else 0


def _read(client: socket.socket) -> bytes:
    answer = b""
    while piece := client.recv(4096):
        answer += piece
    return answer.partition(b"\r\n\r\n")[2]
