"""Threads that call the application, fed by a queue; what they are done with goes back to the loop."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from prefork.handlers.context import Worker
from prefork.log import logger
from prefork.scoreboard import Lane
from prefork.system.process import BROKEN
from prefork.worker.leaving import leave

T = TypeVar("T")
Job = Callable[[Lane], None]


def start_vital(run: Callable[[], object], name: str) -> threading.Thread:
    """Start a thread that the worker cannot be without: should it fail, the worker ends, to be replaced."""
    # A thread that is stuck must not keep the process from leaving.
    thread = threading.Thread(target=_run_vital, args=(run,), name=name, daemon=True)
    thread.start()
    return thread


def _run_vital(run: Callable[[], object]) -> None:
    try:
        run()
    except BaseException:  # noqa: BLE001 - mostly a handler that has closed descriptors that are not its own
        logger.exception("a thread of prefork's own failed; the worker ends")
        leave(BROKEN)


class Mailbox(Generic[T]):
    """A way from threads to a loop.

    Attributes:
        fd: becomes readable when something came while the loop was asleep.

    """

    def __init__(self) -> None:
        self.fd, self._bell = os.pipe()
        os.set_blocking(self._bell, False)
        self._items: deque[T] = deque()
        self._is_asleep = False

    def put(self, item: T) -> None:
        """Leave something for the loop."""
        self._items.append(item)
        if self._is_asleep:
            self._is_asleep = False
            os.write(self._bell, b"!")

    def fall_asleep(self) -> bool:
        """Say that the loop is about to wait; return False when it must not, since something is there."""
        self._is_asleep = True
        return not self._items

    def wake_up(self) -> None:
        """Say that the loop has woken up: nobody needs to ring."""
        self._is_asleep = False

    def hear(self) -> None:
        """Take note of the bell."""
        os.read(self.fd, 64)

    def take(self) -> T | None:
        """Return the next item, None if there is none."""
        return self._items.popleft() if self._items else None

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self.fd)
        os.close(self._bell)


class Threads:
    """Application threads.

    Waking a thread costs more than a short job, and then it has to wait for the interpreter's lock anyway. So jobs
    are put one after the other and one thread is woken for all of them; a thread that takes one and leaves others
    wakes the next thread. Where jobs are short the first thread does most of them; where they wait for something,
    they let go of the lock, and the next thread comes at once. queue.SimpleQueue wakes one more thread with each job,
    which finds nothing.

    Args:
        count: how many.
        worker: the worker that they belong to; each enters one of its lanes.

    """

    def __init__(self, count: int, worker: Worker) -> None:
        self._count = count
        self._worker = worker
        self._jobs: deque[Job | None] = deque()
        self._idle: list[threading.Lock] = []  # each is held until its thread is to wake up
        self._is_waking = False  # whether somebody was woken and has not come yet

    def start(self) -> None:
        """Start all threads."""
        for number in range(self._count):
            name = f"prefork-{number}"
            # A thread that is stuck must not keep the process from leaving.
            threading.Thread(target=self._run, args=(number,), name=name, daemon=True).start()

    def put(self, job: Job) -> None:
        """Have one of the threads do something, as soon as it can after the next ``wake``."""
        self._jobs.append(job)

    def wake(self) -> None:
        """See to it that what was put is done."""
        if self._jobs:
            self._wake_one()

    def stop(self) -> None:
        """Let each thread end when there is nothing left to do."""
        for _ in range(self._count):
            self._jobs.append(None)
        self.wake()

    def _wake_one(self) -> None:
        if self._is_waking:
            return  # whoever is about to come wakes the next one, if there is something left then
        try:
            bell = self._idle.pop()
        except IndexError:
            return  # all are at work, and look for the next job when they are done
        self._is_waking = True
        bell.release()

    def _run(self, number: int) -> None:
        lane = self._worker.enter_lane(number)
        bell = threading.Lock()
        bell.acquire()
        while (job := self._next(bell)) is not None:
            try:
                job(lane)
            except BaseException:  # noqa: BLE001 (reported, and the thread goes on)
                logger.exception("a fault of prefork in an application thread")

    def _next(self, bell: threading.Lock) -> Job | None:
        while True:
            try:
                job = self._jobs.popleft()
            except IndexError:
                self._idle.append(bell)
            else:
                self.wake()
                return job
            self.wake()  # a job that has come in between has seen nobody idle
            bell.acquire()
            self._is_waking = False
