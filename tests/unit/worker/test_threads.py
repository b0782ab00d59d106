"""Application threads: every job is done, several at once where they wait, and nobody sleeps over one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from prefork.handlers.context import Worker
from prefork.scoreboard import Board, Lane
from prefork.worker.threads import Threads

LONG = 10.0
COUNT = 4


@pytest.fixture
def threads() -> Iterator[Threads]:
    board = Board(1, COUNT)
    threads = Threads(COUNT, Worker("web", 0, 1, board.row(board.claim())))
    before = set(threading.enumerate())
    threads.start()
    yield threads
    threads.stop()
    for thread in set(threading.enumerate()) - before:
        thread.join(LONG)
        assert not thread.is_alive(), "a thread does not end"


def test_jobs_that_wait_for_each_other_run_at_once_after_one_wake(threads: Threads) -> None:
    meeting = threading.Barrier(COUNT + 1)
    for _ in range(COUNT):
        threads.put(lambda _lane: meeting.wait(LONG))  # type: ignore[arg-type,return-value]
    threads.wake()
    meeting.wait(LONG)


def test_each_thread_has_a_lane_of_its_own(threads: Threads) -> None:
    meeting, lanes = threading.Barrier(COUNT + 1), list[Lane]()

    def job(lane: Lane) -> None:
        lanes.append(lane)
        meeting.wait(LONG)

    for _ in range(COUNT):
        threads.put(job)
    threads.wake()
    meeting.wait(LONG)
    assert len({id(lane) for lane in lanes}) == COUNT


def test_no_job_is_slept_over_however_they_come(threads: Threads) -> None:
    for number in range(3000):
        done = threading.Semaphore(0)
        for _ in range(number % 6 + 1):
            threads.put(lambda _lane, done=done: done.release())  # type: ignore[misc]
            if number % 3:
                threads.wake()
        threads.wake()
        for _ in range(number % 6 + 1):
            assert done.acquire(timeout=LONG), f"a job of burst {number} is not done"


def test_a_job_that_comes_while_the_last_thread_becomes_idle_is_done() -> None:
    done = threading.Semaphore(0)
    board = Board(1, 1)
    threads = Threads(1, Worker("web", 0, 1, board.row(board.claim())))

    class Late(list[threading.Lock]):
        """Idle threads; before the first one is among them a job comes, and sees nobody."""

        def append(self, bell: threading.Lock) -> None:
            if threads._idle is self:
                threads.put(lambda _lane: done.release())
                threads.wake()
                threads._idle = [bell]

    threads._idle = Late()
    threads.start()
    assert done.acquire(timeout=LONG)
    threads.stop()


def test_a_thread_that_is_busy_leaves_jobs_to_the_others(threads: Threads) -> None:
    release, done = threading.Event(), threading.Semaphore(0)
    for _ in range(COUNT - 1):
        threads.put(lambda _lane: release.wait(LONG) and None)
    threads.wake()
    for _ in range(100):
        threads.put(lambda _lane: done.release())
    threads.wake()
    for _ in range(100):
        assert done.acquire(timeout=LONG)
    release.set()


def test_a_job_that_fails_is_reported_and_its_thread_goes_on(
    threads: Threads, caplog: pytest.LogCaptureFixture
) -> None:
    done = threading.Semaphore(0)
    for _ in range(2 * COUNT):
        threads.put(lambda _lane: 1 / 0 and None)
    threads.put(lambda _lane: done.release())
    threads.wake()
    assert done.acquire(timeout=LONG)
    until = time.monotonic() + LONG
    while len(caplog.records) < 2 * COUNT and time.monotonic() < until:
        time.sleep(0.001)
    assert [record.exc_info is not None for record in caplog.records] == [True] * 2 * COUNT
