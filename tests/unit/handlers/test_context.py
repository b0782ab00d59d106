"""The worker as its handler sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor

import pytest

from prefork.handlers.context import Worker
from prefork.scoreboard import Board

SECOND = 1.0


@pytest.fixture
def worker() -> Worker:
    board = Board(rows=1, lanes=1)
    return Worker("web", 0, 1, board.row(board.claim()))


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


def test_a_request_is_its_tasks_own(worker: Worker) -> None:
    class Request:
        deadline = 1.0
        is_busy = True

        def extend(self, deadline: float) -> None:
            self.deadline = deadline

    async def handle(request: Request) -> None:
        worker.enter_request(request)
        await asyncio.sleep(0)
        worker.extend(SECOND)
        await asyncio.to_thread(worker.extend, 2 * SECOND)

    async def run() -> list[Request]:
        requests = [Request(), Request()]
        await asyncio.gather(*map(handle, requests))
        with pytest.raises(RuntimeError, match="no request is running"):
            worker.extend(SECOND)
        return requests

    before = time.monotonic()
    assert all(request.deadline >= before + 2 * SECOND for request in asyncio.run(run()))


def test_coroutines_of_any_loop_hear_of_a_drain(worker: Worker) -> None:
    async def wait(*others: Awaitable[None]) -> bool:
        await asyncio.gather(worker.stopped(), worker.stopped(), *others)
        return worker.stopping.is_set()

    async def drain() -> None:
        await asyncio.to_thread(worker.drain)

    with ThreadPoolExecutor(1) as thread:
        heard = thread.submit(asyncio.run, wait())
        assert asyncio.run(wait(drain()))
        assert heard.result(10)
    assert asyncio.run(asyncio.wait_for(wait(), 10)), "from then on nobody waits"


def test_who_waits_no_more_is_forgotten(worker: Worker) -> None:
    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(worker.stopped(), 0.01)
        left = asyncio.ensure_future(worker.stopped())
        await asyncio.sleep(0)
        assert not left.done()
        asyncio.get_running_loop().stop()

    loop = asyncio.new_event_loop()
    task = loop.create_task(give_up())
    loop.run_forever()
    assert task.done()
    loop.close()
    worker.drain()  # a loop that is closed needs to know of nothing


def test_a_beat_outside_of_a_task_is_a_mistake(worker: Worker) -> None:
    with pytest.raises(RuntimeError, match="outside of a task"):
        worker.beat()
    beats: list[int] = []
    worker.beat_by(lambda: beats.append(1))
    worker.beat()
    assert beats == [1]
