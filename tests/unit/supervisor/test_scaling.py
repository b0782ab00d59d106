"""Scaling by load: how many workers a pool is to have, when it is looked at, and who goes."""

from __future__ import annotations

from typing import Any

import pytest

from prefork.config.schema import Scale
from prefork.supervisor.actions import AwaitClients, Drain, KeepListeners, Look, Spawn, Tell
from prefork.supervisor.events import (
    Boot,
    Busy,
    Knocked,
    Looked,
    Reload,
    Rest,
    Sighting,
    SpawnFailed,
    Spent,
    Stop,
    Tick,
)
from prefork.supervisor.events import Scale as ScaleTo
from prefork.supervisor.pool import Keeper
from prefork.supervisor.scaling import Load, Scaler
from tests.unit.supervisor.building import A, B, House, config, one, only, pool

IDLE_FOR = 60.0
MIB = 2**20


def scale(least: int = 1, most: int = 16, **options: Any) -> Scale:
    return Scale(min=least, max=most, **options)


def load(busy: float, ready: int, queue: int = 0, memory: float = 0.0) -> Load:
    return Load(busy, frozenset(range(ready - round(busy))), ready, queue, memory)


def grown(settings: Scale, first: int, *loads: float) -> list[int]:
    """Return the sizes that follow from shares of all workers being busy."""
    scaler, wanted, sizes = Scaler(), first, []
    for now, share in enumerate(loads):
        wanted = scaler.judge(settings, wanted, load(share * wanted, wanted), float(now))
        sizes.append(wanted)
    return sizes


class TestGrowth:
    def test_it_doubles_while_the_wish_lasts_up_to_the_most(self) -> None:
        assert grown(scale(), 1, 1, 1, 1, 1, 1, 1) == [2, 4, 8, 16, 16, 16]

    def test_it_begins_anew_after_a_wish_that_was_granted(self) -> None:
        assert grown(scale(), 1, 1, 1, 0.5, 1) == [2, 4, 4, 5]

    @pytest.mark.parametrize(("busy", "size"), [(0.4, 1), (0.5, 2), (1.0, 2)])
    def test_a_worker_that_is_mostly_busy_is_busy(self, busy: float, size: int) -> None:
        assert grown(scale(), 1, busy) == [size]

    def test_as_many_as_are_spare_are_kept_idle(self) -> None:
        assert grown(scale(spare=2), 4, 0.5) == [4]
        assert grown(scale(spare=3), 4, 0.5) == [5]

    def test_without_spare_ones_it_grows_when_clients_wait_and_nobody_is_idle(self) -> None:
        settings = scale(spare=0)
        assert Scaler().judge(settings, 2, load(2.0, 2), 0.0) == 2
        assert Scaler().judge(settings, 2, load(1.0, 2, queue=5), 0.0) == 2
        assert Scaler().judge(settings, 2, load(2.0, 2, queue=5), 0.0) == 3

    @pytest.mark.parametrize(("budget", "size"), [(0, 16), (1000 * MIB, 10), (799 * MIB, 8), (100 * MIB, 8)])
    def test_growth_ends_where_the_memory_does(self, budget: int, size: int) -> None:
        scaler, settings = Scaler(), scale(max_memory=budget)
        scaler.step = 8
        assert scaler.judge(settings, 8, load(8.0, 8, memory=100.0 * MIB), 0.0) == size


def serving(settings: Scale, workers: int = 0, **options: Any) -> House:
    """Return a house whose pool web is ready, scaled to a number of workers."""
    house = House()
    house.tell(Boot(config(pool(scale=settings, **options))))
    house.ready(*house.births())
    house.now += 60.0
    if workers:
        house.tell(ScaleTo("web", workers))
        house.ready(*house.births()[-workers + keeper(house).ready :])
    return house


def keeper(house: House) -> Keeper:
    return house.supervisor.keepers["web"]


