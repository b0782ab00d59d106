"""One worker's life, transition by transition."""

from __future__ import annotations

from typing import Any

import pytest

from prefork.supervisor.actions import Bury, Drain, DumpStacks, Kill, Leave, Strike, Tell, Terminate
from prefork.supervisor.events import Clock, Exit, Pulse
from prefork.supervisor.worker import (
    HANDLED,
    LAST_BREATH,
    LATE,
    OVERTIME,
    QUICK,
    QUIET,
    STACKS,
    TABLE,
    UNKILLABLE,
    Input,
    Life,
    Retirement,
    State,
    cause,
)
from tests.unit.supervisor.building import CLEAN, SHOT, one, pool

GO = Retirement("replaced", empty_queue=True, grace=30.0)
SLOW = Pulse(7, Clock.REQUEST, since=70.0, deadline=100.0, what="GET /report")


def life(state: State = State.FORKING, **options: Any) -> Life:
    """Return a worker that has come to a state in the shortest way, at the time 100."""
    worker = Life(7, pool(**options), slot=2, generation=3)
    for step in ROADS[state]:
        worker.handle(*step, 100.0)
    assert worker.state is state
    return worker


BORN = (Input.SPAWNED, 42)
UP = (Input.READY, None)
ROADS: dict[State, list[tuple[Input, Any]]] = {
    State.FORKING: [],
    State.STARTING: [BORN],
    State.READY: [BORN, UP],
    State.DRAINING: [BORN, UP, (Input.RETIRE, GO)],
    State.LEAVING: [BORN, UP, (Input.QUIT, "stopped at once")],
    State.DUMPING: [BORN, UP, (Input.OVERDUE, SLOW)],
    State.KILLED: [BORN, UP, (Input.QUIT, "stopped at once"), (Input.DEADLINE, None)],
    State.GONE: [BORN, (Input.EXITED, CLEAN)],
}


class TestTable:
    def test_every_pair_has_an_answer(self) -> None:
        assert set(TABLE) == {(state, event) for state in State for event in Input}

    def test_no_pair_is_both_handled_and_late(self) -> None:
        late = {(state, event) for state, events in LATE.items() for event in events}
        assert late.isdisjoint(HANDLED)

    @pytest.mark.parametrize("state", State)
    def test_what_comes_too_late_changes_nothing(self, state: State) -> None:
        for event in LATE[state]:
            worker, same = life(state), life(state)
            assert worker.handle(event, None, 101.0) == []
            assert worker == same

    @pytest.mark.parametrize(
        "state", [state for state in State if state not in (State.FORKING, State.READY, State.GONE)]
    )
    def test_no_state_on_the_way_lasts_for_ever(self, state: State) -> None:
        assert life(state).deadline is not None

    @pytest.mark.parametrize("state", [state for state in State if state not in (State.FORKING, State.GONE)])
    def test_a_death_ends_every_state(self, state: State) -> None:
        worker = life(state)
        one(Bury, worker.handle(Input.EXITED, SHOT, 101.0))
        assert worker.state is State.GONE
        assert worker.deadline is None

    @pytest.mark.parametrize("state", State)
    def test_only_who_serves_or_is_about_to_holds_a_place(self, state: State) -> None:
        assert life(state).counts == (state in {State.FORKING, State.STARTING, State.READY})


class TestInvalid:
    @pytest.mark.parametrize(
        "state", [state for state in State if state not in (State.FORKING, State.KILLED, State.GONE)]
    )
    def test_a_worker_that_cannot_be_believed_is_killed_whatever_it_does(self, state: State) -> None:
        worker = life(state)
        assert worker.handle(Input.INVALID, "it sent an invalid message", 101.0) == [Kill(7)]
        assert (worker.state, worker.deadline) == (State.KILLED, 101.0 + UNKILLABLE)
        bury = one(Bury, worker.handle(Input.EXITED, SHOT, 102.0))
        assert bury.cause == "killed by prefork: it sent an invalid message"
        assert not bury.expected


