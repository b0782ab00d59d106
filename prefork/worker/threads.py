"""Threads that call the application, fed by a queue; what they are done with goes back to the loop."""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

from prefork.handlers.context import Worker
from prefork.log import logger
from prefork.scoreboard import Lane
from prefork.system.process import BROKEN
from prefork.worker.leaving import leave

T = TypeVar("T")
Job = Callable[["Seat"], None]


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


class Seat:
    """What an application thread needs to run a job: a lane of its own; see ``Threads.stand_aside``.

    Attributes:
        lane: the lane, which another thread has while this one stands aside.
        is_aside: whether this thread has none at present.
        bell: held until its thread is to wake up.

    """

    __slots__ = ("bell", "is_aside", "lane")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.is_aside = False
        self.bell = threading.Lock()
        self.bell.acquire()

    @property
    def deadline(self) -> float:
        """The deadline of the request that the thread runs; 0: none."""
        return self.lane.deadline

    @property
    def is_busy(self) -> bool:
        """Whether the thread runs a request."""
        return not self.is_aside and self.lane.is_busy

    def extend(self, deadline: float) -> None:
        """Give the present request until ``deadline`` instead."""
        self.lane.extend(deadline)

    def pass_on(self, taker: Seat) -> None:
        """Let another thread, which stands aside, run jobs in place of this one."""
        self.is_aside = True
        taker.lane = self.lane
        taker.is_aside = False
        taker.bell.release()


class Threads:
    """Application threads.

    Waking a thread costs more than a short job, and then it has to wait for the interpreter's lock anyway. So jobs
    are put one after the other and one thread is woken for all of them; a thread that takes one and leaves others
    wakes the next thread. Where jobs are short the first thread does most of them; where they wait for something,
    they let go of the lock, and the next thread comes at once. queue.SimpleQueue wakes one more thread with each job,
    which finds nothing.

    As many threads as there are lanes run jobs at once. A thread that waits for a client stands aside meanwhile, and
    another one takes its lane, so there may be more threads than lanes. To go on with its job on any other thread would
    break applications: a generator may hold a thread's own database connection, a lock, or a context variable's token.

    Args:
        count: how many run jobs at once.
        worker: the worker that they belong to; each has one of its lanes.

    """

    def __init__(self, count: int, worker: Worker) -> None:
        self._count = count
        self._worker = worker
        self._jobs: deque[Job | None] = deque()
        self._idle: list[threading.Lock] = []  # each is held until its thread is to wake up
        self._is_waking = False  # whether somebody was woken and has not come yet
        self._spares: list[Seat] = []  # of threads that have neither a lane nor a job
        self._started = itertools.count()
        self._is_stopped = False

    def start(self) -> None:
        """Start all threads."""
        for number in range(self._count):
            self._start_one(Seat(self._worker.lane(number)))

    def put(self, job: Job) -> None:
        """Have one of the threads do something, as soon as it can after the next ``wake``."""
        self._jobs.append(job)

    def wake(self) -> None:
        """See to it that what was put is done."""
        if self._jobs:
            self._wake_one()

    def stop(self) -> None:
        """Let each thread end when there is nothing left to do."""
        self._is_stopped = True
        for _ in range(self._count):
            self._jobs.append(None)
        self.wake()
        while self._spares:
            self._spares.pop().bell.release()

    def stand_aside(self, seat: Seat) -> bool:
        """Let another thread have the lane of the calling one, which is about to wait; call ``come_back`` afterwards.

        Return False if there is no other thread to be had; then the lane is still the caller's.
        """
        try:
            seat.pass_on(self._spares.pop())
        except IndexError:
            try:
                self._start_one(Seat(seat.lane))
            except RuntimeError:  # the system has no room for one more
                return False
            seat.is_aside = True
        return True

    def come_back(self, seat: Seat) -> None:
        """Wait until the calling thread has a lane again: its turn is behind the jobs that wait already."""
        self._jobs.append(partial(Seat.pass_on, taker=seat))
        self.wake()
        # Nobody may be left to pass one on once all were told to end; then the process leaves, and the board with it.
        if not self._is_stopped:
            seat.bell.acquire()

    def _start_one(self, seat: Seat) -> None:
        name = f"prefork-{next(self._started)}"
        # A thread that is stuck must not keep the process from leaving.
        threading.Thread(target=self._run, args=(seat,), name=name, daemon=True).start()

    def _wake_one(self) -> None:
        if self._is_waking:
            return  # whoever is about to come wakes the next one, if there is something left then
        try:
            bell = self._idle.pop()
        except IndexError:
            return  # all are at work, and look for the next job when they are done
        self._is_waking = True
        bell.release()

    def _run(self, seat: Seat) -> None:
        self._worker.enter_request(seat)
        while (job := self._next(seat.bell)) is not None:
            try:
                job(seat)
            except BaseException:  # noqa: BLE001 (reported, and the thread goes on)
                logger.exception("a fault of prefork in an application thread")
            if seat.is_aside and not self._find_lane(seat):
                return

    def _find_lane(self, seat: Seat) -> bool:
        """Wait for the lane of a thread that stands aside; return False if enough others wait for one."""
        if len(self._spares) >= self._count:
            return False
        self._spares.append(seat)
        if not self._is_stopped:
            seat.bell.acquire()
        return not seat.is_aside

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