def look(house: House, *busy: int, queue: int = 0) -> list[Any]:
    """Let a second pass in which some were busy all the time, and look."""
    house.now += 1.0
    for birth in busy:
        house.busy_times[birth] = house.busy_times.get(birth, 0.0) + 1.0
    seen = (
        Sighting(birth, 0, house.busy_times.get(birth, 0.0), 0, birth in busy, birth in busy)
        for birth in house.births()
    )
    return house.tell(Looked((), tuple(seen), {"web": queue}))


class TestPool:
    def test_it_starts_with_the_fewest_and_those_that_are_spare(self) -> None:
        assert len(serving(scale(2, 8)).births()) == 2
        assert len(serving(scale(2, 8, spare=3)).births()) == 3

    def test_a_busy_worker_makes_another_one_start(self) -> None:
        house = serving(scale())
        assert only(Spawn, look(house)) == []
        actions = look(house, 1)
        one(Spawn, actions)
        assert one(Tell, actions).text == "web: 2 workers wanted: 1.0 of 1 busy, 0 clients wait"

    def test_who_has_just_begun_is_not_busy(self) -> None:
        house = serving(scale())
        seen = Sighting(1, busy_time=0.01, has_in_flight=True, is_full=False)
        house.now += 1.0
        assert only(Spawn, house.tell(Looked((), (seen,)))) == []

    def test_nothing_more_is_asked_for_before_the_new_ones_are_ready(self) -> None:
        house = serving(scale())
        look(house, 1)
        assert only(Spawn, look(house, 1)) == []
        house.ready(2)
        assert len(only(Spawn, look(house, 1, 2))) == 2

    def test_a_newcomer_that_is_not_busy_yet_does_not_end_the_doubling(self) -> None:
        house = serving(scale())
        look(house, 1)
        house.now += 0.5
        house.ready(2)
        house.now -= 0.5
        assert only(Spawn, look(house)) == []
        assert len(only(Spawn, look(house, 1, 2))) == 2

    def test_one_goes_after_a_while_and_only_an_idle_one(self) -> None:
        house = serving(scale(), 3)
        assert only(Drain, look(house, 3)) == []
        house.now += IDLE_FOR
        (drained,) = only(Drain, look(house, 3))
        assert drained.birth == 2
        assert keeper(house).wanted == 2

    def test_while_all_have_something_in_flight_nobody_goes(self) -> None:
        house = serving(scale(), 3)
        house.now += 2 * IDLE_FOR
        seen = tuple(Sighting(birth, has_in_flight=True) for birth in house.births())
        assert only(Drain, house.tell(Looked((), seen))) == []
        assert house.supervisor.next_deadline() == house.now + IDLE_FOR

    def test_a_need_meanwhile_begins_the_while_anew(self) -> None:
        house = serving(scale(), 3)
        house.now += IDLE_FOR - 10
        look(house, 1, 2)
        house.now += IDLE_FOR - 10
        assert only(Drain, look(house)) == []

    def test_an_idle_pool_is_looked_at_when_one_may_be_too_many_and_never_once_none_is(self) -> None:
        house = serving(scale(), 3)
        for leaver in (3, 2):
            due = house.supervisor.next_deadline()
            assert due == house.now + IDLE_FOR
            house.now = due - 1.0
            one(Look, house.wait(1.0, Tick()))
            house.now -= 1.0
            assert one(Drain, look(house)).birth == leaver
            house.leave(leaver)
        while (due := house.supervisor.next_deadline()) is not None:
            house.now = due  # the looks that end with the master dozing off
            house.tell(Tick())
            house.tell(Looked((), ()))
        assert keeper(house).wanted == 1

    def test_nothing_is_decided_during_a_rollout_and_nothing_spins(self) -> None:
        house = serving(scale(), 3)
        house.tell(Reload(config(pool(scale=scale()))))
        house.now += 2 * IDLE_FOR
        look(house)
        assert keeper(house).wanted == 3
        due = house.supervisor.next_deadline()
        assert due is not None
        assert due > house.now

    def test_nor_while_somebody_is_recycled(self) -> None:
        house = serving(scale(), 3)
        house.tell(Spent(1, "max_requests 5"))
        house.now += 2 * IDLE_FOR
        assert only(Drain, look(house)) == []

    def test_who_is_busy_without_a_deadline_keeps_the_master_awake(self) -> None:
        house = serving(scale(), 1, request_timeout=0.0)
        house.tell(Busy())
        for _ in range(4):
            look(house, 1)
        assert house.supervisor.next_deadline() == house.now + 1.0


