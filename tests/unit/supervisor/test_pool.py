"""One pool: its wanted number, its back-off, its rollouts and its end."""

from __future__ import annotations

import pytest

from prefork.supervisor.actions import (
    Drain,
    DumpStacks,
    EndRollout,
    KeepListeners,
    Kill,
    ShutDoors,
    Spawn,
    Strike,
    Tell,
)
from prefork.supervisor.events import (
    Boot,
    BootFailed,
    Exit,
    Exited,
    LeftQueue,
    Ready,
    Reload,
    Rest,
    Scale,
    SpawnFailed,
    Stop,
    Tick,
)
from prefork.supervisor.pool import BACKOFF_LIMIT, SETTLE, Keeper
from prefork.supervisor.worker import State
from tests.unit.supervisor.building import SHOT, A, B, House, config, one, only, pool

CRASH = Exit(signal="SIGSEGV")


def serving(workers: int = 2, *, chance: float = 0.5, surge: int = 1) -> House:
    """Return a house whose pool web has got all its workers ready, with births from 1 on."""
    house = House(chance)
    house.tell(Boot(config(pool(workers=workers, surge=surge))))
    house.ready(*house.births())
    house.now += 60.0
    return house


def keeper(house: House, name: str = "web") -> Keeper:
    return house.supervisor.keepers[name]


def pauses(house: House, births: list[int], count: int) -> list[float]:
    """Let every worker that is tried fail to boot; return the seconds between death and next try."""
    found = []
    for _ in range(count):
        for birth in births:
            house.fail(birth)
        due = house.supervisor.next_deadline()
        assert due is not None
        found.append(due - house.now)
        house.now = due
        births = [spawn.birth for spawn in only(Spawn, house.tell(Tick()))]
        assert len(births) == 1, "one probe at a time"
    return found


class TestKeepingAlive:
    def test_all_wanted_workers_start_together_in_slots_of_their_own(self) -> None:
        house = House()
        spawns = only(Spawn, house.tell(Boot(config(pool(workers=3)))))
        assert [(spawn.slot, spawn.generation) for spawn in spawns] == [(0, 1), (1, 1), (2, 1)]

    def test_a_death_after_a_good_life_is_made_up_for_at_once_in_the_same_slot(self) -> None:
        house = serving(3)
        spawn = one(Spawn, house.tell(Exited(2, SHOT)))
        assert (spawn.birth, spawn.slot) == (4, 1)
        assert keeper(house).restarts == 1
        assert keeper(house).degraded is None

    def test_a_worker_that_leaves_by_itself_is_made_up_for_when_it_leaves_the_queue(self) -> None:
        house = serving()
        assert one(Spawn, house.tell(LeftQueue(1))).slot == 0
        assert only(Spawn, house.tell(Exited(1, Exit(code=0)))) == []

    def test_a_dying_worker_is_not_waited_for(self) -> None:
        house = serving()
        house.tell(Scale("web", 1))
        house.tell(Scale("web", 2))
        assert len(house.births()) == 3


