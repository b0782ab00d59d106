"""One client's connection: what it has sent and not had answered, and what waits to be sent to it."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum

from prefork.handlers.access import Entry
from prefork.handlers.peer import Door, Trust
from prefork.handlers.wsgi import Block, Body, Cut, Environ, Exchange, FileSpan, Head
from prefork.system.unread import unread
from prefork.worker.greeting import Greeting

# How much of a file goes out before others get their turn: a client on the same machine may read as fast as we send.
SENDFILE_SIZE = 1 << 20
# writev(2) takes IOV_MAX = 1024 pieces at once.
MAX_PIECES = 512
# The end of an answer whose connection is closed at once goes out together with the FIN, in one segment (tcp(7)).
LAST = getattr(socket, "MSG_MORE", 0)
# socket(7): a linger on for no time at all; to close resets the connection then.
ABORT = struct.pack("ii", 1, 0)


class Phase(Enum):
    """What the loop does about a connection."""

    GREETING = "greeting"  # waiting for the PROXY header before the first request
    HANDSHAKING = "handshaking"  # of TLS, before the first request
    READING = "reading"  # a request, or waiting for one
    POSTPONED = "postponed"  # more requests have come than are answered in one turn
    RUNNING = "running"  # an application thread has it
    WRITING = "writing"  # waiting for room to send more
    LINGERING = "lingering"  # all is sent and our end is shut; what comes is discarded until the client's end


class Connection:
    """A client's connection, owned by the loop, or while it is RUNNING by one application thread.

    Args:
        sock: connected and non-blocking.
        host: the client's address, empty on a Unix socket; ``port`` likewise.
        common: what the environs of all its requests have in common.
        door: the listener that it came in at.

    Attributes:
        greeting: the PROXY header that is being read.
        trust: whom to believe about the client, if the peer is one of those.
        linger_until: when lingering has to end, whatever still comes.
        pending: bytes that came and belong to no request yet.
        block: the fields of the last request.
        head, body: of the request that is being read.
        exchange: the request that is being answered.
        is_cut: whether the answer cannot be completed.
        entry: what the access log will say of the present request; None without one. Bytes sent are counted in it.
        timer: which deadline runs.
        events: what epoll watches it for.

    """

    __slots__ = (
        "_file",
        "_outbox",
        "block",
        "body",
        "common",
        "door",
        "entry",
        "events",
        "exchange",
        "fd",
        "greeting",
        "head",
        "host",
        "is_cut",
        "linger_until",
        "pending",
        "phase",
        "port",
        "sock",
        "timer",
        "trust",
    )
    first_phase = Phase.READING  # behind the PROXY header, if there is one

    def __init__(self, sock: socket.socket, host: str, port: str, common: Environ, door: Door) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.host = host
        self.port = port
        self.common = common
        self.door = door
        self.greeting: Greeting | None = None
        self.trust: Trust | None = None
        self.linger_until = 0.0
        self.phase = self.first_phase
        self.pending = b""
        self.block: Block | None = None
        self.head: Head | None = None
        self.body: Body | None = None
        self.exchange: Exchange | None = None
        self.entry: Entry | None = None
        self.is_cut = False
        self.timer: int | None = None
        self.events = 0
        self._outbox: list[bytes | memoryview] | None = None
        self._file: FileSpan | None = None

    @property
    def is_idle(self) -> bool:
        """Return whether nothing came of a request."""
        is_early = self.phase is Phase.READING or self.phase is Phase.GREETING
        return is_early and not self.pending and self.body is None

    def send(self, pieces: list[bytes], flags: int = 0) -> bool:
        """Send pieces; return whether all are on their way: what found no room waits for ``flush``.

        Args:
            pieces: what is sent behind all that was given before.
            flags: ``LAST`` if the connection is closed right afterwards.

        Raises Cut when the client is gone.

        """
        if self._outbox is not None:
            self._outbox += pieces
            return False
        if not pieces:
            return True
        is_one = len(pieces) == 1
        try:
            # Nearly always it is one, and send(2) costs less than writev(2), which costs less than sendmsg(2).
            if is_one:
                sent = self.sock.send(pieces[0], flags)
            else:
                sent = self.sock.sendmsg(pieces, (), flags) if flags else os.writev(self.fd, pieces)
        except BlockingIOError:
            sent = 0
        except OSError:
            raise Cut from None
        if self.entry is not None:
            self.entry.sent += sent
        if sent == (len(pieces[0]) if is_one else sum(map(len, pieces))):
            return True
        self._outbox = _without(pieces, sent)
        return False

    def attach(self, file: FileSpan) -> None:
        """Have ``flush`` send a part of a file behind all that was given to ``send``."""
        self._file = file

    def flush(self) -> bool:
        """Send what waits, as far as there is room; return whether nothing is left.

        Raises Cut when the client is gone, or the file has become shorter than it was.
        """
        try:
            while self._outbox:
                sent = os.writev(self.fd, self._outbox[:MAX_PIECES])
                self._outbox = _without(self._outbox, sent)
                if self.entry is not None:
                    self.entry.sent += sent
            self._outbox = None
            return self._file is None or self._send_file(self._file)
        except BlockingIOError:
            return False
        except OSError:
            raise Cut from None

    def flush_blocking(self, timeout: float) -> None:
        """Wait until all that waits is on its way.

        Args:
            timeout: how long the client may take no byte at all, in seconds.

        Raises Cut when the client is gone or too slow.

        """
        while not self.flush():
            if not self.has_room(timeout):
                raise Cut

    def has_room(self, timeout: float) -> bool:
        """Wait until more can be sent, or the client is gone; return False if neither is so within so many seconds."""
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        return bool(poll.poll(timeout * 1000))

    def has_unread(self) -> bool:
        """Return whether something came that was not read: closing now would reset the connection (RFC 2525 2.17)."""
        return unread(self.fd) > 0

    def shut(self) -> bool:
        """Tell the client that nothing more will come; return whether it was still there to be told."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        return True

    def end(self) -> None:
        """End the connection for all processes that hold it: closing would do so only once the last of them has."""
        with suppress(OSError):  # the client has ended it
            socket.SocketType.shutdown(self.sock, socket.SHUT_RDWR)  # below TLS

    def reset(self) -> None:
        """See to it that the client takes the coming end of the connection for a fault (RFC 9112 8)."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)

    def asks_head(self) -> bool:
        """Return whether the request that is being read has the method HEAD: its answer has no body (RFC 9110 9.3.2)."""
        if self.head is not None:
            return self.head.line.method == "HEAD"
        return self.pending.lstrip(b"\r\n").startswith(b"HEAD ")

    def forget_request(self) -> None:
        """Give up a request that was being read."""
        if self.body is not None:
            self.body.close()
        self.head = self.body = None
        self.pending = b""

    def _send_file(self, file: FileSpan) -> bool:
        sent = os.sendfile(self.fd, file.descriptor, file.offset, min(file.size, SENDFILE_SIZE))
        if not sent:
            raise Cut
        if self.entry is not None:
            self.entry.sent += sent
        left = file.size - sent
        self._file = FileSpan(file.descriptor, file.offset + sent, left) if left else None
        return not left


def _without(pieces: Sequence[bytes | memoryview], sent: int) -> list[bytes | memoryview]:
    """Return what is left of pieces of which so many bytes were sent."""
    count = 0
    while count < len(pieces) and sent >= len(pieces[count]):
        sent -= len(pieces[count])
        count += 1
    left = list(pieces[count:])
    if sent:
        left[0] = memoryview(left[0])[sent:]
    return left
