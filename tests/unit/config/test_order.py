"""In which order pools start, and what cannot be an order."""

from __future__ import annotations

import pytest

from prefork.config.order import circle, predecessors
from tests.unit.config.reading import problems, read


def toml(**pools: str) -> str:
    """Return a file of task pools, each with lines of its own."""
    return "".join(f'[pool.{name}]\ntask = "a:b"\n{more}\n' for name, more in pools.items())


def order(**pools: str) -> dict[str, set[str]]:
    found = predecessors(read(toml(**pools)).pools)
    return {name: set(before) for name, before in found.items() if before}


ONCE = 'restart = "once"'


def test_pools_come_after_those_that_they_name():
    assert order(web='after = ["api", "db"]', api="", db="") == {"web": {"api", "db"}}


def test_pools_that_run_once_come_before_all_that_do_not():
    assert order(web="", migrate=ONCE, seed=ONCE) == {"web": {"migrate", "seed"}}


def test_what_comes_before_a_pool_that_runs_once_does_not_wait_for_it():
    found = order(
        db="", pgbouncer='after = ["db"]', migrate=f'{ONCE}\nafter = ["pgbouncer"]', web='after = ["db"]'
    )
    assert found == {"pgbouncer": {"db"}, "migrate": {"pgbouncer"}, "web": {"db", "migrate"}}


def test_those_that_run_once_may_have_an_order_of_their_own():
    assert order(seed=f'{ONCE}\nafter = ["migrate"]', migrate=ONCE) == {"seed": {"migrate"}}


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        ({}, []),
        ({"a": {"b"}, "b": set()}, []),
        ({"a": {"b"}, "b": {"a"}}, ["a", "b"]),
        ({"x": {"a"}, "a": {"b", "y"}, "b": {"c"}, "c": {"a"}, "y": set()}, ["a", "b", "c"]),
    ],
)
def test_a_circle_is_found_without_what_hangs_on_it(graph, found):
    assert circle(graph) == found


def test_a_long_chain_is_no_circle_and_no_overflow():
    chain = {str(number): frozenset({str(number - 1)}) if number else frozenset() for number in range(3000)}
    assert circle(chain) == []
    assert circle(chain | {"0": frozenset({"2999"})})[:2] == ["0", "2999"]


def test_names_that_are_no_other_pools_are_refused():
    assert problems(toml(web='after = ["wbe", "api", "web"]', api="")) == [
        (
            ':3: [pool.web] after[0]: expected the name of a pool, found "wbe"',
            "did you mean web?",
        ),
        (
            ':3: [pool.web] after[2]: expected the name of another pool, found "web", which is this one itself',
            None,
        ),
    ]
    (only,) = problems(toml(web='after = ["xyzzy"]', api=""))
    assert only[1] == "the pools are web, api"


def test_a_circle_is_shown():
    text = toml(cron="", web='after = ["api"]', api='after = ["db"]', db='after = ["web"]')
    message = "expected pools in an order, found a circle: web after api after db after web"
    assert problems(text) == [(f":6: [pool.web] after: {message}", None)]


def test_a_circle_that_no_line_alone_shows_is_explained():
    text = toml(db="", web="", migrate=f'{ONCE}\nafter = ["db"]', seed=f'{ONCE}\nafter = ["web"]')
    ((message, hint),) = problems(text)
    assert message.endswith("found a circle: seed after web after migrate after db after seed")
    assert hint == 'every pool comes after those with restart = "once" that do not come after it'


@pytest.mark.parametrize(
    ("written", "found", "hint"),
    [
        ('"db"', '"db"', 'write after = ["db"]'),
        ("3", "3", 'write after = ["echo"]'),
        ("[3]", "a list", 'write after = ["echo"]'),
    ],
)
def test_what_is_no_list_of_names_is_refused(written, found, hint):
    expected = f":3: [pool.web] after: expected a list of pools' names, found {found}"
    assert problems(toml(web=f"after = {written}")) == [(expected, hint)]
