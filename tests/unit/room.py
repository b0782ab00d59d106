"""A control server and its selector, turned by hand or by a thread."""

from __future__ import annotations

import os
import selectors
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from prefork.control.messages import Request
from prefork.control.server import ControlServer, Reply

NEVER_THAT_LONG = 10.0


class Room:
    """A control server whose requests are kept for the test to answer."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.selector = selectors.DefaultSelector()
        self.asked: list[tuple[Request, Reply]] = []
        self.answer = lambda request, reply: self.asked.append((request, reply))
        self.time = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.serve()
        self._wake, self._woken = os.pipe()
        self._thread: threading.Thread | None = None

    def serve(self, past: dict[str, Any] | None = None) -> None:
        """Open the control server, or go on with what another one has left."""
        self.server = ControlServer(
            self.path,
            lambda *both: self.answer(*both),
            owner_uid=os.geteuid(),
            later=lambda seconds, run: self.timers.append((self.time + seconds, run)),
            past=past,
            now=lambda: self.time,
        )
        self.server.register(self.selector)

    def wait(self, seconds: float) -> None:
        """Let time pass, and run what falls due."""
        end = self.time + seconds
        while due := [timer for timer in self.timers if timer[0] <= end]:
            timer = min(due, key=lambda found: found[0])
            self.timers.remove(timer)
            self.time = timer[0]
            timer[1]()
        self.time = end

    def turn(self, timeout: float = 0.0) -> int:
        events = self.selector.select(timeout)
        for key, mask in events:
            if key.data is not None:
                key.data(mask)
        return len(events)

    def settle(self) -> None:
        """Turn until nothing more happens; fails if it goes round and round."""
        for _ in range(1000):
            if not self.turn():
                return
        raise AssertionError("the selector reports the same again and again: the loop would spin")

    def watched(self) -> int:
        """How many descriptors are watched beside the listener."""
        return len(self.selector.get_map()) - 1

    def start(self) -> None:
        """Turn in a thread until ``close``."""
        self.selector.register(self._wake, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def close(self) -> None:
        if self._thread is not None:
            os.write(self._woken, b"!")
            self._thread.join(NEVER_THAT_LONG)
        self.server.close()
        self.selector.close()
        os.close(self._wake)
        os.close(self._woken)

    def _loop(self) -> None:
        while True:
            events = self.selector.select(NEVER_THAT_LONG)
            if any(key.data is None for key, _ in events):
                return
            for key, mask in events:
                key.data(mask)


@pytest.fixture
def folder() -> Iterator[str]:
    # pytest's tmp_path can be longer than the 107 bytes of a Unix socket's path.
    with tempfile.TemporaryDirectory(prefix="prefork-") as path:
        yield path


@pytest.fixture
def room(folder: str) -> Iterator[Room]:
    room = Room(f"{folder}/control.sock")
    yield room
    room.close()
