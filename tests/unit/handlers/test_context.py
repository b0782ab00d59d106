"""The worker as its handler sees it."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

import pytest

from prefork.handlers.context import Worker
from prefork.scoreboard import Board

SECOND = 1.0


@pytest.mark.parametrize(("timeout", "limited"), [(0.0, False), (30.0, True)])
def test_an_extension_limits_no_request_that_had_no_limit(timeout: float, limited: bool) -> None:
    board = Board(rows=1, lanes=1)
    worker = Worker("web", 0, 1, board.row(board.claim()))
    lane = worker.enter_lane(0)
    lane.begin(b"GET /", SECOND, timeout)
    before = lane.deadline
    worker.extend(SECOND)
    assert bool(lane.deadline) is limited
    assert (lane.deadline != before) is limited


def made() -> Worker:
    board = Board(rows=1, lanes=1)
    return Worker("mail", 0, 1, board.row(board.claim()))


def test_a_beat_outside_of_a_task_is_a_mistake() -> None:
    worker = made()
    with pytest.raises(RuntimeError, match="outside of a task"):
        worker.beat()
    beats: list[int] = []
    worker.beat_by(lambda: beats.append(1))
    worker.beat()
    assert beats == [1]


def test_coroutines_of_all_loops_are_told_of_the_drain() -> None:
    worker = made()
    waiting = threading.Barrier(3)

    async def wait() -> None:
        asyncio.get_running_loop().call_soon(waiting.wait, 10.0)
        await asyncio.wait_for(worker.stopped(), 10.0)

    threads = [threading.Thread(target=asyncio.run, args=(wait(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    waiting.wait(10.0)
    worker.drain()
    for thread in threads:
        thread.join(10.0)
        assert not thread.is_alive()
    asyncio.run(asyncio.wait_for(worker.stopped(), 10.0))  # who asks later is told at once


def test_a_coroutine_that_no_longer_waits_is_not_told() -> None:
    worker = made()

    async def give_up() -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(worker.stopped(), 0.001)

    asyncio.run(give_up())
    worker.drain()
    assert worker.stopping.is_set()
