"""Refusals, overload, PROXY headers and trusted proxies, as clients of the evented worker see them."""

from __future__ import annotations

import logging
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from select import select
from typing import Any

import pytest

from prefork.config.schema import CLIENT_FIELDS, Http, Listen
from prefork.handlers.wsgi import FileWrapper
from prefork.protocols.proxy import SIGNATURE
from prefork.units import TcpAddress
from prefork.worker import evented
from tests.corpus import BAD_HEADS, GOOD, SMUGGLED, SMUGGLERS
from tests.harness import wait_until
from tests.unit.worker.serving import LONG, Site, read_all, read_answer, request

Start = Callable[..., Callable[[bytes], object]]
BOTH = pytest.mark.parametrize("threads", [1, 3])
V2 = SIGNATURE + b"\x21\x11\0\x0c\xc0\0\2\1\xc0\0\2\2\0\x63\x1f\x90"
SHOWN = (
    "REMOTE_ADDR",
    "REMOTE_PORT",
    "wsgi.url_scheme",
    "HTTP_HOST",
    "SCRIPT_NAME",
    "PATH_INFO",
    "SERVER_NAME",
)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evented, "DRAIN_IDLE", 0.1)


class Recorder:
    """An application that keeps what it was asked, and shows what it knows of the client."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str | None, bytes]] = []

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        body = environ["wsgi.input"].read()
        asked = environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_X_TEST"), body
        self.asked.append(asked)
        start("200 OK", [])
        return [" ".join(environ[key] or "-" for key in SHOWN).encode("latin-1")]


def door(**options: Any) -> tuple[Listen, ...]:
    return (Listen(address=TcpAddress("127.0.0.1", 0), **options),)


def ask_shown(site: Site, data: bytes) -> list[str]:
    """Return what ``Recorder`` shows of SHOWN."""
    with site.connect() as client:
        client.sendall(data)
        return read_answer(client)[1].decode("latin-1").split(" ")


# Refusals


def assert_refused(answer: bytes, status: int) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("ascii").split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines)
    assert first.startswith(f"HTTP/1.1 {status} ")
    assert fields["Connection"] == "close"
    assert int(fields["Content-Length"]) == len(body) > 0  # so nothing follows


@pytest.mark.parametrize("threads", [1, 2])
def test_whatever_is_refused_ends_its_connection_and_nothing_behind_it_is_served(threads: int) -> None:
    application = Recorder()
    with Site(application, threads=threads) as site:
        for name, data, status, _ in [*SMUGGLERS, *BAD_HEADS]:
            with site.connect() as client:
                client.sendall(data + SMUGGLED * 2)
                try:
                    assert_refused(read_all(client), status)
                except AssertionError as error:
                    raise AssertionError(name) from error
    assert application.asked == []


def test_what_only_looks_odd_is_served_and_so_is_what_follows() -> None:
    application = Recorder()
    with Site(application) as site:
        for _, data, _ in GOOD:
            assert site.ask(data + SMUGGLED).count(b"HTTP/1.1 200 OK\r\n") == 2
    assert application.asked[::2] == [meant for _, _, meant in GOOD]
    assert {path for _, path, _, _ in application.asked[1::2]} == {"/smuggled"}


def trickle(client: socket.socket, seconds: float) -> None:
    """Go on sending for some time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        client.sendall(b"x" * 1000)
        time.sleep(0.01)


@BOTH
def test_a_refusal_is_read_by_a_client_that_sends_a_mebibyte_before_it_reads(threads: int) -> None:
    with Site(Recorder(), threads=threads) as site, site.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n")
        for _ in range(16):
            client.sendall(bytes(65536))
            time.sleep(0.002)
        assert_refused(read_all(client), 400)


def test_a_client_that_goes_on_sending_is_listened_to_beyond_one_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evented, "LINGER", 0.2)
    with Site(Recorder()) as site, site.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n")
        trickle(client, 0.5)  # a reset would raise here
        assert_refused(read_all(client), 400)


def test_a_client_that_never_stops_sending_is_not_listened_to_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evented, "LINGER", 0.1)
    monkeypatch.setattr(evented, "LINGER_TOTAL", 0.2)
    with Site(Recorder()) as site, site.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n")
        with pytest.raises(ConnectionError):
            trickle(client, LONG)


