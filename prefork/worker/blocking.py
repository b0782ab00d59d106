"""The classic worker for socket handlers: each of its threads accepts a connection, handles it, closes it.

All threads wait on one epoll object for the listeners, so nothing is handed from thread to thread, and the worker
as a whole steps back when it holds more connections than its siblings. With ``threads = 1`` that thread is the main one.
"""

from __future__ import annotations

import select
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from prefork.config.schema import Pool
from prefork.handlers.context import Worker, end_copy, exit_code
from prefork.handlers.peer import ProxyError, doors_of
from prefork.handlers.socket import Handle
from prefork.log import logger
from prefork.scoreboard import Lane, Row
from prefork.system import forks
from prefork.system.unread import unread
from prefork.worker.acceptor import Accepted, Acceptor
from prefork.worker.greeting import address_of, name_of, read_blocking
from prefork.worker.orders import Orders
from prefork.worker.threads import start_vital

if TYPE_CHECKING:
    import ssl

# How long, and how much of, a client's unread data is awaited and thrown away before a connection is closed.
LINGER = 1.0
LINGER_BYTES = 1024 * 1024
READ_SIZE = 65536
# A shortage that goes on is reported once; it is tried again five times a second.
SAME_SHORTAGE = 0.5
T = TypeVar("T", bound=socket.socket)
PLAIN: Mapping[int, ssl.SSLContext] = MappingProxyType({})


def serve(
    worker: Worker,
    row: Row,
    orders: Orders,
    listeners: Sequence[socket.socket],
    handle: Handle,
    pool: Pool,
    contexts: Mapping[int, ssl.SSLContext] = PLAIN,
) -> None:
    """Serve connections until the worker has drained; ``contexts`` are the TLS ones, by the listeners' descriptors."""
    crew = Crew(worker, row, orders, handle, pool, contexts)
    forks.close_in_copies(crew.close_in_copy)
    crew.listen(listeners)
    hands = [Hand(crew, number) for number in range(pool.threads)]
    orders.say_ready()
    if len(hands) == 1:
        hands[0].run()
        return
    for hand in hands:
        start_vital(hand.run, f"prefork-{hand.number}")
    crew.wait_until_done(hands)


