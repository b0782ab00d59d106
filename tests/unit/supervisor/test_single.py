"""Pools of which only one worker may exist at a time, pools that are stopped, and the order of a stop."""

from __future__ import annotations

import msgspec

from prefork.config.schema import Config, Pool
from prefork.supervisor.actions import Drain, EndRollout, Spawn, Tell
from prefork.supervisor.events import Boot, BootFailed, Exit, Exited, Reload, Scale, Spent, Stop, Tick
from prefork.supervisor.server import Phase
from tests.unit.supervisor.building import CLEAN, A, House, config, pool

WEB = pool("web", at=(A,))
CRON = Pool(name="cron", task="shop:cron", replace="stop-first")


def serving(*pools: Pool) -> House:
    house = House()
    house.tell(Boot(config(*pools)))
    for each in pools:
        house.ready(*house.births(name=each.name))
    return house


def changed(*pools: Pool) -> Config:
    return config(*(msgspec.structs.replace(each, graceful_timeout=7.0) for each in pools))


def test_a_reload_tries_it_last_and_starts_it_when_the_old_one_has_ended() -> None:
    house = serving(CRON, WEB)
    (old,) = house.births(name="cron")
    asked = house.tell(Reload(changed(CRON, WEB)))
    assert not any(isinstance(action, Drain) for action in asked)
    assert house.supervisor.waits_for(house.supervisor.keepers["cron"]) == ["web"]
    asked = house.ready(*house.births(generation=2))
    assert [action.birth for action in asked if isinstance(action, Drain)] == [old]
    assert house.births(name="cron") == [old]
    house.tell(Exited(old, CLEAN))
    (new,) = house.births(name="cron")
    house.ready(new)
    assert house.supervisor.keepers["cron"].generation == 2
    assert house.supervisor.keepers["web"].generation == 2


def test_the_old_one_is_started_again_if_the_new_one_fails() -> None:
    house = serving(CRON)
    (old,) = house.births(name="cron")
    house.tell(Reload(changed(CRON)))
    house.tell(Exited(old, CLEAN))
    (new,) = house.births(name="cron")
    house.tell(BootFailed(new, "ImportError: shop"))
    asked = house.tell(Exited(new, Exit(code=3, status=3)))
    assert [action.reason for action in asked if isinstance(action, EndRollout)] == [
        "pool cron: no worker of generation 2 got ready: ImportError: shop"
    ]
    assert any("are started again" in action.text for action in asked if isinstance(action, Tell))
    assert [action.generation for action in asked if isinstance(action, Spawn)] == [1]


def test_a_spent_one_goes_before_its_successor_starts() -> None:
    house = serving(CRON)
    (old,) = house.births(name="cron")
    asked = house.tell(Spent(old, "max_age 1 h"))
    assert [type(action) for action in asked if isinstance(action, Drain | Spawn)] == [Drain]
    house.tell(Exited(old, CLEAN))
    assert len(house.births(name="cron")) == 1


def test_a_restart_replaces_one_pool_and_no_other() -> None:
    house = serving(CRON, WEB)
    web = house.births(name="web")
    only = frozenset({"cron"})
    house.tell(Reload(config(CRON, WEB), only=only, forced=only))
    (old,) = house.births(name="cron")
    house.tell(Exited(old, CLEAN))
    asked = house.ready(*house.births(name="cron"))
    assert [action.reason for action in asked if isinstance(action, EndRollout)] == [None]
    assert house.births(name="web") == web


def test_a_stopped_pool_is_not_started_by_a_reload() -> None:
    house = serving(CRON, WEB)
    house.tell(Scale("cron", 0))
    house.leave(*house.births(name="cron"))
    house.tell(Reload(changed(CRON, WEB)))
    house.ready(*house.births(generation=2))
    assert house.births(name="cron") == []
    assert house.supervisor.keepers["cron"].generation == 2
    house.tell(Scale("cron", 1))
    assert len(house.births(name="cron")) == 1


def test_a_pool_that_others_came_after_leaves_when_they_have_ended() -> None:
    house = serving(CRON, msgspec.structs.replace(WEB, after=("cron",)))
    (cron,), (web,) = house.births(name="cron"), house.births(name="web")
    house.tell(Stop())
    house.wait(0.2, Tick())
    assert house.supervisor.phase is Phase.STOPPING
    assert house.supervisor.keepers["cron"].closing is None
    house.leave(web)
    assert house.supervisor.keepers["cron"].closing is not None
    assert house.births(name="cron") == [cron]
