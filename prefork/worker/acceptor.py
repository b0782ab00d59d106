"""Taking connections from listeners that all workers of a pool share, so that each worker holds its fair part.

A worker that holds clearly more connections than another one that could take the next steps back: it lets the
others go first, and takes a connection only if it still waits after a head start. Stepping back is a way of
being registered with epoll, so it costs nothing while nobody connects:

    EAGER   exclusive and level-triggered: the kernel wakes one eager worker per connection, not all of them
    MODEST  edge-triggered: woken by every arrival, looks again HEAD_START later; what it leaves is reported anew
    PAUSED  not registered: at the limit of connections, or out of descriptors

An exclusive registration cannot be modified, only removed and added (epoll_ctl(2)); what is waiting at that moment
is reported by the addition, so no connection is forgotten between the two.

A worker that leaves may have been the one that the kernel woke: the wake-up is used up, and a single client would
wait beside idle workers until the next one comes. So whoever leaves takes what it may have been woken for
(``leave``), and where a worker has died, the others look for themselves (``look_again``).
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

# How much later than the others a worker that holds more of the connections tries to accept.
# An idle worker takes far less to wake up, but on a starved machine it has to wait for its turn.
HEAD_START = 0.01
# How long a worker without free descriptors or memory waits before it tries again; nginx waits 0.5 s.
SHORTAGE_PAUSE = 0.2
SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# What accept reports of a listener that was shut down: by the master, or by a sibling, which need not mean well.
SHUT = errno.EINVAL
# How long after that it is tried again: the master sees to it within a moment, or never.
SHUT_PAUSE = 1.0
# What accept reports of a connection that failed while it was queued (accept(2)): the next one may be fine.
TRANSIENT = {errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR, errno.ENETDOWN, errno.EHOSTUNREACH}

# The connection, its peer's address, the descriptor of the listener that it came by.
Accepted = tuple[socket.socket, Any, int]


class Mode(Enum):
    """How a worker stands to the queue of its listeners; the values are epoll's flags."""

    EAGER = select.EPOLLIN | getattr(select, "EPOLLEXCLUSIVE", 0)
    MODEST = select.EPOLLIN | select.EPOLLET
    PAUSED = 0


