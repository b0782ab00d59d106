"""The worker as its handler sees it: ``prefork.current()``."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple, Protocol

from prefork.scoreboard import LATEST, Lane, Row

if TYPE_CHECKING:
    import asyncio

_workers: list[Worker] = []
_is_copy = False


class Limited(Protocol):
    """A request that may have a deadline, in seconds of the monotonic clock; 0: none."""

    @property
    def deadline(self) -> float:
        """By when it has to be done."""

    @property
    def is_busy(self) -> bool:
        """Whether it runs."""

    def extend(self, deadline: float) -> None:
        """Give it until another deadline."""


class Worker:
    """The process that a handler runs in.

    Attributes:
        pool: the pool's name.
        slot: the worker's place in its pool, 0, 1, 2 …
        generation: the number of the rollout that this worker belongs to.
        pid: its process; 0 before it was forked.
        stopping: set once the worker drains; ``wait(seconds)`` on it ends early when that happens. Coroutines await
            ``stopped()``.

    """

    def __init__(self, pool: str, slot: int, generation: int, row: Row, pid: int = 0) -> None:
        self.pool = pool
        self.slot = slot
        self.generation = generation
        self.pid = pid
        self.stopping = threading.Event()
        self._row = row
        # Each thread and each asyncio task has its own value.
        self._request: ContextVar[Limited | None] = ContextVar("request", default=None)
        self._sleepers: dict[asyncio.AbstractEventLoop, set[asyncio.Future[None]]] = {}
        self._draining = threading.Lock()
        self._arm: Callable[[], None] | None = None
        self._detach: Callable[[int], None] | None = None

    def __repr__(self) -> str:
        return f"<prefork.Worker {self.pool}/{self.slot} gen={self.generation}>"

    def extend(self, seconds: float) -> None:
        """Give the request that this thread or task runs ``seconds`` from now until its deadline.

        Without a request_timeout it has no deadline, and stays without one.

        Raises RuntimeError outside of a request, ValueError for a number that is none (NaN) or infinite.
        """
        if not math.isfinite(seconds):
            raise ValueError(f"worker.extend(): expected a finite number of seconds, found {seconds}")
        request = self._request.get()
        if request is None or not request.is_busy:
            raise RuntimeError(
                "worker.extend() was called where no request is running: call it from its thread or task"
            )
        if request.deadline:
            request.extend(min(time.monotonic() + max(seconds, 0.0), LATEST))

    async def stopped(self) -> None:
        """Return once the worker drains: ``stopping`` for coroutines of any event loop in this process."""
        import asyncio

        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._draining:
            if self.stopping.is_set():
                return
            self._sleepers.setdefault(loop, set()).add(future)
        try:
            await future
        finally:
            self._forget(loop, future)

    def drain(self) -> None:
        """Let the handler know that the worker drains, whatever it waits by; prefork calls it, from any thread."""
        with self._draining:
            self.stopping.set()
            sleepers, self._sleepers = self._sleepers, {}
        for loop, futures in sleepers.items():
            with suppress(RuntimeError):  # it was closed with coroutines that wait: nobody is left to be told
                loop.call_soon_threadsafe(_wake_up, futures)

    def beat(self) -> None:
        """Say that the task goes on: from the first call on, ``stall_timeout`` is how late the next one may be.

        Raises RuntimeError in a worker that runs no task.
        """
        if self._arm is None:
            raise RuntimeError(
                "worker.beat() was called outside of a task: other workers are watched without it"
            )
        self._arm()

    def beat_by(self, arm: Callable[[], None]) -> None:
        """Have ``beat()`` call this."""
        self._arm = arm

    def detach(self, pid: int) -> None:
        """Let a process that this worker has started live on if the worker is killed; see ``prefork.detach``."""
        if self._detach is None or _is_copy:
            raise RuntimeError(
                "prefork.detach() was called outside of a worker: call it in the worker itself"
            )
        self._detach(pid)

    def detach_by(self, detach: Callable[[int], None]) -> None:
        """Have ``detach()`` call this."""
        self._detach = detach

    def lane(self, number: int) -> Lane:
        """Return a lane of the scoreboard, to be bound to a thread by a request of its own."""
        return self._row.lanes[number]

    def enter_lane(self, number: int) -> Lane:
        """Bind the calling thread to a lane of the scoreboard; every thread that runs handlers does so once."""
        lane = self._row.lanes[number]
        self._request.set(lane)
        return lane

    def enter_request(self, request: Limited) -> None:
        """Bind the calling task, and what it starts, to a request."""
        self._request.set(request)

    def _forget(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
        with self._draining:
            futures = self._sleepers.get(loop, set())
            futures.discard(future)
            if not futures:
                self._sleepers.pop(loop, None)


class EndedWorker(NamedTuple):
    """A worker that has ended, as the hook ``ended`` sees it.

    ``exit_status`` is what a shell would say: its exit code, or 128 and the number of the signal that has ended it.
    """

    pool: str
    slot: int
    generation: int
    pid: int
    exit_status: int


def _wake_up(futures: set[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def current() -> Worker:
    """Return the worker that the calling code runs in, on whichever of its threads.

    Raises RuntimeError outside of a prefork worker.
    """
    worker = current_if_any()
    if worker is None:
        raise RuntimeError(
            "prefork.current() was called outside of a prefork worker; with preload = true that is where the "
            "application is loaded"
        )
    return worker


def detach(pid: int) -> None:
    """Let a process that this worker has started or forked, and all that is below it, live on if the worker is killed.

    Without that it is ended with its worker.

    Raises RuntimeError outside of a prefork worker, ProcessLookupError if there is no such process.
    """
    current().detach(pid)


def current_if_any() -> Worker | None:
    """Return the worker that the calling code runs in, or None outside of one."""
    return _workers[-1] if _workers else None


def become(worker: Worker) -> None:
    """Make ``worker`` the one that ``current()`` returns in this process."""
    _workers.append(worker)
    os.register_at_fork(after_in_child=_note_copy)


def end_copy(code: int = 0) -> None:
    """End this process if a handler has forked it: called when it comes back from the handler.

    It would go on as a second worker that nobody knows of, on connections that are the first one's.
    """
    if _is_copy:
        os._exit(code)


def exit_code(error: SystemExit) -> int:
    """Return what the interpreter would make of ``sys.exit``'s argument."""
    if error.code is None:
        return 0
    return error.code & 0xFF if isinstance(error.code, int) else 1


def _note_copy() -> None:
    global _is_copy
    _is_copy = True
