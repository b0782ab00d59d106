"""TLS between a worker and its clients, by contexts that the master has made (master/certificates.py).

The evented loop sees sockets that behave like plain ones: encryption happens in memory, between the loop and the
socket. So nothing of OpenSSL ever waits, one read of the kernel serves many records, and what a record has to wait for
is always plain to see: for the client's bytes, or for room to send. (Measured against ssl.SSLSocket: 0.73 times its
CPU for small answers, 0.75 times for 100 KiB.)

This module is imported only where a listener speaks TLS.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
from contextlib import suppress

from prefork.handlers import response
from prefork.handlers.peer import Door
from prefork.handlers.tls import environ_of
from prefork.handlers.wsgi import Cut, Environ, FileSpan
from prefork.log import logger
from prefork.worker.client_hello import NO_APPLICATION_PROTOCOL, PROTOCOLS, ClientHello
from prefork.worker.connection import Connection, Phase

# The most that one record holds (RFC 8446 5.1).
RECORD = 16384
# How much is encrypted before it is sent: whole records, few enough to keep little memory for an idle connection.
CHUNK = 32768
# How much of one answer goes out before others get their turn, for a client that reads as fast as we send.
TURN_SIZE = 262144
# Answers of TLS itself (to updates of keys, to refused renegotiations) that a client may leave unread.
MAX_UNREAD = 65536
OFFERED = frozenset(protocol.encode() for protocol in PROTOCOLS)
PLAIN_HTTP = "this port speaks HTTPS, the request was plain HTTP"


class TlsSocket(socket.socket):
    """A server's end of TLS on a non-blocking socket.

    ``recv`` and ``shutdown`` mean to the caller what they mean on a plain socket. What is to be sent goes through
    ``encrypt`` and ``push``.

    Args:
        sock: connected; this object takes its place.
        context: the certificates.

    Attributes:
        has_begun: whether anything came from the client.

    """

    __slots__ = (
        "_has_ended",
        "_hello",
        "_incoming",
        "_is_plain",
        "_outgoing",
        "_tls",
        "_unsent",
        "has_begun",
    )

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(sock.family, sock.type, sock.proto, sock.detach())
        self.setblocking(False)
        self.has_begun = False
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._unsent: bytes | memoryview = b""
        self._is_plain = True
        self._has_ended = False
        self._hello: ClientHello | None = ClientHello()

    @property
    def is_full(self) -> bool:
        """Return whether something encrypted waits for room."""
        return bool(self._unsent)

    def shake_hands(self) -> bool:
        """Go on with the handshake as far as the client has come; return whether it is done.

        Raises OSError when there is none to be had; the client has been told why.
        """
        self._is_plain = False
        with suppress(BlockingIOError):
            data = self._take_in(CHUNK)
            if self._hello is not None:
                self._check_hello(self._hello, data)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self.push()
            if self._has_ended:
                raise ConnectionAbortedError("the client left") from None
            return False
        except ssl.SSLError as error:
            self._tell_why(error)
            raise
        self.push()
        return True

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Return what came, all of it; nothing at the client's end. Raises OSError, BlockingIOError when nothing came.

        It is what came, unencrypted: before the handshake, where a PROXY header may stand, and after ``shutdown``, when
        nobody wants to know what it means.
        """
        if self._is_plain:
            return super().recv(size, flags)
        try:
            self._take_in(size)
        except BlockingIOError:
            if not self._incoming.pending:
                raise
        data, is_over = self._decrypt()
        if self._outgoing.pending:
            self._answer_for_itself()
        if is_over:
            # What follows a close_notify must be ignored (RFC 8446 6.1). From now on the kernel reports the end,
            # again and again, just as it does when a plain connection is half-closed.
            with suppress(OSError):
                super().shutdown(socket.SHUT_RD)
                if not data:
                    self._say_goodbye()
        elif not data:
            raise BlockingIOError
        return data

    def encrypt(self, data: bytes | memoryview) -> None:
        """Encrypt what ``push`` is to send. Raises ssl.SSLError once the connection has failed."""
        self._tls.write(data)  # there is always room for all of it in memory

    def push(self) -> bool:
        """Send what is encrypted; return whether all of it is on its way. Raises OSError when the client is gone."""
        data = self._unsent or self._outgoing.read()
        while data:
            try:
                sent = super().send(data)
            except BlockingIOError:
                self._unsent = data
                return False
            data = memoryview(data)[sent:] if sent < len(data) else self._outgoing.read()
        self._unsent = b""
        return True

    def shutdown(self, how: int) -> None:
        """Tell the client by a close_notify, then by the kernel, that nothing more will come. Raises OSError."""
        self._say_goodbye()
        self._is_plain = True
        super().shutdown(how)

    def describe(self) -> Environ:
        """Return what the environs of all its requests have in common because of TLS."""
        name, protocol, bits = self._tls.cipher() or ("", "", 0)
        return environ_of(self._tls.version() or protocol, name, bits, self._tls.getpeercert())

    def _take_in(self, size: int) -> bytes:
        data = super().recv(size)
        self.has_begun = True
        self._has_ended = not data
        self._incoming.write(data)
        return data

    def _check_hello(self, hello: ClientHello, data: bytes) -> None:
        """Refuse a client that offers application protocols and none of ours (RFC 7301 3.2). Raises OSError."""
        hello.feed(data)
        if not hello.is_complete:
            return
        self._hello = None
        if hello.protocols and OFFERED.isdisjoint(hello.protocols):
            super().send(NO_APPLICATION_PROTOCOL)
            raise ConnectionAbortedError(f"the client offers {hello.protocols}, and this server {PROTOCOLS}")

    def _say_goodbye(self) -> None:
        """Send a close_notify, as who ends has to do (RFC 8446 6.1). Raises OSError when the client is gone."""
        with suppress(ssl.SSLError):  # it wants the client's close_notify, too; or there was no handshake
            self._tls.unwrap()
        self.push()

    def _decrypt(self) -> tuple[bytes, bool]:
        """Return what is in the records that came whole, and whether the client has ended."""
        pieces: list[bytes] = []
        try:
            # OpenSSL takes in no more than it is asked for: what it leaves are further records.
            while not pieces or self._incoming.pending:
                piece = self._tls.read(RECORD)
                if not piece:
                    return b"".join(pieces), True
                pieces.append(piece)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self.push()  # the alert
            raise
        # An end without a close_notify is one as well: a request says itself where it ends, so none can be cut unseen.
        return (pieces[0] if len(pieces) == 1 else b"".join(pieces)), self._has_ended

    def _answer_for_itself(self) -> None:
        if not self.push() and self._outgoing.pending + len(self._unsent) > MAX_UNREAD:
            raise ConnectionAbortedError("the client reads none of what TLS has to say")

    def _tell_why(self, error: ssl.SSLError) -> None:
        """Send the alert; but who does not speak TLS at all would not know what that means."""
        if error.reason == "HTTP_REQUEST":
            super().send(response.plain(400, PLAIN_HTTP, close=True, named=False))
        self.push()


