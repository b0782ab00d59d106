"""Templates: ready before any worker of their generation, rebuilt when they die, gone when nobody needs them."""

from __future__ import annotations

import pytest

from prefork.config.schema import TEMPLATE
from prefork.supervisor.actions import (
    Disown,
    Drain,
    DumpStacks,
    End,
    EndRollout,
    Kill,
    Leave,
    Spawn,
    Strike,
    Tell,
)
from prefork.supervisor.events import (
    Boot,
    Exit,
    Exited,
    Halted,
    Ordered,
    Ready,
    Reload,
    Rest,
    Scale,
    Spawned,
    SpawnFailed,
    Stop,
    Tick,
)
from prefork.supervisor.pool import SETTLE
from prefork.supervisor.worker import QUICK, STACKS
from tests.unit.supervisor.building import CLEAN, SHOT, House, config, one, only, pool


def preloaded(workers: int = 2, *, surge: int = 1, **options: object) -> object:
    return pool(workers=workers, preload=True, surge=surge, **options)


def templates(house: House) -> list[int]:
    """Return the births of all templates, oldest first."""
    return sorted(house.supervisor.keepers["web"].templates.lives)


def workers(house: House) -> list[int]:
    return sorted(house.supervisor.keepers["web"].lives)


def serving(count: int = 2, **options: object) -> House:
    """Return a house with a template, birth 1, and its workers, births from 2 on, all ready for a minute."""
    house = House()
    house.tell(Boot(config(preloaded(count, **options))))
    house.ready(1)
    house.ready(*workers(house))
    house.now += 60.0
    return house


class TestBoot:
    def test_the_template_comes_first_and_the_workers_when_it_is_ready(self) -> None:
        house = House()
        spawn = one(Spawn, house.tell(Boot(config(preloaded(3)))))
        assert (spawn.slot, spawn.generation) == (TEMPLATE, 1)
        assert [spawn.slot for spawn in only(Spawn, house.ready(spawn.birth))] == [0, 1, 2]

    def test_a_template_takes_no_workers_place(self) -> None:
        house = serving(2)
        keeper = house.supervisor.keepers["web"]
        assert (keeper.ready, keeper.wanted, len(keeper.lives)) == (2, 2, 2)
        assert one(Spawn, house.tell(Scale("web", 3))).slot == 2

    def test_one_that_cannot_load_ends_the_server_with_its_traceback(self) -> None:
        house = House()
        house.tell(Boot(config(preloaded())))
        end = one(End, house.fail(1, "ImportError: shop", "Traceback: shop"))
        assert (end.code, end.reason, end.traceback) == (4, "[pool.web] ImportError: shop", "Traceback: shop")

    def test_the_boot_clock_holds_for_it(self) -> None:
        house = House()
        house.tell(Boot(config(preloaded(boot_timeout=5.0))))
        assert one(DumpStacks, house.wait(5.0, Tick())).birth == 1
        assert [type(action) for action in house.wait(STACKS, Tick())] == [Strike, Kill]
        assert one(End, house.tell(Exited(1, SHOT))).reason == "[pool.web] not ready after 5 s"


class TestRebuilding:
    def test_one_that_dies_after_a_good_life_is_rebuilt_at_once_and_no_worker_is_touched(self) -> None:
        house = serving(2)
        actions = house.tell(Exited(1, SHOT))
        assert one(Spawn, actions).slot == TEMPLATE
        assert only(Drain, actions) == []
        assert workers(house) == [2, 3]
        assert house.supervisor.keepers["web"].restarts == 0

    def test_missing_workers_wait_for_it(self) -> None:
        house = serving(2)
        template = one(Spawn, house.tell(Exited(1, SHOT))).birth
        assert only(Spawn, house.tell(Exited(2, SHOT))) == []
        assert one(Spawn, house.ready(template)).slot == 0

    def test_one_that_cannot_load_any_more_is_tried_with_growing_pauses_and_shows(self) -> None:
        house = serving(2)
        birth = one(Spawn, house.tell(Exited(1, SHOT))).birth
        found = []
        for _ in range(3):
            house.fail(birth)
            assert house.supervisor.keepers["web"].degraded == "ImportError: shop"
            due = house.supervisor.next_deadline()
            assert due is not None
            found.append(round(due - house.now, 4))
            house.now = due
            birth = one(Spawn, house.tell(Tick())).birth
        assert found == [0.5, 0.75, 1.125]
        house.ready(birth)
        assert house.supervisor.keepers["web"].degraded is None

    def test_dying_right_after_ready_is_no_good_life(self) -> None:
        house = serving(2)
        birth = one(Spawn, house.tell(Exited(1, SHOT))).birth
        house.ready(birth)
        assert only(Spawn, house.wait(0.9, Exited(birth, SHOT))) == []

    def test_a_halted_one_is_replaced_by_its_deadline(self) -> None:
        house = serving(2, stall_timeout=30.0)
        house.tell(Halted(1))
        assert one(DumpStacks, house.wait(30.0, Tick())).birth == 1
        assert one(Spawn, house.actions).slot == TEMPLATE


