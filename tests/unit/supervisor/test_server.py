"""All pools together: boot, rollouts, stopping, and when to look at the scoreboard."""

from __future__ import annotations

import msgspec
import pytest

from prefork.supervisor.actions import (
    Adopt,
    Bury,
    Drain,
    DumpStacks,
    End,
    EndRollout,
    KeepListeners,
    Kill,
    Leave,
    Look,
    ShutDoors,
    Spawn,
    Strike,
    Tell,
    Watch,
)
from prefork.supervisor.events import (
    Boot,
    BootFailed,
    Busy,
    Clock,
    Exit,
    Exited,
    LeftQueue,
    Looked,
    Pulse,
    Ready,
    Reload,
    Rest,
    Resume,
    Scale,
    Shift,
    SpawnFailed,
    Stop,
    Tick,
)
from prefork.supervisor.pool import SETTLE
from prefork.supervisor.server import LONGEST_SLEEP, Phase
from tests.unit.supervisor.building import CLEAN, SHOT, A, B, House, config, one, only, pool

WEB = pool("web")
API = pool("api", at=[B])


def booted(*pools: object) -> House:
    house = House()
    house.tell(Boot(config(*(pools or (WEB, API)))))  # type: ignore[arg-type]
    return house


def serving(*pools: object) -> House:
    house = booted(*pools)
    house.ready(*(life.birth for life in house.supervisor._lives()))
    house.now += 60.0
    assert house.supervisor.phase is Phase.RUNNING
    return house


class TestBoot:
    def test_it_runs_once_every_pool_has_somebody_ready(self) -> None:
        house = booted()
        house.ready(1)
        assert house.supervisor.phase is Phase.BOOTING
        actions = house.ready(2)
        assert one(Adopt, actions) == Adopt(config(WEB, API), 1)
        assert one(EndRollout, actions) == EndRollout(1)

    def test_a_pool_that_cannot_boot_ends_the_server_once_with_its_traceback(self) -> None:
        house = booted()
        house.ready(1)
        actions = house.fail(2, "ImportError: shop", "Traceback: shop")
        assert only(End, actions) == []
        assert one(Leave, actions) == Leave(1)
        assert one(KeepListeners, actions) == KeepListeners(frozenset())
        ended = one(EndRollout, actions)
        assert ended.traceback == "Traceback: shop"
        actions = house.tell(Exited(1, CLEAN))
        assert one(End, actions) == End(4, "[pool.api] ImportError: shop", "Traceback: shop")
        assert only(End, house.wait(1.0, Tick())) == []

    def test_one_ready_worker_is_enough_to_go_on(self) -> None:
        house = booted(pool(workers=3))
        house.fail(1)
        house.fail(2)
        assert house.supervisor.phase is Phase.BOOTING
        house.ready(3)
        assert house.supervisor.phase is Phase.RUNNING

    def test_a_boot_that_crashes_tells_the_signal(self) -> None:
        house = booted(WEB)
        end = one(End, house.tell(Exited(1, Exit(signal="SIGSEGV"))))
        assert (end.code, end.reason) == (4, "[pool.web] crashed: SIGSEGV")

    def test_a_boot_that_hangs_tells_its_limit(self) -> None:
        house = booted(pool(boot_timeout=5.0))
        house.wait(5.0, Tick())
        house.wait(1.0, Tick())
        assert one(End, house.tell(Exited(1, SHOT))).reason == "[pool.web] not ready after 5 s"

    def test_no_fork_at_all_ends_the_server(self) -> None:
        house = House()
        house.forks = False
        house.tell(Boot(config(WEB)))
        assert one(End, house.tell(SpawnFailed(1, "fork: EAGAIN"))).reason == "[pool.web] fork: EAGAIN"

    def test_whoever_is_not_born_yet_when_the_boot_fails_leaves_at_its_birth(self) -> None:
        house = House()
        house.forks = False
        house.tell(Boot(config(WEB, API)))
        house.tell(SpawnFailed(1, "fork: EAGAIN"))
        actions = house.tell(SpawnFailed(2, "fork: EAGAIN"))
        assert one(End, actions).reason == "[pool.web] fork: EAGAIN"

    def test_a_reload_waits_for_the_boot(self) -> None:
        house = booted(WEB)
        assert only(Spawn, house.tell(Reload(config(API)))) == []
        spawn = one(Spawn, house.ready(1))
        assert (spawn.pool, spawn.generation) == (API, 2)

    def test_a_waiting_reload_is_told_that_the_boot_failed(self) -> None:
        house = booted(WEB)
        house.tell(Reload(config(API)))
        assert one(EndRollout, house.fail(1)).generation == 2

    def test_listeners_of_a_waiting_reload_are_kept_and_those_of_one_superseded_are_closed(self) -> None:
        house = booted(WEB)
        assert one(KeepListeners, house.tell(Reload(config(WEB, API)))) == KeepListeners(frozenset({A, B}))
        assert one(KeepListeners, house.tell(Reload(config(WEB)))) == KeepListeners(frozenset({A}))

    def test_a_stop_during_the_boot_ends_it_well(self) -> None:
        house = booted(WEB)
        house.tell(Stop())
        actions = house.wait(SETTLE, Tick())
        assert one(Drain, actions).birth == 1
        assert one(End, house.tell(Exited(1, CLEAN))) == End(0)

    def test_a_stop_before_the_boot_ends_at_once(self) -> None:
        assert one(End, House().tell(Stop())) == End(0)


