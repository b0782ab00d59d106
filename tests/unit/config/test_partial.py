"""A reload of some pools: what is taken from the file, what stays pending, and mixtures that cannot be."""

from __future__ import annotations

import pytest

from prefork.config.order import longest_stop
from prefork.config.partial import take_over
from prefork.errors import CommandError
from tests.unit.config.reading import WEB, read

API = '[pool.api]\nlisten = ["127.0.0.1:9000"]\nwsgi = "shop.api:app"\n'


def test_named_pools_are_taken_over_and_the_other_changes_are_told():
    base = read(WEB + API)
    new = read(f"[log]\nlevel = 'debug'\n{WEB}threads = 2\n{API}threads = 2\n")
    part = take_over(base, new, {"web"})
    assert [pool.threads for pool in part.config.pools.values()] == [2, 1]
    assert part.config.log == base.log
    assert part.pending == ("[log]", "[pool.api]")


def test_a_pool_can_be_added_and_removed_alone():
    assert list(take_over(read(WEB), read(WEB + API), {"api"}).config.pools) == ["web", "api"]
    assert list(take_over(read(WEB + API), read(WEB), {"api"}).config.pools) == ["web"]
    assert take_over(read(WEB), read(WEB + API), {"web"}).pending == ("[pool.api], which is new",)
    assert take_over(read(WEB + API), read(WEB), {"web"}).pending == ("[pool.api], which is gone",)


@pytest.mark.parametrize(
    ("old", "new", "names", "reason"),
    [
        (WEB, WEB, {"wep"}, "there is no pool 'wep'"),
        (WEB, API, {"web"}, "no pool would be left"),
        (
            WEB + API,
            WEB.replace("8000", "9000") + API.replace("9000", "8000"),
            {"api"},
            "would both listen on",
        ),
        (WEB, f'{WEB}after = ["api"]\n{API}', {"web"}, "comes after api, which is not there yet"),
        (
            f'{WEB}after = ["api"]\n{API}',
            f'{WEB}{API}after = ["web"]\n',
            {"api"},
            "pools would wait for each other",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(old, new, names, reason):
    with pytest.raises(CommandError) as caught:
        take_over(read(old), read(new), names)
    assert reason in caught.value.message


def test_the_longest_stop_is_the_sum_along_after():
    chain = read(f'{WEB}after = ["api"]\ngraceful_timeout = 20\n{API}graceful_timeout = 5\n').pools
    apart = read(f"{WEB}graceful_timeout = 20\n{API}graceful_timeout = 5\ndrain_delay = 3\n").pools
    assert longest_stop(chain) == 28.0
    assert longest_stop(apart) == 21.5
    assert longest_stop({}) == 0.0