class TestRollout:
    def test_the_new_one_comes_first_and_the_old_one_goes_with_the_commit(self) -> None:
        house = serving(1)
        template = one(Spawn, house.tell(Reload(config(preloaded(1)))))
        assert (template.slot, template.generation) == (TEMPLATE, 2)
        actions = house.ready(template.birth)
        worker = one(Spawn, actions)
        assert only(Drain, actions) == []
        assert {drain.birth for drain in only(Drain, house.ready(worker.birth))} == {1, 2}
        house.leave(2)
        assert one(EndRollout, house.tell(Exited(1, CLEAN))) == EndRollout(2)

    def test_one_that_cannot_load_gives_the_generation_up_and_the_old_one_stays(self) -> None:
        house = serving(2)
        template = one(Spawn, house.tell(Reload(config(preloaded(2))))).birth
        ended = one(EndRollout, house.fail(template))
        assert ended.reason == "pool web: no worker of generation 2 got ready: ImportError: shop"
        assert (templates(house), workers(house)) == ([1], [2, 3])
        assert one(Spawn, house.tell(Exited(2, SHOT))).generation == 1

    def test_one_that_dies_before_its_workers_are_born_gives_the_generation_up(self) -> None:
        house = serving(2)
        template = one(Spawn, house.tell(Reload(config(preloaded(2))))).birth
        house.forks = False
        worker = one(Spawn, house.ready(template)).birth
        house.tell(Ordered(worker))
        house.tell(Exited(template, SHOT))
        ended = one(EndRollout, house.tell(SpawnFailed(worker, "its template is gone")))
        assert ended.reason == "pool web: no worker of generation 2 got ready: its template is gone"

    def test_a_superseded_one_goes_at_once(self) -> None:
        house = serving(1)
        first = one(Spawn, house.tell(Reload(config(preloaded(1))))).birth
        actions = house.tell(Reload(config(preloaded(1))))
        assert one(Drain, actions).birth == first
        assert one(Spawn, actions).generation == 3

    def test_without_preload_in_the_new_file_none_is_left(self) -> None:
        house = serving(1)
        worker = one(Spawn, house.tell(Reload(config(pool(workers=1)))))
        assert worker.slot == 0
        assert 1 in {drain.birth for drain in only(Drain, house.ready(worker.birth))}