class TlsConnection(Connection):
    """A client's connection that speaks TLS: one more phase at its beginning, and other ways to send.

    Args:
        sock: connected; the connection takes it over.
        host, port, common, door: as for any connection.
        context: the certificates.

    """

    __slots__ = ("_on_the_way",)
    first_phase = Phase.HANDSHAKING
    sock: TlsSocket

    def __init__(
        self,
        sock: socket.socket,
        host: str,
        port: str,
        common: Environ,
        door: Door,
        context: ssl.SSLContext,
    ) -> None:
        super().__init__(TlsSocket(sock, context), host, port, common, door)
        self._on_the_way = 0  # bytes of an answer that are encrypted, and not all sent

    @property
    def is_idle(self) -> bool:
        """Return whether nothing came of a request, or of the handshake."""
        return super().is_idle or (self.phase is Phase.HANDSHAKING and not self.sock.has_begun)

    def shake_hands(self) -> bool:
        """Go on with the handshake as far as the client has come; return whether requests can be read.

        Raises Cut when there is none to be had.
        """
        try:
            is_done = self.sock.shake_hands()
        except OSError as error:
            logger.debug("%s: no TLS handshake: %s", self.host or "unix socket", error)
            raise Cut from None
        if is_done:
            self.common = {**self.common, **self.sock.describe()}
        return is_done

    def send(self, pieces: list[bytes], flags: int = 0) -> bool:  # noqa: ARG002 - a goodbye is to follow
        """Send pieces; see Connection."""
        if self._outbox is not None:
            self._outbox += pieces
            return False
        self._outbox = [*pieces]
        return self.flush()

    def flush(self) -> bool:
        """Send what waits, as far as there is room and it is this connection's turn; see Connection."""
        sock, left = self.sock, TURN_SIZE
        try:
            while sock.push() and left > 0:
                self._count_sent()
                if self._outbox:
                    self._encrypt(take(self._outbox, CHUNK))
                elif self._file is not None:
                    self._encrypt_file(self._file)
                else:
                    self._outbox = None
                    return True
                left -= CHUNK
        except OSError:
            raise Cut from None
        return False

    def has_unread(self) -> bool:
        """Return True: before it closes its end, a client says goodbye by a close_notify, and is to hear ours."""
        return True

    def _encrypt(self, data: bytes | memoryview) -> None:
        self._on_the_way += len(data)
        self.sock.encrypt(data)

    def _count_sent(self) -> None:
        """Tell the access log of the answer's bytes, not of what they have become by encryption."""
        if self.entry is not None:
            self.entry.sent += self._on_the_way
        self._on_the_way = 0

    def _encrypt_file(self, file: FileSpan) -> None:
        # sendfile(2) cannot encrypt.
        data = os.pread(file.descriptor, min(file.size, CHUNK), file.offset)
        if file.size and not data:
            raise Cut
        left = file.size - len(data)
        self._file = FileSpan(file.descriptor, file.offset + len(data), left) if left else None
        self._encrypt(data)


