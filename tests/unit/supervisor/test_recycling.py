"""Recycling: who is spent, and that nobody goes before somebody else is ready."""

from __future__ import annotations

from typing import Any

import pytest

from prefork.supervisor.actions import Bury, Drain, Look, Spawn, Tell
from prefork.supervisor.events import (
    Boot,
    Busy,
    Event,
    Exit,
    Exited,
    LeftQueue,
    Looked,
    Ready,
    Reload,
    Rest,
    Scale,
    Sighting,
    Spent,
    Tick,
)
from prefork.supervisor.pool import Keeper
from prefork.supervisor.recycling import TOO_LARGE
from prefork.supervisor.worker import State
from prefork.units import Share
from tests.unit.supervisor.building import CLEAN, SHOT, House, config, one, only, pool

ENOUGH = "max_requests 1,003"
LIMIT = 100 * 2**20


def serving(workers: int = 2, *, chance: float = 0.5, **options: Any) -> House:
    """Return a house whose pool web has got all its workers ready, with births from 1 on."""
    house = House(chance)
    house.tell(Boot(config(pool(workers=workers, **options))))
    house.ready(*house.births())
    house.now += 60.0
    return house


def keeper(house: House) -> Keeper:
    return house.supervisor.keepers["web"]


def spawned(house: House, event: Event) -> list[int]:
    return [spawn.birth for spawn in only(Spawn, house.tell(event))]


def drained(house: House, event: Event) -> list[int]:
    return [drain.birth for drain in only(Drain, house.tell(event))]


class TestReplacing:
    def test_a_spent_worker_leaves_once_another_one_is_ready_in_its_slot(self) -> None:
        house = serving()
        actions = house.tell(Spent(2, ENOUGH))
        assert only(Drain, actions) == []
        assert one(Spawn, actions).slot == 1
        assert drained(house, Ready(3)) == [2]
        assert keeper(house).ready == 2

    def test_its_end_is_told_as_what_it_is_and_counts_as_no_restart(self) -> None:
        house = serving()
        house.tell(Spent(2, ENOUGH))
        house.ready(3)
        house.tell(LeftQueue(2))
        assert one(Bury, house.tell(Exited(2, CLEAN))) == Bury(2, CLEAN, f"recycled: {ENOUGH}", expected=True)
        assert keeper(house).restarts == 0

    def test_a_wave_of_spent_workers_goes_one_by_one_the_oldest_first(self) -> None:
        house = serving(4)
        gone = []
        for birth in (3, 1, 4, 2):
            house.tell(Spent(birth, ENOUGH))
        while keeper(house)._recycled is not None:
            (newcomer,) = [
                life.birth for life in keeper(house).lives.values() if life.state is State.STARTING
            ]
            (leaver,) = drained(house, Ready(newcomer))
            assert keeper(house).ready == 4
            assert only(Spawn, house.actions) == [], "nobody else begins before it is gone"
            gone.append(leaver)
            house.leave(leaver)
        assert gone == [3, 1, 2, 4]
        assert house.supervisor.next_deadline() is None

    def test_a_replacement_that_does_not_boot_is_tried_again_and_the_old_one_serves(self) -> None:
        house = serving()
        (newcomer,) = spawned(house, Spent(2, ENOUGH))
        house.fail(newcomer)
        assert keeper(house).degraded == "ImportError: shop"
        assert keeper(house).ready == 2
        (newcomer,) = [spawn.birth for spawn in only(Spawn, house.wait(0.5, Tick()))]
        assert drained(house, Ready(newcomer)) == [2]
        assert keeper(house).degraded is None

    def test_a_spent_worker_that_dies_is_replaced_by_who_is_on_the_way(self) -> None:
        house = serving()
        (newcomer,) = spawned(house, Spent(2, ENOUGH))
        assert only(Spawn, house.tell(Exited(2, SHOT))) == []
        assert drained(house, Ready(newcomer)) == []
        assert keeper(house).ready == 2

    def test_a_death_of_another_meanwhile_is_made_up_for_first(self) -> None:
        house = serving()
        first = spawned(house, Spent(2, ENOUGH))
        second = spawned(house, Exited(1, SHOT))
        assert drained(house, Ready(first[0])) == []
        assert drained(house, Ready(second[0])) == [2]

    def test_with_fewer_wanted_the_spent_one_is_the_one_to_go(self) -> None:
        house = serving(3)
        (newcomer,) = spawned(house, Spent(1, ENOUGH))
        assert drained(house, Scale("web", 2)) == [1, newcomer]

    def test_a_rollout_replaces_spent_workers_as_it_replaces_all(self) -> None:
        house = serving(1)
        house.tell(Reload(config(pool(workers=1, threads=2))))
        assert spawned(house, Spent(1, ENOUGH)) == []
        assert drained(house, Ready(2)) == [1]
        assert house.births(2) == [2]

    def test_one_that_is_spent_during_a_rollout_waits_for_its_end(self) -> None:
        house = serving(2)
        house.tell(Reload(config(pool(workers=2, threads=2))))
        house.ready(3)
        assert spawned(house, Spent(3, ENOUGH)) == []
        house.ready(4)  # the last old one is told to drain
        assert house.births(2) == [3, 4, 5]

    def test_a_reload_that_comes_while_one_is_being_replaced_takes_over(self) -> None:
        house = serving(1)
        house.tell(Spent(1, ENOUGH))
        house.tell(Reload(config(pool(workers=1, threads=2))))
        house.ready(3)
        house.leave(1, 2)
        assert [life.birth for life in keeper(house).lives.values()] == [3]
        assert house.supervisor.next_deadline() is None

    def test_at_rest_nobody_is_replaced(self) -> None:
        house = serving(1)
        house.tell(Spent(1, ENOUGH))
        assert drained(house, Rest()) == [1, 2]
        house.leave(1, 2)
        assert house.births() == []


