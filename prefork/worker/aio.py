"""The worker for ``async def handle(reader, writer)``: one asyncio loop (uvloop) that holds thousands of connections.

Each connection is a task: PROXY header and TLS handshake where they are demanded, then the handler, then a clean
close. A connection is a request of its own, as with other socket handlers; the scoreboard shows the oldest one.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import time
import traceback
from collections import OrderedDict
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from prefork.config.schema import Pool
from prefork.handlers.context import Worker, end_copy
from prefork.handlers.peer import ProxyError, doors_of
from prefork.handlers.socket import AsyncHandle
from prefork.log import logger
from prefork.scoreboard import Lane, Row
from prefork.units import format_duration
from prefork.worker.acceptor import Accepted, Acceptor
from prefork.worker.beat import WatchedLoop
from prefork.worker.blocking import PLAIN, resign
from prefork.worker.greeting import name_of
from prefork.worker.hearing import HearingLoop
from prefork.worker.orders import Orders
from prefork.worker.streams import Streams, close, greet, open_streams

if TYPE_CHECKING:
    import ssl

READ_SIZE = 4096
# uvloop counts milliseconds, and rounds.
TICK = 0.001


def serve(
    worker: Worker,
    row: Row,
    orders: Orders,
    listeners: Sequence[socket.socket],
    handle: AsyncHandle,
    pool: Pool,
    contexts: Mapping[int, ssl.SSLContext] = PLAIN,
) -> None:
    """Serve connections until a drain is over; ``contexts`` are the TLS ones, by the listeners' descriptors."""
    loop = make_loop(row, orders, pool)
    house = House(worker, row, orders, handle, pool, contexts, loop)
    house.listen(listeners)
    orders.say_ready()
    run(loop, orders)
    wind_up(loop, orders)


def make_loop(row: Row, orders: Orders, pool: Pool) -> asyncio.AbstractEventLoop:
    """Return the event loop of this process, watched by the stall clock unless that is off."""
    loop = (
        WatchedLoop(row, pool.stall_timeout, orders.wake_master, orders.hear_by_handler)
        if pool.stall_timeout
        else HearingLoop(orders.hear_by_handler)
    )
    asyncio.set_event_loop(loop)
    loop.set_exception_handler(_report)
    return loop


def run(loop: asyncio.AbstractEventLoop, orders: Orders) -> None:
    """Run the loop until it is stopped; ``sys.exit`` in any of its callbacks and tasks drains the worker."""
    while True:
        try:
            return loop.run_forever()
        except SystemExit as error:
            resign(orders, error)


def wind_up(loop: asyncio.AbstractEventLoop, orders: Orders) -> None:
    """Cancel the tasks that handlers have left behind, as asyncio.run does, if there is time left for it."""
    tasks = asyncio.all_tasks(loop)
    left = (orders.drain_by or 0.0) - time.monotonic()
    if tasks and left > 0:
        for task in tasks:
            task.cancel()
        waiting = loop.create_task(asyncio.wait(tasks, timeout=left))
        waiting.add_done_callback(lambda _: loop.stop())
        run(loop, orders)


