"""The classic worker for socket handlers: each of its threads accepts a connection, handles it, closes it.

Every thread waits on an epoll object of its own for the shared listeners, so nothing is handed from thread to
thread. With ``threads = 1`` that thread is the main one.
"""

from __future__ import annotations

import fcntl
import select
import socket
import termios
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from prefork.config.schema import Pool
from prefork.handlers.context import Worker
from prefork.handlers.socket import Handle
from prefork.log import logger
from prefork.scoreboard import Lane, Row
from prefork.worker.acceptor import Accepted, Acceptor
from prefork.worker.orders import Orders
from prefork.worker.threads import start_vital

# How long, and how much of, a client's unread data is awaited and thrown away before a connection is closed.
LINGER = 1.0
LINGER_BYTES = 1024 * 1024
READ_SIZE = 65536
# FIONREAD's answer, a C int, for a connection without unread data (tcp(7), unix(7)).
NOTHING = bytes(4)
# Threads that find the same shortage within so many seconds say so once; each tries again five times a second.
SAME_SHORTAGE = 0.5


def serve(
    worker: Worker, row: Row, orders: Orders, listeners: Sequence[socket.socket], handle: Handle, pool: Pool
) -> None:
    """Serve connections until the worker has drained."""
    crew = Crew(worker, row, orders, handle, pool)
    hands = [Hand(crew, listeners, number) for number in range(pool.threads)]
    orders.say_ready()
    if len(hands) == 1:
        hands[0].run()
        return
    for hand in hands:
        start_vital(hand.run, f"prefork-{hand.number}")
    crew.wait_until_done(hands)


class Crew:
    """What the threads of one worker share."""

    def __init__(self, worker: Worker, row: Row, orders: Orders, handle: Handle, pool: Pool) -> None:
        self.worker = worker
        self.row = row
        self.orders = orders
        self.handle = handle
        self.pool = pool
        self.held = 0
        # Accepting and closing the listeners exclude each other: a closed descriptor's number may be reused.
        self.gate = threading.Lock()
        self.leftovers: deque[Accepted] = deque()
        self._has_left = False
        self._short_at = 0.0
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)

    def begin(self) -> None:
        """Count one more connection."""
        with self._lock:
            self.held += 1
            self._show()

    def end(self) -> None:
        """Count one connection less."""
        with self._lock:
            self.held -= 1
            self._show()

    def report_shortage(self, message: str) -> None:
        """Log what keeps a thread from accepting, unless another one has just done so; the gate is closed."""
        now = time.monotonic()
        if now - self._short_at > SAME_SHORTAGE:
            logger.error("%s", message)
        self._short_at = now

    def leave(self, acceptor: Acceptor) -> None:
        """Leave the queue for the whole worker, by whichever thread comes first; the others are busy or follow."""
        with self.gate:
            if self._has_left:
                return
            self._has_left = True
            if self.orders.empty_queue:
                self.leftovers.extend(acceptor.empty_queue())
            acceptor.close()
        self.orders.leave_queue()

    def finish(self, hand: Hand) -> None:
        """Take notice that a thread has handled its last connection."""
        with self._changed:
            hand.is_done = True
            self._changed.notify_all()

    def wait_until_done(self, hands: Sequence[Hand]) -> None:
        """Return once the worker drains and no thread is busy, except with requests that are overdue anyway."""
        self.worker.stopping.wait()
        with self._changed:
            while (until := self._done_at(hands)) > (now := time.monotonic()):
                self._changed.wait(until - now)

    def _done_at(self, hands: Sequence[Hand]) -> float:
        """Return when everybody who is still at work is overdue, at the latest."""
        busy = [hand.lane.deadline or float("inf") for hand in hands if not hand.is_done]
        assert self.orders.drain_by is not None
        return min(max(busy, default=0.0), self.orders.drain_by)

    def _show(self) -> None:
        self.row.set_connections(self.held)
        self.row.set_busy(self.held >= self.pool.threads)