class TestForking:
    def ordered(self, house: House) -> int:
        """Have the template told to fork a worker, and return the worker's birth."""
        house.forks = False
        birth = one(Spawn, house.tell(Exited(2, SHOT))).birth
        house.tell(Ordered(birth))
        return birth

    def test_a_worker_that_is_born_later_starts_then(self) -> None:
        house = serving(2)
        birth = self.ordered(house)
        house.wait(1.0, Spawned(birth, 77))
        house.tell(Ready(birth))
        assert house.supervisor.keepers["web"].ready == 2

    def test_a_template_that_does_not_fork_in_time_is_ended_with_its_stacks(self) -> None:
        house = serving(2, boot_timeout=10.0)
        birth = self.ordered(house)
        actions = house.wait(10.0, Tick())
        assert one(Disown, actions).birth == birth
        assert one(DumpStacks, actions).birth == 1
        error = one(Tell, actions).text
        assert error == "web: its template did not fork it within 10 s; the next try is in 0.5 s"
        assert one(Strike, house.wait(STACKS, Tick())).what == "forking a worker"

    def test_whoever_is_not_wanted_any_more_is_not_waited_for_and_nobody_is_blamed(self) -> None:
        house = serving(2)
        birth = self.ordered(house)
        actions = [*house.tell(Scale("web", 1)), *house.tell(Tick())]
        assert one(Disown, actions).birth == birth
        assert only(DumpStacks, actions) == []
        assert workers(house) == [3]

    def test_whoever_turns_out_to_be_born_when_it_is_not_wanted_any_more_drains(self) -> None:
        house = serving(2)
        birth = self.ordered(house)
        house.disowned = Spawned(birth, 77)
        actions = [*house.tell(Scale("web", 1)), *house.tell(Tick())]
        assert one(Drain, actions).birth == birth
        house.leave(birth)
        assert workers(house) == [3]

    def test_whoever_is_born_in_the_last_moment_is_as_good_as_any(self) -> None:
        house = serving(2, boot_timeout=10.0)
        birth = self.ordered(house)
        house.disowned = Spawned(birth, 77)
        house.wait(10.0, Tick())
        house.tell(Ready(birth))
        assert house.supervisor.keepers["web"].ready == 2


class TestEnd:
    def test_a_graceful_stop_keeps_it_until_nobody_is_respawned_any_more(self) -> None:
        house = serving(1)
        assert only(Drain, house.tell(Stop())) == []
        assert {drain.birth for drain in only(Drain, house.wait(SETTLE, Tick()))} == {1, 2}
        assert only(End, house.leave(2)) == []
        assert one(End, house.tell(Exited(1, Exit(code=0)))) == End(0)

    def test_a_quick_stop_tells_it_to_leave_and_kills_it_if_it_does_not(self) -> None:
        house = serving(1)
        assert {leave.birth for leave in only(Leave, house.tell(Stop(now=True)))} == {1, 2}
        assert {kill.birth for kill in only(Kill, house.wait(QUICK, Tick()))} == {1, 2}

    def test_rest_lets_it_go_and_a_reload_brings_another(self) -> None:
        house = serving(1)
        assert {drain.birth for drain in only(Drain, house.tell(Rest()))} == {1, 2}
        house.leave(2)
        house.tell(Exited(1, CLEAN))
        assert house.supervisor.next_deadline() is None
        assert one(Spawn, house.tell(Reload(config(preloaded(1))))).slot == TEMPLATE


class TestPoolsThatEnd:
    def test_a_template_that_leaves_by_itself_is_no_work_that_was_done(self) -> None:
        house = serving(1)
        template = one(Spawn, house.tell(Reload(config(preloaded(1, restart="on-failure"))))).birth
        house.forks = False
        worker = one(Spawn, house.ready(template)).birth
        house.tell(Ordered(worker))
        actions = house.tell(Exited(template, CLEAN))
        assert only(EndRollout, actions) == []
        ended = one(EndRollout, house.tell(SpawnFailed(worker, "its template is gone", "Traceback: …")))
        assert (ended.reason, ended.traceback) == (
            "pool web: no worker of generation 2 got ready: its template is gone",
            "Traceback: …",
        )

    def test_work_that_is_done_once_is_judged_by_the_workers_alone(self) -> None:
        house = House()
        house.tell(Boot(config(preloaded(1, restart="once"))))
        (worker,) = [spawn.birth for spawn in only(Spawn, house.ready(1))]
        house.ready(worker)
        house.tell(Exited(1, SHOT))
        assert one(EndRollout, house.tell(Exited(worker, CLEAN))) == EndRollout(1)

    @pytest.mark.parametrize("restart", ["once", "never", "on-failure"])
    def test_a_pool_that_is_done_keeps_no_template(self, restart: str) -> None:
        house = House()
        house.tell(Boot(config(preloaded(1, restart=restart))))
        house.ready(1)
        (worker,) = workers(house)
        house.ready(worker)
        actions = house.wait(60.0, Exited(worker, CLEAN))
        assert one(Drain, actions).birth == 1
        assert only(Spawn, [*actions, *house.tell(Exited(1, CLEAN))]) == []
        assert house.supervisor.next_deadline() is None
