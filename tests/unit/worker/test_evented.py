"""What clients see of the evented worker, over real sockets."""

from __future__ import annotations

import gc
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from prefork.config.schema import Http
from prefork.scoreboard import Lane, State
from prefork.worker import evented
from tests.unit.worker.serving import LONG, Site, read_all, read_answer, request

Start = Callable[..., Callable[[bytes], object]]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evented, "DRAIN_IDLE", 0.1)


BOTH = pytest.mark.parametrize("threads", [1, 3])


def echo(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    """Answer with method, path and body."""
    body = environ["wsgi.input"].read()
    start("200 OK", [])
    return [f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} ".encode() + body]


@BOTH
def test_a_connection_is_kept_alive(threads: int) -> None:
    with Site(echo, threads=threads) as site, site.connect() as client:
        for path in ("/a", "/b", "/c"):
            client.sendall(request(path))
            head, body = read_answer(client)
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert body == b"GET " + path.encode() + b" "


@BOTH
def test_pipelined_requests_are_answered_in_order(threads: int) -> None:
    with Site(echo, threads=threads) as site, site.connect() as client:
        post = request("/x", "Content-Length: 3", method="POST") + b"abc"
        client.sendall(b"".join(request(f"/{number}") for number in range(50)) + post)
        assert [read_answer(client)[1] for _ in range(51)] == [
            *(b"GET /%d " % number for number in range(50)),
            b"POST /x abc",
        ]


def test_an_idle_connection_holds_no_large_fields_of_its_last_request() -> None:
    with Site(echo) as site, site.connect() as client:
        for field, remembered in (("X: a", True), ("X: " + "a" * 8000, False)):
            client.sendall(request("/", field))
            read_answer(client)
            (connection,) = site.loop._connections.values()
            assert (connection.block is not None) is remembered


def test_who_sends_many_requests_ahead_does_not_keep_others_waiting() -> None:
    asked: list[str] = []
    held: list[int] = []
    has_begun, go_on = threading.Event(), threading.Event()

    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        asked.append(environ["PATH_INFO"])
        held.extend(len(connection.pending) for connection in site.loop._connections.values())
        has_begun.set()
        assert go_on.wait(LONG)
        return echo(environ, start)

    def send_ahead() -> None:
        greedy.sendall(request("/many") * many)
        greedy.shutdown(socket.SHUT_WR)

    many = 10_000  # several times as much as is received at once
    with Site(application) as site, site.connect() as greedy, site.connect() as modest:
        sender = threading.Thread(target=send_ahead)
        sender.start()
        assert has_begun.wait(LONG)
        modest.sendall(request("/one"))
        go_on.set()
        assert read_answer(modest)[1] == b"GET /one "
        assert read_all(greedy).count(b"GET /many ") == many
        sender.join(LONG)
    assert asked.index("/one") < 100  # of the thousands that are received at once
    assert max(held) < 2 * evented.RECEIVE_SIZE


@BOTH
def test_what_is_valid_is_answered_before_what_is_not_is_refused(threads: int) -> None:
    with Site(echo, threads=threads) as site:
        answers = site.ask(request("/a") + b"GET /b HTTP/1.1\r\nBad Header: x\r\n\r\n" + request("/c"))
    assert answers.count(b"HTTP/1.1 ") == 2
    assert answers.index(b"GET /a") < answers.index(b"HTTP/1.1 400 Bad Request")
    assert b"GET /c" not in answers


@BOTH
def test_a_request_may_come_byte_by_byte(threads: int) -> None:
    with Site(echo, threads=threads) as site, site.connect() as client:
        for byte in request("/a", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n0\r\n\r\n":
            client.send(bytes([byte]))
        assert read_answer(client)[1] == b"POST /a abc"


@BOTH
def test_a_half_closed_client_gets_its_answer(threads: int) -> None:
    with Site(echo, threads=threads) as site:
        assert site.ask(request("/a")).endswith(b"GET /a ")


@BOTH
def test_a_last_request_ends_the_connection(threads: int) -> None:
    with Site(echo, threads=threads) as site, site.connect() as client:
        client.sendall(request("/a", "Connection: close"))
        assert read_all(client).endswith(b"GET /a ")


def test_what_follows_a_last_request_does_not_destroy_its_answer() -> None:
    gate = Gate()
    with Site(gate) as site, site.connect() as client:
        client.sendall(request("/slow", "Connection: close"))
        assert gate.inside.wait(LONG)
        client.sendall(b"\r\n")
        gate.go_on.set()
        assert read_all(client).endswith(b"done")


@BOTH
def test_a_large_body_arrives_whole(threads: int) -> None:
    body = bytes(range(256)) * 4000
    with Site(echo, threads=threads) as site, site.connect() as client:
        for _ in range(2):
            client.sendall(request("/a", f"Content-Length: {len(body)}", method="POST") + body)
            assert read_answer(client)[1] == b"POST /a " + body


def test_100_is_sent_when_the_body_is_wanted_and_awaited() -> None:
    with Site(echo, http=Http(max_body=10)) as site, site.connect() as client:
        client.sendall(request("/a", "Content-Length: 3", "Expect: 100-continue", method="POST"))
        assert client.recv(25, socket.MSG_WAITALL) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"abc")
        assert read_answer(client)[1] == b"POST /a abc"
        client.sendall(request("/b", "Content-Length: 3", "Expect: 100-continue", method="POST") + b"abc")
        assert read_answer(client)[1] == b"POST /b abc"
        client.sendall(request("/c", "Content-Length: 11", "Expect: 100-continue", method="POST"))
        assert read_answer(client)[0].startswith(b"HTTP/1.1 413 ")


def test_a_refusal_is_not_destroyed_by_what_the_client_still_sends() -> None:
    with Site(echo, http=Http(max_body=10)) as site, site.connect() as client:
        client.sendall(request("/a", "Content-Length: 4000000", method="POST"))
        for _ in range(40):
            client.sendall(b"x" * 100_000)
        answer = read_all(client)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"\r\nConnection: close\r\n" in answer


@BOTH
@pytest.mark.parametrize("kind", ["list", "stream", "write", "file"])
def test_an_answer_larger_than_all_buffers_arrives_while_others_are_served(
    threads: int, kind: str, tmp_path: Path
) -> None:
    content = bytes(range(256)) * 30_000
    path = tmp_path / "content"
    path.write_bytes(content)

    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/small":
            start("200 OK", [])
            return [b"small"]
        write = start("200 OK", [("Content-Length", str(len(content)))])
        if kind == "file":
            file: Iterable[bytes] = environ["wsgi.file_wrapper"](path.open("rb"))
            return file
        if kind == "write":
            write(content)
            return []
        return (
            [content]
            if kind == "list"
            else (content[at : at + 100_000] for at in range(0, len(content), 100_000))
        )

    with Site(application, threads=threads) as site, site.connect(receive_buffer=65536) as slow:
        slow.sendall(request("/large"))
        with site.connect() as quick:
            for _ in range(3):
                quick.sendall(request("/small"))
                assert read_answer(quick)[1] == b"small"
        body = read_answer(slow)[1]
        assert body == content
        slow.sendall(request("/small"))
        assert read_answer(slow)[1] == b"small"


@BOTH
def test_a_stream_flows_piece_by_piece(threads: int) -> None:
    go_on = threading.Event()

    def application(environ: dict[str, Any], start: Start) -> Iterator[bytes]:
        start("200 OK", [])
        yield b"first"
        assert go_on.wait(LONG)
        yield b"second"

    with Site(application, threads=threads) as site, site.connect() as client:
        client.sendall(request("/", "Connection: close"))
        found = b""
        while not found.endswith(b"first\r\n"):
            found += client.recv(1000)
        go_on.set()
        assert read_all(client) == b"6\r\nsecond\r\n0\r\n\r\n"


def stream(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    """Yield, or write, as many pieces as the path says."""
    pieces, _, how = environ["PATH_INFO"][1:].partition("/")
    write = start("200 OK", [])
    if how == "write":
        for _ in range(int(pieces)):
            write(b"x")
        return []
    return (b"x" for _ in range(int(pieces)))


@BOTH
@pytest.mark.parametrize("path", ["/40", "/40/write"])
def test_each_piece_of_a_stream_has_the_whole_request_timeout(
    threads: int, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[float, float]] = []
    begin = Lane.begin

    def note(lane: Lane, what: bytes, now: float, timeout: float) -> None:
        begun.append((now, timeout))
        begin(lane, what, now, timeout)

    monkeypatch.setattr(Lane, "begin", note)
    with Site(stream, threads=threads, request_timeout=5.0) as site:
        assert site.ask(request(path)).count(b"1\r\nx\r\n") == 40
    assert len(begun) >= 40
    assert {timeout for _, timeout in begun} == {5.0}
    assert begun == sorted(begun)


@BOTH
@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_time_that_a_stream_asked_for_is_not_taken_by_its_next_piece(threads: int, seconds: float) -> None:
    found: list[float] = []

    def application(_environ: dict[str, Any], start: Start) -> Iterator[bytes]:
        start("200 OK", [])
        (lane,) = (lane for lane in site.row.lanes if lane.is_busy)
        lane.extend(time.monotonic() + seconds)  # as Worker.extend() does
        yield b"first"
        yield b"second"
        (current,) = site.snapshot().current
        found.append(current.deadline - time.monotonic())

    with Site(application, threads=threads, request_timeout=20.0) as site:
        assert site.ask(request()).endswith(b"second\r\n0\r\n\r\n")
    (left,) = found
    assert left > (50 if seconds else 10)


@BOTH
@pytest.mark.parametrize("path", ["/1000000000", "/1000000000/write"])
def test_max_stream_time_cuts_a_stream_that_would_go_on(
    threads: int, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with Site(stream, threads=threads, max_stream_time=0.1, request_timeout=20.0) as site:
        found = site.ask(request(path))
        assert not found.endswith(b"0\r\n\r\n")
        assert site.ask(request("/3")).endswith(b"0\r\n\r\n")
    assert f"GET {path}: cutting the response after 0.1 s (max_stream_time)" in caplog.text


@BOTH
def test_a_stream_ends_when_its_client_leaves(threads: int) -> None:
    closed = threading.Event()

    class Endless:
        def __iter__(self) -> Iterator[bytes]:
            while True:
                yield b"x" * 10_000

        def close(self) -> None:
            closed.set()

    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [])
        return Endless()

    with Site(application, threads=threads) as site:
        with site.connect() as client:
            client.sendall(request())
            client.recv(1000)
        assert closed.wait(LONG)


class Homes:
    """Stream 100 pieces, by ``write`` or not, and note which threads have made those of each path."""

    piece = b"x" * 100_000

    def __init__(self, by_write: bool) -> None:
        self.by_write = by_write
        self.threads: dict[str, set[int]] = {}

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        write = start("200 OK", [])
        if environ["PATH_INFO"] == "/small":
            return [b"small"]
        pieces = self._pieces(self.threads.setdefault(environ["PATH_INFO"], set()))
        if not self.by_write:
            return pieces
        for piece in pieces:
            write(piece)
        return []

    def _pieces(self, threads: set[int]) -> Iterator[bytes]:
        for _ in range(100):
            threads.add(threading.get_ident())
            yield self.piece


@pytest.mark.parametrize("by_write", [False, True])
def test_clients_that_read_a_stream_slowly_hold_no_thread_back(by_write: bool) -> None:
    """Each stream still continues on the thread that it began on, with whatever that thread has of its own."""
    homes = Homes(by_write)
    with Site(homes, threads=2) as site, ExitStack() as stack:
        slow = [stack.enter_context(site.connect(4096)) for _ in range(6)]
        for number, client in enumerate(slow):
            client.sendall(request(f"/{number}", "Connection: close"))
        for client in slow:
            assert client.recv(10)
        until = time.monotonic() + LONG
        while (row := site.snapshot()).busy_since or row.current:
            assert time.monotonic() < until, "a thread waits for a client in its place"
        with site.connect() as client:
            client.sendall(request("/small"))
            assert read_answer(client)[1] == b"small"
        for client in slow:
            assert read_all(client).count(homes.piece) == 100
    assert [len(threads) for threads in homes.threads.values()] == [1] * 6


def test_a_slow_client_that_leaves_ends_its_stream_on_its_own_thread() -> None:
    closed: list[int] = []
    began: list[int] = []
    is_closed = threading.Event()

    def application(_environ: dict[str, Any], start: Start) -> Iterator[bytes]:
        start("200 OK", [])
        began.append(threading.get_ident())
        try:
            while True:
                yield b"x" * 100_000
        finally:
            closed.append(threading.get_ident())
            is_closed.set()

    with Site(application, threads=2, request_timeout=20.0) as site:
        with site.connect(4096) as client:
            client.sendall(request())
            client.recv(10)
            until = time.monotonic() + LONG
            while site.snapshot().current:
                assert time.monotonic() < until, "a thread waits for a client in its place"
        assert is_closed.wait(LONG)
    assert closed == began


@BOTH
def test_an_answer_that_ends_with_its_connection_does_not_look_whole_if_it_is_cut(threads: int) -> None:
    def application(environ: dict[str, Any], start: Start) -> Iterator[bytes]:
        start("200 OK", [])
        yield b"the beginning"
        if environ["PATH_INFO"] == "/cut":
            raise RuntimeError("in the middle")

    with Site(application, threads=threads) as site:
        for path in ("/whole", "/cut"):
            with site.connect() as client:
                client.sendall(request(path, version="1.0"))
                with pytest.raises(ConnectionResetError) if path == "/cut" else nullcontext():
                    assert read_all(client).endswith(b"the beginning")
                    assert path == "/whole"


@BOTH
def test_a_client_that_takes_nothing_is_cut(threads: int) -> None:
    closed = threading.Event()

    class Endless:
        def __iter__(self) -> Iterator[bytes]:
            while True:
                yield b"x" * 100_000

        def close(self) -> None:
            closed.set()

    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [])
        return Endless()

    with Site(application, threads=threads, write_timeout=0.05) as site, site.connect(4096) as client:
        client.sendall(request())
        assert closed.wait(LONG)


def test_an_answer_that_cannot_be_completed_is_not_made_to_look_complete() -> None:
    def application(environ: dict[str, Any], start: Start) -> Iterator[bytes]:
        start("200 OK", [])
        yield b"abc"
        raise RuntimeError("later")

    with Site(application) as site:
        assert site.ask(request()).endswith(b"3\r\nabc\r\n")


def test_slow_requests_are_cut_with_408_and_delay_nobody() -> None:
    with Site(echo, read_timeout=0.2) as site:
        slow = [site.connect() for _ in range(20)]
        for number, client in enumerate(slow):
            client.sendall(
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab"[: 20 if number % 2 else None]
            )
        started = time.monotonic()
        assert site.ask(request("/a")).endswith(b"GET /a ")
        assert time.monotonic() - started < 0.2
        for client in slow:
            assert read_all(client).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
            client.close()


def test_a_head_has_one_deadline_however_it_trickles() -> None:
    with Site(echo, read_timeout=0.2) as site, site.connect() as client:
        client.settimeout(0.01)
        sent = 0
        answer = b""
        while not answer and sent < 1000:
            client.send(b"GET / HTTP/1.1\r\nX: "[sent : sent + 1] or b"x")
            sent += 1
            try:
                answer = client.recv(1000)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 ")


CHUNKED_HEAD = request("/a", "Transfer-Encoding: chunked", method="POST")


@pytest.mark.parametrize(
    "first",
    [
        request("/a", "Content-Length: 100000", method="POST"),
        CHUNKED_HEAD + b"186A0\r\n",
        CHUNKED_HEAD + b"5;",
        CHUNKED_HEAD + b"0\r\nX: ",
    ],
    ids=["body", "chunk", "extension", "trailer"],
)
def test_a_body_that_drips_ends_with_408_however_often_a_byte_comes(first: bytes) -> None:
    with Site(echo, read_timeout=0.2, min_rate=2000) as site, site.connect() as client:
        client.sendall(first)
        answer = b""
        client.settimeout(0.01)
        for _ in range(1000):
            client.send(b"x")
            with suppress(TimeoutError):
                answer = client.recv(1000)
                break
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_connection_on_which_nothing_comes_is_closed_without_a_word() -> None:
    with Site(echo, read_timeout=0.05) as site, site.connect() as client:
        assert read_all(client) == b""


@BOTH
def test_a_kept_connection_is_closed_after_its_time(threads: int) -> None:
    with Site(echo, keepalive_timeout=0.05, threads=threads) as site, site.connect() as client:
        client.sendall(request("/a"))
        assert read_all(client).endswith(b"GET /a ")


@BOTH
def test_a_line_break_behind_a_body_begins_no_request(threads: int) -> None:
    post = request("/a", "Content-Length: 3", method="POST") + b"abc\r\n"
    with Site(echo, read_timeout=0.05, keepalive_timeout=0.3, threads=threads) as site:
        with site.connect() as client:
            client.sendall(post)
            assert read_answer(client)[1] == b"POST /a abc"
            began = time.monotonic()
            assert read_all(client) == b""  # idle for its time, and no 408
            assert time.monotonic() - began > 0.2
        with site.connect() as client:
            client.sendall(b"\r\n")
            assert read_all(client) == b""
        with site.connect() as client:
            client.sendall(post)
            read_answer(client)
            client.sendall(b"\r\n\r")
            client.sendall(b"\n" + request("/b"))
            assert read_answer(client)[1] == b"GET /b "


def test_an_idle_loop_does_not_turn() -> None:
    with Site(echo) as site:
        clients = [site.connect() for _ in range(5)]
        for client in clients:
            client.sendall(request("/a"))
            read_answer(client)
        turns = site.row.turns
        assert not site.orders.has_left_queue.wait(0.3)
        assert site.row.turns - turns <= 1  # the last answer was read before its turn had ended
        for client in clients:
            client.close()


@BOTH
def test_a_client_that_resets_harms_nobody(threads: int) -> None:
    with Site(echo, threads=threads) as site:
        for data in [b"", b"GET", request("/a"), request("/a", "Content-Length: 5") + b"a"]:
            client = site.connect()
            client.sendall(data)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        assert site.ask(request("/b")).endswith(b"GET /b ")


@BOTH
def test_the_scoreboard_shows_what_is_done(threads: int) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        inside.set()
        assert go_on.wait(LONG)
        start("200 OK", [])
        return [b""]

    with (
        Site(application, threads=threads, request_timeout=20, stall_timeout=7) as site,
        site.connect() as client,
    ):
        client.sendall(request("/a?b", method="POST"))
        assert inside.wait(LONG)
        snapshot = site.snapshot()
        (current,) = snapshot.current
        assert (current.what, snapshot.connections, snapshot.requests) == ("POST /a", 1, 0)
        assert current.deadline - current.since == pytest.approx(20)
        assert snapshot.deadline == 0  # the loop's own clock stands still while it is the application's turn
        go_on.set()
        read_answer(client)
        client.close()
        site.orders.drain()
        site.thread.join(LONG)
        assert (site.snapshot().requests, site.snapshot().current) == (1, ())


@BOTH
def test_a_master_that_does_not_look_is_woken(threads: int) -> None:
    with Site(echo, threads=threads) as site, site.connect() as client:
        client.sendall(request("/a"))
        read_answer(client)
        assert site.orders.woken_master == 0
        site.board.watch(False)
        client.sendall(request("/b"))
        read_answer(client)
        assert site.orders.woken_master > 0


def test_without_clocks_nobody_is_woken() -> None:
    with Site(echo, stall_timeout=0, request_timeout=0) as site:
        site.board.watch(False)
        site.ask(request("/b"))
        assert site.orders.woken_master == 0


@BOTH
def test_sys_exit_is_a_500_and_the_end_of_the_worker(threads: int) -> None:
    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        raise SystemExit(7)

    with Site(application, threads=threads) as site:
        assert site.ask(request()).startswith(b"HTTP/1.1 500 ")
        site.thread.join(LONG)
        assert site.orders.exit_code == 7


def test_clients_of_a_unix_socket_are_served(tmp_path: Path) -> None:
    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [])
        return [repr([environ[key] for key in ("REMOTE_ADDR", "SERVER_NAME", "SERVER_PORT")]).encode()]

    with Site(application, unix=str(tmp_path / "s")) as site:
        assert site.ask(request()).endswith(b"['', 'localhost', '80']")


