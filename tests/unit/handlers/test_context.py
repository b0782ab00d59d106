"""The worker as its handler sees it."""

from __future__ import annotations

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