class TestBackOff:
    def test_it_grows_from_half_a_second_by_one_and_a_half_to_a_limit(self) -> None:
        house = serving()
        first = [spawn.birth for spawn in only(Spawn, house.tell(Exited(1, SHOT)))]
        found = pauses(house, first, 16)
        assert found == pytest.approx([min(0.5 * 1.5**n, BACKOFF_LIMIT) for n in range(16)])

    @pytest.mark.parametrize(("chance", "factor"), [(0.0, 0.75), (0.5, 1.0), (0.999, 1.2495)])
    def test_jitter_is_a_quarter_either_way(self, chance: float, factor: float) -> None:
        house = serving(chance=chance)
        first = [spawn.birth for spawn in only(Spawn, house.tell(Exited(1, SHOT)))]
        assert pauses(house, first, 3) == pytest.approx([0.5 * factor, 0.75 * factor, 1.125 * factor])

    def test_no_jitter_exceeds_the_limit(self) -> None:
        house = serving(chance=0.999)
        first = [spawn.birth for spawn in only(Spawn, house.tell(Exited(1, SHOT)))]
        assert max(pauses(house, first, 20)) == pytest.approx(BACKOFF_LIMIT)

    def test_nobody_else_is_tried_while_a_failed_worker_is_still_dying(self) -> None:
        house = serving()
        probe = one(Spawn, house.tell(Exited(1, SHOT))).birth
        assert only(Spawn, house.tell(BootFailed(probe, "ImportError", ""))) == []

    def test_a_hung_boot_is_not_followed_by_another_before_it_is_dead(self) -> None:
        house = serving()
        probe = one(Spawn, house.tell(Exited(1, SHOT))).birth
        assert one(DumpStacks, house.wait(60.0, Tick())).birth == probe
        assert [type(action) for action in house.wait(1.0, Tick())] == [Strike, Kill]
        actions = house.tell(Exited(probe, SHOT))
        assert one(Tell, actions).text == "web: not ready after 60 s; the next try is in 0.5 s"

    def test_it_never_gives_up(self) -> None:
        house = serving()
        first = [spawn.birth for spawn in only(Spawn, house.tell(Exited(1, SHOT)))]
        assert pauses(house, first, 2000)[-1] == pytest.approx(
            BACKOFF_LIMIT
        )  # 1.5**1751 is more than a float holds

    def test_ready_resets_it(self) -> None:
        house = serving()
        first = [spawn.birth for spawn in only(Spawn, house.tell(Exited(1, SHOT)))]
        pauses(house, first, 5)
        probe = house.births()[-1]
        house.ready(probe)
        house.now += 5.0
        first = [spawn.birth for spawn in only(Spawn, house.tell(Exited(probe, SHOT)))]
        assert pauses(house, first, 1) == pytest.approx([0.5])

    def test_workers_that_fail_together_have_failed_once(self) -> None:
        house = serving(4)
        births = [one(Spawn, house.tell(Exited(birth, SHOT))).birth for birth in (1, 2, 3, 4)]
        tells = [tell for birth in births for tell in only(Tell, house.fail(birth)) if tell.level == "error"]
        assert [tell.text for tell in tells] == ["web: ImportError: shop; the next try is in 0.5 s"]
        assert pauses(house, [], 1) == pytest.approx([0.5])

    def test_once_a_probe_is_ready_all_others_follow(self) -> None:
        house = serving(4)
        births = [one(Spawn, house.tell(Exited(birth, SHOT))).birth for birth in (1, 2, 3, 4)]
        pauses(house, births, 1)
        assert len(only(Spawn, house.ready(house.births()[-1]))) == 3

    def test_dying_right_after_ready_is_no_good_life(self) -> None:
        house = serving()
        birth = one(Spawn, house.tell(Exited(1, SHOT))).birth
        house.ready(birth)
        actions = house.wait(0.9, Exited(birth, CRASH))
        assert only(Spawn, actions) == []
        assert keeper(house).degraded == "web/0 died right after it was ready: crashed: SIGSEGV"
        assert house.supervisor.next_deadline() == pytest.approx(house.now + 0.5)

    def test_a_failing_fork_backs_off_too(self) -> None:
        house = serving()
        house.forks = False
        birth = one(Spawn, house.tell(Exited(1, SHOT))).birth
        actions = house.tell(SpawnFailed(birth, "fork: Resource temporarily unavailable"))
        assert one(Tell, actions).text == (
            "web: fork: Resource temporarily unavailable; the next try is in 0.5 s"
        )
        assert keeper(house).ready == 1

    def test_the_pool_is_degraded_until_all_wanted_are_ready(self) -> None:
        house = serving(3)
        births = [one(Spawn, house.tell(Exited(birth, SHOT))).birth for birth in (1, 2)]
        pauses(house, births, 1)
        house.ready(house.births()[-1])
        assert keeper(house).degraded == "ImportError: shop"
        house.ready(house.births()[-1])
        assert keeper(house).degraded is None

    def test_wanting_fewer_ends_a_degraded_state(self) -> None:
        house = serving(2)
        house.fail(one(Spawn, house.tell(Exited(1, SHOT))).birth)
        house.tell(Scale("web", 1))
        assert keeper(house).degraded is None
        assert house.supervisor.next_deadline() is None