def test_addresses_are_those_of_the_connection() -> None:
    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [])
        keys = ("REMOTE_ADDR", "REMOTE_PORT", "SERVER_NAME", "SERVER_PORT")
        return [" ".join(environ[key] for key in keys).encode()]

    with Site(application) as site, site.connect() as client:
        client.sendall(request())
        expected = f"127.0.0.1 {client.getsockname()[1]} 127.0.0.1 {site.address[1]}"
        assert read_answer(client)[1] == expected.encode()


def test_beyond_the_limit_connections_wait_in_the_queue() -> None:
    with Site(echo, max_connections=2) as site:
        first, second, third = site.connect(), site.connect(), site.connect()
        for client in (first, second):  # an idle one would give way
            client.sendall(request("/a") + b"GET /b")
            read_answer(client)
        third.sendall(request("/c"))
        third.settimeout(0.05)
        with pytest.raises(TimeoutError):
            third.recv(1)
        third.settimeout(LONG)
        first.close()
        assert read_answer(third)[1] == b"GET /c "
        second.close()
        third.close()


@BOTH
def test_more_requests_than_threads_wait_for_their_turn(threads: int) -> None:
    with Site(echo, threads=threads) as site:
        clients = [site.connect() for _ in range(30)]
        for number, client in enumerate(clients):
            client.sendall(request(f"/{number}"))
        for number, client in enumerate(clients):
            assert read_answer(client)[1] == b"GET /%d " % number
            client.close()


