"""What clients see of the evented worker over TLS, over real sockets."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork.config.schema import Http, Listen
from prefork.handlers.access import Server
from prefork.handlers.peer import Door
from prefork.units import TcpAddress, UnixAddress
from prefork.worker import evented, tls
from prefork.worker.access import AccessLog
from prefork.worker.tls import PLAIN_HTTP, TlsConnection, say_goodbye, shake_hands, take, wrap
from tests.access_lines import read_line
from tests.certificates import Authority
from tests.unit.worker.serving import LONG, Site, read_all, read_answer, request

Start = Callable[..., Callable[[bytes], object]]
TEMPLATE = "{status} {sent} {bytes}"
BOTH = pytest.mark.parametrize("threads", [1, 3])
LARGE = bytes(range(256)) * 12000


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def context(authority: Authority) -> ssl.SSLContext:
    return authority.issue("server").context()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evented, "DRAIN_IDLE", 0.1)


@pytest.fixture
def secure(authority: Authority) -> Callable[..., ssl.SSLSocket]:
    """Give a function that returns a TLS connection to a site."""

    def connect(site: Site, **options: Any) -> ssl.SSLSocket:
        return authority.client().wrap_socket(
            site.connect(**options), server_hostname="localhost", suppress_ragged_eofs=False
        )

    return connect


class ByHand:
    """A client that holds what it has to send in its hands, to be sent in any portions."""

    def __init__(self, site: Site, client: ssl.SSLContext) -> None:
        self.sock = site.connect()
        self._incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = client.wrap_bio(self._incoming, self.outgoing, server_hostname="localhost")

    def do(self, step: Callable[[], Any], portion: int = 0) -> Any:
        """Return the result of a step, sending and receiving as it takes."""
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self.send(portion)
                self._incoming.write(self.sock.recv(65536))

    def send(self, portion: int = 0) -> None:
        """Send what there is, ``portion`` bytes at a time."""
        data = self.outgoing.read()
        for at in range(0, len(data), portion or len(data) or 1):
            self.sock.send(data[at : at + (portion or len(data))])

    def recv(self, size: int) -> bytes:
        return self.do(lambda: self.tls.read(size))


def echo(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    """Answer with method, path and body."""
    body = environ["wsgi.input"].read()
    start("200 OK", [])
    return [f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} ".encode() + body]


def streamed(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    """Answer with a large body in pieces of many sizes; /cut breaks in the middle of it."""
    start("200 OK", [("Content-Length", str(len(LARGE)))])
    at, size = 0, 1
    while at < len(LARGE):
        yield LARGE[at : at + size]
        at, size = at + size, size * 2 % 100_003
        if environ["PATH_INFO"] == "/cut" and at > 100_000:
            raise RuntimeError("in the middle")


def whole(_environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    start("200 OK", [])
    return [LARGE]


@BOTH
def test_a_connection_is_kept_alive(threads, context, secure):
    with Site(echo, threads=threads, context=context) as site, secure(site) as client:
        for path in ("/a", "/b", "/c"):
            client.sendall(request(path))
            assert read_answer(client)[1] == b"GET " + path.encode() + b" "


def test_an_application_hears_of_tls(context, secure):
    seen = []

    def app(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        seen.append(environ)
        return echo(environ, start)

    with Site(app, context=context) as site, secure(site) as client:
        client.sendall(request("/a"))
        read_answer(client)
        assert (seen[0]["wsgi.url_scheme"], seen[0]["HTTPS"], seen[0]["SSL_CLIENT_VERIFY"]) == (
            "https",
            "on",
            "NONE",
        )
        assert (seen[0]["SSL_PROTOCOL"], seen[0]["SSL_CIPHER"]) == (client.version(), client.cipher()[0])


@BOTH
@pytest.mark.parametrize("portion", [1, 7])
def test_handshake_and_request_may_come_in_any_portions(threads, portion, context, authority):
    with Site(echo, threads=threads, context=context) as site:
        client = ByHand(site, authority.client())
        client.do(client.tls.do_handshake, portion)
        client.tls.write(request("/a", "Content-Length: 3", method="POST"))
        client.tls.write(b"abc")
        client.send(portion)
        assert read_answer(client)[1] == b"POST /a abc"
        client.sock.close()


@BOTH
def test_requests_may_come_with_the_end_of_the_handshake(threads, context, authority):
    with Site(echo, threads=threads, context=context) as site:
        client = ByHand(site, authority.client())
        client.do(client.tls.do_handshake)
        for path in ("/a", "/b", "/c"):
            client.tls.write(request(path))
        client.send()
        assert [read_answer(client)[1] for _ in range(3)] == [b"GET /a ", b"GET /b ", b"GET /c "]
        client.sock.close()


@BOTH
def test_large_bodies_arrive_whole_both_ways(threads, context, secure):
    with Site(echo, threads=threads, context=context) as site, secure(site) as client:
        for _ in range(2):
            client.sendall(request("/a", f"Content-Length: {len(LARGE)}", method="POST") + LARGE)
            assert read_answer(client)[1] == b"POST /a " + LARGE


@BOTH
@pytest.mark.parametrize("app", [whole, streamed])
def test_a_large_answer_waits_for_a_slow_client(threads, app, context, secure):
    with Site(app, threads=threads, context=context) as site, secure(site, receive_buffer=4096) as client:
        for _ in range(2):
            client.sendall(request("/a"))
            time.sleep(0.05)
            assert read_answer(client)[1] == LARGE


@BOTH
def test_a_file_is_sent_without_sendfile(threads, context, secure, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(LARGE)

    def app(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [])
        return environ["wsgi.file_wrapper"](Path(path).open("rb"))

    with Site(app, threads=threads, context=context) as site, secure(site, receive_buffer=4096) as client:
        for _ in range(2):
            client.sendall(request("/a"))
            assert read_answer(client)[1] == LARGE


@BOTH
def test_a_large_answer_does_not_keep_others_waiting(threads, context, secure):
    def app(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        return echo(environ, start) if environ["PATH_INFO"] == "/small" else whole(environ, start)

    with Site(app, threads=threads, context=context) as site, secure(site) as slow, secure(site) as quick:
        slow.sendall(request("/large"))  # and nobody reads it
        for _ in range(3):
            quick.sendall(request("/small"))
            assert read_answer(quick)[1] == b"GET /small "
        assert read_answer(slow)[1] == LARGE


@BOTH
def test_an_end_is_announced_before_the_connection_is_closed(threads, context, secure):
    with Site(echo, threads=threads, context=context) as site, secure(site) as client:
        client.sendall(request("/a", "Connection: close"))
        assert read_all(client).endswith(b"GET /a ")  # an end without close_notify would raise


@BOTH
@pytest.mark.parametrize("portion", [0, 3])
def test_a_client_with_none_of_our_protocols_is_refused_by_name(threads, portion, context, authority):
    with Site(echo, threads=threads, context=context) as site:
        for protocols in (["ftp", "imap"], ["h2"], ["http/1.0"]):
            offering = authority.client()
            offering.set_alpn_protocols(protocols)
            client = ByHand(site, offering)
            with pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
                client.do(client.tls.do_handshake, portion)
            assert client.sock.recv(1) == b""
            client.sock.close()
        for protocols in (["h2", "http/1.1"], ["http/1.1"]):
            offering = authority.client()
            offering.set_alpn_protocols(protocols)
            client = ByHand(site, offering)
            client.do(client.tls.do_handshake, portion)
            client.tls.write(request("/a"))
            client.send()
            assert read_answer(client)[1] == b"GET /a "
            client.sock.close()


@BOTH
def test_an_answer_that_is_cut_does_not_look_as_if_it_had_ended(threads, context, secure):
    with Site(streamed, threads=threads, context=context) as site, secure(site) as client:
        client.sendall(request("/cut"))
        # Python 3.11.2, Debian's, does not know OpenSSL 3's error for an SSLEOFError.
        with pytest.raises(
            (ssl.SSLError, ConnectionResetError), match=r"(?i)unexpected.eof|EOF occurred|reset"
        ):
            read_all(client)


@BOTH
def test_a_client_that_has_said_goodbye_gets_its_answer_and_the_end_at_once(threads, context, authority):
    with Site(echo, threads=threads, context=context) as site:
        client = ByHand(site, authority.client())
        client.do(client.tls.do_handshake)
        client.tls.write(request("/a"))
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.unwrap()
        client.send()
        began = time.monotonic()
        assert read_all(client.sock)
        assert time.monotonic() - began < LONG / 2
        client.sock.close()


@BOTH
def test_a_half_closed_client_gets_its_answer(threads, context, authority):
    with Site(echo, threads=threads, context=context) as site:
        client = ByHand(site, authority.client())
        client.do(client.tls.do_handshake)
        client.tls.write(request("/a"))
        client.send()
        client.sock.shutdown(socket.SHUT_WR)
        assert read_answer(client)[1] == b"GET /a "
        assert client.recv(1) == b""  # an alert, or an end without close_notify, would raise
        client.sock.close()


@BOTH
@pytest.mark.parametrize("asks", [False, True])
def test_a_goodbye_is_answered_with_one(threads, asks, context, secure):
    with Site(echo, threads=threads, context=context) as site, secure(site) as client:
        if asks:
            client.sendall(request("/a"))
            read_answer(client)
        client.unwrap().close()  # waits for the server's close_notify; an end without it would raise


def test_an_invalid_request_is_refused_and_the_end_announced(context, secure):
    with Site(echo, context=context) as site, secure(site) as client:
        client.sendall(b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n" + bytes(100_000))
        assert read_all(client).startswith(b"HTTP/1.1 400 Bad Request")


def test_plain_http_is_told_where_it_is(context):
    with Site(echo, context=context) as site, site.connect() as client:
        client.sendall(request("/a"))
        select.select([client], [], [], LONG)
        for _ in range(3):  # what it goes on sending does not destroy the answer
            client.sendall(bytes(10_000))
            time.sleep(0.02)
        head, _, body = read_all(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert body == PLAIN_HTTP.encode() + b"\n"


@pytest.mark.parametrize(
    "data", [b"\0" * 1000, b"SSH-2.0-x\r\n", b"\x16\x03\x01\xff\xff" + b"\xff" * 70000, b"\x80\x2e\x01\0\x02"]
)
def test_what_is_no_handshake_ends_the_connection_without_a_reset(data, context, secure):
    with Site(echo, context=context) as site:
        with site.connect() as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            assert len(read_all(client)) < 10  # an alert at most
        with secure(site) as good:
            good.sendall(request("/a"))
            assert read_answer(good)[1] == b"GET /a "


def test_a_slow_handshake_is_cut_by_its_deadline_and_delays_nobody(context, secure, authority):
    with Site(echo, context=context, read_timeout=0.5) as site:
        silent, slow = site.connect(), ByHand(site, authority.client())
        began = time.monotonic()
        with contextlib.suppress(ssl.SSLWantReadError):
            slow.tls.do_handshake()
        hello = slow.outgoing.read()
        with secure(site) as client:
            for byte in hello[:-1]:  # one byte more now and then holds nothing off
                client.sendall(request("/a"))
                asked = time.monotonic()
                read_answer(client)
                assert time.monotonic() - asked < 0.25
                if select.select([slow.sock], [], [], 0.01)[0]:
                    break
                slow.sock.send(bytes([byte]))
            assert 0.4 < time.monotonic() - began < 2
        for one in (silent, slow.sock):
            assert read_all(one) == b""
            one.close()


def test_a_request_that_does_not_come_in_time_is_refused_over_tls(context, secure):
    with Site(echo, context=context, read_timeout=0.2) as site, secure(site) as client:
        client.sendall(b"GET / HT")
        assert read_all(client).startswith(b"HTTP/1.1 408 ")


def test_idle_connections_are_closed_with_a_goodbye(context, secure):
    with Site(echo, context=context, keepalive_timeout=0.2) as site, secure(site) as client:
        client.sendall(request("/a"))
        read_answer(client)
        assert client.recv(1) == b""


def test_a_drain_waits_for_no_handshake_that_has_not_begun(context, secure):
    with Site(echo, context=context) as site, secure(site) as idle:
        idle.sendall(request("/a"))
        read_answer(idle)
        silent = site.connect()
        silent.settimeout(LONG / 2)
        idle.sendall(request("/b"))
        read_answer(idle)  # so the silent one was accepted
        site.orders.drain()
        assert (idle.recv(1), read_all(silent)) == (b"", b"")
        silent.close()
        idle.close()
        site.thread.join(2)
        assert not site.thread.is_alive()


def test_clients_that_leave_in_the_middle_of_a_handshake_leave_nothing_behind(context, authority):
    with Site(echo, context=context) as site:
        for reset in (False, True):
            client = ByHand(site, authority.client())
            with contextlib.suppress(ssl.SSLWantReadError):
                client.tls.do_handshake()
            client.send()
            if reset:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sock.close()
        until = time.monotonic() + LONG
        while site.snapshot().connections or not site.row.turns:
            assert time.monotonic() < until
            time.sleep(0.01)


@BOTH
@pytest.mark.parametrize("portion", [0, 5])
def test_a_proxy_header_comes_before_the_handshake(threads, portion, context, authority):
    def app(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [])
        names = ("REMOTE_ADDR", "SERVER_PORT", "HTTPS", "wsgi.url_scheme")
        return [" ".join(environ[name] for name in names).encode()]

    listen = (Listen(address=TcpAddress("127.0.0.1", 0), proxy_protocol=True),)
    with Site(app, threads=threads, context=context, listen=listen) as site:
        client = ByHand(site, authority.client())
        client.outgoing.write(b"PROXY TCP4 192.0.2.1 192.0.2.2 99 8443\r\n")
        client.do(client.tls.do_handshake, portion)
        client.tls.write(request("/a"))
        client.send(portion)
        assert read_answer(client)[1] == b"192.0.2.1 8443 on https"
        client.sock.close()
        with site.connect() as bare:  # refused as it would be without TLS
            bare.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert read_all(bare) == b""


def test_tls_is_spoken_on_unix_sockets_too(context, secure, tmp_path):
    with Site(echo, context=context, unix=str(tmp_path / "socket")) as site, secure(site) as client:
        client.sendall(request("/a"))
        assert read_answer(client)[1] == b"GET /a "


def test_a_client_that_reads_as_fast_as_we_send_has_its_turns(context, authority, monkeypatch):
    monkeypatch.setattr(tls, "TURN_SIZE", tls.CHUNK)
    server, client = socket.socketpair()
    client.settimeout(LONG)
    door = Door(Listen(address=UnixAddress("/x")), Http())
    connection = TlsConnection(server, "", "", {}, door, context)
    reader = threading.Thread(
        target=lambda: received.append(
            read_answer(authority.client().wrap_socket(client, server_hostname="localhost"))
        )
    )
    received: list[tuple[bytes, bytes]] = []
    reader.start()
    while not connection.shake_hands():
        select.select([connection.sock], [], [])
    body = bytes(3 * tls.CHUNK)
    turns = 1
    is_sent = connection.send([b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body])
    while not is_sent:
        select.select([], [connection.sock], [])
        is_sent = connection.flush()
        turns += 1
    reader.join()
    assert received[0][1] == body
    assert turns >= 3
    connection.sock.close()
    client.close()


def pieces_of(sizes: list[int]) -> Iterator[bytes]:
    yield from (bytes([number % 256]) * size for number, size in enumerate(sizes))


@pytest.mark.parametrize(
    "sizes", [[], [5], [100], [1, 2, 3], [60, 60, 60], [99, 1, 1], [100, 100], [250, 3], [0, 101, 0]]
)
def test_what_waits_is_taken_in_portions_and_in_order(sizes):
    outbox: list[bytes | memoryview] = list(pieces_of(sizes))
    taken = []
    while outbox:
        taken.append(bytes(take(outbox, 100)))
    assert b"".join(taken) == b"".join(pieces_of(sizes))
    assert all(len(portion) <= 100 for portion in taken)
    assert len(taken) <= sum(sizes) // 50 + 2


def blocking_pair(context: ssl.SSLContext) -> tuple[ssl.SSLSocket, socket.socket]:
    server, client = socket.socketpair()
    client.settimeout(LONG)
    return wrap(server, context), client


@pytest.mark.parametrize("drips", [False, True])
def test_a_blocking_handshake_has_one_deadline_for_all_of_it(drips, context):
    secured, client = blocking_pair(context)
    over = threading.Event()

    def drip() -> None:
        client.sendall(b"\x16\x03\x01\x02\x00")
        while not over.wait(0.02):
            client.send(b"\x01")

    thread = threading.Thread(target=drip)
    if drips:
        thread.start()
    began = time.monotonic()
    assert not shake_hands(secured, 0.3)
    assert 0.2 < time.monotonic() - began < LONG / 2
    over.set()
    if drips:
        thread.join()
    secured.close()
    client.close()


def test_a_blocking_connection_says_goodbye_whether_or_not_its_client_does(context, authority):
    secured, client = blocking_pair(context)
    result: list[bool] = []
    thread = threading.Thread(target=lambda: result.append(shake_hands(secured, LONG)))
    thread.start()
    connection = authority.client().wrap_socket(
        client, server_hostname="localhost", suppress_ragged_eofs=False
    )
    thread.join()
    assert (result, secured.gettimeout()) == ([True], None)
    began = time.monotonic()
    plain = say_goodbye(secured)
    assert time.monotonic() - began < LONG / 2
    assert secured.fileno() < 0
    assert say_goodbye(secured) is secured
    plain.close()
    assert connection.recv(1) == b""
    connection.close()


def test_an_end_without_a_goodbye_is_an_end_to_a_blocking_handler(context, authority):
    secured, client = blocking_pair(context)

    beneath = client.dup()

    def cut() -> None:
        authority.client().wrap_socket(client, server_hostname="localhost").sendall(b"first")
        beneath.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=cut)
    thread.start()
    assert shake_hands(secured, LONG)
    secured.settimeout(LONG)
    assert secured.recv(100) == b"first"
    assert (secured.recv(100), secured.recv_into(bytearray(9))) == (b"", 0)
    thread.join()
    say_goodbye(secured).close()
    beneath.close()


@BOTH
@pytest.mark.parametrize("kind", ["list", "stream", "file"])
def test_the_access_log_counts_an_answers_bytes_as_they_were_before_encryption(
    threads: int, kind: str, context: ssl.SSLContext, secure: Callable[..., ssl.SSLSocket], tmp_path: Path
) -> None:
    (tmp_path / "content").write_bytes(LARGE)

    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [("Content-Length", str(len(LARGE)))])
        if kind == "file":
            file: Iterable[bytes] = environ["wsgi.file_wrapper"]((tmp_path / "content").open("rb"))
            return file
        return [LARGE] if kind == "list" else (LARGE[at : at + 9999] for at in range(0, len(LARGE), 9999))

    descriptor = os.open(tmp_path / "access.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    log = AccessLog(TEMPLATE, Server("web", 0, 1, 4711), descriptor)
    with Site(application, threads=threads, context=context, access=log) as site, secure(site) as client:
        heads = []
        for _ in range(2):
            client.sendall(request())
            head, body = read_answer(client)
            assert body == LARGE
            heads.append(head)
        client.sendall(b"BAD\r\n\r\n")
        refusal = client.recv(65536)
    lines = (tmp_path / "access.log").read_text().splitlines()
    first, second, refused = (read_line(line, TEMPLATE) for line in lines)
    for entry, head in zip((first, second), heads, strict=True):
        sizes = {"sent": str(len(head) + 4 + len(LARGE)), "bytes": str(len(LARGE))}
        assert entry == {"status": "200", **sizes}
    assert (refused["status"], refused["sent"]) == ("400", str(len(refusal)))
