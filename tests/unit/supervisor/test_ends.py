"""Pools that end: who is followed by whom, what has to be done first, and what the server is nothing without."""

from __future__ import annotations

from typing import Any

import pytest

from prefork.config.schema import Pool
from prefork.supervisor.actions import (
    Adopt,
    Bury,
    Drain,
    DumpStacks,
    End,
    EndRollout,
    Kill,
    Leave,
    Spawn,
    Tell,
)
from prefork.supervisor.events import (
    Boot,
    ChannelLost,
    Exit,
    Exited,
    Failed,
    LeftQueue,
    Ready,
    Reload,
    Rest,
    Scale,
    SpawnFailed,
    Stop,
    Tick,
)
from prefork.supervisor.pool import SETTLE, Keeper
from prefork.supervisor.server import Phase
from prefork.supervisor.worker import STACKS
from prefork.units import Share
from tests.unit.supervisor.building import CLEAN, SHOT, House, config, one, only, pool

CRASH = Exit(signal="SIGSEGV", status=139)
FAILURE = Exit(code=3, status=3)


def task(name: str = "mail", **options: Any) -> Pool:
    return Pool(name=name, task="shop:run", surge=Share(number=1), **options)


def booted(*pools: Pool) -> House:
    house = House()
    house.tell(Boot(config(*pools)))
    return house


def serving(*pools: Pool) -> House:
    """Return a house that runs, and whose workers have been ready for a minute."""
    house = booted(*pools)
    house.ready(*(life.birth for life in house.supervisor._lives()))
    house.now += 60.0
    return house


def keeper(house: House, name: str = "mail") -> Keeper:
    return house.supervisor.keepers[name]


def run_out(house: House, birth: int, how: Exit = CLEAN) -> list[object]:
    """Let a task end by itself, as it says before it exits."""
    return [*house.tell(LeftQueue(birth)), *house.tell(Exited(birth, how))]


class TestRestart:
    @pytest.mark.parametrize(
        ("restart", "how", "follows"),
        [
            ("always", CLEAN, True),
            ("always", FAILURE, True),
            ("on-failure", CLEAN, False),
            ("on-failure", FAILURE, True),
            ("on-failure", CRASH, True),
            ("never", CLEAN, False),
            ("never", FAILURE, False),
            ("never", CRASH, False),
        ],
    )
    def test_who_ends_is_followed_or_not(self, restart: str, how: Exit, follows: bool) -> None:
        house = serving(task(restart=restart, workers=2))
        actions = house.tell(Exited(1, how))
        assert bool(only(Spawn, actions)) is follows
        assert keeper(house).restarts == follows
        assert house.supervisor.next_deadline() is None or follows

    def test_a_final_end_leaves_its_place_empty_and_the_others_alone(self) -> None:
        house = serving(task(restart="on-failure", workers=2))
        assert one(Tell, house.tell(Exited(1, CLEAN))).text == "mail/0 is done, 1 of 2 go on"
        assert one(Spawn, house.tell(Exited(2, FAILURE))).slot == 1

    def test_nobody_follows_before_it_is_known_how_a_worker_ends(self) -> None:
        house = serving(task(restart="on-failure"))
        assert only(Spawn, house.tell(LeftQueue(1))) == []
        assert one(Spawn, house.tell(Exited(1, FAILURE))).slot == 0

    def test_the_work_of_a_task_is_not_done_twice_at_a_time(self) -> None:
        house = serving(task())
        assert only(Spawn, house.tell(LeftQueue(1))) == []
        assert one(Spawn, house.tell(Exited(1, CLEAN))).slot == 0

    def test_a_worker_that_could_not_be_forked_has_not_run(self) -> None:
        house = serving(task(restart="never", workers=2), task("other"))
        house.forks = False
        house.tell(Scale("mail", 3))
        house.tell(SpawnFailed(4, "fork: EAGAIN"))
        assert keeper(house).ends == {}
        assert one(Spawn, house.wait(1.0, Tick())).slot == 2

    def test_whom_prefork_had_to_end_has_not_ended_well(self) -> None:
        house = serving(task(restart="on-failure"))
        house.tell(ChannelLost(1))
        house.wait(1.0, Tick())
        assert one(Spawn, house.tell(Exited(1, CLEAN))).slot == 0

    def test_who_is_drained_has_not_ended_for_good(self) -> None:
        house = serving(task(restart="never"))
        house.tell(Rest())
        house.leave(1)
        assert keeper(house).ends == {}
        assert not keeper(house).is_done

    def test_a_reload_runs_anew_what_is_done(self) -> None:
        house = serving(task(restart="on-failure", workers=2), task("other"))
        run_out(house, 1)
        run_out(house, 2)
        assert keeper(house).is_done
        house.tell(Reload(config(task(restart="on-failure", workers=2), task("other"))))
        house.ready(*house.births(2, "mail"), *house.births(2, "other"))
        assert not keeper(house).is_done
        assert len(house.births(2, "mail")) == 2

    def test_a_generation_that_is_done_at_once_has_passed_its_trial(self) -> None:
        house = booted(task(restart="on-failure"), task("other"))
        house.tell(Ready(1))
        run_out(house, 1)
        assert house.supervisor.phase is Phase.BOOTING
        actions = house.ready(2)
        assert one(EndRollout, actions).reason is None
        assert only(Spawn, actions) == []
        assert keeper(house).is_done

    def test_an_old_worker_goes_when_its_successor_is_done(self) -> None:
        house = serving(task(restart="on-failure"))
        house.tell(Reload(config(task(restart="on-failure"))))
        house.tell(Ready(2))
        assert only(Drain, run_out(house, 2)) == []
        assert house.births(1, "mail") == [1]
        house.leave(1)
        assert house.supervisor.state == "running"

    def test_a_first_worker_that_fails_is_no_good_generation(self) -> None:
        house = booted(task(restart="never"))
        assert one(End, house.tell(Exited(1, FAILURE))).code == 4