class Gate:
    """An application that answers ``/slow`` once it may."""

    def __init__(self) -> None:
        self.inside = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/slow":
            self.inside.set()
            assert self.go_on.wait(LONG)
        start("200 OK", [])
        return [b"done"]


@BOTH
def test_a_drain_finishes_what_is_in_flight_and_says_that_it_is_the_last(threads: int) -> None:
    gate = Gate()
    with Site(gate, threads=threads) as site, site.connect() as client:
        client.sendall(request("/slow"))
        assert gate.inside.wait(LONG)
        site.orders.drain()
        if threads > 1:
            assert site.orders.has_left_queue.wait(LONG)
        gate.go_on.set()
        head, body = read_answer(client)
        assert body == b"done"
        assert client.recv(1) == b"" or threads == 1
        client.close()
        site.thread.join(LONG)
        assert (b"Connection: close" in head) is (threads > 1)  # inline, the order is heard after the answer


@BOTH
def test_a_drain_answers_what_still_comes_on_kept_connections_then_closes_the_silent_ones(
    threads: int,
) -> None:
    with Site(echo, threads=threads) as site:
        talking, silent, fresh, partial = (site.connect() for _ in range(4))
        for client in (talking, silent):
            client.sendall(request("/a"))
            read_answer(client)
        partial.sendall(request("/p")[:-1])
        fresh.sendall(request("/f")[:1])  # so that it is known to have been accepted: see below
        wait_until_held(site, 4)
        site.orders.drain()
        assert site.orders.has_left_queue.wait(LONG)
        talking.sendall(request("/b"))
        head, body = read_answer(talking)
        assert (body, b"Connection: close" in head) == (b"GET /b ", True)
        assert talking.recv(1) == b""
        talking.close()
        started = time.monotonic()
        assert silent.recv(1) == b""
        assert time.monotonic() - started < LONG / 2
        silent.close()
        partial.sendall(b"\n")
        assert read_answer(partial)[1] == b"GET /p "
        partial.close()
        fresh.sendall(request("/f")[1:])
        assert read_answer(fresh)[1] == b"GET /f "
        fresh.close()
        site.thread.join(LONG)
        assert not site.thread.is_alive()