class TestReload:
    def test_a_reload_of_some_pools_does_not_wait_for_another_one_that_is_in_trouble(self) -> None:
        cache = msgspec.structs.replace(pool("cache", at=[B]), replace="stop-first")
        house = serving(WEB, cache)
        broken = house.births(name="cache")[0]
        house.tell(Exited(broken, SHOT))
        house.fail(house.births(name="cache")[0])
        assert house.supervisor.keepers["cache"].degraded
        house.tell(Reload(config(WEB, cache), only=frozenset({"web"})))
        house.ready(*house.births(2))
        assert one(EndRollout, house.leave(*house.births(1))) == EndRollout(2)

    def test_a_pool_whose_worker_ends_before_its_successor_starts_is_waited_for(self) -> None:
        mail = pool("mail", at=[], replace="stop-first", task="shop:run")
        house = serving(mail)
        house.tell(Reload(config(mail)))
        old = house.births(1, "mail")
        assert not house.births(2, "mail")
        house.leave(*old)
        assert one(EndRollout, house.ready(*house.births(2, "mail"))) == EndRollout(2)

    def test_all_pools_are_committed_together(self) -> None:
        house = serving()
        house.tell(Reload(config(WEB, API)))
        assert only(Drain, house.ready(3)) == []
        actions = house.ready(4)
        assert {drain.birth for drain in only(Drain, actions)} == {1, 2}
        assert one(Adopt, actions).generation == 2

    def test_one_broken_pool_changes_nothing_in_any(self) -> None:
        house = serving()
        house.tell(Reload(config(WEB, API)))
        house.ready(3)
        assert only(EndRollout, house.tell(BootFailed(4, "SyntaxError: api", "Traceback: api"))) == []
        actions = house.tell(Exited(4, Exit(code=3)))
        reason = "pool api: no worker of generation 2 got ready: SyntaxError: api"
        assert one(EndRollout, actions) == EndRollout(2, reason, "Traceback: api")
        assert [drain.birth for drain in only(Drain, actions)] == [3]
        assert only(Adopt, actions) == []
        house.leave(3)
        assert house.births() + house.births(name="api") == [1, 2]
        assert house.supervisor.next_deadline() is None

    def test_a_bad_reload_leaves_the_state_undegraded(self) -> None:
        house = serving(pool(workers=4, surge=2))
        house.tell(Reload(config(pool(workers=4, surge=2))))
        house.tell(BootFailed(5, "ImportError", ""))
        house.tell(BootFailed(6, "ImportError", ""))
        actions = [*house.tell(Exited(5, Exit(code=3))), *house.tell(Exited(6, Exit(code=3)))]
        assert one(EndRollout, actions).reason is not None
        keeper = house.supervisor.keepers["web"]
        assert (keeper.degraded, keeper.restarts, keeper.ready) == (None, 0, 4)
        assert only(Spawn, actions) == []

    def test_the_crash_of_a_new_worker_is_the_reason(self) -> None:
        house = serving(WEB)
        house.tell(Reload(config(WEB)))
        reason = one(EndRollout, house.tell(Exited(2, Exit(signal="SIGSEGV")))).reason
        assert reason == "pool web: no worker of generation 2 got ready: crashed: SIGSEGV"

    def test_a_ready_worker_that_dies_before_the_commit_fails_the_trial(self) -> None:
        house = serving()
        house.tell(Reload(config(WEB, API)))
        house.ready(3)
        reason = one(EndRollout, house.tell(Exited(3, Exit(signal="SIGSEGV")))).reason
        assert reason == "pool web: no worker of generation 2 got ready: crashed: SIGSEGV"

    def test_a_newer_reload_supersedes_one_on_trial(self) -> None:
        house = serving(WEB)
        house.tell(Reload(config(WEB)))
        actions = house.tell(Reload(config(WEB)))
        assert one(Drain, actions).birth == 2
        assert one(Spawn, actions).generation == 3
        house.tell(Exited(2, CLEAN))
        house.ready(3)
        assert one(EndRollout, house.leave(1)) == EndRollout(3)

    def test_the_one_superseded_cannot_spoil_the_newer_ones_reason(self) -> None:
        house = serving(WEB)
        house.tell(Reload(config(WEB)))
        house.tell(BootFailed(2, "old news", ""))
        house.tell(Reload(config(WEB)))
        house.tell(BootFailed(3, "news", ""))
        house.tell(Exited(2, Exit(code=3)))
        reason = one(EndRollout, house.tell(Exited(3, Exit(code=3)))).reason
        assert reason == "pool web: no worker of generation 3 got ready: news"

    def test_a_reload_while_stopping_is_refused_under_its_own_number(self) -> None:
        house = serving(WEB)
        house.tell(Stop())
        assert one(EndRollout, house.tell(Reload(config(WEB)))) == EndRollout(2, "the server is stopping")
        assert one(EndRollout, house.tell(Reload(config(WEB)))) == EndRollout(3, "the server is stopping")

    def test_an_added_pool_that_fails_disappears(self) -> None:
        house = serving(WEB)
        house.tell(Reload(config(WEB, API)))
        api = house.births(2, "api")[0]
        house.tell(Ready(house.births(2)[0]))
        actions = house.fail(api)
        assert one(KeepListeners, actions) == KeepListeners(frozenset({A}))
        assert list(house.supervisor.keepers) == ["web"]

    def test_a_removed_pool_shuts_its_doors_empties_its_queue_and_goes(self) -> None:
        house = serving()
        house.tell(Reload(config(WEB)))
        actions = house.ready(3)
        assert one(ShutDoors, actions) == ShutDoors(frozenset({B}))
        assert [drain.birth for drain in only(Drain, actions)] == [1]
        house.leave(1)
        actions = house.wait(SETTLE, Tick())
        assert one(Drain, actions) == Drain(2, 31.0, empty_queue=True)
        assert one(KeepListeners, house.tell(LeftQueue(2))) == KeepListeners(frozenset({A}))
        actions = house.tell(Exited(2, CLEAN))
        assert one(EndRollout, actions) == EndRollout(2)
        assert "pool api is gone" in [tell.text for tell in only(Tell, actions)]

    def test_a_pool_removed_and_added_again_has_two_lives_at_once(self) -> None:
        house = serving()
        house.tell(Reload(config(WEB)))
        house.ready(3)
        house.tell(Reload(config(WEB, API)))
        assert len(house.births(name="api")) == 2
        house.ready(*house.births(3), *house.births(3, "api"))
        house.wait(SETTLE, Tick())
        house.leave(1, 2, 3)
        assert house.supervisor.departing == []
        assert house.supervisor._kept == {A, B}
        assert len(house.births(name="api")) == 1

    def test_an_address_that_moves_to_another_pool_is_never_shut(self) -> None:
        house = serving()
        moved = [pool("web", at=[B]), pool("api", at=[A])]
        house.tell(Reload(config(*moved)))
        actions = house.ready(3, 4)
        actions += house.wait(SETTLE, Tick())
        assert only(ShutDoors, actions) == []
        assert only(KeepListeners, actions + house.leave(1, 2)) == []

    def test_pools_follow_the_order_of_the_new_file(self) -> None:
        house = serving()
        house.tell(Reload(config(API, WEB)))
        house.ready(3, 4)
        assert list(house.supervisor.keepers) == ["api", "web"]