class TestShortLives:
    def test_a_task_that_returns_again_and_again_is_run_less_and_less_often(self) -> None:
        house = serving(task())
        birth, pauses = one(Spawn, house.tell(Exited(1, CLEAN))).birth, []
        for _ in range(6):
            house.tell(Ready(birth))
            run_out(house, birth)
            due = house.supervisor.next_deadline()
            assert due is not None
            pauses.append(due - house.now)
            house.now = due
            birth = one(Spawn, house.tell(Tick())).birth
        assert pauses == pytest.approx([0.5 * 1.5**n for n in range(6)])
        assert keeper(house).degraded == "mail/0 was done right after it was ready"

    def test_a_good_life_ends_it(self) -> None:
        house = serving(task())
        birth = one(Spawn, house.tell(Exited(1, CLEAN))).birth
        for _ in range(3):
            house.tell(Ready(birth))
            run_out(house, birth)
            birth = one(Spawn, house.wait(5.0, Tick())).birth
        house.tell(Ready(birth))
        birth = one(Spawn, house.wait(2.0, Exited(birth, CLEAN))).birth
        house.tell(Ready(birth))
        run_out(house, birth)
        assert house.supervisor.next_deadline() == pytest.approx(house.now + 0.5)

    def test_one_short_life_in_the_pause_of_another_does_not_end_the_pause(self) -> None:
        house = serving(task(workers=2))
        short = one(Spawn, house.tell(Exited(1, CLEAN))).birth
        house.tell(Ready(short))
        failing = one(Spawn, house.tell(Exited(2, CLEAN))).birth
        house.tell(Exited(failing, FAILURE))
        assert only(Spawn, house.tell(Exited(short, FAILURE))) == []


class TestScaling:
    def test_a_pool_that_is_done_is_not_scaled(self) -> None:
        house = serving(task(restart="never"))
        house.tell(Exited(1, CRASH))
        actions = house.tell(Scale("mail", 3))
        assert one(Tell, actions).text == "mail: all its workers are done; a reload starts them anew"
        assert only(Spawn, actions) == []

    def test_who_is_done_is_given_up_before_who_runs(self) -> None:
        house = serving(task(restart="on-failure", workers=2))
        house.tell(Exited(1, CLEAN))
        assert only(Drain, house.tell(Scale("mail", 1))) == []
        assert keeper(house).ready == 1
        assert not keeper(house).is_done

    def test_more_workers_are_so_many_more(self) -> None:
        house = serving(task(restart="on-failure", workers=2))
        house.tell(Exited(1, CLEAN))
        assert [spawn.slot for spawn in only(Spawn, house.tell(Scale("mail", 4)))] == [2, 3]


ONCE = task("migrate", restart="once")