class Connection:
    """A client's connection while its handler runs.

    Args:
        name: its peer, for people.
        timeout: how long the handler may take, in seconds; 0: as long as it likes.
        loop: where it runs, in the present task.

    """

    __slots__ = ("_limiter", "_loop", "_task", "deadline", "is_busy", "is_overdue", "name", "since")

    def __init__(self, name: bytes, timeout: float, loop: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self.since = time.monotonic()
        self.deadline = self.since + timeout if timeout else 0.0
        self.is_busy = True
        self.is_overdue = False
        self._loop = loop
        self._task = asyncio.current_task(loop)
        self._limiter: asyncio.TimerHandle | None = None
        if timeout:
            self._limit()

    def extend(self, deadline: float) -> None:
        """Give the handler until another deadline; from any thread."""
        self.deadline = deadline
        self._loop.call_soon_threadsafe(self._limit)

    def end(self) -> None:
        """Take notice that the handler is done."""
        self.is_busy = False
        if self._limiter is not None:
            self._limit()

    def _limit(self) -> None:
        if self._limiter is not None:
            self._limiter.cancel()
            self._limiter = None
        if self.is_busy and self.deadline:
            left = max(0.0, self.deadline - time.monotonic())
            self._limiter = self._loop.call_later(left + TICK, self._cut)

    def _cut(self) -> None:
        """Cancel a handler that is overdue: unlike a thread it can be, and its worker holds many others."""
        assert self._task is not None
        self._limiter = None
        self.is_overdue = True
        logger.error(
            "%s ran %s, limit %s (request_timeout); closing the connection; it was at:\n%s",
            self.name.decode("latin-1"),
            format_duration(time.monotonic() - self.since),
            format_duration(self.deadline - self.since),
            stack_of(self._task.get_coro()),
        )
        self._task.cancel()


class House:
    """The connections of one worker.

    Args:
        worker: the worker that this process is.
        row: its row of the scoreboard.
        orders: what the master wants.
        handle: the user's coroutine function.
        pool: its configuration.
        contexts: the certificates of the listeners that speak TLS, by their descriptors.
        loop: where they live; stopped once a drain is over.

    """

    def __init__(
        self,
        worker: Worker,
        row: Row,
        orders: Orders,
        handle: AsyncHandle,
        pool: Pool,
        contexts: Mapping[int, ssl.SSLContext],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._worker = worker
        self._row = row
        self._orders = orders
        self._handle = handle
        self._pool = pool
        self._contexts = contexts
        self._loop = loop
        self._lane: Lane = row.lanes[0]
        self._shown: Connection | None = None
        self._running: OrderedDict[Connection, None] = OrderedDict()  # by age
        self._tasks: set[asyncio.Task[None]] = set()
        self._epoll = select.epoll()
        self._due: asyncio.TimerHandle | None = None
        self._end: asyncio.TimerHandle | None = None

    def listen(self, listeners: Sequence[socket.socket]) -> None:
        """Join the queue of the listeners, and hear of drains."""
        self._acceptor = Acceptor(
            self._epoll, listeners, self._row.least_of_others, self._pool.max_connections, logger.error
        )
        self._doors = doors_of(self._pool, listeners)
        self._count = len(listeners)
        # An epoll object is readable when it has something to report (epoll(7)). Being woken by way of another one
        # an exclusive registration is none: the kernel wakes all idle workers of the pool, one of them accepts.
        self._loop.add_reader(self._epoll.fileno(), self._look)
        self._loop.add_reader(self._orders.wake_fd, self._hear)
        self._loop.add_reader(self._orders.look_fd, self._look_again)
        self._settle(time.monotonic())

    # Accepting

    def _look(self) -> None:
        """Accept a connection if there is one and it is for this worker."""
        now = time.monotonic()
        for descriptor, _ in self._epoll.poll(0, self._count):
            self._acceptor.signal(descriptor, now)
        accepted = self._acceptor.take(now)
        if accepted is not None:
            self._admit(accepted)
        self._settle(now)

    def _look_again(self) -> None:
        self._orders.hear_look()
        self._acceptor.look_again()

    def _admit(self, accepted: Accepted) -> None:
        task = self._loop.create_task(self._receive(*accepted))
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._settle(time.monotonic())
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a fault of prefork in a connection's task", exc_info=error)

    def _settle(self, now: float) -> None:
        self._row.set_connections(len(self._tasks))
        if self._end is not None:
            self._stop_if_done()
            return
        self._acceptor.settle(len(self._tasks), now)
        if self._due is not None:
            self._due.cancel()
        due = self._acceptor.due
        self._due = None if due is None else self._loop.call_later(max(0.0, due - now) + TICK, self._look)

    # One connection

    async def _receive(self, sock: socket.socket, address: Any, listener: int) -> None:
        try:
            streams, name = await self._welcome(sock, address, listener)
        except OSError as error:
            sock.close()  # the peer left before it has said anything, or cannot speak TLS
            logger.debug("%s: no connection: %s", name_of(address).decode("latin-1"), error)
            return
        if name is not None:
            await self._serve(streams, name)
        await close(*streams, self._pool.write_timeout)

    async def _welcome(
        self, sock: socket.socket, address: Any, listener: int
    ) -> tuple[Streams, bytes | None]:
        """Return a connection's streams, and who is at the other end; None: nobody that is to be served.

        Raises OSError when the peer left, ssl.SSLError among them.
        """
        header = None
        if self._doors[listener].proxy_protocol:
            try:
                header = await greet(sock, self._pool.read_timeout)
            except ProxyError as error:
                peer = name_of(address).decode("latin-1")
                logger.warning("connection from %s refused, no PROXY header: %s", peer, error)
                return await open_streams(sock, None, None, 0.0), None
        context = self._contexts.get(listener)
        streams = await open_streams(sock, header, context, self._pool.read_timeout)
        return streams, name_of(address if header is None else streams[1].get_extra_info("peername"))

    async def _serve(self, streams: Streams, name: bytes) -> None:
        connection = Connection(name, self._pool.request_timeout, self._loop)
        self._worker.enter_request(connection)
        self._begin(connection)
        try:
            await self._handle(*streams)
        except SystemExit as error:
            resign(self._orders, error)
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises, its worker lives on
            if not (connection.is_overdue and isinstance(error, asyncio.CancelledError)):
                logger.exception("handler failed, connection from %s", name.decode("latin-1"))
        finally:
            end_copy()
            connection.end()
            self._finish(connection)

    # What the scoreboard shows

    def _begin(self, connection: Connection) -> None:
        self._running[connection] = None
        if self._pool.is_measured and not self._row.is_watched():
            self._orders.wake_master()
        if self._shown is None:
            self._show(connection)

    def _finish(self, connection: Connection) -> None:
        del self._running[connection]
        self._lane.count()
        if self._orders.max_requests:
            self._orders.count_requests()
        if self._shown is connection:
            self._lane.pause()
            self._show(next(iter(self._running), None))

    def _show(self, connection: Connection | None) -> None:
        self._shown = connection
        if connection is not None:
            # Without a deadline for the master: an overdue coroutine is cancelled, a blocked loop has stalled.
            self._lane.begin(connection.name, connection.since, 0.0)

    # Draining

    def _hear(self) -> None:
        """Take notice of an order to drain, the first one or a stricter one."""
        os.read(self._orders.wake_fd, READ_SIZE)
        assert self._orders.drain_by is not None
        is_first = self._end is None
        if self._end is not None:
            self._end.cancel()
        left = max(0.0, self._orders.drain_by - time.monotonic())
        self._end = self._loop.call_later(left, self._loop.stop)
        if is_first:
            self._leave_queue()
        self._stop_if_done()

    def _leave_queue(self) -> None:
        if self._orders.queue_time is not None:
            for accepted in self._acceptor.empty_queue():
                self._admit(accepted)
        if self._due is not None:
            self._due.cancel()
        self._loop.remove_reader(self._epoll.fileno())
        self._loop.remove_reader(self._orders.look_fd)
        for accepted in self._acceptor.leave(most=1):
            self._admit(accepted)
        self._epoll.close()
        self._orders.leave_queue()
        self._row.set_connections(len(self._tasks))

    def _stop_if_done(self) -> None:
        if not self._tasks:
            self._loop.stop()


def stack_of(coroutine: Coroutine[Any, Any, object] | Any) -> str:
    """Return where a waiting coroutine is, as Python prints it: from the handler to the innermost one that it awaits."""
    frames = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in _frames(coroutine))
    own = [frame for frame in frames if frame.filename != __file__]
    return "".join(traceback.format_list(own)).rstrip("\n")


def _frames(awaited: Any) -> Iterator[FrameType]:
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            yield frame
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)


def _report(_loop: asyncio.AbstractEventLoop, found: dict[str, Any]) -> None:
    """Log what fails in the loop and nobody waits for, such as a task that the handler has started."""
    logger.error("%s", found["message"], exc_info=found.get("exception"))