class Crew:
    """What the threads of one worker share: how it stands to the queue, and how many connections it holds."""

    def __init__(
        self,
        worker: Worker,
        row: Row,
        orders: Orders,
        handle: Handle,
        pool: Pool,
        contexts: Mapping[int, ssl.SSLContext],
    ) -> None:
        self.worker = worker
        self.row = row
        self.orders = orders
        self.handle = handle
        self.pool = pool
        self.contexts = contexts
        self._held = 0
        self._has_left = False
        self._shares_queue = False  # whether it leaves, and serves what waits together with others that leave
        self._leftovers: deque[Accepted] = deque()
        self._short_at = 0.0
        self._epoll = select.epoll()
        self._epoll.register(orders.wake_fd, select.EPOLLIN)
        self._epoll.register(orders.look_fd, select.EPOLLIN)
        # Accepting and closing the listeners exclude each other: a closed descriptor's number may be reused.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)

    def listen(self, listeners: Sequence[socket.socket]) -> None:
        """Join the queue of the listeners."""
        most = self.pool.max_connections
        # The threads are a limit by themselves: nobody accepts while all of them are busy.
        limit = most if most < self.pool.threads else sys.maxsize
        self._acceptor = Acceptor(
            self._epoll, listeners, self.row.least_of_others, limit, self._report_shortage
        )
        self.doors = doors_of(self.pool, listeners)
        self._acceptor.settle(0, time.monotonic())
        self._watched = 2 + len(listeners)

    def close_in_copy(self) -> None:
        """Let a process that a handler has forked wait for no clients."""
        self._epoll.close()

    def next_connection(self) -> Accepted | None:
        """Wait until something happens, and return a connection if it is for the calling thread.

        It counts as held from here on. None may also mean that the worker drains.
        """
        due = self._acceptor.due
        # By default poll() makes room for 1023 events, each time.
        ready = self._epoll.poll(None if due is None else max(0.0, due - time.monotonic()), self._watched)
        with self._lock:
            if self.orders.drain_by is not None or self._has_left:
                return None
            now = time.monotonic()
            for descriptor, _ in ready:
                if descriptor in self._acceptor.descriptors:
                    self._acceptor.signal(descriptor, now)
                elif descriptor == self.orders.look_fd:
                    self.orders.hear_look()
                    self._acceptor.look_again()
            accepted = self._acceptor.take(now)
            self._hold(int(accepted is not None), now)
        return accepted

    def next_leftover(self) -> Accepted | None:
        """Return a connection for a worker that leaves, one for each thread that is free, as long as there are any."""
        with self._lock:
            accepted = self._leftovers.popleft() if self._leftovers else None
            if accepted is None and self._shares_queue:
                accepted = self._acceptor.next_in_queue()
            if accepted is not None:
                self._hold(1, 0.0)
                return accepted
            has_found_end, self._shares_queue = self._shares_queue, False
            if has_found_end:
                self._acceptor.close()
        if has_found_end:
            self.orders.leave_queue()
        return None

    def release(self) -> None:
        """Count one connection less."""
        with self._lock:
            self._hold(-1, time.monotonic())
            if self.orders.max_requests:
                self.orders.count_requests()

    def leave(self) -> None:
        """Leave the queue for the whole worker, by whichever thread comes first; the others are busy or follow."""
        with self._lock:
            if self._has_left:
                return
            self._has_left = True
            self._shares_queue = self.orders.queue_time is not None and not self.orders.is_orphan
            if self._shares_queue:
                self._acceptor.stand_aside()
                return
            if self.orders.queue_time is not None:  # an orphan's listeners are shut in a moment
                self._leftovers.extend(self._acceptor.empty_queue())
            # Each thread that waits may have used up a wake-up.
            self._leftovers.extend(self._acceptor.leave(most=max(1, self.pool.threads - self._held)))
        self.orders.leave_queue()

    def finish(self, hand: Hand) -> None:
        """Take notice that a thread has handled its last connection."""
        with self._changed:
            hand.is_done = True
            self._changed.notify_all()

    def wait_until_done(self, hands: Sequence[Hand]) -> None:
        """Return once the worker drains and no thread is busy, except with requests that are overdue anyway."""
        while not self.worker.stopping.is_set():
            try:
                self.worker.stopping.wait()
            except BaseException as error:  # noqa: BLE001 - raised again unless it is known
                self.orders.survive_handler(error)
        with self._changed:
            while (until := self._done_at(hands)) > (now := time.monotonic()):
                self._changed.wait(until - now)

    def _done_at(self, hands: Sequence[Hand]) -> float:
        """Return when everybody who is still at work is overdue, at the latest."""
        busy = [hand.lane.deadline or float("inf") for hand in hands if not hand.is_done]
        assert self.orders.drain_by is not None
        return min(max(busy, default=0.0), self.orders.drain_by)

    def _hold(self, more: int, now: float) -> None:
        if more:
            self._held += more
            self.row.set_connections(self._held)
            is_busy = self._held >= self.pool.threads
            (self.row.set_busy if is_busy else self.row.set_free)(now)
        if not self._has_left:
            self._acceptor.settle(self._held, now)

    def _report_shortage(self, message: str) -> None:
        """Log what keeps the worker from accepting, unless another thread has just done so."""
        now = time.monotonic()
        if now - self._short_at > SAME_SHORTAGE:
            logger.error("%s", message)
        self._short_at = now


