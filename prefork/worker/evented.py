"""One epoll loop that holds all HTTP connections of a worker; the application is called in it or in threads.

A connection costs nothing but memory until bytes come. A request is read whole, whatever time its client takes,
before the application hears of it; what a slow client does not take at once waits in its connection. There is one
place that waits, and it waits until something happens or the next deadline comes:

    GREETING --PROXY header read, where one is demanded--> HANDSHAKING --with TLS--> READING
    READING --request read--> answered at once, or RUNNING in a thread --done--> READING, or
        WRITING until there was room --> READING, or LINGERING until the client has closed its end, too
    READING --many requests sent ahead--> POSTPONED until others had their turn --> READING
"""

from __future__ import annotations

import math
import select
import socket
import time
from collections.abc import Mapping, Sequence
from functools import partial
from io import BytesIO
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO

from prefork.config.schema import Pool
from prefork.handlers import response
from prefork.handlers.access import NOTHING, Entry, RawHead
from prefork.handlers.context import Worker, exit_code
from prefork.handlers.peer import Door, Header, ProxyError, doors_of
from prefork.handlers.wsgi import Body, Counted, Cut, Environ, Exchange, Head, Refusal, WsgiApp, WsgiHandler
from prefork.log import logger
from prefork.scoreboard import Lane, Row
from prefork.system import forks, tcp
from prefork.system.unread import unread
from prefork.units import InheritedAddress
from prefork.worker.acceptor import Acceptor
from prefork.worker.access import AccessLog
from prefork.worker.connection import LAST, Connection, Phase
from prefork.worker.greeting import Greeting, address_of
from prefork.worker.orders import Orders
from prefork.worker.threads import Mailbox, Seat, Threads
from prefork.worker.timers import Timers

if TYPE_CHECKING:
    import ssl

    from prefork.worker.tls import TlsConnection

RECEIVE_SIZE = 65536
# The largest head whose fields a connection remembers for its next request.
MAX_REMEMBERED = 2048
# By default epoll.poll() makes room for 1023 events, each time.
MAX_EVENTS = 128
# A drain takes a connection for idle on which no byte of a request came for so long.
DRAIN_IDLE = 1.0
# How often the last worker looks whether clients are still connecting.
QUEUE_PAUSE = 0.01
# How long a client has to close its end, or to send more, after ours is shut; nginx has lingering_timeout 5 s.
LINGER = 2.0
# How long in all; nginx has lingering_time 30 s.
LINGER_TOTAL = 30.0
# A queue for threads is full when it is longer than so many requests per thread, and the first of them has waited
# so long: a moment's burst is served sooner than it could be refused.
QUEUE_PER_THREAD = 16
QUEUE_TIME = 0.5
# How long a thread waits for a client to take what was sent before another thread takes its place: most clients are
# sooner, and to change threads costs about 0.1 ms.
PATIENCE = 0.01
# How many pieces of one streamed answer go out before others get their turn.
PIECES_PER_TURN = 16
# How many requests that were sent ahead are answered likewise: 64 KiB have room for thousands.
REQUESTS_PER_TURN = 16
# How many connections that are answered and closed at once are taken before others get their turn, and for how long;
# only where clients queue: where the loop had to wait for longer than HARDLY for one, no other one is there.
ACCEPTS_PER_TURN = 64
ACCEPT_TIME = 0.002
HARDLY = 50e-6
# So many events at once show a crowd as well; to fetch them takes time by itself.
CROWD = 16
# For so many others that have had their turn one connection that stays is taken as well.
A_FEW = 2
# The local addresses that are remembered; with a routed network bound whole there may be any number.
MAX_ADDRESSES = 256

IN, OUT, EDGE = select.EPOLLIN, select.EPOLLOUT, select.EPOLLET
READING = Phase.READING  # an enum's attribute takes its time, and this one is looked up for each event
# Of connections whose first request is yet to come, after some words with the client or with its proxy.
COMING = {Phase.GREETING, Phase.HANDSHAKING}
# Classes of deadlines.
HEAD, BODY, IDLE, WRITE, LINGERING, DRAINED = range(6)
PLAIN: Mapping[int, ssl.SSLContext] = MappingProxyType({})


def serve(
    worker: Worker,
    row: Row,
    orders: Orders,
    listeners: Sequence[socket.socket],
    application: WsgiApp,
    pool: Pool,
    access: AccessLog | None,
    contexts: Mapping[int, ssl.SSLContext] = PLAIN,
) -> None:
    """Accept and answer requests until a drain is over.

    Args:
        worker: the worker that this process is.
        row: its row of the scoreboard.
        orders: what the master wants.
        listeners: the listening sockets, which are closed when the drain begins.
        application: the user's.
        pool: its configuration.
        access: the access log, if there is one.
        contexts: the certificates of the listeners that speak TLS, by their descriptors.

    """
    loop = Loop(worker, row, orders, listeners, application, pool, access, contexts)
    forks.close_in_copies(loop.close_in_copy)
    orders.say_ready()
    loop.run()


