"""The end of a connection whose handler has given its transport to a protocol of its own, as aiosmtpd has one."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from prefork.worker.streams import Reader, close, open_streams
from tests.certificates import Authority, Pair

# Nothing here may wait for it.
PATIENCE = 600.0
LONG = 20.0
Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter, "Greeter"], Awaitable[None]]


class Greeter(asyncio.Protocol):
    """Says hello, echoes, and notes how it ends."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.lost: list[Exception | None] = []
        self.is_over = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)
        self.is_over.set_result(None)


async def leave_at_once(
    _reader: asyncio.StreamReader, _writer: asyncio.StreamWriter, _greeter: Greeter
) -> None: ...


async def wait_for_the_end(
    _reader: asyncio.StreamReader, _writer: asyncio.StreamWriter, greeter: Greeter
) -> None:
    await greeter.is_over


async def close_it(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _greeter: Greeter) -> None:
    writer.close()


async def close_and_wait(
    _reader: asyncio.StreamReader, writer: asyncio.StreamWriter, greeter: Greeter
) -> None:
    writer.close()
    await greeter.is_over


async def abort(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _greeter: Greeter) -> None:
    writer.transport.abort()


async def write_much(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _greeter: Greeter) -> None:
    writer.transport.write(b"x" * 3_000_000)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder: Path = tmp_path_factory.mktemp("authority")
    return Authority(folder).issue("server", "localhost")


def contexts(pair: Pair) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pair.certificate, pair.key)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    return server, client


async def serve(
    handle: Handle, sock: socket.socket, context: ssl.SSLContext | None
) -> list[Exception | None]:
    """Be a handler that has another protocol set, and return what that protocol has heard of the end."""
    sock.setblocking(False)
    reader, writer = await open_streams(sock, None, context, LONG)
    greeter = Greeter(writer.transport)
    writer.transport.set_protocol(greeter)
    writer.transport.write(b"hello")
    await handle(reader, writer, greeter)
    await close(reader, writer, PATIENCE)
    await greeter.is_over
    return greeter.lost


async def talk(sock: socket.socket, context: ssl.SSLContext | None) -> bytes:
    """Be a client that reads to the end, or closes once it has said something and got it back."""
    sock.setblocking(False)
    reader, writer = await asyncio.open_connection(
        sock=sock, ssl=context, server_hostname="localhost" if context else None
    )
    received = b""
    try:
        received = await reader.read()
        writer.close()
        await writer.wait_closed()
    except OSError:
        pass
    return received


@pytest.mark.parametrize("with_tls", [False, True])
@pytest.mark.parametrize("handle", [leave_at_once, close_it, close_and_wait, abort, write_much])
def test_what_another_protocol_has_is_closed_with_the_handler_and_waits_for_nothing(
    handle: Handle, with_tls: bool, pair: Pair
) -> None:
    server, client = contexts(pair) if with_tls else (None, None)

    async def run() -> tuple[list[Exception | None], bytes]:
        ours, theirs = socket.socketpair()
        async with asyncio.timeout(LONG):
            return await asyncio.gather(serve(handle, ours, server), talk(theirs, client))

    lost, received = uvloop.run(run())
    assert len(lost) == 1
    if handle is not abort:
        assert received == b"hello" + b"x" * (3_000_000 if handle is write_much else 0)


@pytest.mark.parametrize("with_tls", [False, True])
def test_a_client_that_ends_it_is_not_waited_for_again(with_tls: bool, pair: Pair) -> None:
    server, client = contexts(pair) if with_tls else (None, None)

    async def leave(sock: socket.socket) -> None:
        sock.setblocking(False)
        reader, writer = await asyncio.open_connection(
            sock=sock, ssl=client, server_hostname="localhost" if client else None
        )
        assert await reader.readexactly(5) == b"hello"
        writer.write(b"echo")
        assert await reader.readexactly(4) == b"echo"
        writer.close()

    async def run() -> list[Exception | None]:
        ours, theirs = socket.socketpair()
        async with asyncio.timeout(LONG):
            lost, _ = await asyncio.gather(serve(wait_for_the_end, ours, server), leave(theirs))
            return lost

    assert uvloop.run(run()) == [None]


def test_what_the_client_still_sends_destroys_nothing() -> None:
    async def run() -> bytes:
        ours, theirs = socket.socketpair()
        theirs.sendall(b"unread" * 1000)
        theirs.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(LONG):
            _, received = await asyncio.gather(serve(leave_at_once, ours, None), talk(theirs, None))
            return received

    assert uvloop.run(run()).startswith(b"hello")


def test_a_reader_that_succeeds_another_is_empty() -> None:
    async def run() -> bool:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            reader = Reader(ours, asyncio.get_running_loop())
            reader.feed_data(b"x")
            return reader.has_unread() and not reader.succeed().has_unread()

    assert uvloop.run(run())


def test_an_end_without_a_goodbye_is_an_end_to_an_asynchronous_handler(pair: Pair) -> None:
    server, client = contexts(pair)

    async def read(sock: socket.socket) -> list[bytes]:
        sock.setblocking(False)
        reader, writer = await open_streams(sock, None, server, LONG)
        received = [await reader.readexactly(5), await reader.read()]
        await close(reader, writer, PATIENCE)
        return received

    async def cut(sock: socket.socket) -> None:
        with sock.dup() as beneath:
            sock.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=sock, ssl=client, server_hostname="localhost")
            writer.write(b"first")
            await writer.drain()
            beneath.shutdown(socket.SHUT_WR)
            await reader.read()
            writer.transport.abort()

    async def run() -> list[bytes]:
        ours, theirs = socket.socketpair()
        async with asyncio.timeout(LONG):
            received, _ = await asyncio.gather(read(ours), cut(theirs))
            return received

    assert uvloop.run(run()) == [b"first", b""]