class TestBoot:
    def test_the_boot_clock_runs_from_the_birth(self) -> None:
        worker = life(State.STARTING, boot_timeout=60.0)
        assert (worker.pid, worker.deadline) == (42, 160.0)

    def test_ready_ends_the_boot_clock(self) -> None:
        worker = life(State.STARTING)
        assert worker.handle(Input.READY, None, 101.0) == []
        assert (worker.state, worker.deadline, worker.ready_at) == (State.READY, None, 101.0)

    def test_a_failed_fork_ends_the_life(self) -> None:
        worker = life()
        worker.handle(Input.SPAWN_FAILED, ("fork: EAGAIN", ""), 101.0)
        assert (worker.state, worker.failure) == (State.GONE, "fork: EAGAIN")

    def test_a_failed_boot_has_a_moment_to_exit_and_is_then_killed(self) -> None:
        worker = life(State.STARTING)
        assert worker.handle(Input.BOOT_FAILED, ("ImportError", "Traceback"), 101.0) == []
        assert (worker.state, worker.deadline) == (State.LEAVING, 101.0 + QUICK)
        assert (worker.failure, worker.traceback) == ("ImportError", "Traceback")
        assert worker.handle(Input.DEADLINE, None, 102.0) == [Kill(7)]

    def test_the_boot_clock_takes_the_stacks_and_kills(self) -> None:
        worker = life(State.STARTING, boot_timeout=60.0)
        assert worker.handle(Input.DEADLINE, None, 160.0) == [DumpStacks(7)]
        assert worker.deadline == 160.0 + STACKS
        strike = Strike(7, Clock.BOOT, 60.0, 60.0)
        assert worker.handle(Input.DEADLINE, None, 161.0) == [strike, Kill(7)]
        assert worker.failure == "not ready after 60 s"

    def test_whoever_is_not_wanted_before_its_birth_is_told_at_its_birth(self) -> None:
        worker = life()
        assert worker.handle(Input.QUIT, "stopped at once", 101.0) == []
        assert worker.handle(Input.SPAWNED, 42, 101.0) == [Leave(7)]
        assert worker.asked

    def test_whoever_is_retired_before_its_birth_is_heard_of_may_serve_by_then_and_drains(self) -> None:
        worker = life()
        assert worker.handle(Input.RETIRE, GO, 101.0) == []
        assert worker.handle(Input.SPAWNED, 42, 102.0) == [Drain(7, GO.grace + OVERTIME, GO.empty_queue)]
        assert (worker.state, worker.deadline, worker.asked) == (State.DRAINING, 102.0 + GO.grace, True)

    def test_a_channel_lost_before_ready_leads_to_death(self) -> None:
        worker = life(State.STARTING)
        assert worker.handle(Input.CHANNEL_LOST, None, 101.0) == []
        assert worker.deadline == 101.0 + LAST_BREATH
        assert worker.handle(Input.DEADLINE, None, 101.25) == [Kill(7)]

    def test_a_starting_worker_is_told_to_drain_as_it_may_serve_before_it_hears(self) -> None:
        worker = life(State.STARTING)
        assert worker.handle(Input.RETIRE, GO, 101.0) == [Drain(7, 30.0 + OVERTIME, empty_queue=True)]
        worker.handle(Input.READY, None, 101.1)
        assert (worker.state, worker.deadline) == (State.DRAINING, 131.0)

    def test_a_quick_stop_makes_a_starting_worker_leave(self) -> None:
        assert life(State.STARTING).handle(Input.QUIT, "stopped at once", 101.0) == [Leave(7)]


class TestDrain:
    def test_a_ready_worker_is_told_to_drain_and_ends_itself_only_after_our_clock(self) -> None:
        worker = life(State.READY)
        assert worker.handle(Input.RETIRE, GO, 101.0) == [Drain(7, 30.0 + OVERTIME, empty_queue=True)]
        assert (worker.state, worker.deadline, worker.asked) == (State.DRAINING, 131.0, True)

    def test_whoever_cannot_be_talked_to_is_told_by_a_signal(self) -> None:
        worker = life(State.READY)
        worker.handle(Input.CHANNEL_LOST, None, 101.0)
        assert worker.handle(Input.RETIRE, GO, 101.1) == [Terminate(7)]

    def test_a_second_order_can_only_shorten_a_drain(self) -> None:
        worker = life(State.DRAINING)
        worker.handle(Input.RETIRE, Retirement("stopped", empty_queue=False, grace=60.0), 101.0)
        assert worker.deadline == 130.0
        worker.handle(Input.RETIRE, Retirement("stopped", empty_queue=False, grace=5.0), 101.0)
        assert worker.deadline == 106.0

    def test_the_graceful_clock_takes_the_stacks_and_kills(self) -> None:
        worker = life(State.DRAINING)
        assert worker.handle(Input.DEADLINE, None, 130.0) == [DumpStacks(7)]
        strike = Strike(7, Clock.GRACEFUL, 30.0, 30.0)
        assert worker.handle(Input.DEADLINE, None, 131.0) == [strike, Kill(7)]

    def test_a_worker_that_leaves_by_itself_has_its_graceful_timeout(self) -> None:
        worker = life(State.READY, graceful_timeout=9.0)
        assert worker.handle(Input.LEFT_QUEUE, None, 101.0) == []
        assert (worker.state, worker.deadline) == (State.DRAINING, 110.0)
        assert worker.left_queue
        assert not worker.asked

    def test_a_quick_stop_does_not_wait_for_a_drain(self) -> None:
        worker = life(State.DRAINING)
        assert worker.handle(Input.QUIT, "stopped at once", 101.0) == [Leave(7)]
        assert worker.deadline == 101.0 + QUICK
        assert worker.handle(Input.DEADLINE, None, 102.0) == [Kill(7)]

    def test_a_process_that_survives_sigkill_is_given_up_loudly(self) -> None:
        worker = life(State.KILLED)
        assert worker.deadline == 100.0 + UNKILLABLE
        tell = one(Tell, worker.handle(Input.DEADLINE, None, 110.0))
        assert tell.text == "web/2 pid=42 does not die of SIGKILL: it hangs in the kernel"
        assert worker.state is State.GONE


