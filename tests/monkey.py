"""A monkey that does harm to a server at random: kills and halts its processes, and sends signals to its master.

Each victim is halted before it is killed, so that the connections that die with it are known to be in its hands: those,
and no others, are excused.
"""

from __future__ import annotations

import os
import random
import select
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from prefork.errors import PreforkError
from tests.clients import Loss
from tests.harness import PATIENCE, Server, children_of, descriptors_of, wait_until, with_descendants

SIGNALS = [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU]
# How long anybody is halted at most, in seconds; what a killed worker makes the others wait is less.
HALT = 0.4


class Kill(NamedTuple):
    """When somebody was killed: when the process stood still, and when it was gone."""

    halted: float
    gone: float


class Monkey:
    """Does harm, and remembers which connections died with a victim.

    Attributes:
        deeds: what it has done, for people.

    """

    def __init__(self, server: Server, dice: random.Random) -> None:
        self.deeds: list[str] = []
        self._server = server
        self._master = server.process.pid
        self._dice = dice
        self._kills: defaultdict[tuple[int, int], list[Kill]] = defaultdict(list)
        self._deck: list[Callable[[], None]] = []

    def act(self) -> None:
        """Do one thing: each in its turn, in an order that changes."""
        if not self._deck:
            self._deck = [
                *[self._kill_a_worker] * 3,
                *[self._kill_anybody] * 2,
                self._halt_a_worker,
                self._halt_the_master,
                *[lambda number=number: self._signal(number) for number in SIGNALS],
            ]
            self._dice.shuffle(self._deck)
        self._deck.pop()()

    def excuses(self, loss: Loss) -> bool:
        """Tell whether a request was in flight in a process when that was killed."""
        return any(
            kill.halted <= loss.at and loss.began <= kill.gone
            for kill in self._kills[loss.server_port, loss.port]
        )

    # The deeds.

    def _signal(self, number: signal.Signals) -> None:
        self._note(number.name)
        self._server.signal(number)

    def _kill_a_worker(self) -> None:
        """Kill a worker of any pool; a program's ends with the worker beside it."""
        if workers := self._workers():
            self._kill(self._dice.choice(workers))

    def _kill_anybody(self) -> None:
        """Kill somebody below the master: a template, a guard, a program or a child of one, the next version's rehearsal."""
        if others := [pid for pid in with_descendants([self._master]) if pid != self._master]:
            self._kill(self._dice.choice(others))

    def _halt_a_worker(self) -> None:
        if workers := self._workers():
            self._halt(self._dice.choice(workers), "worker", lambda: None)

    def _halt_the_master(self) -> None:
        """Stop the master for a while, in which somebody may be killed."""
        self._halt(self._master, "master", self._dice.choice([self._kill_anybody, lambda: None]))

    def _halt(self, pid: int, what: str, meanwhile: Callable[[], None]) -> None:
        seconds = self._dice.random() * HALT
        self._note(f"halt {what} {pid} for {seconds:.2f} s")
        send(pid, signal.SIGSTOP)
        time.sleep(seconds)  # that is the harm itself
        meanwhile()
        send(pid, signal.SIGCONT)

    def _kill(self, pid: int) -> None:
        tree = [(victim, os.pidfd_open(victim)) for victim in tree_of(pid) if is_there(victim)]
        try:
            held = {victim: halt(victim) for victim, _ in tree}
            halted = time.monotonic()
            self._note(f"kill {pid} with {sum(map(len, held.values()))} connections")
            send(pid, signal.SIGKILL)
            for victim, pidfd in tree:
                send(victim, signal.SIGCONT)  # whoever need not end with it goes on
                if victim == pid or held[victim]:
                    wait_for_end(victim, pidfd)
                kill = Kill(halted, time.monotonic())
                for connection in held[victim]:
                    self._kills[connection].append(kill)
        finally:
            for _, pidfd in tree:
                os.close(pidfd)

    def _note(self, deed: str) -> None:
        self.deeds.append(f"{time.strftime('%H:%M:%S')} {deed}")

    def _workers(self) -> list[int]:
        try:
            pools = self._server.status()["pools"]
        except PreforkError:  # the master executes itself anew: its control socket's clients are cut off
            return []
        return [worker["pid"] for pool in pools for worker in pool["workers"]]


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended by itself meanwhile."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def halt(pid: int) -> set[tuple[int, int]]:
    """Stop a process, with all its threads, and return the connections that it holds."""
    send(pid, signal.SIGSTOP)
    wait_until(lambda: stands_still(pid), f"{pid} stands still")
    return connections_of(pid)


def stands_still(pid: int) -> bool:
    """Tell whether all threads of a process are stopped, or gone."""
    try:
        return all(state_of(thread) in "TtZX" for thread in Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return True


def is_there(pid: int) -> bool:
    """Tell whether a process exists, dead or alive."""
    return state_of(Path(f"/proc/{pid}")) != "X"


def state_of(folder: Path) -> str:
    """Return a process's or a thread's state as proc(5) has it, X for one that is gone."""
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def wait_for_end(pid: int, pidfd: int) -> None:
    """Wait until a process has ended with all its threads, and so has closed what it held."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(PATIENCE * 1000), f"{pid} does not end"


def tree_of(pid: int) -> list[int]:
    """Return a process and all below it."""
    return [pid, *(found for child in children_of(pid) for found in tree_of(child))]


def connections_of(pid: int) -> set[tuple[int, int]]:
    """Return the TCP connections that a process holds, each as the server's and the client's port (proc(5))."""
    try:
        held = set(descriptors_of(pid).values())
    except OSError:
        return set()
    return {ports for inode, ports in tcp_connections() if f"socket:[{inode}]" in held}


def tcp_connections() -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the inode and the ports, local and remote, of every IPv4 socket."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, remote = (int(fields[number].rpartition(":")[2], 16) for number in (1, 2))
        yield fields[9], (local, remote)
