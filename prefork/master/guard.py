"""The guard: a small process that sees to it that no worker outlives a dead master for long.

A worker notices the master's death by itself, drains and leaves. One whose handler holds the interpreter in C code
cannot, and nothing inside of that process could: so the master forks the guard, which holds the listeners and a pidfd
of every worker and waits for the end of file on its channel. Then it gives the workers a moment to empty the queues,
shuts the listeners down, so that clients are refused and a new start finds the addresses free, and kills the workers
that are still there at the end of their graceful_timeout, with all that they have started. When the last is gone, so is
whoever is left in the cgroups of their programs.

It knows what the master knew when it was forked, and is told of workers born since, and of the processes that workers
detach. When the listeners change it is replaced, as it is when it dies.
"""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NoReturn

import msgspec

from prefork.log import Identity
from prefork.master.charge import Charge, note_detached
from prefork.system import cgroup, process, signals, tree
from prefork.system.process import Child
from prefork.worker import leaving

# The workers' own time for emptying the queue is 0.5 s; a worker that can, has done so by then.
QUEUE_TIME = 0.75
# After its graceful_timeout a worker is given this much more to leave by itself.
MARGIN = 0.5
MAX_PACKET = 65536


class Ward(msgspec.Struct, tag=True):
    """A worker as the guard knows it; a packet with it carries the worker's pidfd.

    Attributes:
        identity: the worker's; its pid is in it.
        grace: for how many seconds it may go on without a master.
        stacks: the inode of the pipe for its stacks, which its copies hold.
        detached: the processes that are not to be ended with it: when each began, by its pid.

    """

    identity: Identity
    grace: float
    stacks: int
    detached: dict[int, int]

    def kill(self, pidfd: int, known: set[int]) -> None:
        """Kill it as the master does (Charge.kill), and the orphans that it has left behind.

        Those were the master's children, and have moved on to the same process as the guard; ``known`` are children of
        that process which are none of them.
        """
        process.signal_by_descriptor(pidfd, signal.SIGSTOP)
        tree.kill_below(self.identity.pid, self.detached)
        process.signal_by_descriptor(pidfd, signal.SIGKILL)
        leaving.end_orphans(os.getppid(), self.identity, self.stacks, known, self.detached)


class Detached(msgspec.Struct, tag=True):
    """A process that a worker has detached."""

    worker: int
    pid: int
    began: int


def ward_of(charge: Charge) -> Ward:
    """Return what the guard has to know of a worker."""
    return Ward(charge.identity, charge.grace, charge.stacks_inode, charge.detached)


class Guard:
    """The master's hold on its guard.

    Args:
        title: shows in the process list.
        set_title: gives a process its title.

    """

    def __init__(self, title: str, set_title: Callable[[str], None]) -> None:
        self._title = title
        self._set_title = set_title
        self._child: Child | None = None
        self._channel: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The guard's process, if there is one."""
        return self._child.pid if self._child else None

    def past(self) -> list[Any]:
        """Return the guard for a program that takes over: it must not find its channel closed."""
        return [self._child, self._channel]

    def resume(self, past: list[Any]) -> None:
        """Hold the guard that the program before has posted."""
        self._child, self._channel = past

    def post(
        self, listeners: Iterable[socket.socket], charges: Iterable[Charge], programs: str | None
    ) -> None:
        """Replace the guard by one that knows these listeners and workers, those that have a pidfd.

        ``programs`` is the cgroup that holds those of all programs, if there is one.

        Raises OSError when it cannot be forked; the server runs on without.
        """
        self.dismiss()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        kept = [*listeners]
        workers = {
            charge.child.pidfd: ward_of(charge) for charge in charges if charge.child.pidfd is not None
        }
        try:
            self._child = process.fork(lambda: self._watch(theirs, kept, workers, programs))
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._channel = ours

    def add(self, charge: Charge) -> None:
        """Tell the guard of a worker that was born."""
        if charge.child.pidfd is not None:
            self._tell(ward_of(charge), charge.child.pidfd)

    def detach(self, charge: Charge, pid: int, began: int) -> None:
        """Tell the guard of a process that is not to be ended with a worker."""
        self._tell(Detached(charge.child.pid, pid, began))

    def _tell(self, news: Ward | Detached, *descriptors: int) -> None:
        if self._channel is not None:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
            with suppress(OSError):  # a dead guard's successor learns of it by being forked
                self._channel.sendmsg(
                    [msgspec.msgpack.encode(news)], ancillary if descriptors else (), socket.MSG_NOSIGNAL
                )

    def dismiss(self) -> None:
        """End the guard: it is not needed any more. It is reaped like every child."""
        if self._child is not None:
            with suppress(ProcessLookupError):
                self._child.send_signal(signal.SIGKILL)
        self.forget()

    def forget(self) -> None:
        """Take notice that the guard is dead, or as good as that."""
        if self._child is not None:
            self._child.close()
            self._child = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _watch(
        self,
        channel: socket.socket,
        listeners: list[socket.socket],
        workers: dict[int, Ward],
        programs: str | None,
    ) -> NoReturn:
        process.close_all_but([channel.fileno(), *(found.fileno() for found in listeners), *workers])
        signals.reset_for_worker()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to the whole group, it means the master
        signals.unblock_all()
        self._set_title(self._title)
        _wait_for_masters_death(channel, workers)
        _end_orphans(listeners, workers)
        if programs is not None:
            cgroup.clear(programs)
        os._exit(0)


def _wait_for_masters_death(channel: socket.socket, workers: dict[int, Ward]) -> None:
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    for pidfd in workers:
        poll.register(pidfd, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor != channel.fileno():
                poll.unregister(descriptor)
                os.close(descriptor)
                del workers[descriptor]
            elif not _learn(channel, poll, workers):
                return


def _learn(channel: socket.socket, poll: select.poll, workers: dict[int, Ward]) -> bool:
    """Take a packet of the master's; return False at the end of file."""
    packet, descriptors, _flags, _address = socket.recv_fds(channel, MAX_PACKET, 1)
    if not packet:
        return False
    news = msgspec.msgpack.decode(packet, type=Ward | Detached)
    if isinstance(news, Ward):
        for pidfd in descriptors:  # none, if there was no room for one more
            workers[pidfd] = news
            poll.register(pidfd, select.POLLIN)
    else:
        for ward in workers.values():
            if ward.identity.pid == news.worker:
                note_detached(ward.detached, news.pid, news.began)
    return True


def _end_orphans(listeners: list[socket.socket], workers: dict[int, Ward]) -> None:
    died = time.monotonic()
    _wait_for_workers(workers, died + QUEUE_TIME)
    for listener in listeners:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
    while workers:
        pidfd, ward = min(workers.items(), key=lambda worker: worker[1].grace)
        _wait_for_workers(workers, died + ward.grace + MARGIN)
        if pidfd in workers:
            ward.kill(pidfd, {os.getpid(), *(found.identity.pid for found in workers.values())})
            del workers[pidfd]


def _wait_for_workers(workers: dict[int, Ward], until: float) -> None:
    """Wait until all workers are gone, or until a time; forget those that are gone."""
    poll = select.poll()
    for pidfd in workers:
        poll.register(pidfd, select.POLLIN)
    while workers and (left := until - time.monotonic()) > 0:
        for pidfd, _ in poll.poll(left * 1000):
            poll.unregister(pidfd)
            del workers[pidfd]