class TestLostChannel:
    def test_a_ready_worker_that_closed_its_channel_is_replaced_through_a_drain(self) -> None:
        worker = life(State.READY, graceful_timeout=9.0)
        assert worker.handle(Input.CHANNEL_LOST, None, 101.0) == []
        assert worker.deadline == 101.0 + LAST_BREATH
        actions = worker.handle(Input.DEADLINE, None, 102.0)
        assert (
            one(Tell, actions).text
            == "web/2 pid=42 it closed its channel to the master; replacing the worker"
        )
        assert actions[1:] == [Terminate(7)]
        assert (worker.state, worker.deadline) == (State.DRAINING, 111.0)

    def test_going_on_after_a_halt_does_not_heal_it(self) -> None:
        worker = life(State.READY)
        for event in (Input.CHANNEL_LOST, Input.HALTED, Input.CONTINUED):
            worker.handle(event, None, 101.0)
        assert worker.deadline == 101.0 + LAST_BREATH


class TestOverdue:
    def test_a_single_thread_is_dumped_struck_and_killed(self) -> None:
        worker = life(State.READY)
        assert worker.handle(Input.OVERDUE, SLOW, 101.2) == [DumpStacks(7)]
        actions = worker.handle(Input.DEADLINE, None, 102.2)
        assert actions == [Strike(7, Clock.REQUEST, pytest.approx(31.2), 30.0, "GET /report"), Kill(7)]

    def test_stacks_are_complete_once_nothing_more_has_come_for_a_while(self) -> None:
        worker = life(State.DUMPING)
        worker.handle(Input.STACKS, None, 100.2)
        assert worker.deadline == pytest.approx(100.2 + QUIET)
        worker.handle(Input.STACKS, None, 100.25)
        assert worker.deadline == pytest.approx(100.25 + QUIET)

    def test_stacks_that_never_end_do_not_prolong_a_life(self) -> None:
        worker = life(State.DUMPING)
        worker.handle(Input.STACKS, None, 100.0 + STACKS - QUIET / 2)
        assert worker.deadline == 100.0 + STACKS

    def test_the_other_threads_of_a_stuck_worker_finish_first(self) -> None:
        worker = life(State.DUMPING, threads=4, graceful_timeout=9.0)
        actions = worker.handle(Input.DEADLINE, None, 101.0)
        assert [type(action) for action in actions] == [Strike, Drain]
        assert actions[1] == Drain(7, 9.0 + OVERTIME, empty_queue=False)
        assert (worker.state, worker.deadline) == (State.DRAINING, 110.0)

    def test_a_stuck_request_strikes_once_and_another_one_again(self) -> None:
        worker = life(State.DUMPING, threads=4)
        worker.handle(Input.DEADLINE, None, 101.0)
        assert worker.handle(Input.OVERDUE, SLOW, 102.0) == []
        other = Pulse(7, Clock.REQUEST, since=72.0, deadline=102.0)
        assert worker.handle(Input.OVERDUE, other, 102.0) == [DumpStacks(7)]
        actions = worker.handle(Input.DEADLINE, None, 103.0)
        assert [type(action) for action in actions] == [Strike]
        assert worker.deadline == 131.0

    def test_a_stalled_loop_is_killed_whatever_its_threads(self) -> None:
        worker = life(State.READY, threads=4)
        worker.handle(Input.OVERDUE, Pulse(7, Clock.STALL, 70.0, 100.0), 100.0)
        actions = worker.handle(Input.DEADLINE, None, 101.0)
        assert [type(action) for action in actions] == [Strike, Kill]

    def test_a_quick_stop_does_not_wait_for_stacks(self) -> None:
        worker = life(State.DUMPING)
        assert worker.handle(Input.QUIT, "stopped at once", 100.1) == [Kill(7)]


