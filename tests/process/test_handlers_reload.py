"""Socket handlers that answer one connection each, under load: reloads lose none, kill -9 only what it hits."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections import Counter
from typing import Self

from tests.faulty import pool, wait_replaced
from tests.harness import PATIENCE, read_to_end

TABLE = pool("sockets:pid", workers=4)


class Callers:
    """Clients in threads: each connects, reads the pid that answers, and connects again. Nothing is tried twice."""

    def __init__(self, address: tuple[str, int], count: int = 6) -> None:
        self.outcomes: Counter[str] = Counter()
        self._address = address
        self._over = threading.Event()
        self._more = threading.Condition()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    @property
    def lost(self) -> dict[str, int]:
        return {kind: count for kind, count in self.outcomes.items() if kind != "answered"}

    def wait_answered(self, more: int) -> None:
        """Wait for so many more answers."""
        with self._more:
            goal = self.outcomes["answered"] + more
            assert self._more.wait_for(lambda: self.outcomes["answered"] >= goal, PATIENCE), self.outcomes

    def _run(self) -> None:
        while not self._over.is_set():
            outcome = self._call()
            with self._more:
                self.outcomes[outcome] += 1
                self._more.notify_all()

    def _call(self) -> str:
        try:
            with socket.create_connection(self._address, PATIENCE) as client:
                return "answered" if read_to_end(client).isdigit() else "empty"
        except TimeoutError:
            return "timeout"
        except ConnectionRefusedError:
            return "refused"
        except ConnectionResetError:
            return "reset"


def test_reloads_lose_no_connection(start):
    server = start(TABLE).wait_serving()
    with Callers(server.address()) as callers:
        for generation in range(2, 12):
            callers.wait_answered(30)
            assert server.ask("reload")["generation"] == generation
        callers.wait_answered(30)
    assert callers.lost == {}


def test_reloads_of_workers_with_threads_lose_no_connection(start):
    server = start(TABLE + "threads = 4\n").wait_serving()
    with Callers(server.address(), 10) as callers:
        for _ in range(5):
            callers.wait_answered(30)
            server.ask("reload")
        callers.wait_answered(30)
    assert callers.lost == {}


def test_workers_killed_in_turn_lose_only_what_they_had(start):
    server = start(TABLE).wait_serving()
    kills = 6
    with Callers(server.address()) as callers:
        for _ in range(kills):
            callers.wait_answered(30)
            victim = min(server.pids())
            os.kill(victim, signal.SIGKILL)
            wait_replaced(server, {victim})
    assert set(callers.lost) <= {"reset", "empty"}, callers.lost
    assert sum(callers.lost.values()) <= kills, callers.lost  # a worker with one thread has one connection


def test_scaling_down_and_up_loses_no_connection(start):
    server = start(TABLE).wait_serving()
    with Callers(server.address()) as callers:
        for workers in (1, 4, 2, 3):
            server.ask("scale", pool="work", workers=workers)
            callers.wait_answered(50)
    assert callers.lost == {}