def wait_until_held(site: Site, count: int) -> None:
    """Wait until the worker holds so many connections, as the scoreboard shows."""
    until = time.monotonic() + LONG
    while site.snapshot().connections != count:
        assert time.monotonic() < until
        threading.Event().wait(0.001)


def test_a_drain_may_have_to_empty_the_queue_first() -> None:
    gate = Gate()
    with Site(gate) as site, site.connect() as busy:
        busy.sendall(request("/slow"))
        assert gate.inside.wait(LONG)
        queued = [site.connect() for _ in range(10)]
        for client in queued:
            client.sendall(request("/q"))
        site.orders.drain(queue_time=0.0)
        gate.go_on.set()
        read_answer(busy)
        busy.close()
        for client in queued:
            assert read_answer(client)[1] == b"done"
            client.close()
        with pytest.raises(ConnectionRefusedError):
            site.connect()


@pytest.mark.parametrize("count", [1, 3])
def test_the_last_worker_waits_for_clients_who_have_connected_and_said_nothing_yet(count: int) -> None:
    with Site(echo) as site:
        site.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 60)
        clients = [site.connect() for _ in range(count)]
        site.orders.drain(queue_time=LONG)
        for client in clients:
            assert not site.orders.has_left_queue.is_set()
            client.sendall(request("/late"))
            assert read_answer(client)[0].startswith(b"HTTP/1.1 200")
            client.close()
        assert site.orders.has_left_queue.wait(LONG)


