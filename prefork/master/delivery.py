"""Workers that templates were told to fork and that are not born yet.

A template gets one order at a time, as the queue of a Unix socket may hold no more than ten (net.unix.max_dgram_qlen).
The worker itself answers, on the channel that came with the order: so no news of it is heard out of turn, and however
it comes to nothing - the template is dead, or the fork has failed - the end of file on that channel says so.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import time
from collections import defaultdict, deque
from collections.abc import Callable
from functools import partial

import msgspec

from prefork.log import STDERR
from prefork.master.charge import Charge, Means, charge_of, shared
from prefork.master.server import Server
from prefork.supervisor import events
from prefork.supervisor.actions import Disown, Spawn
from prefork.supervisor.events import Event
from prefork.system import process
from prefork.system.process import Child
from prefork.worker import channel
from prefork.worker.channel import Born, FromUnborn, NotBorn, ProtocolError

Received = tuple[FromUnborn, int] | None
Outcome = events.Spawned | events.SpawnFailed

GONE = "its template ended before it was forked"
IMPOSTOR = "its template answered with a process that is not a new child of the master"


class Unborn(msgspec.Struct):
    """A worker that a template was told to fork, with what its Charge will be made of."""

    spawn: Spawn
    template: Charge
    means: Means
    files: tuple[str, str]
    ordered: float

    def bear(self, child: Child) -> Charge:
        """Return the worker, now that it is a process; its age counts from the order."""
        charge = charge_of(self.spawn, child, self.template.board, self.means, self.files)
        charge.born = self.ordered
        return charge

    def close(self) -> None:
        """Give back what the master held for it."""
        self.means.ours.close()
        os.close(self.means.stacks_read)
        self.template.board.release(self.means.row)


class Delivery:
    """Orders workers of templates and takes them in.

    Args:
        server: what the master holds.
        selector: the master's.
        feed: tells the supervisor of an event.
        later: calls a function after so many seconds.
        welcome: takes a worker in that was born.

    """

    def __init__(
        self,
        server: Server,
        selector: selectors.BaseSelector,
        feed: Callable[[Event], None],
        later: Callable[[float, Callable[[], None]], None],
        welcome: Callable[[Charge], None],
    ) -> None:
        self._server = server
        self._selector = selector
        self._feed = feed
        self._later = later
        self._welcome = welcome
        self._unborn: dict[int, Unborn] = {}
        # By the births of the templates: the first one of each was ordered, the others wait.
        self._queues: defaultdict[int, deque[Spawn]] = defaultdict(deque)

    def order(self, spawn: Spawn) -> events.Ordered | events.SpawnFailed:
        """Have a worker forked by the template of its pool and generation, as soon as that is free."""
        template = self._server.template_for(spawn)
        if template is None:
            return events.SpawnFailed(spawn.birth, GONE)
        self._queues[template.birth].append(spawn)
        if len(self._queues[template.birth]) == 1:
            self._send_next(template)
        return events.Ordered(spawn.birth)

    def disown(self, disown: Disown) -> Outcome:
        """Wait for a worker no longer: it is born by now, or it never will be."""
        unborn = self._unborn.get(disown.birth)
        if unborn is not None:
            self._take_out(unborn)
            return self._outcome(unborn, self._last_word(unborn), disown.reason)
        for queue in self._queues.values():
            for spawn in [spawn for spawn in queue if spawn.birth == disown.birth]:
                queue.remove(spawn)
        return events.SpawnFailed(disown.birth, disown.reason)

    def hear(self) -> None:
        """Take in whoever is born by now."""
        for birth in list(self._unborn):
            if birth in self._unborn:  # what is heard of one may be the end of another
                self._hear(self._unborn[birth])

    def _send_next(self, template: Charge) -> None:
        """Order the next worker of a template; whoever cannot be ordered is reported once this turn's work is done."""
        queue = self._queues[template.birth]
        while queue and (reason := self._send(queue[0], template)) is not None:
            failed = events.SpawnFailed(queue.popleft().birth, reason)
            self._later(0.0, partial(self._feed, failed))
        if not queue:
            del self._queues[template.birth]

    def _send(self, spawn: Spawn, template: Charge) -> str | None:
        """Order a worker; return what is in the way."""
        try:
            unborn = order(self._server, spawn, template)
        except OSError as error:
            return f"cannot be ordered of its template: {error.strerror}"
        except IndexError:
            return "its scoreboard is full"
        self._unborn[spawn.birth] = unborn
        self._selector.register(unborn.means.ours, selectors.EVENT_READ, lambda _mask: self._hear(unborn))
        return None

    def _take_out(self, unborn: Unborn) -> None:
        """Let go of an order that is done with, one way or another; the template is free for the next one."""
        del self._unborn[unborn.spawn.birth]
        self._selector.unregister(unborn.means.ours)
        self._queues[unborn.template.birth].popleft()
        self._send_next(unborn.template)

    def _hear(self, unborn: Unborn) -> None:
        try:
            received = self._receive(unborn)
        except BlockingIOError:
            return
        self._take_out(unborn)
        self._feed(self._outcome(unborn, received, GONE))

    def _receive(self, unborn: Unborn) -> Received:
        """Return what is heard of an unborn worker. Raises BlockingIOError if that is nothing yet."""
        try:
            return channel.receive_from_unborn(unborn.means.ours)
        except ProtocolError as error:
            self._denounce(unborn.template, f"a worker of it sent an invalid message: {error}")
            return None

    def _last_word(self, unborn: Unborn) -> Received:
        """Return what an unborn worker has said by now; if it has not, it finds nobody to say it to, and ends."""
        try:
            return self._receive(unborn)
        except BlockingIOError:
            # What was said right before this can still be read; who has said it finds the channel closed, and drains.
            unborn.means.ours.shutdown(socket.SHUT_RDWR)
            return self._receive(unborn)

    def _is_new(self, pid: int) -> bool:
        """Tell whether a process is a child of the master that it does not know yet: it would signal any that it is told."""
        known = (charge.child.pid for charge in self._server.charges.values())
        return process.is_child(pid) and pid not in known

    def _denounce(self, template: Charge, reason: str) -> None:
        """Have a template ended that cannot be believed, once this turn's work is done."""
        self._later(0.0, partial(self._feed, events.Invalid(template.birth, reason)))

    def _outcome(self, unborn: Unborn, received: Received, otherwise: str) -> Outcome:
        """Take in whoever is born; ``otherwise`` tells why somebody of whom nothing was heard is not."""
        match received:
            case Born(), pid if not self._is_new(pid):
                self._denounce(unborn.template, IMPOSTOR)
                unborn.close()
                return events.SpawnFailed(unborn.spawn.birth, IMPOSTOR)
            case Born(), pid:
                charge = unborn.bear(Child(pid))
                self._server.take_in(charge)
                self._welcome(charge)
                return events.Spawned(charge.birth, pid)
            case NotBorn(reason, traceback), _:
                unborn.close()
                return events.SpawnFailed(unborn.spawn.birth, reason, traceback)
            case _:
                unborn.close()
                return events.SpawnFailed(unborn.spawn.birth, otherwise)


def order(server: Server, spawn: Spawn, template: Charge) -> Unborn:
    """Tell a template to fork a worker. Raises OSError or IndexError, with everything given back."""
    plan = server.plan_for(spawn.generation)
    outlets = plan.outlets_of(spawn.pool)
    files = [descriptor for descriptor in outlets.descriptors() if descriptor > STDERR]
    with shared(template.board) as means:
        channel.ask_for_senders(means.ours)
        fork = channel.Fork(spawn.slot, means.row, outlets.log, outlets.access, spawn.max_requests)
        if not channel.send(template.channel, fork, [means.theirs.fileno(), means.stacks_write, *files]):
            raise OSError(errno.EPIPE, "it takes no orders")
    return Unborn(spawn, template, means, plan.files, time.monotonic())
