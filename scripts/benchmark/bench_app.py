"""What every server serves: a page, a form, a download, a stream, a file, for WSGI, for ASGI and for a bare socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, BinaryIO

BODY = b"Hello, world!"
LARGE = b"x" * (100 * 1024)
PIECE = b"x" * 4096
PIECES = 16
FILE_SIZE = 1024 * 1024
# Names the file, which is made by whoever starts the server.
FILE_VARIABLE = "BENCH_FILE"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\nConnection: close\r\n\r\nHello, world!"

Environ = dict[str, Any]
Answer = Iterable[bytes]
StartResponse = Callable[..., object]


class Blocks:
    """Stands in where a server has no wsgi.file_wrapper."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self.close = file.close

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self._file.read(self._size), b"")


def app(environ: Environ, start_response: StartResponse) -> Answer:
    return ROUTES.get(environ["PATH_INFO"], hello)(environ, start_response)


def hello(_environ: Environ, start_response: StartResponse) -> Answer:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(BODY)))])
    return [BODY]


def large(_environ: Environ, start_response: StartResponse) -> Answer:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(LARGE)))])
    return [LARGE]


def echo(environ: Environ, start_response: StartResponse) -> Answer:
    data: bytes = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(data)))])
    return [data]


def stream(_environ: Environ, start_response: StartResponse) -> Answer:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return (PIECE for _ in range(PIECES))


def file(environ: Environ, start_response: StartResponse) -> Answer:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(FILE_SIZE))])
    opened = open(os.environ[FILE_VARIABLE], "rb")  # noqa: SIM115 - the server closes it
    answer: Answer = environ.get("wsgi.file_wrapper", Blocks)(opened, 65536)
    return answer


# Whatever else is asked for gets the page: the scenario of which no two requests are alike has a path for each.
ROUTES: dict[str, Callable[[Environ, StartResponse], Answer]] = {
    "/hello": hello,
    "/large": large,
    "/echo": echo,
    "/stream": stream,
    "/file": file,
}

BODIES = {"/hello": BODY, "/large": LARGE}

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def asgi(scope: Message, receive: Receive, send: Send) -> None:
    """Answer as ``app`` does, but for the file."""
    assert scope["type"] == "http", "run with --lifespan off"
    if scope["path"] == "/stream":
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
        )
        for _ in range(PIECES):
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    body = await read(receive) if scope["path"] == "/echo" else BODIES.get(scope["path"], BODY)
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def read(receive: Receive) -> bytes:
    pieces = []
    more = True
    while more:
        message = await receive()
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(pieces)


def handle(sock: socket.socket, _address: object) -> None:
    sock.recv(65536)
    sock.sendall(RESPONSE)


def bare(port: int) -> None:
    """Do what a socket handler does, with nothing around it."""
    listener = socket.create_server(("127.0.0.1", port), backlog=2048)
    while True:
        connection, address = listener.accept()
        handle(connection, address)
        connection.close()