class Hand:
    """One thread of the worker."""

    def __init__(self, crew: Crew, listeners: Sequence[socket.socket], number: int) -> None:
        self.number = number
        self.lane: Lane = crew.row.lanes[number]
        self.is_done = False
        self._crew = crew
        self._orders = crew.orders
        self._epoll = select.epoll()
        self._epoll.register(crew.orders.wake_fd, select.EPOLLIN)
        limit = crew.pool.max_connections
        self._acceptor = Acceptor(
            self._epoll, listeners, crew.row.least_of_others, limit, crew.report_shortage
        )
        self._acceptor.settle(0, time.monotonic())

    def run(self) -> None:
        """Accept and handle connections, one at a time, until the worker drains."""
        crew = self._crew
        crew.worker.enter_lane(self.number)
        while self._orders.drain_by is None:
            self._turn()
        crew.leave(self._acceptor)
        self._epoll.close()
        while crew.leftovers:
            with suppress(IndexError):  # another thread was quicker
                self._serve(*crew.leftovers.popleft())
        crew.finish(self)

    def _turn(self) -> None:
        acceptor, crew = self._acceptor, self._crew
        if not acceptor.is_hopeful:
            self._wait()
        with crew.gate:
            accepted = acceptor.take(time.monotonic(), most=1) if self._orders.drain_by is None else []
        for connection, address in accepted:
            self._serve(connection, address)
            acceptor.hope()
        acceptor.settle(crew.held, time.monotonic())

    def _wait(self) -> None:
        acceptor = self._acceptor
        wait = None if acceptor.due is None else max(0.0, acceptor.due - time.monotonic())
        for descriptor, _ in self._epoll.poll(wait):
            if descriptor in acceptor.descriptors:
                acceptor.signal(descriptor, time.monotonic())

    def _serve(self, connection: socket.socket, address: Any) -> None:
        crew = self._crew
        crew.begin()
        self.lane.begin(_name(address), time.monotonic(), crew.pool.request_timeout)
        if self.lane.deadline and not crew.row.is_watched():
            self._orders.wake_master()
        try:
            crew.handle(connection, address)
        except SystemExit as error:
            logger.info(
                "the handler called sys.exit(%s); the worker leaves",
                "" if error.code is None else repr(error.code),
            )
            self._orders.resign(_exit_code(error))
        except BaseException:  # noqa: BLE001 - whatever a handler raises, its worker lives on
            logger.exception("handler failed, connection from %s", _name(address).decode("latin-1"))
        finally:
            _close(connection)
            self.lane.end()
            crew.end()


def _name(address: Any) -> bytes:
    """Return a peer's address for people; a client of a Unix socket has none."""
    if isinstance(address, tuple):
        host, port = address[:2]
        return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode("latin-1", "replace")
    return b"unix socket"


def _exit_code(error: SystemExit) -> int:
    """Return what the interpreter would make of ``sys.exit``'s argument."""
    if error.code is None:
        return 0
    return error.code & 0xFF if isinstance(error.code, int) else 1


def _close(connection: socket.socket) -> None:
    """Close a connection without a reset, unless the handler has closed or detached it.

    Closing with unread data makes the kernel send a reset (RFC 9293, 3.10.4; RFC 2525, 2.17), which may destroy
    the answer on its way: so the end is announced first, and what the client still sends is read and thrown away.
    """
    if connection.fileno() >= 0 and _has_unread(connection):
        with suppress(OSError):  # the client is gone: nothing is left to be destroyed
            connection.shutdown(socket.SHUT_WR)
            _read_to_end(connection)
    connection.close()


def _has_unread(connection: socket.socket) -> bool:
    return fcntl.ioctl(connection.fileno(), termios.FIONREAD, NOTHING) != NOTHING


def _read_to_end(connection: socket.socket) -> None:
    until = time.monotonic() + LINGER
    left = LINGER_BYTES
    while left > 0 and (wait := until - time.monotonic()) > 0:
        connection.settimeout(wait)
        data = connection.recv(READ_SIZE)
        if not data:
            return
        left -= len(data)