def resumed(house: House) -> House:
    """Let another program's supervisor go on with what this one tells of itself."""
    assert house.supervisor.can_be_resumed
    past, house.supervisor = house.supervisor.past(), House().supervisor
    house.tell(Resume(past))
    return house


class TestResume:
    def test_everybody_is_known_and_nobody_is_told_anything(self) -> None:
        house = serving(pool(workers=2), API)
        house.tell(Scale("web", 3))
        house.tell(Exited(house.births(name="api")[0], SHOT))
        before = {life.birth: life for life in house.supervisor._lives()}
        keepers = [keeper.past() for keeper in house.supervisor.keepers.values()]
        resumed(house)
        assert {life.birth: life for life in house.supervisor._lives()} == before
        assert [keeper.past() for keeper in house.supervisor.keepers.values()] == keepers
        assert house.supervisor.phase is Phase.RUNNING
        assert only(Spawn, house.actions) == only(Drain, house.actions) == []

    def test_it_looks_at_the_scoreboard_at_once_and_keeps_what_is_open(self) -> None:
        house = resumed(serving())
        assert one(Watch, house.actions) == Watch(True)
        assert one(KeepListeners, house.actions) == KeepListeners(frozenset({A, B}))
        assert only(Look, house.actions) == [Look()]

    def test_births_and_generations_are_counted_on(self) -> None:
        house = resumed(serving())
        old = house.births()
        house.tell(Reload(config(WEB, API)))
        assert house.supervisor.generation == 2
        assert min(house.births(2) + house.births(2, "api")) > max(old)

    def test_the_rollout_of_the_new_program_replaces_the_old_workers(self) -> None:
        house = resumed(serving(WEB))
        (old,) = house.births()
        house.tell(Reload(config(WEB)))
        actions = house.ready(*house.births(2))
        assert one(Adopt, actions).generation == 2
        assert one(Drain, actions).birth == old
        assert one(EndRollout, house.leave(old)) == EndRollout(2)

    def test_if_that_fails_old_workers_are_replaced_by_others_like_them(self) -> None:
        house = resumed(serving(WEB))
        (old,) = house.births()
        house.tell(Reload(config(pool("web", threads=4))))
        assert one(EndRollout, house.fail(*house.births(2))).reason is not None
        spawned = one(Spawn, house.tell(Exited(old, SHOT)))
        assert (spawned.pool, spawned.generation) == (WEB, 1)

    def test_who_drains_has_no_more_time_than_before(self) -> None:
        house = serving(pool(workers=2))
        house.tell(Scale("web", 1))
        deadline = house.supervisor.next_deadline()
        drained = one(Drain, house.actions).birth
        resumed(house)
        house.tell(Looked(()))
        house.tell(Looked(()))
        life = house.supervisor.life(drained)
        assert life is not None
        assert life.deadline == house.now + life.pool.graceful_timeout
        assert deadline is not None
        house.wait(life.pool.graceful_timeout, Tick())
        assert one(DumpStacks, house.actions) == DumpStacks(drained)

    def test_a_removed_pool_goes_on_leaving(self) -> None:
        house = serving()
        house.tell(Reload(config(WEB)))
        house.ready(*house.births(2))
        house.leave(1)
        resumed(house)
        house.wait(SETTLE, Tick())
        assert one(Drain, house.actions).birth == 2
        assert one(EndRollout, house.leave(2)) == EndRollout(2)

    def test_an_address_that_a_pool_leaves_stays_open_until_its_queue_is_empty(self) -> None:
        house = serving(pool(at=[A, B]))
        house.tell(Reload(config(WEB)))
        house.ready(*house.births(2))
        resumed(house)
        assert one(KeepListeners, house.actions) == KeepListeners(frozenset({A, B}))
        assert one(Drain, house.wait(SETTLE, Tick())).empty_queue
        assert one(KeepListeners, house.tell(LeftQueue(1))) == KeepListeners(frozenset({A}))

    def test_it_is_not_possible_while_a_verdict_is_due_or_the_server_stops(self) -> None:
        house = booted(WEB)
        assert not house.supervisor.can_be_resumed
        house.ready(1)
        assert house.supervisor.can_be_resumed
        house.tell(Reload(config(WEB)))
        assert not house.supervisor.can_be_resumed
        house.ready(*house.births(2))
        assert house.supervisor.can_be_resumed
        house.tell(Stop())
        assert not house.supervisor.can_be_resumed

    def test_what_another_version_told_and_this_one_does_not_know_is_left_out(self) -> None:
        house = serving(WEB)
        past = house.supervisor.past()
        del past["keepers"][0]["restarts"]
        past["keepers"][0]["sparkle"] = past["sparkle"] = 5
        house.supervisor = House().supervisor
        house.tell(Resume(past))
        assert house.supervisor.keepers["web"].restarts == 0
        assert not hasattr(house.supervisor, "sparkle")
        assert not hasattr(house.supervisor.keepers["web"], "sparkle")


