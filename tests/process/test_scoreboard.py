"""The scoreboard between processes: read while it is written, its writer killed in the middle of that."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prefork.scoreboard import Board, Lane, Snapshot, State

WRITERS = 10
# Each text is one character over and over, as are its times: a record made of two shows at a glance.
LETTERS = b"abcdefghijklmnopqrstuvwxyz"
READS = 400
PATIENCE = 30.0


def write_for_ever(lane: Lane, ready: int) -> None:
    os.write(ready, b"!")
    while True:
        for number, letter in enumerate(LETTERS, 1):
            lane.begin(bytes([letter]) * (number * 8), float(number), float(number))
            lane.extend(number * 3.0)
            lane.end()


@contextmanager
def writer(board: Board) -> Iterator[int]:
    """Run a process that writes to row 0; whatever happens, it is killed and reaped."""
    told, ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            write_for_ever(board.row(0).lanes[0], ready)
        finally:
            os._exit(1)
    try:
        os.close(ready)
        assert os.read(told, 1) == b"!"
        yield pid
    finally:
        os.close(told)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def assert_whole(snapshot: Snapshot) -> None:
    assert snapshot.state is State.STARTING
    for request in snapshot.current:
        number = int(request.since)
        assert request.what == chr(LETTERS[number - 1]) * (number * 8)
        assert request.deadline in (number * 2.0, number * 3.0)


def read_while_written(board: Board) -> None:
    """Read until the writer was seen at two requests, and then on for a random while."""
    seen: set[str] = set()
    more = random.randrange(READS)
    deadline = time.monotonic() + PATIENCE
    while len(seen) < 2 or more > 0:
        assert time.monotonic() < deadline, "the writer does not write"
        more -= 1
        snapshot = board.read(0)
        assert_whole(snapshot)
        seen |= {request.what for request in snapshot.current}
        os.sched_yield()  # on a busy machine the writer may wait for this very processor


def test_no_torn_record_is_ever_shown_not_even_one_that_its_writer_left_behind() -> None:
    for _ in range(WRITERS):
        board = Board(rows=1, lanes=1)
        board.claim()
        with writer(board):
            read_while_written(board)
        assert_whole(board.read(0))
        assert board.read(0) == board.read(0)


def test_reading_takes_no_time_whatever_the_writer_does() -> None:
    board = Board(rows=1, lanes=1)
    board.claim()
    with writer(board) as pid:
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        began = time.monotonic()
        assert_whole(board.read(0))
        assert time.monotonic() - began < 1.0
