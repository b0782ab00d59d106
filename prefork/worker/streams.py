"""One client's connection as a pair of asyncio's streams: from the accepted socket to a close that destroys nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from prefork.handlers.peer import Header, ProxyError
from prefork.log import logger
from prefork.system import forks
from prefork.system.unread import unread
from prefork.worker.blocking import LINGER, LINGER_BYTES, READ_SIZE
from prefork.worker.greeting import Greeting, address_of

if TYPE_CHECKING:
    import ssl

Streams = tuple["Reader", asyncio.StreamWriter]

# How long a client may take for its own goodbye (close_notify); some never say it. nginx: lingering_timeout 5 s.
GOODBYE = 5.0


class Reader(asyncio.StreamReader):
    """What a client sends.

    Args:
        sock: the connection's, whose descriptor is -1 once the transport has closed it.
        loop: where it lives.

    Attributes:
        protocol: what hands it the data, unless the handler gives the transport to a protocol of its own.

    """

    _buffer: bytearray
    protocol: asyncio.BaseProtocol | None = None

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._sock = sock

    def succeed(self) -> Reader:
        """Return another reader of the same connection, which nothing has been read from."""
        return Reader(self._sock, asyncio.get_running_loop())

    def has_unread(self) -> bool:
        """Return whether something came that the handler has not read, and more of it may come."""
        if self._buffer:
            return not self.at_eof()
        descriptor = self._sock.fileno()
        return descriptor >= 0 and unread(descriptor) > 0

    def end(self) -> None:
        """Tell the client of the end, although a process that the handler has forked may hold the connection as well."""
        with suppress(OSError):  # it is gone
            self._sock.shutdown(socket.SHUT_WR)


class Successor(asyncio.StreamReaderProtocol):
    """Takes a transport back from the protocol that a handler has given it to, which hears of the end as well."""

    def __init__(
        self, reader: asyncio.StreamReader, former: asyncio.BaseProtocol, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(reader, loop=loop)
        self._former = former

    def connection_lost(self, exc: Exception | None) -> None:
        """Take notice of the end."""
        super().connection_lost(exc)
        self._former.connection_lost(exc)


class ProxiedWriter(asyncio.StreamWriter):
    """What is sent to a client that stands behind a balancer; ``get_extra_info`` names the client, not the balancer."""

    def __init__(self, reader: Reader, writer: asyncio.StreamWriter, header: Header) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(writer.transport, writer.transport.get_protocol(), reader, loop)
        ends = {"peername": header.source, "sockname": header.destination}
        self._ends = {name: address_of(end) for name, end in ends.items() if end is not None}

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what is known of the transport; see ``asyncio.BaseTransport.get_extra_info``."""
        return self._ends[name] if name in self._ends else super().get_extra_info(name, default)


async def greet(sock: socket.socket, seconds: float) -> Header:
    """Return the PROXY header that a connection begins with, within so many seconds; the socket is non-blocking then.

    Raises ProxyError if there is none by then, and OSError if the peer left.
    """
    sock.setblocking(False)
    greeting = Greeting()
    header = None
    try:
        async with asyncio.timeout(seconds):
            while header is None:
                await _until_readable(sock)
                with suppress(BlockingIOError):
                    header = greeting.read(sock)
    except TimeoutError:
        raise ProxyError(f"it did not come within {seconds:g} s") from None
    return header


async def _until_readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = loop.create_future()
    loop.add_reader(sock, _set, readable)
    try:
        await readable
    finally:
        loop.remove_reader(sock)


def _set(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)