class TestOrders:
    def test_one_more_and_one_fewer_are_about_the_first_pool(self) -> None:
        house = serving()
        assert one(Spawn, house.tell(Shift(1))).pool == WEB
        assert one(Drain, house.tell(Shift(-1))).birth == 3

    def test_the_last_worker_stays(self) -> None:
        house = serving(WEB)
        assert one(Tell, house.tell(Shift(-1))).text == "web: stays at 1 workers, 0 is out of range"

    @pytest.mark.parametrize("event", [Shift(1), Scale("web", 2), Rest()])
    def test_orders_before_the_boot_is_over_are_refused_aloud(self, event: Shift | Scale | Rest) -> None:
        actions = booted(WEB).tell(event)
        assert [type(action) for action in actions] == [Tell]
        assert one(Tell, actions).level == "warning"

    def test_a_pool_that_is_not_there_is_named(self) -> None:
        assert one(Tell, serving(WEB).tell(Scale("wbe", 2))).text == "wbe: there is no such pool running"


class TestStop:
    def test_doors_then_drain_then_listeners_then_the_end(self) -> None:
        house = serving(WEB)
        assert one(ShutDoors, house.tell(Stop())) == ShutDoors(frozenset({A}))
        assert house.supervisor.next_deadline() == house.now + SETTLE
        assert one(Drain, house.wait(SETTLE, Tick())) == Drain(1, 31.0, empty_queue=True)
        assert one(KeepListeners, house.tell(LeftQueue(1))) == KeepListeners(frozenset())
        actions = house.tell(Exited(1, CLEAN))
        assert one(Bury, actions).expected
        assert actions[-1] == End(0)

    def test_it_goes_on_as_before_for_the_drain_delay(self) -> None:
        house = serving(pool(workers=2, drain_delay=10.0))
        assert only(ShutDoors, house.tell(Stop())) == []
        assert only(Spawn, house.wait(1.0, Exited(1, SHOT))) != []
        assert only(ShutDoors, house.wait(9.0, Tick())) != []

    def test_a_failed_worker_is_retried_during_the_drain_delay(self) -> None:
        house = serving(pool(workers=2, drain_delay=10.0))
        house.tell(Stop())
        house.fail(one(Spawn, house.tell(Exited(1, SHOT))).birth)
        assert house.supervisor.next_deadline() == pytest.approx(house.now + 0.5)

    def test_the_second_stop_is_quick(self) -> None:
        house = serving(WEB)
        house.tell(Stop())
        actions = house.tell(Stop())
        assert only(Leave, actions) == [Leave(1)]
        assert one(KeepListeners, actions) == KeepListeners(frozenset())
        assert only(Kill, house.wait(1.0, Tick())) == [Kill(1)]
        assert one(End, house.tell(Exited(1, SHOT))) == End(0)

    def test_it_ends_even_if_nobody_obeys(self) -> None:
        house = serving(pool(graceful_timeout=5.0))
        house.tell(Stop())
        house.wait(SETTLE, Tick())
        assert one(DumpStacks, house.wait(5.0, Tick())).birth == 1
        assert [type(action) for action in house.wait(1.0, Tick())] == [Strike, Kill]
        assert one(End, house.tell(Exited(1, SHOT))) == End(0)

    def test_it_gives_up_a_rollout_on_trial(self) -> None:
        house = serving(WEB)
        house.tell(Reload(config(WEB)))
        actions = house.tell(Stop())
        assert one(EndRollout, actions) == EndRollout(2, "the server is stopping")
        assert one(Drain, actions).birth == 2


