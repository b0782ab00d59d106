"""An evented worker in a thread of the test's own process, with a fake in place of its orders."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from types import TracebackType
from typing import Any, Self

from prefork.config.schema import Http, Listen, Pool
from prefork.handlers.context import Worker
from prefork.handlers.wsgi import WsgiApp
from prefork.scoreboard import Board, Row, Snapshot
from prefork.units import TcpAddress
from prefork.worker.access import AccessLog
from prefork.worker.evented import Loop

LONG = 10.0


class FakeOrders:
    """What a worker's loop knows of its master."""

    def __init__(self) -> None:
        self.wake_fd, self._wake = os.pipe()
        self.look_fd, self._look = os.pipe()
        self.drain_by: float | None = None
        self.is_orphan = False
        self.queue_time: float | None = None
        self.exit_code: int | None = None
        self.max_requests = 0
        self.has_left_queue = threading.Event()
        self.woken_master = 0

    def drain(self, grace: float = LONG, queue_time: float | None = None) -> None:
        self.queue_time = queue_time
        self.drain_by = time.monotonic() + grace
        os.write(self._wake, b"!")

    def look_again(self) -> None:
        os.write(self._look, b"!")

    def hear_look(self) -> None:
        os.read(self.look_fd, 64)

    def resign(self, code: int) -> None:
        self.exit_code = code
        self.drain()

    def leave_queue(self) -> None:
        self.has_left_queue.set()

    def keep_hearing(self) -> None:
        """Have no signals: this is no main thread."""

    def survive_handler(self, error: BaseException) -> None:
        raise error

    def wake_master(self) -> None:
        self.woken_master += 1

    def close(self) -> None:
        os.close(self.wake_fd)
        os.close(self._wake)
        os.close(self.look_fd)
        os.close(self._look)


class CountingRow(Row):
    """A row that counts the turns of its loop."""

    turns = 0

    def turn(self, now: float, timeout: float) -> None:
        self.turns += 1
        super().turn(now, timeout)


class Site:
    """A worker that serves an application until the block ends, and has to drain then within ``LONG``."""

    def __init__(
        self,
        application: WsgiApp,
        *,
        unix: str = "",
        http: Http | None = None,
        context: ssl.SSLContext | None = None,
        access: AccessLog | None = None,
        **options: Any,
    ) -> None:
        options.setdefault("listen", (Listen(address=TcpAddress("127.0.0.1", 0)),))
        self.has_access_log = access is not None
        self.pool = Pool(name="web", wsgi="a:b", http=http or Http(), **options)
        self.board = Board(2, self.pool.threads)
        self.board.watch(True)
        self.number = self.board.claim()
        self.row = CountingRow(self.board, self.number)
        self.orders = FakeOrders()
        self.listener = self._bind(unix)
        self.address = self.listener.getsockname()
        worker = Worker("web", 0, 1, self.row)
        contexts = {self.listener.fileno(): context} if context else {}
        self.loop = Loop(
            worker, self.row, self.orders, [self.listener], application, self.pool, access, contexts
        )  # type: ignore[arg-type]
        self.thread = threading.Thread(target=self.loop.run)

    @staticmethod
    def _bind(unix: str) -> socket.socket:
        if not unix:
            return socket.create_server(("127.0.0.1", 0), backlog=100)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(unix)
        listener.listen()
        return listener

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.thread.is_alive() and self.orders.drain_by is None:
            # A thread that has just answered must be heard before its line can be expected.
            self.orders.drain(grace=LONG if self.has_access_log else 0.0)
        self.thread.join(LONG)
        assert not self.thread.is_alive(), "the loop does not end"
        self.orders.close()
        assert self.board.descriptor is not None
        os.close(self.board.descriptor)  # what is mapped can still be read
        self.board.descriptor = None

    def connect(self, receive_buffer: int = 0) -> socket.socket:
        """Return a connection to the worker."""
        client = socket.socket(self.listener.family)
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(LONG)
        client.connect(self.address)
        return client

    def ask(self, data: bytes) -> bytes:
        """Send bytes on a new connection, end it on our side, and return all that comes back."""
        with self.connect() as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            return read_all(client)

    def snapshot(self) -> Snapshot:
        """Return what the scoreboard says."""
        return self.board.read(self.number)


def read_all(client: socket.socket) -> bytes:
    """Return everything up to the end of file."""
    found = bytearray()
    while data := client.recv(65536):
        found += data
    return bytes(found)


def read_answer(client: socket.socket) -> tuple[bytes, bytes]:
    """Return the head and the body of one answer with a Content-Length."""
    found = b""
    while b"\r\n\r\n" not in found:
        data = client.recv(1)
        assert data, f"the connection ended after {found!r}"
        found += data
    head = found[:-4]
    (length,) = [
        int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
    ]
    body = bytearray()
    while len(body) < length:
        data = client.recv(length - len(body))
        assert data, f"the connection ended after {len(body)} of {length} bytes"
        body += data
    return head, bytes(body)


def request(path: str = "/", *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    """Return a request's head."""
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: a", *fields, "", ""]).encode("ascii")
