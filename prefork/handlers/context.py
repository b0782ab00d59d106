"""The worker as its handler sees it: ``prefork.current()``."""

from __future__ import annotations

import os
import threading
import time

from prefork.scoreboard import Lane, Row

_workers: list[Worker] = []
_is_copy = False


class Worker:
    """The process that a handler runs in.

    Attributes:
        pool: the pool's name.
        slot: the worker's place in its pool, 0, 1, 2 …
        generation: the number of the rollout that this worker belongs to.
        stopping: set once the worker drains; ``wait(seconds)`` on it ends early when that happens.

    """

    def __init__(self, pool: str, slot: int, generation: int, row: Row) -> None:
        self.pool = pool
        self.slot = slot
        self.generation = generation
        self.stopping = threading.Event()
        self._row = row
        self._thread = threading.local()

    def __repr__(self) -> str:
        return f"<prefork.Worker {self.pool}/{self.slot} gen={self.generation}>"

    def extend(self, seconds: float) -> None:
        """Give the request that this thread runs ``seconds`` from now until its deadline.

        Without a request_timeout it has no deadline, and stays without one.

        Raises RuntimeError outside of a request.
        """
        lane: Lane | None = getattr(self._thread, "lane", None)
        if lane is None or not lane.is_busy:
            raise RuntimeError(
                "worker.extend() was called where no request is running: call it from its thread"
            )
        if lane.deadline:
            lane.extend(time.monotonic() + seconds)

    def enter_lane(self, number: int) -> Lane:
        """Bind the calling thread to a lane of the scoreboard; every thread that runs handlers does so once."""
        lane = self._row.lanes[number]
        self._thread.lane = lane
        return lane


def current() -> Worker:
    """Return the worker that the calling code runs in, on whichever of its threads.

    Raises RuntimeError outside of a prefork worker.
    """
    if not _workers:
        raise RuntimeError(
            "prefork.current() was called outside of a prefork worker; with preload = true that is where the "
            "application is loaded"
        )
    return _workers[-1]


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
