"""The stall clock of an asyncio loop: armed while coroutines run, re-armed while they go on, silent while nothing does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from prefork.scoreboard import Board, State
from prefork.worker.beat import WatchedLoop

STALL = 0.2


class Watched:
    """A loop whose stall clock a test can read."""

    def __init__(self) -> None:
        self.board = Board(rows=2, lanes=1)
        self.number = self.board.claim()
        self.woken = 0
        self.loop = WatchedLoop(self.board.row(self.number), STALL, self._wake, lambda _then: None)

    def _wake(self) -> None:
        self.woken += 1

    @property
    def deadline(self) -> float:
        return self.board.read(self.number).deadline


@pytest.fixture
def watched() -> Iterator[Watched]:
    found = Watched()
    yield found
    found.loop.close()


def test_a_coroutine_that_runs_arms_the_clock_and_wakes_the_master(watched):
    async def look() -> float:
        return watched.deadline

    assert watched.deadline == 0
    before = time.monotonic()
    deadline = watched.loop.run_until_complete(look())
    assert before + STALL < deadline <= time.monotonic() + 1.25 * STALL
    assert watched.woken > 0


def test_a_master_who_looks_is_not_woken(watched):
    watched.board.watch(True)
    watched.loop.run_until_complete(asyncio.sleep(0))
    assert watched.woken == 0


def test_a_loop_that_turns_stays_ahead_of_its_deadline(watched):
    async def turn() -> float:
        until, least = time.monotonic() + 3 * STALL, STALL
        while (now := time.monotonic()) < until:
            await asyncio.sleep(STALL / 50)
            least = min(least, watched.deadline - now)
        return least

    # A beat that comes in time leaves the whole stall_timeout; on a loaded machine it comes later.
    assert watched.loop.run_until_complete(turn()) > STALL / 3


def test_a_blocked_loop_falls_behind_and_takes_no_clients_from_others(watched):
    async def block() -> None:
        other = watched.board.row(watched.board.claim())
        assert other.least_of_others(time.monotonic()) == 0
        time.sleep(1.5 * STALL)
        assert watched.deadline < time.monotonic()
        assert other.least_of_others(time.monotonic()) is None

    watched.board.row(watched.number).set_state(State.READY)
    watched.loop.run_until_complete(block())


def test_a_quiet_loop_is_not_woken_and_a_timer_stirs_it_again(watched):
    seen: list[float] = []
    watched.loop.call_later(
        2 * STALL, lambda: seen.append(watched.deadline)
    )  # a plain callback does not stir

    async def be_quiet() -> float:
        await asyncio.sleep(3 * STALL)
        return watched.deadline

    after = watched.loop.run_until_complete(be_quiet())
    assert seen == [0.0]
    assert after > time.monotonic()