class TestOnce:
    def test_the_others_start_when_it_has_ended_well(self) -> None:
        house = booted(pool(), ONCE)
        assert house.births(name="web") == []
        house.tell(Ready(1))
        assert house.births(name="web") == []
        assert only(Spawn, house.tell(LeftQueue(1))) == []
        assert one(Spawn, house.tell(Exited(1, CLEAN))).pool.name == "web"
        actions = house.ready(2)
        assert one(EndRollout, actions) == EndRollout(1)
        assert keeper(house, "migrate").is_done
        assert house.supervisor.next_deadline() is None

    def test_all_its_workers_have_to_be_done(self) -> None:
        house = booted(pool(), task("migrate", restart="once", workers=2))
        house.ready(1, 2)
        assert only(Spawn, run_out(house, 1)) == []
        assert one(Spawn, run_out(house, 2)).pool.name == "web"

    def test_it_may_be_done_before_it_is_ready(self) -> None:
        house = booted(pool(), ONCE)
        actions = house.tell(Exited(1, CLEAN))
        assert one(Bury, actions) == Bury(1, CLEAN, "done, exit code 0", expected=True)
        assert one(Spawn, actions).pool.name == "web"

    def test_no_clock_limits_its_work(self) -> None:
        house = booted(pool(), ONCE)
        house.tell(Ready(1))
        assert house.supervisor.next_deadline() is None

    @pytest.mark.parametrize("how", [FAILURE, CRASH])
    def test_the_first_start_ends_with_its_failure(self, how: Exit) -> None:
        house = booted(pool(), ONCE)
        house.tell(Ready(1))
        house.tell(Failed(1, "KeyError: 'x'", "Traceback: …"))
        actions = run_out(house, 1, how)
        assert one(End, actions) == End(4, "[pool.migrate] KeyError: 'x'", "Traceback: …")
        assert house.births(name="web") == []

    def test_a_reload_is_given_up_with_its_failure_and_the_others_told_to_go(self) -> None:
        both = task("migrate", restart="once", workers=2)
        house = booted(pool(), both)
        house.ready(1, 2)
        run_out(house, 1)
        run_out(house, 2)
        house.ready(3)
        house.tell(Reload(config(pool(), both)))
        house.ready(4, 5)
        house.tell(Failed(4, "KeyError: 'x'", "Traceback: …"))
        actions = run_out(house, 4, FAILURE)
        reason = "pool migrate: its work in generation 2 did not end well: KeyError: 'x'"
        assert one(EndRollout, actions) == EndRollout(2, reason, "Traceback: …")
        assert one(Drain, actions).birth == 5
        assert house.births(name="web") == [3]
        assert keeper(house, "migrate").is_done

    def test_it_runs_again_with_each_reload_while_the_others_serve(self) -> None:
        house = booted(pool(), ONCE)
        run_out(house, 1)
        house.ready(2)
        spawn = one(Spawn, house.tell(Reload(config(pool(), ONCE))))
        assert (spawn.pool.name, spawn.generation) == ("migrate", 2)
        house.tell(Ready(3))
        spawn = one(Spawn, run_out(house, 3))
        assert (spawn.pool.name, spawn.generation) == ("web", 2)
        assert [drain.birth for drain in only(Drain, house.ready(4))] == [2]

    def test_it_is_never_done_twice_at_a_time(self) -> None:
        house = booted(pool(), ONCE)
        run_out(house, 1)
        house.ready(2)
        house.tell(Reload(config(pool(), ONCE)))
        house.tell(Ready(3))
        actions = house.tell(Reload(config(pool(), ONCE)))
        assert one(Drain, actions).birth == 3
        assert only(Spawn, actions) == []
        assert one(Spawn, house.tell(Exited(3, CLEAN))).generation == 3

    def test_nor_while_one_whose_clock_has_struck_still_lives(self) -> None:
        house = booted(pool(), ONCE)
        run_out(house, 1)
        house.ready(2)
        house.tell(Reload(config(pool(), ONCE)))
        one(DumpStacks, house.wait(ONCE.boot_timeout, Tick()))
        assert only(Spawn, house.tell(Reload(config(pool(), ONCE)))) == []
        assert one(Kill, house.wait(STACKS, Tick())).birth == 3
        assert one(Spawn, house.tell(Exited(3, SHOT))).generation == 3

    def test_nor_while_one_that_leaves_by_itself_still_lives(self) -> None:
        house = booted(pool(), ONCE)
        run_out(house, 1)
        house.ready(2)
        house.tell(Reload(config(pool(), ONCE)))
        house.tell(Ready(3))
        house.tell(LeftQueue(3))
        assert only(Spawn, house.tell(Reload(config(pool(), ONCE)))) == []
        assert one(Spawn, house.tell(Exited(3, CLEAN))).generation == 3

    def test_nor_while_the_pool_is_removed_and_comes_back(self) -> None:
        house = booted(pool(), ONCE)
        run_out(house, 1)
        house.ready(2)
        house.tell(Reload(config(pool(), ONCE)))
        house.tell(Ready(3))
        house.tell(Reload(config(pool())))
        house.ready(*house.births(3))
        assert only(Spawn, house.tell(Reload(config(pool(), ONCE)))) == []
        assert one(Spawn, house.tell(Exited(3, CLEAN))).pool.name == "migrate"

    def test_a_pool_that_was_scaled_is_done_with_as_many_workers_as_its_settings_say(self) -> None:
        house = serving(task("migrate"))
        house.tell(Scale("migrate", 2))
        house.ready(2)
        house.tell(Reload(config(ONCE)))
        actions = run_out(house, *house.births(2, "migrate"))
        assert only(Spawn, actions) == []
        assert keeper(house, "migrate").is_done

    def test_a_stop_in_the_midst_of_it_drains_it(self) -> None:
        house = booted(pool(), ONCE)
        house.tell(Ready(1))
        house.tell(Stop())
        assert one(Drain, house.wait(SETTLE, Tick())).birth == 1
        assert one(End, house.tell(Exited(1, CLEAN))) == End(0)