class Loop:
    """The connections of one worker; see ``serve``."""

    def __init__(
        self,
        worker: Worker,
        row: Row,
        orders: Orders,
        listeners: Sequence[socket.socket],
        application: WsgiApp,
        pool: Pool,
        access: AccessLog | None = None,
        contexts: Mapping[int, ssl.SSLContext] = PLAIN,
    ) -> None:
        self._access = access
        self._ids = access.ids if access is not None else None
        self._row = row
        self._contexts = contexts
        self._orders = orders
        self._pool = pool
        self._handler = WsgiHandler(application, pool.http, pool.threads, self._resign)
        self._read_head = self._handler.grammar.read_head
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._addresses: dict[object, Environ] = {}
        # Of listeners that are bound to one address; connections of others have to be asked by which they came.
        self._commons = {
            listener.fileno(): self._common_of(local)
            for listener in listeners
            if not _is_wildcard(local := listener.getsockname())
        }
        self._doors = doors_of(pool, listeners)
        # Whose clients wait for the next server, while new ones come all the time.
        self._inherited = {
            listener.fileno()
            for listener, listen in zip(listeners, pool.listen, strict=True)
            if isinstance(listen.address, InheritedAddress)
        }
        self._has_warned = False  # of connections without the PROXY header that is demanded
        self._has_left_some = False  # in the queue, when the last turn came to its limit
        self._timers: Timers[Connection] = Timers(
            (
                pool.read_timeout,
                pool.read_timeout,
                pool.keepalive_timeout,
                pool.write_timeout,
                LINGER,
                DRAIN_IDLE,
            )
        )
        self._now = time.monotonic()
        self._has_deadlines = bool(pool.stall_timeout or pool.request_timeout or pool.is_measured)
        self._held = 0  # connections, when the acceptor was last told
        # The deadlines of connections without a request, new and kept alive.
        self._fresh, self._idle = HEAD, IDLE
        # From threads: connections that they are done with, and by how many more or fewer threads run.
        self._mailbox: Mailbox[Connection | int] = Mailbox()
        self._running = 0
        self._aside = 0  # threads that wait for a slow client
        # Handed over to the threads and not begun, since when; who takes one out, a thread or the loop, has it.
        self._waiting: dict[Connection, float] = {}
        self._most_waiting = pool.threads * QUEUE_PER_THREAD
        self._shed_at = math.inf  # when to look whether the queue is full
        self._postponed: list[Connection] = []
        # At the end, when to look again who is connecting, and when for the last time.
        self._look_at = self._last_call = math.inf
        self._lane = worker.enter_lane(0)
        self._threads = Threads(pool.threads, worker) if pool.threads > 1 else None
        if self._threads is None:
            self._handler.wrote = partial(self._note_piece, self._lane)
        self._listen(listeners)

    def run(self) -> None:
        """Turn until a drain is over."""
        if self._threads is not None:
            self._threads.start()
        while not self._is_done():
            try:
                self._turn()
                if self._now >= self._look_at:
                    self._serve_last_clients()
            except BaseException as error:  # noqa: BLE001 - raised again unless it is known
                self._orders.survive_handler(error)
        self._close()

    def close_in_copy(self) -> None:
        """Let a process that the application has forked hold no connection open."""
        for connection in self._connections.values():
            connection.sock.close()
        self._epoll.close()

    def _listen(self, listeners: Sequence[socket.socket]) -> None:
        for listener in listeners:
            listener.setblocking(False)
            if listener.family != socket.AF_UNIX:
                # Accepted connections inherit it (tcp(7)), which saves a system call for each.
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._acceptor = Acceptor(
            self._epoll,
            listeners,
            self._row.least_of_others,
            self._pool.max_connections,
            logger.warning,
            # The bare type lacks what files and context managers need, and is made and closed at half the cost.
            socket.SocketType,
        )
        self._epoll.register(self._mailbox.fd, IN)
        # Readable for good once a drain is on: each further order is an edge of its own.
        self._epoll.register(self._orders.wake_fd, IN | EDGE)
        self._epoll.register(self._orders.look_fd, IN)
        self._acceptor.settle(0, self._now)

    def _resign(self, error: SystemExit) -> None:
        code = exit_code(error)
        logger.info("the application called sys.exit(%s); the worker leaves", code)
        self._orders.resign(code)

    # Turning

    def _turn(self) -> None:
        """Wait until something happens, and do what there is to do about it."""
        if self._access is not None:
            self._access.flush(self._now)
        timeout = self._choose_timeout()
        self._rest()
        before = self._now
        events = self._epoll.poll(timeout, MAX_EVENTS)
        self._mailbox.wake_up()
        self._now = time.monotonic()
        is_crowded = self._now - before < HARDLY or len(events) > CROWD
        self._arm_clock()
        connections = self._connections
        is_signalled = False
        for fd, _ in events:
            connection = connections.get(fd)
            if connection is None:
                is_signalled |= self._hear(fd)
            elif connection.phase is READING:
                self._read(connection)
            else:
                self._go_on(connection)
        while (done := self._mailbox.take()) is not None:
            self._take_back(done)
        if self._postponed:
            self._resume_postponed()
        self._accept(is_signalled, is_crowded, len(events))
        if self._now >= self._timers.wake_at:
            self._expire()
        if self._now >= self._shed_at:
            self._shed()
        if len(connections) != self._held or len(connections) >= self._pool.max_connections:
            self._make_room()
            self._settle()

    def _make_room(self) -> None:
        """Close the connection that has idled for longest, or nobody else gets in; nginx does likewise."""
        oldest = self._timers.oldest(IDLE)
        if oldest is None or len(self._connections) < self._pool.max_connections:
            return
        if oldest.is_idle and not oldest.has_unread():
            oldest.shut()
            self._drop(oldest)
        else:  # its next request has come, or has begun to: this turn's events did not show it yet
            self._timers.arm(oldest, IDLE, self._now)

    def _choose_timeout(self) -> float | None:
        if not self._mailbox.fall_asleep() or self._postponed:
            return 0.0
        wake_at = self._timers.wake_at
        if self._shed_at < wake_at:
            wake_at = self._shed_at
        if self._acceptor.due is not None:
            wake_at = min(wake_at, self._acceptor.due)
        if self._access is not None:
            wake_at = min(wake_at, self._access.due)
        if self._orders.drain_by is not None:
            wake_at = min(wake_at, self._next_of_drain(self._orders.drain_by))
        return None if wake_at == math.inf else max(0.0, wake_at - self._now)

    def _rest(self) -> None:
        """Say that the loop is about to wait."""
        self._row.rest()
        if self._threads is None:
            self._row.set_free(self._now)
            self._orders.keep_hearing()
        else:
            self._threads.wake()
        if self._orders.max_requests:
            self._orders.count_requests()

    def _arm_clock(self) -> None:
        self._row.turn(self._now, self._pool.stall_timeout)
        if self._threads is None:
            self._row.set_busy(self._now)
        if self._has_deadlines and not self._row.is_watched():
            self._orders.wake_master()

    def _hear(self, fd: int) -> bool:
        """Take note of a descriptor that is no connection; return whether it is a listener."""
        if fd == self._mailbox.fd:
            self._mailbox.hear()
        elif fd == self._orders.wake_fd:
            if not self._handler.draining:
                self._begin_drain()
        elif fd in self._acceptor.descriptors:
            self._acceptor.signal(fd, self._now)
            return True
        elif fd == self._orders.look_fd:
            self._orders.hear_look()
            self._acceptor.look_again()
        return False

    def _expire(self) -> None:
        for connection in self._timers.expired(self._now):
            if connection.timer in (HEAD, BODY) and (connection.pending or connection.body is not None):
                refusal = Refusal(408, "the request did not arrive in time")
                self._refuse(connection, refusal, with_body=not connection.asks_head())
            elif connection.timer in (WRITE, LINGERING):
                self._drop(connection)
            else:
                self._leave(connection)

    # Accepting

    def _accept(self, is_signalled: bool, is_crowded: bool, others: int) -> None:
        """Take a connection; where clients queue, more of them, each weighed against what other workers hold.

        Those that are answered and closed at once cost nobody a turn. Of those that stay one is taken for a few others
        that have just had their turn, or the last of many newcomers would wait for as many turns as they are.
        """
        due = self._acceptor.due
        if not (is_signalled or self._has_left_some) and (due is None or self._now < due):
            return
        self._has_left_some = False
        stay, until = max(1, others // A_FEW), self._now + ACCEPT_TIME
        for _ in range(ACCEPTS_PER_TURN if is_crowded else 1):
            connection = self._take_connection()
            if connection is None:
                return
            self._welcome(connection)
            stay -= connection.fd in self._connections
            if not stay or self._now >= until:
                break
        # With many events at once epoll comes back to the listener after all of them only.
        self._has_left_some = is_crowded

    def _take_connection(self) -> Connection | None:
        accepted = self._acceptor.take(self._now)
        connection = self._adopt(*accepted) if accepted is not None else None
        if connection is None or len(self._connections) != self._held:
            self._settle()
        return connection

    def _adopt(self, sock: socket.socket, address: Any, listener: int) -> Connection | None:
        """Return the connection that was accepted, not watched yet; None if it is reset already."""
        sock.setblocking(False)
        host, port = (address[0], str(address[1])) if isinstance(address, tuple) else ("", "")
        common, door = self._commons.get(listener), self._doors[listener]
        if common is None:
            try:
                common = self._common_of(sock.getsockname())
            except OSError:
                sock.close()
                return None
        context = self._contexts.get(listener)
        if context is None:
            connection = Connection(sock, host, port, common, door)
        else:
            connection = _with_tls(sock, host, port, common, door, context)
        if self._access is not None:
            connection.entry = Entry(host, port)
        if door.proxy_protocol:
            connection.phase = Phase.GREETING
            connection.greeting = Greeting()
        else:
            connection.trust = door.trust_in(host)
        self._connections[connection.fd] = connection
        return connection

    def _welcome(self, connection: Connection) -> None:
        """Read what has come with a new connection: if it is answered and closed at once, nothing has to watch it."""
        if connection.phase is READING:
            try:
                data = connection.sock.recv(RECEIVE_SIZE)
            except BlockingIOError:
                self._await(connection)
            except OSError:
                self._drop(connection)  # reset already
            else:
                self._take_in(connection, data)
        else:
            self._await(connection)
            self._go_on(connection)

    def _await(self, connection: Connection) -> None:
        """Wait for the first bytes of a new connection."""
        self._watch(connection, IN)
        self._timers.arm(connection, self._fresh, self._now)

    def _greet(self, connection: Connection) -> None:
        """Read the PROXY header that a connection has to begin with."""
        assert connection.greeting is not None
        try:
            header = connection.greeting.read(connection.sock)
        except BlockingIOError:
            return
        except ProxyError as error:
            self._turn_away(connection, error)
        except OSError:
            self._drop(connection)
        else:
            if header is not None:
                self._introduce(connection, header)

    def _introduce(self, connection: Connection, header: Header) -> None:
        if header.source is not None and header.destination is not None:
            host, port = header.source
            connection.host, connection.port = host, str(port) if host else ""
            if connection.entry is not None:
                connection.entry.client, connection.entry.port = connection.host, connection.port
            local = address_of(header.destination)
            connection.common = self._common_of(local)
        # Whoever stands behind a balancer is not to be believed because the balancer is.
        connection.trust = connection.door.trust_in(connection.host)
        connection.greeting = None
        connection.phase = connection.first_phase
        self._timers.arm(connection, self._fresh, self._now)
        if connection.phase is READING:
            self._read(connection)
        else:
            self._go_on(connection)

    def _turn_away(self, connection: Connection, error: ProxyError) -> None:
        if not self._has_warned:
            self._has_warned = True
            peer = connection.host or "a Unix socket's peer"
            logger.warning(
                "connection from %s refused, no PROXY header: %s; others are not told of", peer, error
            )
        self._leave(connection)

    def _common_of(self, local: object) -> Environ:
        """Return what the environs of all requests to an address of ours have in common."""
        known = self._addresses.get(local)
        if known is not None:
            return known
        if len(self._addresses) >= MAX_ADDRESSES:
            self._addresses.clear()
        # PEP 3333 demands a name and a port; a client of a Unix socket names both in its Host field.
        name, port = (local[0], str(local[1])) if isinstance(local, tuple) else ("localhost", "80")
        common = self._addresses[local] = self._handler.environ_of(name, port)
        return common

    def _settle(self) -> None:
        self._held = len(self._connections)
        self._row.set_connections(self._held)
        if not self._handler.draining:
            self._acceptor.settle(self._held, self._now)

    # Reading

    def _shake_hands(self, connection: TlsConnection) -> None:
        """Go on with a TLS handshake, which has as much time as a head."""
        if connection.timer != HEAD:
            self._timers.arm(connection, HEAD, self._now)
        try:
            is_done = connection.shake_hands()
        except Cut:
            self._leave(connection)
            return
        self._watch(connection, OUT if connection.sock.is_full and not is_done else IN)
        if is_done:
            connection.phase = Phase.READING
            self._timers.arm(connection, self._fresh, self._now)
            self._read(connection)  # the first request may have come with the handshake's end

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(RECEIVE_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._take_in(connection, data)

    def _take_in(self, connection: Connection, data: bytes) -> None:
        """Read requests out of what came, and answer them, one after the other; nothing is the client's end."""
        if not data:
            self._note_unserved(connection)
            self._drop(connection)
            return
        if connection.pending:
            data = connection.pending + data
        try:
            data = self._take_request(connection, data)
            if data:
                self._take_more(connection, data)
        except Refusal as refusal:
            self._refuse(connection, refusal, with_body=not connection.asks_head())
        except Cut:
            self._note_unserved(connection)
            self._drop(connection)

    def _take_more(self, connection: Connection, data: bytes) -> None:
        """Go on with what was sent ahead; with a lot of it when others have had their turn."""
        for _ in range(REQUESTS_PER_TURN):
            data = self._take_request(connection, data)
            if not data:
                return
        connection.pending = data
        connection.phase = Phase.POSTPONED
        self._timers.disarm(connection)
        self._postponed.append(connection)

    def _take_request(self, connection: Connection, data: bytes) -> bytes:
        """Read one request, or as much as has come; return what can be read now behind it."""
        if connection.body is None:
            try:
                head = self._read_head(data, connection.block)
            except Refusal:
                # What is refused: its method decides about the answer, and the access log shows its beginning.
                connection.pending = data
                raise
            if head is None:
                self._wait_for_head(connection, data)
                return b""
            # What is large is not to be held for as long as the connection idles.
            connection.block = head.block if head.size <= MAX_REMEMBERED else None
            framing, size = head.body, head.size
            if framing is None:
                connection.pending = data[size:]
                return connection.pending if self._answer(connection, head, BytesIO()) else b""
            if isinstance(framing, Counted) and len(data) >= size + framing.left:
                return self._take_whole(
                    connection, head, data[size : size + framing.left], data[size + framing.left :]
                )
            data = data[size:]
            self._begin_body(connection, head, bool(data))
        return self._take_body(connection, data)

    def _take_whole(self, connection: Connection, head: Head, content: bytes, rest: bytes) -> bytes:
        """Answer a request whose body has come together with its head, as most do; return as ``_take_request``."""
        connection.pending = rest
        if connection.entry is not None:
            connection.entry.received += len(content)
        return connection.pending if self._answer(connection, head, BytesIO(content)) else b""

    def _wait_for_head(self, connection: Connection, data: bytes) -> None:
        self._watch(connection, IN)
        if not data.replace(b"\r\n", b""):
            # Some clients end a body with a line break that its length does not count: that begins no request.
            connection.pending = b""
            if connection.timer is None:
                self._timers.arm(connection, self._fresh, self._now)
            return
        connection.pending = data
        self._note_beginning(connection)
        # One deadline for the whole head: a byte now and then does not hold it off.
        if connection.timer != HEAD:
            self._timers.arm(connection, HEAD, self._now)

    def _begin_body(self, connection: Connection, head: Head, has_come: bool) -> None:
        connection.pending = b""
        connection.head, connection.body = head, Body(self._now)
        self._note_beginning(connection)
        if head.expects and not has_come:
            if not connection.send([response.CONTINUE]):
                raise Cut  # not even 25 bytes find room
            if connection.entry is not None:
                connection.entry.sent = 0  # it is no part of the answer

    def _take_body(self, connection: Connection, data: bytes) -> bytes:
        head, body = connection.head, connection.body
        assert head is not None
        assert head.body is not None
        assert body is not None
        piece, connection.pending = head.body.feed(data)
        if connection.entry is not None:
            connection.entry.received += len(data) - len(connection.pending)
        try:
            body.add(piece)
        except OSError as error:
            logger.warning("cannot store the body of %s: %s", head.line, error.strerror)
            raise Refusal(507, "there is no room for the body") from None
        if not head.body.is_done:
            # What has come and waits is not late because the application kept the loop from reading it.
            if body.is_slow(self._now, self._pool.min_rate, self._pool.read_timeout) and not unread(
                connection.fd
            ):
                raise Refusal(408, "the body comes too slowly")
            self._watch(connection, IN)
            self._timers.arm(connection, BODY, self._now)
            return b""
        connection.head = connection.body = None
        return connection.pending if self._answer(connection, head, body.read_back()) else b""

    # Answering

    def _answer(self, connection: Connection, head: Head, body: BinaryIO) -> bool:
        """Have the application answer; return whether that is done and the next request can be read."""
        if connection.entry is not None:
            self._note_request(connection.entry, head)
        try:
            exchange = self._handler.exchange(
                head, body, connection.common, connection.host, connection.port, connection.trust
            )
        except Refusal as refusal:
            self._refuse(connection, refusal, with_body=head.line.method != "HEAD")
            return False
        if connection.entry is not None:
            self._note_exchange(connection, connection.entry, head.block.is_forwarded, exchange)
        connection.exchange = exchange
        if self._threads is not None:
            self._hand_over(connection, self._threads)
            return False
        self._lane.begin(exchange.what, self._now, self._pool.request_timeout)
        self._row.rest()
        try:
            # What the application writes by itself and finds no room is kept: blocking would stop everybody.
            pieces = exchange.start(connection.send)
            is_all = exchange.is_over and exchange.file is None
            is_sent = connection.send(pieces, LAST if is_all and not exchange.keep_alive else 0)
        except Cut:
            return self._drop(connection)
        if not (is_sent and is_all):
            return self._continue(connection, exchange)
        exchange.finish()
        self._lane.end()
        self._come_back()
        return self._complete(connection, exchange)

    def _continue(self, connection: Connection, exchange: Exchange) -> bool:
        """Leave an answer that has begun to ``_flush``."""
        self._pause(exchange)
        if exchange.file is not None:
            connection.attach(exchange.file)
        if not exchange.stream_until:
            self._bound(exchange, self._now)
        return self._flush(connection, exchange)

    def _flush(self, connection: Connection, exchange: Exchange | None) -> bool:
        """Send what waits, and pull more; return whether the next request can be read."""
        try:
            is_sent = connection.flush()
            if is_sent and exchange is not None and not exchange.is_over:
                is_sent = self._pull(connection, exchange)
        except Cut:
            return self._drop(connection)
        if is_sent and exchange is None:
            return self._leave(connection)
        if is_sent and exchange is not None and exchange.is_over:
            self._finish(exchange)
            return self._complete(connection, exchange)
        connection.phase = Phase.WRITING
        self._watch(connection, OUT)
        self._timers.arm(connection, WRITE, self._now)
        return False

    def _pull(self, connection: Connection, exchange: Exchange) -> bool:
        """Let the application go on with its answer; return whether all of that is sent."""
        self._lane.begin(exchange.what, self._now, exchange.time_left)
        self._row.rest()
        try:
            for _ in range(PIECES_PER_TURN):
                if not connection.send(exchange.pull()):
                    return False
                if exchange.is_over:
                    break
                self._note_piece(self._lane, exchange)
            return True
        finally:
            self._pause(exchange)

    def _pause(self, exchange: Exchange) -> None:
        deadline = self._lane.deadline
        self._lane.pause()
        self._come_back()
        exchange.time_left = self._time_from(self._now, deadline)

    def _time_from(self, now: float, deadline: float) -> float:
        """Return the seconds until the next piece of an answer is due: as many for each, or until an extended deadline."""
        return max(deadline - now, self._pool.request_timeout) if deadline else 0.0

    def _note_piece(self, lane: Lane, exchange: Exchange) -> None:
        """Start the clock anew: an answer in pieces is late when the next one is, or beyond max_stream_time.

        Raises Cut in the latter case.
        """
        now = time.monotonic()
        if lane.deadline:
            lane.begin(exchange.what, now, self._time_from(now, lane.deadline))
        self._bound(exchange, now)

    def _bound(self, exchange: Exchange, now: float) -> None:
        most = self._pool.max_stream_time
        if not most:
            return
        if not exchange.stream_until:
            exchange.stream_until = now + most
        elif now >= exchange.stream_until:
            logger.info(
                "%s: cutting the response after %g s (max_stream_time)", exchange.what.decode("latin-1"), most
            )
            raise Cut

    def _come_back(self) -> None:
        """Take over the clock from the application."""
        self._now = time.monotonic()
        self._row.turn(self._now, self._pool.stall_timeout)

    def _finish(self, exchange: Exchange) -> None:
        """Tell the application that an answer is over: its own code again, on the clock and in its own threads."""
        if self._threads is not None:
            if exchange.file is not None:  # otherwise its thread has done so
                self._threads.put(partial(self._finish_in_thread, exchange))
            return
        self._lane.begin(exchange.what, self._now, exchange.time_left)
        self._row.rest()
        exchange.finish()
        self._lane.end()
        self._come_back()

    def _finish_in_thread(self, exchange: Exchange, seat: Seat) -> None:
        seat.lane.begin(exchange.what, time.monotonic(), self._pool.request_timeout)
        exchange.finish()
        seat.lane.pause()

    def _complete(self, connection: Connection, exchange: Exchange) -> bool:
        """Return whether the connection is used for the next request; otherwise close it."""
        if connection.entry is not None:
            self._note_end(connection.entry, exchange)
        connection.exchange = None
        if exchange.keep_alive:
            connection.phase = READING
            if connection.events != IN:
                self._watch(connection, IN)
            self._timers.arm(connection, self._idle, self._now)
            return True
        if exchange.is_last and not connection.pending and not connection.has_unread():
            # The client said that it sends no more, so there is nothing to wait for.
            return self._drop(connection)
        return self._leave(connection)

    def _resume(self, connection: Connection) -> None:
        """Answer what a client has sent ahead."""
        data, connection.pending = connection.pending, b""
        if data:
            self._take_in(connection, data)

    def _resume_postponed(self) -> None:
        connections, self._postponed = self._postponed, []
        for connection in connections:
            connection.phase = READING
            self._resume(connection)

    def _go_on(self, connection: Connection) -> None:
        """Act upon an event of a connection from which no request is being read."""
        if connection.phase is Phase.WRITING:
            if self._flush(connection, connection.exchange):
                self._resume(connection)
        elif connection.phase is Phase.LINGERING:
            self._discard(connection)
        elif connection.phase is Phase.GREETING:
            self._greet(connection)
        elif connection.phase is Phase.HANDSHAKING:
            self._shake_hands(connection)  # type: ignore[arg-type]  # no other has this phase
        else:
            self._watch(connection, 0)  # running or postponed: what came will still be there afterwards

    # Threads

    def _hand_over(self, connection: Connection, threads: Threads) -> None:
        connection.phase = Phase.RUNNING
        self._timers.disarm(connection)
        if len(self._waiting) >= self._most_waiting and self._is_late():
            self._turn_down(connection)
            return
        self._count_running(1)
        self._waiting[connection] = self._now
        threads.put(partial(self._run_in_thread, connection))

    def _is_late(self) -> bool:
        """Return whether the first one that waits for a thread has waited for long."""
        try:
            since = next(iter(self._waiting.values()), self._now)
        except RuntimeError:
            since = self._now  # a thread has taken one at this very moment
        is_late = self._now >= since + QUEUE_TIME
        self._shed_at = math.inf if is_late else since + QUEUE_TIME
        return is_late

    def _shed(self) -> None:
        """Refuse the last ones of a queue that has grown within a moment, and has not gone on since."""
        self._shed_at = math.inf
        if len(self._waiting) > self._most_waiting and self._is_late():
            while len(self._waiting) > self._most_waiting:
                connection, _ = self._waiting.popitem()
                self._count_running(-1)
                self._turn_down(connection)

    def _turn_down(self, connection: Connection) -> None:
        """Refuse a request that no thread has begun; the job of one that was handed over will find it gone."""
        exchange, connection.exchange = connection.exchange, None
        assert exchange is not None
        exchange.finish()
        is_head = exchange.what.startswith(b"HEAD ")
        self._refuse(connection, Refusal(503, "all threads are busy"), with_body=not is_head)

    def _count_running(self, more: int) -> None:
        was_busy = self._running >= self._pool.threads
        self._running += more
        is_busy = self._running >= self._pool.threads
        if is_busy != was_busy:
            (self._row.set_busy if is_busy else self._row.set_free)(self._now)

    def _run_in_thread(self, connection: Connection, seat: Seat) -> None:
        handed_over = self._waiting.pop(connection, None)
        if handed_over is None:
            return  # withdrawn
        exchange = connection.exchange
        assert exchange is not None
        connection.is_cut = True
        now = time.monotonic()
        if connection.entry is not None:
            connection.entry.waited = now - handed_over
        seat.lane.begin(exchange.what, now, self._pool.request_timeout)
        if self._has_deadlines and not self._row.is_watched():
            self._orders.wake_master()
        try:
            self._converse(connection, exchange, seat)
            connection.is_cut = False
        except Cut:
            logger.debug("%s: the client left", connection.host)
        finally:
            if exchange.file is None or connection.is_cut:
                exchange.finish()
            seat.lane.end()
            self._mailbox.put(connection)

    def _converse(self, connection: Connection, exchange: Exchange, seat: Seat) -> None:
        """Send an answer as the client takes it; the end of it, which needs no thread, is left to the loop."""
        send = partial(self._send_from_thread, connection, exchange, seat)
        pieces = exchange.start(send)
        while not exchange.is_over:
            send(pieces)
            pieces = exchange.pull()
        connection.send(pieces)
        if exchange.file is not None:
            connection.attach(exchange.file)

    def _send_from_thread(
        self, connection: Connection, exchange: Exchange, seat: Seat, pieces: list[bytes]
    ) -> None:
        if not connection.send(pieces):
            self._wait_for_room(connection, exchange, seat)
        self._note_piece(seat.lane, exchange)

    def _wait_for_room(self, connection: Connection, exchange: Exchange, seat: Seat) -> None:
        """Wait until a client has taken what was sent: the application is not to blame, so its clock stands still."""
        left = self._time_from(time.monotonic(), seat.lane.deadline)
        seat.lane.extend(0.0)
        try:
            until = time.monotonic() + PATIENCE
            while not connection.flush():
                if not connection.has_room(max(0.0, until - time.monotonic())):
                    self._wait_aside(connection, seat)
                    break
        finally:
            seat.lane.begin(exchange.what, time.monotonic(), left)
            if self._has_deadlines and not self._row.is_watched():
                self._orders.wake_master()

    def _wait_aside(self, connection: Connection, seat: Seat) -> None:
        """Wait for a slow client while another thread answers others."""
        assert self._threads is not None
        seat.lane.pause()
        is_aside = self._threads.stand_aside(seat)
        if is_aside:
            self._mailbox.put(-1)
        try:
            connection.flush_blocking(self._pool.write_timeout)
        finally:
            if is_aside:
                self._threads.come_back(seat)
                self._mailbox.put(1)

    def _take_back(self, connection: Connection | int) -> None:
        """Go on with a connection whose thread is done with it, or count a thread that stands aside or has come back."""
        self._now = time.monotonic()  # the thread may have gone on after the loop has woken up
        if isinstance(connection, int):
            self._count_running(connection)
            self._aside -= connection
            return
        self._count_running(-1)
        if connection.is_cut:
            assert connection.exchange is not None
            self._note_cut(connection)
            if connection.exchange.looks_whole:
                connection.reset()
            connection.exchange = None  # finished in the thread
            self._drop(connection)
        elif self._flush(connection, connection.exchange):
            self._resume(connection)

    # Closing

    def _refuse(self, connection: Connection, refusal: Refusal, *, with_body: bool) -> None:
        answer = self._handler.refuse(refusal, with_body=with_body)
        try:
            connection.send([answer])
        except Cut:
            self._note_unserved(connection, refusal.status)
            self._drop(connection)
            return
        self._note_unserved(connection, refusal.status, response.head_size(answer))
        connection.forget_request()
        self._flush(connection, None)

    def _leave(self, connection: Connection) -> bool:
        """Close a connection cleanly: what a client still sends must not reset it before it has read our answer."""
        connection.forget_request()
        if not connection.shut():
            return self._drop(connection)
        connection.phase = Phase.LINGERING
        connection.linger_until = self._now + LINGER_TOTAL
        self._watch(connection, IN)
        self._timers.arm(connection, LINGERING, self._now)
        return False

    def _discard(self, connection: Connection) -> None:
        try:
            if connection.sock.recv(RECEIVE_SIZE):
                # A client that is still busy sending will look for our answer afterwards (RFC 9112 9.6).
                if self._now < connection.linger_until and not self._handler.draining:
                    self._timers.arm(connection, LINGERING, self._now)
                return
        except BlockingIOError:
            return
        except OSError:
            pass  # reset by the client, which is an end as well
        self._drop(connection)

    def _drop(self, connection: Connection) -> bool:
        self._note_cut(connection)
        exchange, connection.exchange = connection.exchange, None
        if exchange is not None:
            if exchange.looks_whole:
                connection.reset()
                connection.is_cut = True
            self._finish(exchange)
        connection.forget_request()
        self._timers.disarm(connection)
        del self._connections[connection.fd]
        # Closing alone would not do if the application has forked: a copy of the descriptor keeps the watch alive.
        self._watch(connection, 0)
        if forks.have_happened() and not connection.is_cut:
            connection.end()
        connection.sock.close()
        return False

    def _watch(self, connection: Connection, events: int) -> None:
        if events == connection.events:
            return
        if not connection.events:
            self._epoll.register(connection.fd, events)
        elif not events:
            self._epoll.unregister(connection.fd)
        else:
            self._epoll.modify(connection.fd, events)
        connection.events = events

    # What the access log says

    def _note_beginning(self, connection: Connection) -> None:
        if connection.entry is not None and not connection.entry.since:
            connection.entry.since = self._now

    def _note_request(self, entry: Entry, head: Head) -> None:
        if self._ids is not None:
            entry.request_id = self._ids.identify(head)
        entry.head = head
        if not entry.since:
            entry.since = self._now

    def _note_exchange(
        self, connection: Connection, entry: Entry, is_forwarded: bool, exchange: Exchange
    ) -> None:
        if entry.request_id:
            exchange.identify(entry.request_id)
        # What was told of the client of one request is not the next one's.
        if is_forwarded and connection.trust is not None:
            entry.client, entry.port = exchange.client
        elif entry.client is not connection.host:
            entry.client, entry.port = connection.host, connection.port

    def _note_end(self, entry: Entry, exchange: Exchange) -> None:
        if entry.sent:
            entry.status = exchange.status
            entry.head_size = exchange.head_size
        self._access.end(entry, self._now)  # type: ignore[union-attr]  # there is an entry, so there is a log

    def _note_cut(self, connection: Connection) -> None:
        if connection.entry is not None and connection.exchange is not None:
            self._note_end(connection.entry, connection.exchange)

    def _note_unserved(self, connection: Connection, status: int = 0, head_size: int = 0) -> None:
        """Make the line of a request that was refused, or that its client (status 0) has not completed."""
        entry = connection.entry
        if entry is None or self._access is None:
            return
        if status or connection.head is not None or connection.pending.strip(b"\r\n"):
            if entry.head is NOTHING:
                entry.client, entry.port = connection.host, connection.port
                if connection.head is not None:
                    self._note_request(entry, connection.head)
                else:
                    entry.head, entry.since = RawHead(connection.pending), entry.since or self._now
                    entry.request_id = ""
            entry.status, entry.head_size, entry.waited = status, head_size, 0.0
            self._access.end(entry, self._now)

    # Draining

    def _begin_drain(self) -> None:
        self._handler.draining = True
        self._fresh = self._idle = DRAINED
        for connection in self._connections.values():
            if connection.is_idle:
                self._timers.arm(connection, DRAINED, self._now)
        queue_time = self._orders.queue_time
        if queue_time is None:
            self._leave_queue()
        else:
            self._acceptor.stand_aside()
            # The last client is to be answered within the drain as well.
            self._last_call = self._now + min(queue_time, self._pool.graceful_timeout / 2)
            self._look_at = self._now

    def _serve_last_clients(self) -> None:
        """Share what waits in the queue with the siblings, and leave it when nobody is connecting any more."""
        is_late = self._now >= self._last_call
        is_over = is_late or not any(
            tcp.has_handshakes(listener)
            for fd, listener in self._acceptor.descriptors.items()
            if fd not in self._inherited
        )
        if is_late and (self._orders.is_orphan or self._inherited):
            # New clients may come for ever, and an orphan's listeners are shut in a moment.
            self._leave_queue(everything=True)
        elif not self._may_begin():
            self._look_at = self._now + QUEUE_PAUSE
        elif (accepted := self._acceptor.next_in_queue()) is not None:
            if (connection := self._adopt(*accepted)) is not None:
                self._welcome(connection)
            self._look_at = self._now
        elif is_over:
            self._leave_queue()
        else:
            self._look_at = self._now + QUEUE_PAUSE

    def _may_begin(self) -> bool:
        """Return whether a request that came now would be begun at once, and not wait for those before it."""
        connections = self._connections.values()
        coming = sum(connection.phase in COMING or connection.body is not None for connection in connections)
        return coming + self._running < self._pool.threads

    def _leave_queue(self, *, everything: bool = False) -> None:
        self._look_at = math.inf
        last = self._acceptor.empty_queue() if everything else []
        for accepted in last + self._acceptor.leave(most=1):
            if (connection := self._adopt(*accepted)) is not None:
                self._await(connection)
        self._orders.leave_queue()

    def _overdue(self) -> int:
        """Return how many requests are past their own deadline: the master knows, and waits for them no more."""
        return sum(lane.is_busy and 0.0 < lane.deadline <= self._now for lane in self._row.lanes)

    def _next_of_drain(self, drain_by: float) -> float:
        deadlines = [lane.deadline for lane in self._row.lanes if lane.deadline > self._now]
        return min([drain_by, self._look_at, *deadlines])

    def _is_done(self) -> bool:
        if not self._handler.draining:
            return False
        assert self._orders.drain_by is not None
        connections = self._connections.values()
        if self._now >= self._orders.drain_by:
            return True
        if not connections:
            return self._look_at == math.inf
        return len(connections) == self._overdue() and all(
            connection.phase is Phase.RUNNING for connection in connections
        )

    def _close(self) -> None:
        """Give back what no thread can still be using."""
        for connection in list(self._connections.values()):
            if connection.phase is Phase.RUNNING:
                self._note_cut(connection)
            else:
                self._drop(connection)
        if self._threads is not None:
            self._threads.stop()
        if self._access is not None:
            self._access.close()
        self._row.set_connections(len(self._connections))
        self._epoll.close()
        if not (self._running or self._aside):
            self._mailbox.close()


def _is_wildcard(local: object) -> bool:
    """Return whether a listener takes connections to any address of this machine."""
    return isinstance(local, tuple) and local[0] in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


def _with_tls(
    sock: socket.socket, host: str, port: str, common: Environ, door: Door, context: ssl.SSLContext
) -> Connection:
    from prefork.worker.tls import TlsConnection

    return TlsConnection(sock, host, port, common, door, context)