@pytest.mark.parametrize(
    "data",
    [
        b"HEAD / HTTP/1.1\r\n\r\n",
        b"\r\nHEAD / HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
    ],
)
def test_the_refusal_of_head_has_no_body(data: bytes) -> None:
    with Site(Recorder()) as site:
        head, end, body = site.ask(data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 4")
    assert (end, body) == (b"\r\n\r\n", b"")


@BOTH
def test_a_valid_request_before_a_bad_one_in_the_same_segment_is_answered_first(threads: int) -> None:
    application = Recorder()
    with Site(application, threads=threads) as site:
        answer = site.ask(request("/first") + b"GET /\0 HTTP/1.1\r\n\r\n" + SMUGGLED)
    assert answer.index(b"HTTP/1.1 200 ") < answer.index(b"HTTP/1.1 400 ")
    assert [path for _, path, _, _ in application.asked] == ["/first"]


def test_the_server_header_can_be_turned_off() -> None:
    with Site(Recorder(), http=Http(server_header=False)) as site:
        answers = site.ask(request("/") + b"BAD\r\n\r\n")
    assert answers.count(b"HTTP/1.1 ") == 2
    assert b"\r\nserver:" not in answers.lower()
    with Site(Recorder()) as site:
        assert site.ask(request("/") + b"BAD\r\n\r\n").count(b"\r\nServer: prefork\r\n") == 2


@BOTH
def test_a_body_for_which_there_is_no_room_is_refused_and_nothing_else_suffers(threads: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # fails as a full disk does
    try:
        with Site(Recorder(), threads=threads) as site:
            for size, status in ((100_000, 200), (100_001, 507), (104_000, 507), (300_000, 507), (5, 200)):
                answer = site.ask(request("/", f"Content-Length: {size}", method="POST") + bytes(size))
                assert answer.startswith(b"HTTP/1.1 %d " % status)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# HTTP/1.0 and half-closed clients


def large(kind: str, path: Path) -> Callable[[dict[str, Any], Start], Iterable[bytes]]:
    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [])
        if kind == "file":
            return FileWrapper(path.open("rb"))
        pieces = (bytes(100_000) for _ in range(50))
        return list(pieces) if kind == "list" else pieces

    return application


@BOTH
@pytest.mark.parametrize("kind", ["list", "stream", "file"])
def test_a_half_closed_client_gets_its_whole_answer(threads: int, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(5_000_000))
    with Site(large(kind, path), threads=threads) as site, site.connect(receive_buffer=4096) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        _, _, body = read_all(client).partition(b"\r\n\r\n")
    assert len(body) == 5_000_000


@BOTH
def test_http_1_0_sees_neither_100_nor_chunks(threads: int) -> None:
    def application(environ: dict[str, Any], start: Start) -> Iterator[bytes]:
        start("200 OK", [])
        yield environ["wsgi.input"].read()
        yield b" was sent"

    with Site(application, threads=threads) as site, site.connect() as client:
        client.sendall(
            request("/", "Content-Length: 3", "Expect: 100-continue", method="POST", version="1.0")
        )
        time.sleep(0.05)
        client.sendall(b"abc")
        head, _, body = read_all(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding" not in head.lower()
    assert body == b"abc was sent"


# Overload


class Gate:
    """An application that answers ``/slow`` once it may."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.closed = 0

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/slow":
            assert self.go_on.wait(LONG)
        start("200 OK", [])
        return [b"done"]


def test_when_threads_are_busy_and_the_queue_is_full_the_answer_is_503_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evented, "QUEUE_TIME", 0.2)
    gate, most = Gate(), 2 * evented.QUEUE_PER_THREAD
    with Site(gate, threads=2) as site:
        clients = [site.connect() for _ in range(2 + most + 5)]
        for client in clients:
            client.sendall(request("/slow", "Content-Length: 3", method="POST") + b"abc")
        refused = wait_until(
            lambda: len(found := select(clients, [], [], 0.1)[0]) == 5 and found, "5 answers"
        )
        for client in refused:
            answer = read_all(client)
            assert_refused(answer, 503)
            assert b"\r\nRetry-After: 1\r\n" in answer
        began = time.monotonic()
        for method in ("GET", "HEAD"):
            answer = site.ask(request("/slow", method=method))
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert (answer[-4:] == b"\r\n\r\n") is (method == "HEAD")
        assert time.monotonic() - began < 2
        assert site.ask(b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400 ")  # the loop is not busy
        gate.go_on.set()
        for client in set(clients) - set(refused):
            assert read_answer(client)[1] == b"done"
        with site.connect() as client:
            client.sendall(request("/fast"))
            assert read_answer(client)[1] == b"done"
        for client in clients:
            client.close()


def test_a_burst_that_is_served_in_time_is_not_refused() -> None:
    with Site(Recorder(), threads=2) as site:
        clients = [site.connect() for _ in range(2 + 4 * evented.QUEUE_PER_THREAD)]
        for client in clients:
            client.sendall(request("/"))
        for client in clients:
            assert read_answer(client)[0].startswith(b"HTTP/1.1 200 ")
            client.close()


# PROXY headers


@BOTH
@pytest.mark.parametrize("header", [V2, b"PROXY TCP4 192.0.2.1 192.0.2.2 99 8080\r\n"])
def test_a_proxy_header_says_who_the_client_is(threads: int, header: bytes) -> None:
    with Site(Recorder(), threads=threads, listen=door(proxy_protocol=True)) as site:
        shown = ask_shown(site, header + request("/"))
        assert shown == ["192.0.2.1", "99", "http", "a", "-", "/", "192.0.2.2"]
        with site.connect() as client:
            for byte in header + request("/1") + request("/2"):
                client.send(bytes([byte]))
            assert [b"192.0.2.1" in read_answer(client)[1] for _ in range(2)] == [True, True]


@pytest.mark.parametrize("header", [SIGNATURE + b"\x20\0\0\0", b"PROXY UNKNOWN\r\n"])
def test_a_balancers_own_connection_keeps_its_addresses(header: bytes) -> None:
    with Site(Recorder(), listen=door(proxy_protocol=True)) as site:
        assert ask_shown(site, header + request("/"))[0] == "127.0.0.1"


def test_a_long_header_with_additional_fields_is_skipped_whole() -> None:
    fields = b"\xea\xff\xf0" + b"G" * 65520
    header = SIGNATURE + b"\x21\x11" + (12 + len(fields)).to_bytes(2, "big") + V2[16:] + fields
    with Site(Recorder(), listen=door(proxy_protocol=True)) as site:
        assert ask_shown(site, header + request("/"))[0] == "192.0.2.1"


def test_a_connection_without_the_demanded_header_is_closed_cleanly(caplog: pytest.LogCaptureFixture) -> None:
    application = Recorder()
    with caplog.at_level(logging.WARNING), Site(application, listen=door(proxy_protocol=True)) as site:
        for data in (request("/"), b"PROXY TCP4 nonsense\r\n" + request("/"), V2[:12] + b"\x11" + V2[13:]):
            with site.connect() as client:
                client.sendall(data)
                assert read_all(client) == b""
        with site.connect() as client:  # as some balancers look whether a port is open
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b""
    assert application.asked == []
    assert len(caplog.records) == 1
    assert "127.0.0.1 refused, no PROXY header: it does not begin with one" in caplog.text


def test_the_header_has_a_deadline_and_so_has_the_head_behind_it() -> None:
    with Site(Recorder(), read_timeout=0.2, listen=door(proxy_protocol=True)) as site:
        with site.connect() as client:
            client.sendall(V2[:20])
            assert read_all(client) == b""
        with site.connect() as client:
            client.sendall(V2 + b"GET / HTTP/1.1\r\n")
            assert read_all(client).startswith(b"HTTP/1.1 408 ")


def test_a_drain_does_not_wait_for_a_header() -> None:
    with Site(Recorder(), listen=door(proxy_protocol=True)) as site, site.connect() as client:
        client.sendall(V2[:20])
        time.sleep(0.05)
        began = time.monotonic()
        site.orders.drain()
        assert read_all(client) == b""
        client.close()
        site.thread.join(LONG)
        assert time.monotonic() - began < 2


def test_the_client_behind_a_balancer_is_not_trusted_because_the_balancer_is() -> None:
    forged = request("/", "X-Forwarded-For: 6.6.6.6")
    with Site(Recorder(), listen=door(proxy_protocol=True)) as site:
        assert ask_shown(site, V2 + forged)[0] == "192.0.2.1"
        assert ask_shown(site, b"PROXY UNKNOWN\r\n" + forged)[0] == "6.6.6.6"
    with Site(Recorder(), listen=door(proxy_protocol=True, trusted=("192.0.2.1",))) as site:
        assert ask_shown(site, V2 + forged)[0] == "6.6.6.6"


# Trusted proxies

ALL = Http(trusted_fields=CLIENT_FIELDS)
FORWARDED = (
    "X-Forwarded-For: 6.6.6.6, 203.0.113.7",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: shop.example",
    "X-Forwarded-Prefix: /shop",
)


@BOTH
def test_a_trusted_proxy_says_who_the_client_is(threads: int) -> None:
    with Site(Recorder(), threads=threads, http=ALL) as site:
        shown = ask_shown(site, request("/x", *FORWARDED))
        assert shown == ["203.0.113.7", "-", "https", "shop.example", "/shop", "/x", "127.0.0.1"]
        standard = 'Forwarded: for="203.0.113.7:99";proto=https;host=shop.example'
        assert ask_shown(site, request("/x", standard))[:4] == ["203.0.113.7", "99", "https", "shop.example"]


def test_what_a_usual_proxy_lets_through_is_not_believed_by_default() -> None:
    """nginx as everybody writes it sets the first two, and passes on what else a client has sent."""
    forged = (*FORWARDED[2:], "Forwarded: for=9.9.9.9;host=evil.example;proto=http")
    with Site(Recorder()) as site:
        shown = ask_shown(site, request("/x", *FORWARDED[:2], *forged))
        assert shown == ["203.0.113.7", "-", "https", "a", "-", "/x", "127.0.0.1"]


@pytest.mark.parametrize("options", [{"http": Http(trusted=("10.0.0.0/8",))}, {"listen": door(trusted=())}])
def test_from_anybody_else_it_changes_nothing(options: dict[str, Any]) -> None:
    with Site(Recorder(), **options) as site:
        plain = ask_shown(site, request("/x"))
        shown = ask_shown(site, request("/x", *FORWARDED, "Forwarded: for=9.9.9.9;proto=https"))
    assert shown[0] == "127.0.0.1"
    assert (shown[0], *shown[2:]) == (plain[0], *plain[2:])


def test_a_listener_may_trust_others_than_the_pool() -> None:
    with Site(Recorder(), http=Http(trusted=()), listen=door(trusted=("127.0.0.0/8",))) as site:
        assert ask_shown(site, request("/x", *FORWARDED))[0] == "203.0.113.7"


def test_the_peer_of_a_unix_socket_is_trusted_by_its_name(tmp_path: Path) -> None:
    for trusted, address in ((("unix",), "203.0.113.7"), (("0.0.0.0/0", "::/0"), "-")):
        path = str(tmp_path / f"s{len(trusted)}")
        with Site(Recorder(), unix=path, http=Http(trusted=trusted)) as site:
            assert ask_shown(site, request("/x", *FORWARDED))[0] == address


@BOTH
def test_proxies_that_contradict_each_other_are_refused(threads: int) -> None:
    application = Recorder()
    data = request(
        "/", "X-Forwarded-For: 1.1.1.1", "Forwarded: for=2.2.2.2", "Content-Length: 3", method="POST"
    )
    with Site(application, threads=threads, http=ALL) as site, site.connect() as client:
        client.sendall(data + b"abc" + SMUGGLED)
        assert_refused(read_all(client), 400)
    assert application.asked == []


def test_the_trust_in_one_connection_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefork.protocols.forwarded import Trust

    looked_up: list[str] = []
    believes = Trust.believes
    monkeypatch.setattr(Trust, "believes", lambda self, host: looked_up.append(host) or believes(self, host))
    with Site(Recorder(), http=Http(trusted=())) as site, site.connect() as client:
        for _ in range(3):
            client.sendall(request("/x", *FORWARDED))
            read_answer(client)
    assert looked_up == ["127.0.0.1"]