class TestHalt:
    def test_a_halted_worker_is_replaced_at_its_stall_clock(self) -> None:
        worker = life(State.READY, stall_timeout=20.0)
        worker.handle(Input.HALTED, None, 101.0)
        assert worker.deadline == 121.0
        assert worker.handle(Input.DEADLINE, None, 121.0) == [DumpStacks(7)]
        strike, kill = worker.handle(Input.DEADLINE, None, 122.0)
        assert strike == Strike(7, Clock.STALL, 20.0, 20.0, "halted by a signal")
        assert kill == Kill(7)

    def test_one_that_goes_on_in_time_is_forgiven(self) -> None:
        worker = life(State.READY)
        worker.handle(Input.HALTED, None, 101.0)
        worker.handle(Input.CONTINUED, None, 102.0)
        assert (worker.state, worker.deadline, worker.halted) == (State.READY, None, False)

    def test_without_a_stall_clock_it_may_stand_still(self) -> None:
        worker = life(State.READY, stall_timeout=0.0)
        worker.handle(Input.HALTED, None, 101.0)
        assert worker.deadline is None


def ended(state: State, how: Exit, *steps: tuple[Input, Any], **options: Any) -> Bury:
    worker = life(state, **options)
    for step in steps:
        worker.handle(*step, 101.0)
    return one(Bury, worker.handle(Input.EXITED, how, 102.0))


STUCK = (Input.DEADLINE, None)
FAILED = (Input.FAILED, ("KeyError: 'x'", "Traceback"))


class TestCause:
    @pytest.mark.parametrize(
        ("bury", "text", "expected"),
        [
            (ended(State.DRAINING, CLEAN), "clean: replaced", True),
            (ended(State.READY, CLEAN), "it left by itself, exit code 0", False),
            (
                ended(State.DUMPING, CLEAN, STUCK, threads=4),
                "replaced by prefork: request_timeout of 30 s",
                False,
            ),
            (ended(State.READY, CLEAN, (Input.LEFT_QUEUE, None)), "clean: it left by itself", True),
            (ended(State.READY, CLEAN, restart="on-failure"), "done, exit code 0", True),
            (ended(State.STARTING, CLEAN, restart="once"), "done, exit code 0", True),
            (ended(State.STARTING, CLEAN), "did not boot: exit code 0", False),
            (ended(State.DRAINING, CLEAN, restart="never"), "clean: replaced", True),
            (ended(State.READY, Exit(code=1), FAILED), "exit code 1: KeyError: 'x'", False),
            (ended(State.DRAINING, Exit(code=1), FAILED), "exit code 1: KeyError: 'x'", False),
            (ended(State.READY, Exit(code=3)), "exit code 3", False),
            (ended(State.DRAINING, Exit(code=3)), "exit code 3", False),
            (ended(State.READY, Exit(signal="SIGSEGV")), "crashed: SIGSEGV", False),
            (ended(State.READY, SHOT), "killed by somebody else: SIGKILL", False),
            (ended(State.READY, Exit(signal="SIGTERM")), "killed by somebody else: SIGTERM", False),
            (
                ended(State.READY, Exit(signal="SIGKILL", oom=True)),
                "killed by the kernel's OOM killer",
                False,
            ),
            (ended(State.STARTING, Exit(code=1)), "did not boot: exit code 1", False),
            (ended(State.STARTING, Exit(signal="SIGBUS")), "crashed: SIGBUS", False),
            (
                ended(State.STARTING, Exit(code=3), (Input.BOOT_FAILED, ("ImportError: x", ""))),
                "did not boot: ImportError: x",
                False,
            ),
            (
                ended(State.STARTING, SHOT, (Input.BOOT_FAILED, ("ImportError: x", "")), STUCK),
                "killed by prefork: it did not exit after its boot had failed",
                False,
            ),
            (ended(State.STARTING, SHOT, STUCK, STUCK), "killed by prefork: boot_timeout of 60 s", False),
            (
                ended(State.STARTING, SHOT, (Input.CHANNEL_LOST, None), STUCK),
                "killed by prefork: it closed its channel to the master",
                False,
            ),
            (ended(State.DUMPING, SHOT, STUCK), "killed by prefork: request_timeout of 30 s", False),
            (ended(State.DUMPING, SHOT), "killed by somebody else: SIGKILL", False),
            (ended(State.DRAINING, SHOT, STUCK, STUCK), "killed by prefork: graceful_timeout of 30 s", False),
            (ended(State.KILLED, SHOT), "killed by prefork: stopped at once", False),
            (ended(State.LEAVING, CLEAN), "clean: stopped at once", True),
        ],
    )
    def test_the_record_blames_whoever_did_it(self, bury: Bury, text: str, expected: bool) -> None:
        assert (bury.cause, bury.expected) == (text, expected)

    def test_an_oom_kill_before_our_own_is_not_ours(self) -> None:
        assert cause(life(State.LEAVING), Exit(signal="SIGKILL", oom=True)).startswith("killed by the kernel")

    def test_a_death_nobody_asked_for_is_a_failure_with_its_cause(self) -> None:
        worker = life(State.READY)
        worker.handle(Input.EXITED, Exit(signal="SIGSEGV"), 101.0)
        assert worker.failure == "crashed: SIGSEGV"
