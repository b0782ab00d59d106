"""Everything at once: processes killed and halted, reloads, upgrades, scaling, recycling; see tests/monkey.py.

Clients are strict. A request may be lost only if it was in flight in a process that was killed by -9.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from prefork.errors import PreforkError
from tests.clients import Load
from tests.harness import (
    Server,
    children_of,
    command_of,
    descriptors_of,
    is_alive,
    wait_until,
    with_descendants,
)
from tests.monkey import Monkey
from tests.process.conftest import Start

# Two minutes are for those who want them: PREFORK_CHAOS=120 scripts/test tests/process/test_chaos.py
SECONDS = float(os.environ.get("PREFORK_CHAOS", "10"))
SEED = int(os.environ.get("PREFORK_CHAOS_SEED", "0")) or random.randrange(1 << 30)
# How long a client may wait that has a pool for itself, in seconds; on a busy machine it is 0.2 here at most, halts included.
LONELY_WAIT = 5.0
# Sizes that nothing but TTIN and TTOU changes.
WORKERS = 3

CONFIG = f"""
[pool.web]
listen = ["127.0.0.1:0"]
wsgi = "chaotic:app"
workers = {WORKERS}
max_requests = 50
graceful_timeout = 20

[pool.preloaded]
listen = ["127.0.0.1:0"]
wsgi = "chaotic:app"
workers = 2
threads = 2
preload = true
max_requests = 50
graceful_timeout = 20

[pool.async]
listen = ["127.0.0.1:0"]
handler = "chaotic:handle"
workers = 2
max_requests = 50
graceful_timeout = 20

[pool.program]
listen = ["127.0.0.1:0"]
command = ["{sys.executable}", "-m", "chaotic_program"]
workers = 2
ready = "notify"
graceful_timeout = 20

[pool.clock]
task = "chaotic:run"
"""
SERVING = ("web", "preloaded", "async", "program")


def settled(server: Server) -> dict[str, Any] | None:
    """Return the status once every pool has what it wants, of one generation, and nothing is under way."""
    try:
        status = server.status()
    except PreforkError:  # an upgrade is still under way
        return None
    generation = status["generation"]
    for pool in status["pools"]:
        states = [(worker["state"], worker["generation"]) for worker in pool["workers"]]
        if states != [("ready", generation)] * pool["wanted"]:
            return None
    return status if status["state"] == "running" else None


def wait_settled(server: Server) -> dict[str, Any]:
    return wait_until(lambda: settled(server), "every pool has what it wants")


def family_of(server: Server) -> list[str]:
    """Return what every process below the master is: its state, unless that is an ordinary one, and its title."""
    family = with_descendants([server.process.pid])
    states = {child: state for pid in family for child, state in children_of(pid).items()}
    titles = ((states[pid], command_of(pid)) for pid in family if pid in states)
    return sorted(title if state in "RSD" else f"{state} {title}" for state, title in titles)


def without_generation(family: list[str]) -> list[str]:
    return [" ".join(word for word in title.split() if not word.startswith("gen=")) for title in family]


def kinds_of_descriptors(server: Server) -> list[str]:
    """Return what the master holds open, without the numbers that tell one of a kind from another."""
    return sorted(what.partition(":[")[0] for what in descriptors_of(server.process.pid).values())


def run_chaos(server: Server, monkey: Monkey, dice: random.Random) -> tuple[list[Load], list[Load]]:
    """Let the monkey loose on a server under load; return the load, and the lonely client of each pool.

    For the second half of the time the lonely clients are by themselves: where a wake-up is lost, the next one of many
    clients brings another, which hides it.
    """
    loads = [Load(server.address(pool), keepalive=2, closing=2, posting=1) for pool in SERVING]
    lonely = [Load(server.address(pool), keepalive=0, closing=1, posting=0) for pool in SERVING]
    with running(lonely):
        with running(loads):
            let_loose(monkey, dice)
        let_loose(monkey, dice)
    return loads, lonely


@contextmanager
def running(loads: list[Load]) -> Iterator[None]:
    """Run clients for as long as the block lasts, and until all of them were answered after it."""
    with ExitStack() as stack:
        for load in loads:
            stack.enter_context(load)
        yield
        for load in loads:
            load.wait_answered(20)


def let_loose(monkey: Monkey, dice: random.Random) -> None:
    """Have the monkey do harm for half of the time."""
    until = time.monotonic() + SECONDS / 2
    while time.monotonic() < until:
        monkey.act()
        time.sleep(dice.random() * 0.4)


def test_chaos_loses_only_what_was_in_flight_in_a_killed_process(start: Start):
    dice = random.Random(SEED)
    server = start(CONFIG).wait_serving()
    wait_settled(server)
    family, descriptors = without_generation(family_of(server)), kinds_of_descriptors(server)
    monkey = Monkey(server, dice)
    try:
        loads, lonely = run_chaos(server, monkey, dice)
        wait_settled(server)  # not under load: somebody is recycled all the time then
        assert not [loss for load in loads + lonely for loss in load.losses if not monkey.excuses(loss)]
        assert all(load.answered > SECONDS * 5 for load in loads)
        waits = {pool: load.slowest for pool, load in zip(SERVING, lonely, strict=True)}
        assert max(waits.values()) < LONELY_WAIT, f"lonely clients waited, in seconds: {waits}"
        server.ask("scale", pool="web", workers=WORKERS)
        server.ask("reload")
        wait_settled(server)
        wait_until(lambda: without_generation(family_of(server)) == family, "no zombie, no stray process")
        wait_until(lambda: kinds_of_descriptors(server) == descriptors, "no descriptor is leaked")
        everybody = with_descendants([server.process.pid])
        assert server.stop() == 0
        assert not [pid for pid in everybody if is_alive(pid)]
        assert "Traceback" not in server.log
    except AssertionError as error:
        raise AssertionError(describe(server, monkey, str(error), family, descriptors)) from error


def describe(server: Server, monkey: Monkey, what: str, family: list[str], descriptors: list[str]) -> str:
    """Return all that may tell how chaos came to a bad end."""
    deeds, now = "\n".join(monkey.deeds), "\n".join(family_of(server))
    held = descriptors_of(server.process.pid) if is_alive(server.process.pid) else {}
    return (
        f"PREFORK_CHAOS_SEED={SEED}: {what}\nmonotonic {time.monotonic():.3f} at {time.strftime('%H:%M:%S')}"
        f"\nits deeds:\n{deeds}\nits log:\n{server.log}\nthe family was {family}, and is:\n{now}"
        f"\nthe master held {descriptors}, and holds {held}"
    )