class TestReload:
    def test_the_size_is_kept_within_the_new_bounds(self) -> None:
        house = serving(scale(), 3)
        for new, size in ((scale(1, 16), 3), (scale(5, 16), 5), (scale(1, 2), 2)):
            house.tell(Reload(config(pool(scale=new))))
            house.ready(house.births()[-1])
            assert keeper(house).wanted == size

    def test_a_fixed_number_replaces_the_scale(self) -> None:
        house = serving(scale(), 3)
        house.tell(Reload(config(pool(workers=1))))
        house.ready(house.births()[-1])
        assert keeper(house).wanted == 1

    def test_out_of_the_bounds_it_cannot_be_set(self) -> None:
        house = serving(scale(2, 4))
        assert one(Tell, house.tell(ScaleTo("web", 5))).text == "web: stays at 2 workers, 5 is out of range"
        assert one(Tell, house.tell(ScaleTo("web", 1))).level == "warning"


class TestNone:
    def asleep(self) -> House:
        house = serving(scale(0, 4))
        house.now += IDLE_FOR
        house.leave(one(Drain, look(house)).birth)
        return house

    def test_a_start_shows_with_one_worker_that_it_works(self) -> None:
        house = House()
        one(Spawn, house.tell(Boot(config(pool(scale=scale(0, 4))))))

    def test_the_last_idle_worker_goes_and_its_listeners_are_watched_instead(self) -> None:
        house = serving(scale(0, 4))
        house.now += IDLE_FOR
        actions = look(house)
        assert one(AwaitClients, actions).addresses == {A}
        assert only(KeepListeners, house.leave(1)) == []
        assert house.supervisor.next_deadline() is None

    @pytest.mark.parametrize("work", [{"busy_time": 0.001}, {"served": 1}, {"has_in_flight": True}])
    def test_one_that_was_at_work_now_and_then_stays(self, work: dict[str, Any]) -> None:
        house = serving(scale(0, 4))
        house.now += IDLE_FOR
        seen = Sighting(1, **work)
        assert only(Drain, house.tell(Looked((), (seen,)))) == []

    def test_the_first_client_starts_one_worker_and_is_not_heard_twice(self) -> None:
        house = self.asleep()
        actions = house.tell(Knocked(A))
        one(Spawn, actions)
        assert one(AwaitClients, actions).addresses == frozenset()
        assert only(Spawn, house.tell(Knocked(A))) == []

    def test_a_reload_shows_with_one_worker_that_it_works(self) -> None:
        house = self.asleep()
        one(Spawn, house.tell(Reload(config(pool(scale=scale(0, 4))))))

    def test_a_fork_that_fails_at_once_leaves_the_last_word_to_what_follows_from_that(self) -> None:
        house = self.asleep()
        # As the loop does it: what an action yields goes in, and is acted on, before the next one is done.
        done: list[object] = []
        for action in house.supervisor.handle(Reload(config(pool(at=[B], scale=scale(0, 4)))), house.now):
            done.append(action)
            if isinstance(action, Spawn):
                failure = SpawnFailed(action.birth, "fork: EAGAIN")
                done += house.supervisor.handle(failure, house.now)
        assert only(AwaitClients, done)[-1].addresses == {A}
        assert only(KeepListeners, done)[-1].addresses == {A}

    @pytest.mark.parametrize("event", [Stop(), Rest()])
    def test_who_ends_or_rests_awaits_nobody(self, event: Any) -> None:
        house = self.asleep()
        actions = house.tell(event)
        assert one(AwaitClients, actions).addresses == frozenset()
