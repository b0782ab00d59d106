"""Everything at once: workers, templates and programs killed and halted, reloads, upgrades, scaling, recycling.

Clients are strict. A request may be lost only if the process that held its connection was killed by -9: each victim is
halted first, and the connections that it holds are noted.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from prefork.errors import PreforkError
from tests.clients import Load
from tests.harness import Server, children_of, command_of, descriptors_of, is_alive, session_of, wait_until
from tests.process.conftest import Start

# The suite has no two minutes for it: PREFORK_CHAOS=120 scripts/test tests/process/test_chaos.py
SECONDS = float(os.environ.get("PREFORK_CHAOS", "0"))
SEED = int(os.environ.get("PREFORK_CHAOS_SEED", "0")) or random.randrange(1 << 30)

CONFIG = """
[pool.web]
listen = ["127.0.0.1:0"]
wsgi = "chaotic:app"
workers = 3
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

[pool.program]
listen = ["127.0.0.1:0"]
command = ["{python}", "-m", "chaotic_program"]
workers = 2
ready = "notify"
graceful_timeout = 20

[pool.clock]
task = "chaotic:run"
"""


class Monkey:
    """Does harm at random, and remembers which connections died with a victim."""

    def __init__(self, server: Server, dice: random.Random) -> None:
        self.server = server
        self.dice = dice
        self.excused: set[int] = set()
        self.deeds: list[str] = []

    def act(self) -> None:
        """Do one thing."""
        deed = self.dice.choice(
            [self.kill_a_worker] * 3
            + [self.kill_a_descendant, self.halt_a_worker]
            + [lambda number=number: self.signal(number) for number in SIGNALS]
        )
        deed()

    def signal(self, number: signal.Signals) -> None:
        self.deeds.append(number.name)
        self.server.signal(number)

    def kill_a_worker(self) -> None:
        """Kill a worker of any pool."""
        if workers := self.workers():
            self.kill(self.dice.choice(workers))

    def kill_a_descendant(self) -> None:
        """Kill anybody but the master and its guard: templates and the children of programs too."""
        spared = {self.server.process.pid}
        others = [
            pid for pid in session_of(self.server.process.pid) if pid not in spared and not is_guard(pid)
        ]
        if others:
            self.kill(self.dice.choice(others))

    def halt_a_worker(self) -> None:
        """Stop a worker for a moment."""
        if workers := self.workers():
            pid = self.dice.choice(workers)
            self.deeds.append(f"halt {pid}")
            send(pid, signal.SIGSTOP)
            time.sleep(self.dice.random() * 0.3)
            send(pid, signal.SIGCONT)

    def kill(self, pid: int) -> None:
        """Kill a process, with all below it: a program ends with the worker beside it."""
        self.deeds.append(f"kill {pid}")
        for victim in tree_of(pid):
            send(victim, signal.SIGSTOP)
            wait_until(lambda victim=victim: state_of(victim) in "TZX", f"{victim} stands still")
            self.excused |= client_ports_of(victim)
        send(pid, signal.SIGKILL)

    def workers(self) -> list[int]:
        try:
            pools = self.server.status()["pools"]
        except PreforkError:  # the master has no time now: it stops, or executes itself anew
            return []
        return [worker["pid"] for pool in pools for worker in pool["workers"]]


SIGNALS = [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU]


def send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it has ended by itself meanwhile


def state_of(pid: int) -> str:
    """Return a process's state as proc(5) has it, X for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def tree_of(pid: int) -> list[int]:
    """Return a process and all below it."""
    return [pid, *(found for child in children_of(pid) for found in tree_of(child))]


def is_guard(pid: int) -> bool:
    try:
        return b"guard" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


def client_ports_of(pid: int) -> set[int]:
    """Return the clients' ports of all TCP connections that a process holds (proc(5))."""
    try:
        held = set(descriptors_of(pid).values())
    except OSError:
        return set()
    return {port for inode, port in tcp_connections() if f"socket:[{inode}]" in held}


def tcp_connections() -> Iterator[tuple[str, int]]:
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        yield fields[9], int(fields[2].rpartition(":")[2], 16)


def settled(server: Server) -> dict[str, Any] | None:
    """Return the status once every pool has what it wants, of one generation, and nothing is under way."""
    try:
        status = server.status()
    except PreforkError:
        return None
    generation = status["generation"]
    for pool in status["pools"]:
        states = [(worker["state"], worker["generation"]) for worker in pool["workers"]]
        if states != [("ready", generation)] * pool["wanted"]:
            return None
    return status if status["state"] == "running" else None


@pytest.mark.skipif(not SECONDS, reason="runs for as long as PREFORK_CHAOS says, in seconds")
def test_chaos_loses_only_what_was_in_flight_in_a_killed_process(start: Start):
    dice = random.Random(SEED)
    server = start(CONFIG.format(python=sys.executable)).wait_serving()
    before = len(descriptors_of(server.process.pid))
    monkey = Monkey(server, dice)
    loads = [
        Load(server.address(pool), keepalive=2, closing=2, posting=1)
        for pool in ("web", "preloaded", "program")
    ]
    with ExitStack() as stack:
        for load in loads:
            stack.enter_context(load)
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            monkey.act()
            time.sleep(dice.random() * 0.4)
        status = wait_until(lambda: settled(server), f"the wanted state (seed {SEED}, {monkey.deeds})")
        for load in loads:
            load.wait_answered(20)
    unexcused = [loss for load in loads for loss in load.losses if loss.port not in monkey.excused]
    assert not unexcused, f"seed {SEED}: {unexcused}\n{server.log}"
    assert all(load.answered > SECONDS * 10 for load in loads)
    server.ask("reload")
    status = wait_until(lambda: settled(server), "one more generation")
    expected = sum(pool["wanted"] for pool in status["pools"]) + 2  # the template and the guard
    try:
        wait_until(
            lambda: len(children_of(server.process.pid)) == expected, "no zombie, no stray child", timeout=10
        )
    except AssertionError:
        children = children_of(server.process.pid)
        listed = [f"{pid} {state} {command_of(pid)}" for pid, state in children.items()]
        raise AssertionError(f"expected {expected} children, found {listed} (seed {SEED})") from None
    assert "Z" not in children_of(server.process.pid).values()
    wait_until(lambda: len(descriptors_of(server.process.pid)) <= before + 12, "no descriptor is leaked")
    pids = session_of(server.process.pid)
    assert server.stop() == 0
    assert not any(is_alive(pid) for pid in pids)