class TestRollout:
    def test_a_batch_of_new_workers_starts_beside_the_old_ones_and_nothing_else_changes(self) -> None:
        house = serving(4, surge=2)
        actions = house.tell(Reload(config(pool(workers=4, surge=2))))
        assert [spawn.generation for spawn in only(Spawn, actions)] == [2, 2]
        assert only(Drain, actions) == []

    def test_old_workers_leave_one_for_each_new_one_that_is_ready(self) -> None:
        house = serving(3)
        house.tell(Reload(config(pool(workers=3))))
        leavers = []
        while house.births(2) and (new := [b for b in house.births(2) if b not in leavers]):
            actions = house.ready(new[-1])
            leavers += [new[-1]]
            drained = [drain.birth for drain in only(Drain, actions)]
            assert len(drained) == 1
            house.leave(*drained)
            assert keeper(house).ready == 3
        assert house.births(1) == []

    def test_it_never_has_more_than_the_surge_beyond_the_wanted(self) -> None:
        house = serving(4, surge=2)
        house.tell(Reload(config(pool(workers=4, surge=2))))
        while house.births(1):
            counted = [life for life in keeper(house).lives.values() if life.counts]
            assert len(counted) <= 6
            starting = [life.birth for life in keeper(house).lives.values() if life.state is State.STARTING]
            drained = only(Drain, house.ready(starting[0]))
            house.leave(*(drain.birth for drain in drained))

    def test_it_ends_when_the_last_old_worker_is_gone_and_all_new_ones_are_ready(self) -> None:
        house = serving(1)
        house.tell(Reload(config(pool(workers=2))))
        assert only(EndRollout, house.ready(2)) == []
        assert only(EndRollout, house.ready(3)) == []
        assert one(EndRollout, house.leave(1)) == EndRollout(2)

    def test_an_old_worker_that_is_not_ready_goes_first(self) -> None:
        house = serving(2)
        starting = one(Spawn, house.tell(Exited(1, SHOT))).birth
        house.tell(Reload(config(pool(workers=2))))
        actions = house.ready(house.births(2)[0])
        assert [drain.birth for drain in only(Drain, actions)] == [starting]

    def test_a_failure_after_the_commit_keeps_the_old_workers(self) -> None:
        house = serving(2)
        house.tell(Reload(config(pool(workers=2))))
        actions = house.ready(3)
        assert [drain.birth for drain in only(Drain, actions)] == [1]
        actions = house.fail(one(Spawn, actions).birth)
        assert only(Drain, actions) == []
        assert keeper(house).ready == 2
        assert keeper(house).degraded == "ImportError: shop"

    def test_an_old_workers_failure_says_nothing_about_the_new_ones(self) -> None:
        house = serving(2)
        late = one(Spawn, house.tell(Exited(1, SHOT))).birth
        house.tell(Reload(config(pool(workers=2))))
        house.tell(BootFailed(late, "ImportError", ""))
        house.ready(house.births(2)[0])
        house.tell(Exited(late, Exit(code=3)))
        assert keeper(house).degraded is None

    def test_a_count_that_the_file_does_not_change_stays_as_scaled(self) -> None:
        house = serving(1)
        house.tell(Scale("web", 2))
        house.ready(2)
        house.tell(Reload(config(pool(workers=1, threads=2))))
        house.ready(3)
        assert keeper(house).wanted == 2

    def test_a_count_that_the_file_changes_counts(self) -> None:
        house = serving(4)
        house.tell(Reload(config(pool(workers=2))))
        actions = house.ready(5)
        assert keeper(house).wanted == 2
        assert [drain.birth for drain in only(Drain, actions)] == [1, 2, 3]