class TestAfter:
    def test_a_pool_starts_when_all_that_it_comes_after_are_ready(self) -> None:
        house = booted(pool(after=("db", "cache")), task("db"), task("cache"))
        assert len(house.births(name="web")) == 0
        assert house.supervisor.waits_for(keeper(house, "web")) == ["db", "cache"]
        assert only(Spawn, house.ready(1)) == []
        assert house.supervisor.waits_for(keeper(house, "web")) == ["cache"]
        assert one(Spawn, house.ready(2)).pool.name == "web"
        assert house.supervisor.waits_for(keeper(house, "web")) == []

    def test_the_order_holds_for_each_reload(self) -> None:
        pools = (pool(after=("db",)), task("db"))
        house = booted(*pools)
        house.ready(1)
        house.ready(2)
        assert one(Spawn, house.tell(Reload(config(*pools)))).pool.name == "db"
        assert one(Spawn, house.ready(3)).pool.name == "web"
        assert one(Adopt, house.ready(4)).generation == 2

    def test_a_pool_that_is_done_is_as_good_as_ready(self) -> None:
        house = booted(pool(after=("db",)), task("db", restart="on-failure"))
        assert one(Spawn, house.tell(Exited(1, CLEAN))).pool.name == "web"

    def test_a_failure_of_the_first_keeps_the_second_from_being_tried(self) -> None:
        house = booted(pool(after=("db",)), task("db"))
        house.fail(1)
        assert house.supervisor.phase is Phase.STOPPING
        assert list(house.spawned) == [1]

    def test_a_reload_without_the_order_has_none(self) -> None:
        house = booted(pool(after=("db",)), task("db"))
        house.ready(1)
        house.ready(2)
        assert len(only(Spawn, house.tell(Reload(config(pool(), task("db")))))) == 2


class TestEssential:
    @pytest.mark.parametrize(
        ("restart", "how", "code"), [("on-failure", CLEAN, 0), ("never", FAILURE, 3), ("never", CRASH, 139)]
    )
    def test_the_server_drains_and_ends_with_its_status(self, restart: str, how: Exit, code: int) -> None:
        house = serving(pool(), task(restart=restart, essential=True))
        actions = house.tell(Exited(2, how))
        assert "mail is essential" in " ".join(tell.text for tell in only(Tell, actions))
        assert house.supervisor.phase is Phase.STOPPING
        assert one(Drain, house.wait(SETTLE, Tick())).birth == 1
        assert one(End, house.leave(1)) == End(code)

    def test_the_last_of_its_workers_says_how(self) -> None:
        house = serving(task(restart="never", essential=True, workers=2))
        house.tell(Exited(2, FAILURE))
        assert house.supervisor.phase is Phase.RUNNING
        house.tell(Exited(1, CRASH))
        assert one(End, house.wait(SETTLE, Tick())) == End(139)

    def test_who_can_still_be_followed_is_not_missed(self) -> None:
        house = serving(task(restart="on-failure", essential=True))
        house.tell(Exited(1, FAILURE))
        assert house.supervisor.phase is Phase.RUNNING

    def test_done_before_the_others_are_ready_it_ends_the_server_when_they_are(self) -> None:
        house = booted(pool(), task(restart="on-failure", essential=True))
        house.tell(Ready(2))
        run_out(house, 2)
        assert house.supervisor.phase is Phase.BOOTING
        house.ready(1)
        assert house.supervisor.phase is Phase.STOPPING

    def test_its_end_is_told_to_who_waits_for_a_reload(self) -> None:
        pools = (pool(), task(restart="never", essential=True))
        house = serving(*pools)
        house.tell(Reload(config(*pools)))
        actions = house.tell(Exited(2, FAILURE))
        assert one(EndRollout, actions) == EndRollout(2, "the server is stopping")

    def test_a_second_stop_makes_it_quick_and_keeps_the_status(self) -> None:
        house = serving(pool(), task(restart="never", essential=True))
        house.tell(Exited(2, FAILURE))
        assert one(Leave, house.tell(Stop())) == Leave(1)
        assert one(End, house.tell(Exited(1, CLEAN))) == End(3)