def test_it_waits_for_those_no_longer_than_for_half_of_a_drain() -> None:
    with Site(echo, graceful_timeout=0.1) as site:
        site.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 60)
        with site.connect():
            site.orders.drain(queue_time=3 * LONG)
            assert site.orders.has_left_queue.wait(LONG)


def test_a_drain_waits_for_no_request_that_is_past_its_own_deadline() -> None:
    gate = Gate()
    with Site(gate, threads=2, request_timeout=0.1) as site, site.connect() as client:
        client.sendall(request("/slow"))
        assert gate.inside.wait(LONG)
        site.orders.drain(grace=60)
        site.thread.join(LONG)
        assert not site.thread.is_alive()
        gate.go_on.set()


def test_a_drain_ends_when_its_time_is_over_and_a_second_order_shortens_it() -> None:
    with Site(echo, read_timeout=60) as site, site.connect() as client:
        client.sendall(b"GET / HTTP")
        wait_until_held(site, 1)
        site.orders.drain(grace=60)
        assert site.orders.has_left_queue.wait(LONG)
        site.orders.drain(grace=0.05)
        site.thread.join(LONG)
        assert not site.thread.is_alive()


def test_a_worker_gives_everything_back() -> None:
    descriptors = Path("/proc/self/fd")
    gc.collect()  # other tests' sockets
    before = set(descriptors.iterdir())
    for threads in (1, 2):
        with Site(echo, threads=threads) as site, site.connect() as client:
            client.sendall(request("/a") + b"GET")
            read_answer(client)
            site.orders.drain()  # with time enough to hear that the thread is done
        site.listener.close()
        site.board.close()
    assert len(set(descriptors.iterdir()) - before) <= 1  # the listing's own