def pulse(birth: int, deadline: float) -> Looked:
    return Looked((Pulse(birth, Clock.REQUEST, deadline - 30.0, deadline, "GET /"),))


IDLE = Looked(())


class TestLooking:
    def test_nobody_looks_until_somebody_is_busy(self) -> None:
        house = serving(WEB)
        assert house.supervisor.next_deadline() is None
        assert house.tell(Busy()) == [Watch(True), Look()]

    def test_a_deadline_is_looked_at_when_it_strikes(self) -> None:
        house = serving(WEB)
        house.tell(Busy())
        house.tell(pulse(1, house.now + 0.4))
        assert house.supervisor.next_deadline() == house.now + 0.4
        assert house.wait(0.4, Tick()) == [Look()]
        assert one(DumpStacks, house.tell(pulse(1, house.now))).birth == 1

    def test_far_deadlines_are_looked_at_now_and_then(self) -> None:
        house = serving(WEB)
        house.tell(Busy())
        house.tell(pulse(1, house.now + 30.0))
        assert house.supervisor.next_deadline() == house.now + LONGEST_SLEEP

    def test_short_clocks_are_looked_at_often(self) -> None:
        house = serving(pool(request_timeout=0.4))
        house.tell(Busy())
        house.tell(pulse(1, house.now + 30.0))
        assert house.supervisor.next_deadline() == pytest.approx(house.now + 0.1)

    def test_after_two_looks_at_an_idle_board_it_dozes_off(self) -> None:
        house = serving(WEB)
        house.tell(Busy())
        assert house.tell(IDLE) == [Watch(False)]
        assert house.wait(1.0, Tick()) == [Look()]
        assert house.tell(IDLE) == []
        assert house.supervisor.next_deadline() is None

    def test_what_was_armed_before_workers_could_know_is_seen_by_the_second_look(self) -> None:
        house = serving(WEB)
        house.tell(Busy())
        house.tell(IDLE)
        house.wait(1.0, Tick())
        assert house.tell(pulse(1, house.now + 30.0)) == [Watch(True)]
        assert house.wait(1.0, Tick()) == [Look()]

    def test_a_call_between_the_two_looks_keeps_it_awake(self) -> None:
        house = serving(WEB)
        house.tell(Busy())
        house.tell(IDLE)
        assert house.tell(Busy()) == [Watch(True)]
        house.wait(1.0, Tick())
        assert house.tell(IDLE) == [Watch(False)]
        assert house.supervisor.next_deadline() is not None

    def test_a_pulse_of_the_dead_says_nothing(self) -> None:
        house = serving(WEB)
        assert only(DumpStacks, house.tell(pulse(99, house.now))) == []

    def test_a_struck_worker_with_several_threads_is_replaced_while_it_drains(self) -> None:
        house = serving(pool(threads=4))
        house.tell(Busy())
        house.tell(pulse(1, house.now))
        assert len(house.births()) == 2
        assert one(Drain, house.wait(1.0, Tick())).birth == 1


def test_while_a_worker_has_a_deadline_nobody_sleeps_for_long() -> None:
    house = booted(WEB)
    assert house.supervisor.next_deadline() == house.now + LONGEST_SLEEP


def test_news_of_the_dead_is_no_news() -> None:
    assert serving(WEB).tell(LeftQueue(99)) == []


def test_one_that_was_given_up_and_dies_after_all_has_its_record() -> None:
    house = serving(WEB)
    house.tell(pulse(1, house.now))
    house.wait(1.0, Tick())
    assert house.births() == [1, 2]
    house.wait(10.0, Tick())
    assert house.births() == [2]
    assert (
        one(Bury, house.wait(1.0, Exited(1, SHOT))).cause
        == "killed by prefork: it hung in the kernel until now"
    )