class TestRequests:
    @pytest.mark.parametrize(("chance", "most"), [(0.0, 1000), (0.5, 1050), (0.999, 1100)])
    def test_each_worker_is_born_with_its_own_number(self, chance: float, most: int) -> None:
        house = serving(1, chance=chance, max_requests=1000)
        assert house.spawned[1].max_requests == most

    def test_a_number_is_a_number_of_requests(self) -> None:
        house = serving(1, max_requests=1000, max_requests_jitter=Share(number=20))
        assert house.spawned[1].max_requests == 1010

    def test_jitter_of_nothing_is_nothing(self) -> None:
        assert serving(1).spawned[1].max_requests == 0


class TestAge:
    def test_an_old_worker_is_replaced_when_its_time_comes(self) -> None:
        house = serving(1, max_age=100.0)
        assert house.supervisor.next_deadline() == house.now + 45.0
        house.now += 45.0
        (newcomer,) = spawned(house, Tick())
        assert drained(house, Ready(newcomer)) == [1]
        assert house.supervisor.life(1).why == "recycled: max_age 1 m 45 s"  # type: ignore[union-attr]

    def test_nothing_is_due_for_one_that_waits_for_its_turn(self) -> None:
        house = serving(2, max_age=100.0, boot_timeout=1000.0)
        (newcomer,) = [spawn.birth for spawn in only(Spawn, house.wait(45.0, Tick()))]
        due = house.supervisor.next_deadline()
        assert due is not None
        assert due > house.now
        house.ready(newcomer)
        house.leave(1)
        assert len(house.births()) == 3

    def test_at_rest_and_in_an_idle_pool_nothing_else_is_due(self) -> None:
        house = serving(1, max_age=1000.0)
        house.tell(Rest())
        house.leave(1)
        assert house.supervisor.next_deadline() is None


class TestMemory:
    def seen(self, house: House, *sizes: int) -> list[object]:
        return [action for size in sizes for action in house.tell(Looked((), (Sighting(1, size),)))]

    def test_three_times_in_a_row_too_large_is_enough(self) -> None:
        house = serving(1, max_memory=LIMIT)
        assert only(Spawn, self.seen(house, *[LIMIT + 1] * (TOO_LARGE - 1))) == []
        one(Spawn, self.seen(house, LIMIT + 2**20))
        assert house.supervisor.life(1).spent == "max_memory 100.0 MiB, it has 101.0 MiB"  # type: ignore[union-attr]

    def test_a_peak_is_forgiven(self) -> None:
        house = serving(1, max_memory=LIMIT)
        assert only(Spawn, self.seen(house, LIMIT + 1, LIMIT + 1, LIMIT, LIMIT + 1, LIMIT + 1)) == []

    def test_nobody_dozes_off_over_a_suspicion(self) -> None:
        house = serving(1, max_memory=LIMIT)
        house.tell(Busy())
        self.seen(house, LIMIT)
        for _ in range(TOO_LARGE):
            assert house.supervisor.next_deadline() is not None
            one(Look, house.wait(1.0, Tick()))
            self.seen(house, LIMIT + 1)
        house.ready(2)
        house.leave(1)
        assert house.supervisor.next_deadline() is None

    def test_what_a_fresh_worker_needs_is_no_leak_until_it_has_doubled(self) -> None:
        house = House(0.5)
        house.tell(Boot(config(pool(workers=2, max_memory=LIMIT))))
        told = [action for birth in (1, 2) for action in house.tell(Ready(birth, LIMIT + 2**20))]
        (warning,) = [action.text for action in only(Tell, told) if action.level == "warning"]
        assert warning.startswith("web: max_memory is 100.0 MiB, a fresh worker has 101.0 MiB: ")
        house.now += 60.0
        assert only(Spawn, self.seen(house, *[2 * (LIMIT + 2**20)] * TOO_LARGE)) == []
        one(Spawn, self.seen(house, *[2 * (LIMIT + 2**20) + 1] * TOO_LARGE))

    def test_a_worker_that_is_small_at_first_has_the_limit_that_was_set(self) -> None:
        house = House(0.5)
        house.tell(Boot(config(pool(workers=1, max_memory=LIMIT))))
        assert [told for told in only(Tell, house.tell(Ready(1, LIMIT))) if told.level == "warning"] == []
        house.now += 60.0
        one(Spawn, self.seen(house, *[LIMIT + 1] * TOO_LARGE))

    def test_a_dead_one_is_not_weighed(self) -> None:
        house = serving(1, max_memory=LIMIT)
        house.tell(Exited(1, Exit(code=1)))
        assert only(Spawn, self.seen(house, 2 * LIMIT, 2 * LIMIT, 2 * LIMIT)) == []
