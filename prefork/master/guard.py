"""The guard: a small process that sees to it that no worker outlives a dead master for long.

A worker notices the master's death by itself, drains and leaves. One whose handler holds the interpreter in C code
cannot, and nothing inside of that process could: so the master forks the guard, which holds the listeners and a pidfd
of every worker and waits for the end of file on its channel. Then it gives the workers a moment to empty the queues,
shuts the listeners down, so that clients are refused and a new start finds the addresses free, and kills who is still
there at the end of their graceful_timeout. When the last is gone, so is whoever is left in the cgroups of their programs.

It knows what the master knew when it was forked, and is told of workers born since. When the listeners change it is
replaced, as it is when it dies.
"""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NoReturn

from prefork.system import cgroup, process, signals
from prefork.system.process import Child

# The workers' own time for emptying the queue is 0.5 s; a worker that can, has done so by then.
QUEUE_TIME = 0.75
# After its graceful_timeout a worker is given this much more to leave by itself.
MARGIN = 0.5
GRACE = struct.Struct("d")


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
        self, listeners: Iterable[socket.socket], workers: Mapping[int, float], programs: str | None
    ) -> None:
        """Replace the guard by one that knows these listeners and workers (pidfd: graceful_timeout in seconds).

        ``programs`` is the cgroup that holds those of all programs, if there is one.

        Raises OSError when it cannot be forked; the server runs on without.
        """
        self.dismiss()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        kept = [*listeners]
        try:
            self._child = process.fork(lambda: self._watch(theirs, kept, dict(workers), programs))
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._channel = ours

    def add(self, pidfd: int, grace: float) -> None:
        """Tell the guard of a worker that was born."""
        if self._channel is not None:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [pidfd]))]
            with suppress(OSError):  # a dead guard's successor learns of the worker by being forked
                self._channel.sendmsg([GRACE.pack(grace)], ancillary, socket.MSG_NOSIGNAL)

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
        workers: dict[int, float],
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


def _wait_for_masters_death(channel: socket.socket, workers: dict[int, float]) -> None:
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
            elif not _learn_of_worker(channel, poll, workers):
                return


def _learn_of_worker(channel: socket.socket, poll: select.poll, workers: dict[int, float]) -> bool:
    """Note a worker that was born; return False at the end of file."""
    packet, descriptors, _flags, _address = socket.recv_fds(channel, GRACE.size, 1)
    for pidfd in descriptors:
        workers[pidfd] = GRACE.unpack(packet)[0]
        poll.register(pidfd, select.POLLIN)
    return bool(packet)


def _end_orphans(listeners: list[socket.socket], workers: dict[int, float]) -> None:
    died = time.monotonic()
    _wait_for_workers(workers, died + QUEUE_TIME)
    for listener in listeners:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
    while workers:
        pidfd, grace = min(workers.items(), key=lambda worker: worker[1])
        _wait_for_workers(workers, died + grace + MARGIN)
        if pidfd in workers:
            process.kill_by_descriptor(pidfd)
            del workers[pidfd]


def _wait_for_workers(workers: dict[int, float], until: float) -> None:
    """Wait until all workers are gone, or until a time; forget those that are gone."""
    poll = select.poll()
    for pidfd in workers:
        poll.register(pidfd, select.POLLIN)
    while workers and (left := until - time.monotonic()) > 0:
        for pidfd, _ in poll.poll(left * 1000):
            poll.unregister(pidfd)
            del workers[pidfd]