def take(outbox: list[bytes | memoryview], most: int) -> bytes | memoryview:
    """Take up to ``most`` bytes from the front of what waits: each piece would be a record of its own."""
    if len(outbox) == 1 and len(outbox[0]) <= most:
        return outbox.pop()
    count = 0
    while count < len(outbox) and len(outbox[count]) <= most:
        most -= len(outbox[count])
        count += 1
    taken = outbox[:count]
    del outbox[:count]
    if outbox and most:
        rest = memoryview(outbox[0])
        taken.append(rest[:most])
        outbox[0] = rest[most:]
    return b"".join(taken)


def report_odd_names() -> None:
    """See to it that a client asking for a name that is not ASCII does not get a traceback into the log.

    The standard library decodes the name before it calls what chooses the certificate. It gives the client an alert, but
    the fault to this hook, with the name as its object.
    """
    otherwise = sys.unraisablehook

    def report(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, UnicodeDecodeError) and isinstance(unraisable.object, bytes):
            logger.debug("no TLS handshake: a client asked for the name %r", unraisable.object)
        else:
            otherwise(unraisable)

    sys.unraisablehook = report


def wrap(sock: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Return the blocking TLS connection on a plain one, before its handshake. Raises OSError if it is gone.

    An end without a close_notify is an end to the handler, by Python's default, as it is to asyncio's streams: many
    clients close so. A protocol that has to notice when a stream was cut needs ends of its own.
    """
    return context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)


def shake_hands(secured: ssl.SSLSocket, timeout: float) -> bool:
    """Have the handshake; return False if there is none to be had within ``timeout`` seconds."""
    try:
        secured.settimeout(timeout)
        secured.do_handshake()  # the timeout is for all of its steps together
    except OSError as error:
        logger.debug("no TLS handshake: %s", error)
        return False
    secured.settimeout(None)
    return True


def say_goodbye(secured: ssl.SSLSocket) -> socket.socket:
    """Send a close_notify if there is room for it, and return the plain socket beneath, to be closed."""
    if secured.fileno() < 0:
        return secured  # the handler has closed it
    secured.settimeout(0.0)
    with suppress(
        OSError, ValueError
    ):  # it wants the client's close_notify, too; or the handler has said goodbye
        secured.unwrap()
    return socket.socket(secured.family, secured.type, secured.proto, secured.detach())