def test_row_is_ready_only_by_its_orders() -> None:
    """The loop says nothing of its state itself: that is what its orders are for."""
    with Site(echo) as site:
        assert site.snapshot().state is State.STARTING


def test_newcomers_do_not_wait_for_a_turn_of_all_others_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evented, "HARDLY", 0.0)  # as when it takes its time to fetch many events
    monkeypatch.setattr(evented, "ACCEPT_TIME", LONG)  # no pause of the test's own counts
    monkeypatch.setattr(evented, "MAX_EVENTS", 2 * evented.CROWD)
    site = Site(echo)
    others: list[socket.socket] = []
    for _ in range(3 * evented.MAX_EVENTS):
        others.append(site.connect())
        while len(site.loop._connections) < len(others):
            site.loop._turn()
    # The listener is ready first, and will be looked at again after all others.
    newcomers = [site.connect() for _ in range(30)]
    for client in [*newcomers, *others]:
        client.sendall(request())
    for expected in (evented.MAX_EVENTS // evented.A_FEW, len(newcomers)):
        site.loop._turn()
        assert len(site.loop._connections) == len(others) + expected
    for client in [*others, *newcomers]:
        client.close()
    with site:
        pass


def test_at_max_connections_the_oldest_idle_one_gives_way() -> None:
    with Site(echo, max_connections=3) as site:
        clients = [site.connect() for _ in range(4)]
        for client in clients:
            client.sendall(request())
            read_answer(client)
        assert [client.recv(1) for client in clients[:2]] == [b"", b""]
        for client in clients[2:]:
            client.sendall(request("/again"))
            assert b"/again" in read_answer(client)[1]
