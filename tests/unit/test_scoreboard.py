"""The scoreboard: what is written through a row is what a snapshot shows, whole, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.scoreboard import (
    MOMENT,
    SEQUENCE,
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
