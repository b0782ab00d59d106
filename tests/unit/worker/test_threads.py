"""Application threads: every job is done, several at once where they wait, and nobody sleeps over one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from prefork.handlers.context import Worker
from prefork.scoreboard import Board, Lane
from prefork.worker.threads import Seat, Threads

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

    def job(seat: Seat) -> None:
        lanes.append(seat.lane)
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


class Lanes:
    """Which lanes threads use; they may not share any."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._used: set[int] = set()
        self.shared: list[Lane] = []

    def use(self, lane: Lane) -> None:
        """Use a lane for a moment."""
        with self._guard:
            if id(lane) in self._used:
                self.shared.append(lane)
            self._used.add(id(lane))
        time.sleep(0)
        with self._guard:
            self._used.discard(id(lane))


def put_many(threads: Threads, count: int, job: Callable[[Seat], None]) -> None:
    for _ in range(count):
        threads.put(job)
    threads.wake()


def wait_many(semaphore: threading.Semaphore, count: int) -> None:
    for _ in range(count):
        assert semaphore.acquire(timeout=LONG), "jobs are held up"


def test_threads_that_stand_aside_let_others_run_and_come_back_to_their_own_job(threads: Threads) -> None:
    aside, release, done = threading.Semaphore(0), threading.Event(), threading.Semaphore(0)
    lanes, same = Lanes(), list[bool]()

    def slow(seat: Seat) -> None:
        me = threading.get_ident()
        for _ in range(3):
            lanes.use(seat.lane)
            assert threads.stand_aside(seat)
            aside.release()
            release.wait(LONG)
            threads.come_back(seat)
        same.append(threading.get_ident() == me)
        done.release()

    def quick(seat: Seat) -> None:
        lanes.use(seat.lane)
        done.release()

    put_many(threads, 5 * COUNT, slow)
    wait_many(aside, 5 * COUNT)
    put_many(threads, 100, quick)
    wait_many(done, 100)
    release.set()
    wait_many(done, 5 * COUNT)
    assert same == [True] * 5 * COUNT
    assert not lanes.shared


def test_a_thread_keeps_its_lane_if_there_is_no_other_to_take_it(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    found: list[bool] = []
    done = threading.Semaphore(0)

    def job(seat: Seat) -> None:
        found.append(threads.stand_aside(seat) or seat.is_aside)
        done.release()

    monkeypatch.setattr(threading.Thread, "start", refuse)
    threads.put(job)
    threads.wake()
    assert done.acquire(timeout=LONG)
    assert found == [False]


def test_a_thread_that_comes_back_after_the_end_does_not_wait_for_ever(threads: Threads) -> None:
    aside, release = threading.Event(), threading.Event()

    def job(seat: Seat) -> None:
        threads.stand_aside(seat)
        aside.set()
        release.wait(LONG)
        threads.come_back(seat)

    threads.put(job)
    threads.wake()
    assert aside.wait(LONG)
    threads.stop()
    release.set()  # the fixture waits for the end of each thread
