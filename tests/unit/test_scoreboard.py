"""The scoreboard: what is written through a row is what a snapshot shows, whole, and nothing else."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.scoreboard import (
    BUSY,
    BUSY_TIME,
    DEADLINE,
    LATEST,
    MOMENT,
    MOST,
    MOST_REQUESTS,
    SEQUENCE,
    SINCE,
    STATE,
    TEXT_SIZE,
    WORD,
    Board,
    Request,
    Snapshot,
    State,
    copy_at,
)

NOW = 100.0


def ready_board(*connections: int) -> Board:
    """Return a board whose workers are ready and hold these many connections."""
    board = Board(rows=8, lanes=1)
    for count in connections:
        row = board.row(board.claim())
        row.set_state(State.READY)
        row.set_connections(count)
    return board


class TestRows:
    def test_a_claimed_row_says_starting_and_nothing_else(self) -> None:
        board = Board(rows=2, lanes=2)
        assert board.read(board.claim()) == Snapshot(State.STARTING, 0, 0, 0, 0.0, 0.0, ())

    def test_figures_are_read_as_they_were_written(self) -> None:
        board = Board(rows=4, lanes=2)
        board.claim()
        row = board.row(board.claim())
        row.set_state(State.DRAINING)
        row.set_pid(4711)
        row.set_connections(17)
        row.turn(100.0, 30.0)
        assert board.read(1) == Snapshot(State.DRAINING, 4711, 17, 0, 100.0, 130.0, ())
        assert board.read(0) == Snapshot(State.STARTING, 0, 0, 0, 0.0, 0.0, ())

    def test_a_loop_that_waits_has_no_deadline(self) -> None:
        board = ready_board(0)
        row = board.row(0)
        row.turn(100.0, 30.0)
        row.rest()
        assert board.read(0).deadline == 0.0

    def test_a_loop_without_a_clock_has_no_deadline(self) -> None:
        board = ready_board(0)
        board.row(0).turn(100.0, 0.0)
        assert board.read(0).deadline == 0.0

    def test_the_lowest_free_row_is_claimed(self) -> None:
        board = Board(rows=3, lanes=1)
        assert [board.claim() for _ in range(3)] == [0, 1, 2]
        board.release(2)
        board.release(0)
        assert board.claim() == 0

    def test_nothing_of_the_dead_shows_in_a_row_claimed_again(self) -> None:
        board = Board(rows=1, lanes=1)
        row = board.row(board.claim())
        row.set_pid(4711)
        row.lanes[0].begin(b"GET /", 100.0, 30.0)
        board.release(0)
        assert board.read(0).state is State.FREE
        board.claim()
        assert board.read(0) == Snapshot(State.STARTING, 0, 0, 0, 0.0, 0.0, ())

    def test_more_workers_than_rows_are_an_error(self) -> None:
        board = Board(rows=1, lanes=1)
        board.claim()
        with pytest.raises(IndexError):
            board.claim()

    def test_workers_are_told_whether_somebody_watches(self) -> None:
        board = ready_board(0)
        assert not board.row(0).is_watched()
        board.watch(True)
        assert board.row(0).is_watched()
        board.watch(False)
        assert not board.row(0).is_watched()


class TestLanes:
    def test_a_request_shows_from_its_beginning_to_its_end(self) -> None:
        board = Board(rows=1, lanes=2)
        lane = board.row(board.claim()).lanes[1]
        lane.begin(b"GET /report", 100.0, 30.0)
        assert lane.is_busy
        assert board.read(0).current == (Request("GET /report", 100.0, 130.0),)
        lane.end()
        assert not lane.is_busy
        assert board.read(0).current == ()
        assert board.read(0).requests == 1

    def test_a_request_may_take_as_long_as_it_likes(self) -> None:
        board = ready_board(0)
        board.row(0).lanes[0].begin(b"GET /", 100.0, 0.0)
        assert board.read(0).current == (Request("GET /", 100.0, 0.0),)

    def test_more_time_moves_only_the_deadline(self) -> None:
        board = ready_board(0)
        lane = board.row(0).lanes[0]
        lane.begin(b"GET /", 100.0, 30.0)
        lane.extend(500.0)
        assert board.read(0).current == (Request("GET /", 100.0, 500.0),)
        assert board.read(0).requests == 0

    def test_a_request_that_waits_for_its_client_has_no_deadline_and_is_not_counted_yet(self) -> None:
        board = ready_board(0)
        lane = board.row(0).lanes[0]
        lane.begin(b"GET /", 100.0, 30.0)
        lane.pause()
        assert (board.read(0).current, board.read(0).requests, lane.is_busy) == ((), 0, False)

    def test_requests_of_all_lanes_count(self) -> None:
        board = Board(rows=1, lanes=3)
        for lane in board.row(board.claim()).lanes:
            lane.begin(b"GET /", 100.0, 30.0)
            lane.end()
        assert board.read(0).requests == 3

    @given(st.lists(st.binary(max_size=2 * TEXT_SIZE), min_size=1, max_size=5))
    def test_any_text_is_shown_up_to_its_limit(self, texts: list[bytes]) -> None:
        board = ready_board(0)
        lane = board.row(0).lanes[0]
        for text in texts:
            lane.begin(text, 100.0, 30.0)
            assert board.read(0).current[0].what == text[:TEXT_SIZE].decode("latin-1")
            lane.end()

    def test_half_a_record_is_never_shown(self) -> None:
        board = ready_board(0)
        board.row(0).lanes[0].begin(b"GET /whole", 100.0, 30.0)
        at = board.lane_at(0, 0)
        sequence = board.words[at // WORD + SEQUENCE]
        torn = copy_at(at, sequence + 1)
        board.map[torn : torn + 200] = b"\xff" * 200  # the writer died while it filled the other copy
        assert board.read(0).current == (Request("GET /whole", 100.0, 130.0),)

    def test_a_reader_that_was_overtaken_reads_again_and_then_lets_be(self) -> None:
        board = ready_board(0)
        board.row(0).lanes[0].begin(b"GET /", 100.0, 30.0)
        at = board.lane_at(0, 0)
        board.map[copy_at(at, 1) : copy_at(at, 1) + WORD] = b"\xff" * WORD  # as if two requests had passed
        assert board.read(0).current == ()


class TestLeastOfOthers:
    def test_it_is_the_smallest_figure_of_another_ready_worker(self) -> None:
        board = ready_board(5, 3, 9)
        assert board.row(0).least_of_others(NOW) == 3
        assert board.row(1).least_of_others(NOW) == 5

    def test_alone_there_is_nobody(self) -> None:
        assert ready_board(5).row(0).least_of_others(NOW) is None

    @pytest.mark.parametrize("state", [State.FREE, State.STARTING, State.DRAINING])
    def test_whoever_does_not_accept_does_not_count(self, state: State) -> None:
        board = ready_board(5, 0)
        board.row(1).set_state(state)
        assert board.row(0).least_of_others(NOW) is None

    def test_whoever_has_been_busy_for_some_time_does_not_count(self) -> None:
        board = ready_board(5, 0, 4)
        board.row(1).set_busy(NOW - 2 * MOMENT)
        assert board.row(0).least_of_others(NOW) == 4
        board.row(1).set_busy(0.0)
        assert board.row(0).least_of_others(NOW) == 0

    def test_whoever_is_busy_for_a_moment_counts(self) -> None:
        board = ready_board(5, 0)
        board.row(1).set_busy(NOW - MOMENT / 2)
        assert board.row(0).least_of_others(NOW) == 0

    def test_the_dead_do_not_count(self) -> None:
        board = ready_board(5, 0)
        board.release(1)
        assert board.row(0).least_of_others(NOW) is None


class TestUntrusted:
    """Rows and the header as a worker that is broken, or taken over, may leave them."""

    @given(st.binary(min_size=8, max_size=1200), st.integers(0, 100))
    def test_whatever_a_row_holds_it_is_read_as_bounded_or_as_a_fault(self, data: bytes, word: int) -> None:
        board = ready_board(1, 2)
        at = board.row_at(0) + word * WORD
        board.map[at : at + len(data)] = data
        assert_believable(board.read(0))
        assert board.read(1).fault is None

    @given(st.floats(), st.sampled_from([SINCE, DEADLINE, BUSY, BUSY_TIME]))
    def test_times_are_finite_and_bounded_or_a_fault(self, time: float, word: int) -> None:
        board = ready_board(1)
        board.times[board.row_at(0) // WORD + word] = time
        snapshot = board.read(0)
        assert_believable(snapshot)
        assert (snapshot.fault is None) == (0.0 <= time <= LATEST)

    @pytest.mark.parametrize("time", [float("nan"), float("inf"), float("-inf"), -1.0, 1e300])
    def test_a_request_with_a_deadline_that_is_no_time_is_a_fault(self, time: float) -> None:
        board = ready_board(1)
        lane = board.row(0).lanes[0]
        lane.begin(b"GET /", NOW, 1.0)
        lane.extend(time)
        assert "a time of" in (board.read(0).fault or "")

    @pytest.mark.parametrize("state", [4, 77, 2**64 - 1])
    def test_a_state_that_is_none_is_a_fault(self, state: int) -> None:
        board = ready_board(1)
        board.words[board.row_at(0) // WORD + STATE] = state
        assert board.read(0).fault == f"a state of {state}"

    @given(st.binary(min_size=64, max_size=64))
    def test_whatever_the_header_holds_workers_balance_and_the_master_claims(self, data: bytes) -> None:
        board = ready_board(5, 3)
        row = board.row(0)
        board.map[:64] = data
        row.is_watched()
        assert row.least_of_others(NOW) in (3, None)
        board.claim()
        assert row.least_of_others(NOW) == 3

    def test_a_confined_process_writes_its_own_row_and_nothing_else(self) -> None:
        board = ready_board(5, 3)
        pid = os.fork()
        if pid == 0:
            os._exit(try_to_write_elsewhere(board))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert [board.read(number).connections for number in (0, 1)] == [17, 3]


def try_to_write_elsewhere(board: Board) -> int:
    """Be confined to row 0; return 0 if that can be written and what else there is can only be read."""
    before = len(os.listdir("/proc/self/fd"))
    board.confine(0)
    own, other = board.row(0), board.row(1)
    own.set_connections(17)
    own.lanes[0].begin(b"GET /", NOW, 1.0)
    for write in (lambda: other.set_connections(1), lambda: board.watch(True)):
        try:
            write()
        except TypeError:
            continue
        return 1
    if own.least_of_others(NOW) != 3 or own.is_watched() or board.read(0).current[0].what != "GET /":
        return 2
    return 0 if len(os.listdir("/proc/self/fd")) <= before else 3


def assert_believable(snapshot: Snapshot) -> None:
    requests = [time for request in snapshot.current for time in (request.since, request.deadline)]
    times = [snapshot.since, snapshot.deadline, snapshot.busy_since, snapshot.busy_time, *requests]
    assert all(0.0 <= time <= LATEST for time in times)
    assert max(snapshot.pid, snapshot.connections) <= MOST
    assert snapshot.requests <= MOST_REQUESTS