class TestScaling:
    def test_more_start_at_once_and_fewer_drain_the_highest_slots(self) -> None:
        house = serving(2)
        assert [spawn.slot for spawn in only(Spawn, house.tell(Scale("web", 4)))] == [2, 3]
        actions = house.tell(Scale("web", 1))
        assert [drain.birth for drain in only(Drain, actions)] == [2, 3, 4]

    @pytest.mark.parametrize("workers", [-1, 1001])
    def test_nonsense_changes_nothing(self, workers: int) -> None:
        house = serving(2)
        actions = house.tell(Scale("web", workers))
        assert one(Tell, actions).level == "warning"
        assert len(actions) == 1


class TestRest:
    def test_all_workers_drain_the_listeners_stay_and_nothing_is_due(self) -> None:
        house = serving(2)
        actions = house.tell(Rest())
        assert [drain.birth for drain in only(Drain, actions)] == [1, 2]
        actions = house.leave(1, 2)
        assert only(KeepListeners, actions) == []
        assert house.births() == []
        assert house.supervisor.next_deadline() is None

    def test_a_reload_brings_them_back(self) -> None:
        house = serving(3)
        house.tell(Rest())
        house.leave(1, 2, 3)
        house.tell(Reload(config(pool(workers=3))))
        assert len(only(Spawn, house.ready(4))) == 2


class TestAddresses:
    def test_a_new_address_is_served_before_the_old_one_is_left(self) -> None:
        house = serving(1)
        house.tell(Reload(config(pool(at=[B]))))
        assert house.supervisor._kept == {A, B}
        actions = house.ready(2)
        assert one(ShutDoors, actions) == ShutDoors(frozenset({A}))
        assert only(Drain, actions) == []
        actions = house.wait(SETTLE, Tick())
        assert one(Drain, actions) == Drain(1, 31.0, empty_queue=True)
        assert one(KeepListeners, house.tell(LeftQueue(1))) == KeepListeners(frozenset({B}))

    def test_waiting_for_a_spare_after_the_doors_are_shut_does_not_spin(self) -> None:
        house = serving(2)
        house.tell(Reload(config(pool(workers=2, at=[B]))))
        house.ready(3)
        house.wait(SETTLE, Tick())
        due = house.supervisor.next_deadline()
        assert due is not None
        assert due > house.now

    def test_an_address_being_left_is_not_forgotten_by_the_next_rollout(self) -> None:
        house = serving(1)
        house.tell(Reload(config(pool(at=[B]))))
        house.ready(2)
        house.tell(Reload(config(pool(at=[B], threads=2))))
        house.ready(3)
        assert A in keeper(house).addresses()
        actions = house.wait(SETTLE, Tick())
        assert Drain(1, 31.0, empty_queue=True) in actions

    def test_the_listeners_close_once_the_queue_is_found_empty_and_stay_closed(self) -> None:
        house = serving(2)
        house.tell(Stop())
        house.wait(SETTLE, Tick())
        assert one(KeepListeners, house.tell(LeftQueue(1))) == KeepListeners(frozenset())
        assert only(KeepListeners, house.tell(Exited(1, Exit(code=0)))) == []

    def test_nobody_left_to_empty_the_queue_closes_it_too(self) -> None:
        house = serving(1)
        house.tell(Stop())
        house.wait(SETTLE, Tick())
        house.wait(30.0, Tick())
        assert house.supervisor._kept == frozenset()


class TestReadyCount:
    def test_progress_is_told_in_numbers(self) -> None:
        house = House()
        house.tell(Boot(config(pool(workers=2))))
        assert one(Tell, house.tell(Ready(2))).text == "web: 1 of 2 workers of generation 1 ready"

    def test_a_killed_worker_makes_room_before_it_is_dead(self) -> None:
        house = serving(1)
        house.tell(Stop(now=True))
        assert only(Kill, house.wait(1.0, Tick())) == [Kill(1)]