async def open_streams(
    sock: socket.socket, header: Header | None, context: ssl.SSLContext | None, patience: float
) -> Streams:
    """Return the streams of a connection; they own its socket, and close it if that fails.

    Args:
        sock: connected.
        header: what a balancer has said about it, if one has.
        context: the certificates, for TLS.
        patience: how long the handshake may take, in seconds.

    Raises OSError, ssl.SSLError among them, when the client left or there is no handshake to be had.

    """
    loop = asyncio.get_running_loop()
    reader, writers = Reader(sock, loop), list[asyncio.StreamWriter]()
    # With a callback the protocol knows that it is a server's, as writer.start_tls() must.
    protocol = asyncio.StreamReaderProtocol(reader, lambda _reader, writer: writers.append(writer), loop)
    reader.protocol = protocol
    if context is None:
        await loop.connect_accepted_socket(lambda: protocol, sock)
    else:
        await loop.connect_accepted_socket(
            lambda: protocol,
            sock,
            ssl=context,
            ssl_handshake_timeout=patience,
            ssl_shutdown_timeout=GOODBYE,
        )
    [writer] = writers
    return reader, writer if header is None else ProxiedWriter(reader, writer, header)


async def close(reader: Reader, writer: asyncio.StreamWriter, patience: float) -> None:
    """Close a connection once all is sent, and without a reset if the client has not closed it before.

    Closing with unread data makes the kernel send a reset (RFC 9293, 3.10.4; RFC 2525, 2.17), which may destroy
    the answer on its way: so the end is announced first, and what the client still sends is read and thrown away.

    The client is given up when it takes nothing of what waits to be sent for ``patience`` seconds.
    """
    transport = writer.transport
    # Its stub says nothing of None, which uvloop has there once the connection is lost.
    protocol: asyncio.BaseProtocol | None = transport.get_protocol()
    is_ours = protocol is reader.protocol
    if not is_ours:
        if protocol is None:
            return  # the end has come, and that protocol has heard of it
        reader, writer = _take_back(reader, transport, protocol)
    try:
        if not transport.is_closing():
            if transport.get_write_buffer_size():  # of nothing uvloop's TLS would wait for the end
                transport.set_write_buffer_limits(0)
                await _while_it_takes(transport, writer.drain, patience)
            has_half_close = writer.can_write_eof()
            if has_half_close and reader.has_unread():
                await _read_to_end(reader, writer)
            if has_half_close and forks.have_happened():
                reader.end()
            writer.close()  # with TLS that says goodbye, and reads to the end
            if has_half_close and is_ours:
                return
        await _while_it_takes(transport, writer.wait_closed, patience)
    except TimeoutError:
        logger.debug("%s takes nothing of what it was sent", transport.get_extra_info("peername"))
        transport.abort()
    except OSError:
        transport.abort()  # the client is gone: nothing is left to be destroyed


def _take_back(
    reader: Reader, transport: asyncio.WriteTransport, former: asyncio.BaseProtocol
) -> tuple[Reader, asyncio.StreamWriter]:
    """Return new streams of a transport that a handler has given to another protocol (``set_protocol``).

    The old ones would wait for an end that only the other protocol hears of.
    """
    loop = asyncio.get_running_loop()
    successor = reader.succeed()
    protocol = Successor(successor, former, loop)
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    return successor, asyncio.StreamWriter(transport, protocol, successor, loop)


async def _while_it_takes(
    transport: asyncio.WriteTransport, wait: Callable[[], Awaitable[None]], patience: float
) -> None:
    """Wait for something. Raises TimeoutError once the client has taken nothing for ``patience`` seconds."""
    while True:
        left = transport.get_write_buffer_size()
        try:
            async with asyncio.timeout(patience):
                return await wait()
        except TimeoutError:
            if transport.get_write_buffer_size() >= left:
                raise


async def _read_to_end(reader: Reader, writer: asyncio.StreamWriter) -> None:
    writer.write_eof()
    left = LINGER_BYTES
    # RuntimeError: a task that the handler has left behind reads; then that is its business.
    with suppress(TimeoutError, RuntimeError):
        async with asyncio.timeout(LINGER):
            while left > 0 and (data := await reader.read(READ_SIZE)):
                left -= len(data)