class Acceptor:
    """The listeners of one epoll loop.

    The loop calls ``signal`` for events of the descriptors in ``descriptors``, then ``take`` once a turn, waits
    no longer than until ``due``, and calls ``settle`` whenever it holds more or fewer connections than before.

    Args:
        epoll: the loop's poll object.
        listeners: the listening sockets, non-blocking.
        least_of_others: given the time, the smallest number of connections of another worker that could take the
            next one.
        limit: how many connections may be held at once.
        report: called once with a message each time descriptors run out.
        make: makes a connection of family, type, protocol and descriptor.

    """

    def __init__(
        self,
        epoll: select.epoll,
        listeners: Sequence[socket.socket],
        least_of_others: Callable[[float], int | None],
        limit: int,
        report: Callable[[str], None],
        make: Callable[[int, int, int, int], Any] = socket.socket,
    ) -> None:
        self._make = make
        self.descriptors = {listener.fileno(): listener for listener in listeners}
        self._kinds = {
            listener.fileno(): (int(listener.family), int(listener.type), listener.proto)
            for listener in listeners
        }
        self.due: float | None = None
        self._epoll = epoll
        self._least_of_others = least_of_others
        self._limit = limit
        self._report = report
        self._mode = Mode.PAUSED
        self._signalled: dict[int, None] = {}  # an ordered set: who was reported first is asked first
        self._short_until = 0.0
        # Listeners that are shut, and when they are tried again: the master has a TCP listener listen again.
        self._shut: dict[int, socket.socket] = {}
        self._retry_at: float | None = None

    def signal(self, descriptor: int, now: float) -> None:
        """Note that epoll reported a listener."""
        self._signalled.setdefault(descriptor)
        if self._mode is Mode.MODEST and self.due is None:
            self.due = now + HEAD_START

    def take(self, now: float) -> Accepted | None:
        """Return a connection if it is this worker's turn to accept one.

        One at a time, so that each is weighed against what the others hold, by ``settle``. What is left behind is found
        by the next call, or reported again.
        """
        if self._mode is not Mode.EAGER and (self.due is None or now < self.due):
            return None
        self.due = self._retry_at
        if self._retry_at is not None and now >= self._retry_at:
            self._try_shut_again()
        if self._mode is Mode.PAUSED:
            return None  # a shortage is over: the caller's settle() comes next
        accepted = None
        while self._signalled and accepted is None:
            accepted = self._accept(next(iter(self._signalled)), now)
        if self._mode is Mode.MODEST:
            self._report_anew()
        return accepted

    def settle(self, held: int, now: float) -> None:
        """Choose how to stand to the queue, given how many connections this worker holds."""
        if held < 2 and held < self._limit and self._mode is Mode.EAGER:
            return  # the usual case, once or twice for each connection
        if held >= self._limit:
            self._stand(Mode.PAUSED)
        elif now < self._short_until:
            self._stand(Mode.PAUSED)
            self.due = self._short_until
        elif held >= 2 and self._holds_clearly_more(held, now):
            self._stand(Mode.MODEST)
        else:
            self._stand(Mode.EAGER)

    def look_again(self) -> None:
        """Have epoll report anew what waits: the wake-up for it may have gone to a worker that has died."""
        mode = self._mode
        self._stand(Mode.PAUSED)
        if mode is not Mode.PAUSED:
            self._stand(mode)

    def stand_aside(self) -> None:
        """Hear no more of new connections; ``next_in_queue`` still finds them."""
        self._stand(Mode.PAUSED)

    def next_in_queue(self) -> Accepted | None:
        """Return a connection that waits, whatever the others hold: nobody comes after these workers."""
        return next(filter(None, map(self._accept_now, tuple(self.descriptors))), None)

    def empty_queue(self) -> list[Accepted]:
        """Return every connection that waits: nobody comes after this worker."""
        return list(iter(self.next_in_queue, None))

    def leave(self, most: int) -> list[Accepted]:
        """Leave the queue for good, and return what this worker may have been woken for.

        Args:
            most: how many wake-ups it may have used up for each listener: one for each thread that waited.

        """
        was_eager = self._mode is Mode.EAGER  # only an exclusive wake-up is one that nobody else has had
        self._stand(Mode.PAUSED)  # from here on the kernel wakes the others
        places = [fd for fd in self.descriptors for _ in range(most)] if was_eager else []
        taken = [accepted for accepted in map(self._accept_now, places) if accepted is not None]
        self.close()
        return taken

    def close(self) -> None:
        """Leave the queue for good and close this process's copies of the listeners."""
        self._stand(Mode.PAUSED)
        for listener in (*self.descriptors.values(), *self._shut.values()):
            listener.close()
        self.descriptors.clear()
        self._shut.clear()
        self.due = self._retry_at = None

    def _holds_clearly_more(self, held: int, now: float) -> bool:
        least = self._least_of_others(now)
        # One eighth keeps 200 connections over four workers well within 1.5 : 1 and changes modes rarely.
        return least is not None and held - least > max(1, least // 8)

    def _stand(self, mode: Mode) -> None:
        if mode is self._mode:
            return
        for descriptor in self.descriptors:
            if self._mode is not Mode.PAUSED:
                self._epoll.unregister(descriptor)
            if mode is not Mode.PAUSED:
                self._epoll.register(descriptor, mode.value)
        self._mode = mode
        self._signalled.clear()
        self.due = self._retry_at

    def _accept(self, descriptor: int, now: float) -> Accepted | None:
        """Accept one connection, if there is one."""
        try:
            # accept() itself looks up the listener's family and type as enumerations for each connection, which
            # takes as long as the system call; gevent calls it likewise.
            taken, address = self.descriptors[descriptor]._accept()  # type: ignore[attr-defined]  # noqa: SLF001
        except BlockingIOError:
            self._signalled.pop(descriptor, None)
            return None
        except OSError as error:
            self._endure(error, descriptor, now)
            return None
        return self._make(*self._kinds[descriptor], taken), address, descriptor

    def _report_anew(self) -> None:
        """Have epoll report these listeners again if anybody is left there: an edge shows once."""
        for descriptor in self._signalled:
            self._epoll.modify(descriptor, Mode.MODEST.value)
        self._signalled.clear()

    def _set_aside(self, descriptor: int, now: float) -> None:
        """Leave a listener that is shut, until it is tried again: epoll would report its end for ever."""
        if self._mode is not Mode.PAUSED:
            self._epoll.unregister(descriptor)
        self._signalled.pop(descriptor, None)
        self._shut[descriptor] = self.descriptors.pop(descriptor)
        self.due = self._retry_at = now + SHUT_PAUSE

    def _try_shut_again(self) -> None:
        """Wait at listeners again that were shut; what is still shut reports that at once."""
        self.due = self._retry_at = None
        for descriptor in self._shut:
            if self._mode is not Mode.PAUSED:
                self._epoll.register(descriptor, self._mode.value)
        self.descriptors |= self._shut
        self._shut.clear()

    def _accept_now(self, descriptor: int) -> Accepted | None:
        """Accept one connection, if there is one, of a listener that is about to be left."""
        while True:
            try:
                taken, address = self.descriptors[descriptor]._accept()  # type: ignore[attr-defined]  # noqa: SLF001
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno in TRANSIENT:
                    continue
                if error.errno != SHUT:
                    self._report(f"connections are left in the queue: {error.strerror}")
                return None
            return self._make(*self._kinds[descriptor], taken), address, descriptor

    def _endure(self, error: OSError, descriptor: int, now: float) -> None:
        if error.errno in TRANSIENT:
            return
        if error.errno == SHUT:
            self._set_aside(descriptor, now)
            return
        if error.errno not in SHORTAGES:
            raise error
        if now >= self._short_until + SHORTAGE_PAUSE:
            self._report(f"cannot accept: {error.strerror}; connections wait in the queue")
        self._short_until = now + SHORTAGE_PAUSE
        self._stand(Mode.PAUSED)
        self.due = self._short_until