class Hand:
    """One thread of the worker."""

    def __init__(self, crew: Crew, number: int) -> None:
        self.number = number
        self.lane: Lane = crew.row.lanes[number]
        self.is_done = False
        self._crew = crew
        self._orders = crew.orders

    def run(self) -> None:
        """Accept and handle connections, one at a time, until the worker drains."""
        crew = self._crew
        crew.worker.enter_lane(self.number)
        while self._orders.drain_by is None:
            self._take_turn(crew.next_connection)
        crew.leave()
        while self._take_turn(crew.next_leftover):
            pass
        crew.finish(self)

    def _take_turn(self, next_one: Callable[[], Accepted | None]) -> bool:
        """Handle the next connection; return whether there may be another one.

        The only thread is the main one, which signal handlers run in: one that raises strikes anywhere in here.
        """
        try:
            self._keep_hearing()
            accepted = next_one()
            if accepted is not None:
                self._receive(*accepted)
        except BaseException as error:  # noqa: BLE001 - raised again unless it is known
            self._orders.survive_handler(error)
            return True
        return accepted is not None

    def _receive(self, connection: socket.socket, address: Any, listener: int) -> None:
        crew = self._crew
        try:
            if crew.doors[listener].proxy_protocol:
                source = read_blocking(connection, crew.pool.read_timeout).source
                address = address if source is None else address_of(source)
            context = crew.contexts.get(listener)
            if context is None:
                self._serve(connection, address, _close)
            else:
                self._serve_with_tls(connection, address, context)
        except ProxyError as error:
            peer = name_of(address).decode("latin-1")
            logger.warning("connection from %s refused, no PROXY header: %s", peer, error)
            _close(connection)
        except OSError:
            connection.close()  # the peer left before it has said anything
        finally:
            crew.release()

    def _serve_with_tls(self, connection: socket.socket, address: Any, context: ssl.SSLContext) -> None:
        """Have the handshake first: a slow one costs this thread no more than the time that any client's head has."""
        from prefork.worker import tls

        secured = tls.wrap(connection, context)
        if tls.shake_hands(secured, self._crew.pool.read_timeout):
            self._serve(secured, address, _close_with_tls)
        else:
            _close_with_tls(secured)

    def _serve(self, connection: T, address: Any, close: Callable[[T], None]) -> None:
        crew = self._crew
        self.lane.begin(name_of(address), time.monotonic(), crew.pool.request_timeout)
        if (self.lane.deadline or crew.pool.is_measured) and not crew.row.is_watched():
            self._orders.wake_master()
        try:
            crew.handle(connection, address)
        except SystemExit as error:
            resign(self._orders, error)
        except BaseException:  # noqa: BLE001 - whatever a handler raises, its worker lives on
            logger.exception("handler failed, connection from %s", name_of(address).decode("latin-1"))
        finally:
            end_copy()
            self._keep_hearing()  # before the client sees the end: TERM may come right after it
            close(connection)
            self.lane.end()

    def _keep_hearing(self) -> None:
        if self._crew.pool.threads == 1:
            self._orders.keep_hearing()


def resign(orders: Orders, error: SystemExit) -> None:
    """Drain because the handler has called ``sys.exit``; end the process if it is a copy that the handler has forked."""
    end_copy(exit_code(error))
    said = "" if error.code is None else repr(error.code)
    logger.info("the handler called sys.exit(%s); the worker leaves", said)
    orders.resign(exit_code(error))


def _close(connection: socket.socket, has_unread: bool = False) -> None:
    """Close a connection without a reset, unless the handler has closed or detached it.

    Closing with unread data makes the kernel send a reset (RFC 9293, 3.10.4; RFC 2525, 2.17), which may destroy
    the answer on its way: so the end is announced first, and what the client still sends is read and thrown away.
    ``has_unread`` says that there is unread data above the kernel. The client sees the end at once although a process
    that the handler has forked holds the connection as well.
    """
    descriptor = connection.fileno()
    if descriptor >= 0:
        with suppress(OSError):  # the client is gone: nothing is left to be destroyed
            must_read = has_unread or unread(descriptor)
            if must_read or forks.have_happened():
                connection.shutdown(socket.SHUT_WR)
            if must_read:
                _read_to_end(connection)
    connection.close()


def _close_with_tls(secured: ssl.SSLSocket) -> None:
    from prefork.worker import tls

    has_unread = secured.pending() > 0
    _close(tls.say_goodbye(secured), has_unread)


def _read_to_end(connection: socket.socket) -> None:
    until = time.monotonic() + LINGER
    left = LINGER_BYTES
    while left > 0 and (wait := until - time.monotonic()) > 0:
        connection.settimeout(wait)
        data = connection.recv(READ_SIZE)
        if not data:
            return
        left -= len(data)
