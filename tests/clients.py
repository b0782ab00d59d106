"""Strict clients: each kind of request again and again, every outcome classed; a client retries nothing.

Before it sends on a kept-alive connection a client looks whether the server has closed it, as the best of the real ones
do. Everything that is not an answer is a loss.
"""

from __future__ import annotations

import random
import select
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, Self

TIMEOUT = 20.0
Address = tuple[str, int] | str


class Loss(NamedTuple):
    """A request that was not answered: by whom and whose, what happened, when it began and when it was given up.

    The ports are those of TCP; the client's is 0 if it was not even connected.
    """

    server_port: int
    port: int
    error: str
    began: float
    at: float


class Load:
    """Clients in threads, each with pauses of changing length; ``with`` runs them for as long as the block lasts."""

    def __init__(
        self,
        address: Address,
        *,
        keepalive: int = 3,
        closing: int = 3,
        posting: int = 2,
        pause: float = 0.02,
        path: str = "/",
        check: Callable[[bytes], bool] = lambda _body: True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.outcomes: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.bodies: Counter[bytes] = Counter()
        self.losses: list[Loss] = []
        self.slowest = 0.0  # of the requests that were answered, in seconds
        self._address = address
        self._path = path
        self._pause = pause
        self._check = check
        self._tls = tls
        self._over = threading.Event()
        self._lock = threading.Lock()
        kinds = [self._keep_alive] * keepalive + [self._close_each] * closing + [self._post] * posting
        self._threads = [
            threading.Thread(target=kind, args=(seed,), daemon=True) for seed, kind in enumerate(kinds)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * TIMEOUT)

    @property
    def answered(self) -> int:
        """How many requests were answered."""
        return self.outcomes["answered"]

    @property
    def lost(self) -> dict[str, int]:
        """How many requests ended otherwise, by kind."""
        return {kind: count for kind, count in self.outcomes.items() if kind != "answered"}

    def wait_answered(self, more: int, timeout: float = TIMEOUT) -> None:
        """Wait until so many more requests have been answered."""
        goal, until = self.answered + more, time.monotonic() + timeout
        while self.answered < goal:
            assert time.monotonic() < until, f"only {self.answered} of {goal} answered; {dict(self.outcomes)}"
            time.sleep(0.005)

    def _note(self, outcome: str, detail: str = "") -> None:
        with self._lock:
            self.outcomes[outcome] += 1
            self.examples.setdefault(outcome, detail)

    def _note_loss(self, client: socket.socket | None, error: Exception, began: float) -> None:
        name = client.getsockname() if client is not None else None
        port = name[1] if isinstance(name, tuple) else 0
        server_port = self._address[1] if isinstance(self._address, tuple) else 0
        with self._lock:
            self.losses.append(Loss(server_port, port, repr(error), began, time.monotonic()))

    def _rest(self, dice: random.Random) -> None:
        self._over.wait(dice.random() * 2 * self._pause)

    def _keep_alive(self, seed: int) -> None:
        dice = random.Random(seed)
        client: socket.socket | None = None
        while not self._over.is_set():
            began = time.monotonic()  # before the look: what is closed right after it is closed too late
            if client is not None and _is_closed(client):
                client.close()
                client = None
            client = self._exchange(client, _get(self._path), began)
            self._rest(dice)
        if client is not None:
            client.close()

    def _close_each(self, seed: int) -> None:
        dice = random.Random(seed)
        while not self._over.is_set():
            self._exchange(None, _get(self._path, close=True), time.monotonic())
            self._rest(dice)

    def _post(self, seed: int) -> None:
        dice = random.Random(seed)
        body = bytes(16384)
        head = f"POST {self._path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        while not self._over.is_set():
            self._exchange(None, head.encode() + body, time.monotonic())
            self._rest(dice)

    def _exchange(self, client: socket.socket | None, request: bytes, began: float) -> socket.socket | None:
        """Send one request and class what comes; return the connection if it can be used again."""
        try:
            if client is None:
                client = _connect(self._address, self._tls)
            client.sendall(request)
            status, body, reusable = read_answer(client)
        except (OSError, EOFError) as error:
            self._note_loss(client, error, began)
            self._note(_outcome(error), f"{error!r} after {time.monotonic() - began:.3f} s")
            reusable = False
        else:
            good = status == 200 and self._check(body)
            self._note("answered" if good else f"status {status}", body[:200].decode("latin-1"))
            with self._lock:
                self.bodies[body] += 1
                self.slowest = max(self.slowest, time.monotonic() - began)
        if reusable or client is None:
            return client
        client.close()
        return None


# What an error means for a request, the more special one first.
OUTCOMES: dict[type[Exception], str] = {
    TimeoutError: "timeout",
    ConnectionRefusedError: "refused",
    FileNotFoundError: "refused",  # the Unix socket is not there
    BlockingIOError: "full",  # a Unix socket's queue has no room (connect(2), EAGAIN)
    ConnectionError: "reset",
    ssl.SSLError: "tls",  # such as an end without a goodbye
}


def _outcome(error: OSError | EOFError) -> str:
    if isinstance(error, EOFError):
        return str(error)
    return next((outcome for kind, outcome in OUTCOMES.items() if isinstance(error, kind)), repr(error))


def read_answer(client: socket.socket) -> tuple[int, bytes, bool]:
    """Return status, body, and whether the connection stays open. Raises EOFError("empty") or EOFError("short")."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _receive(client, "short" if data else "empty")
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if headers.get("transfer-encoding", "") == "chunked":
        body = _read_chunked(client, body)
    elif "content-length" in headers:
        while len(body) < int(headers["content-length"]):
            body += _receive(client, "short")
    else:
        while True:
            data = client.recv(65536)
            if not data:
                break
            body += data
    return int(lines[0].split()[1]), body, headers.get("connection", "").lower() != "close"


def _read_chunked(client: socket.socket, data: bytes) -> bytes:
    body = b""
    while True:
        while b"\r\n" not in data:
            data += _receive(client, "short")
        size_line, _, data = data.partition(b"\r\n")
        size = int(size_line, 16)
        while len(data) < size + 2:
            data += _receive(client, "short")
        body, data = body + data[:size], data[size + 2 :]
        if size == 0:
            return body


def _receive(client: socket.socket, otherwise: str) -> bytes:
    data = client.recv(65536)
    if not data:
        raise EOFError(otherwise)
    return data


def _connect(address: Address, tls: ssl.SSLContext | None = None) -> socket.socket:
    family = (
        socket.AF_UNIX
        if isinstance(address, str)
        else socket.AF_INET6
        if ":" in address[0]
        else socket.AF_INET
    )
    client = socket.socket(family, socket.SOCK_STREAM)
    client.settimeout(TIMEOUT)
    try:
        client.connect(address)
        return tls.wrap_socket(client, server_hostname="localhost") if tls else client
    except BaseException:
        client.close()
        raise


def _get(path: str, close: bool = False) -> bytes:
    connection = "Connection: close\r\n" if close else ""
    return f"GET {path} HTTP/1.1\r\nHost: test\r\n{connection}\r\n".encode()


def _is_closed(client: socket.socket) -> bool:
    """Tell whether the server has closed: nothing was asked, so readable can only mean the end."""
    return bool(select.select([client], [], [], 0)[0])
