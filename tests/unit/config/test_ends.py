"""What a pool's end can mean, and what no task can have."""

from __future__ import annotations

import pytest

from tests.unit.config.reading import WEB, problems, read

TASK = '[pool.mail]\ntask = "shop.mail:send"\n'


def test_a_task_needs_no_listener():
    pool = read(TASK).pools["mail"]
    assert (pool.kind, pool.application, pool.listen, pool.restart) == (
        "task",
        "shop.mail:send",
        (),
        "always",
    )


def test_a_task_that_is_written_wrongly_is_told_once():
    ((message, _),) = problems('[pool.mail]\ntask = "shop"\nrestart = "once"\n')
    assert message == ':2: [pool.mail] task: expected "module:attribute", found "shop"'


@pytest.mark.parametrize(
    "line",
    [
        'listen = ["127.0.0.1:1"]',
        "threads = 2",
        "request_timeout = 5",
        "drain_delay = 1",
        "max_connections = 9",
    ],
)
def test_what_has_no_meaning_for_a_task_is_refused(line):
    name = line.partition(" ")[0]
    expected = f":3: [pool.mail] {name}: expected this in a pool of another kind, found a pool with task"
    assert problems(TASK + line) == [(expected, f"remove {name}")]


@pytest.mark.parametrize(
    ("restart", "end"), [("always", "never ends for good"), ("once", "before the server")]
)
def test_a_pool_that_is_never_missed_cannot_be_essential(restart, end):
    ((message, _),) = problems(TASK + f'restart = "{restart}"\nessential = true\n')
    assert message.startswith(':4: [pool.mail] essential: expected restart = "on-failure" or "never" with it')
    assert end in message


@pytest.mark.parametrize("restart", ["on-failure", "never"])
def test_a_pool_that_may_be_missed_can_be_essential(restart):
    assert read(TASK + f'restart = "{restart}"\nessential = true\n').pools["mail"].essential


def test_a_pool_that_serves_does_not_run_once():
    ((message, _),) = problems(WEB + 'restart = "once"')
    assert message == (
        ":4: [pool.web] restart: expected this in a pool whose work has an end, found a pool with wsgi"
    )
