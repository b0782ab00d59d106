"""What the access log says of requests that go well and of those that do not, and what its writer does without room."""

from __future__ import annotations

import fcntl
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork.config.schema import Http, Listen
from prefork.handlers.access import Entry, Server
from prefork.units import TcpAddress
from prefork.worker import access, evented
from prefork.worker.access import AccessLog, Writer
from tests.access_lines import read_json, read_line
from tests.unit.worker.serving import LONG, Site, read_all, read_answer, request
from tests.unit.worker.test_evented import BOTH, Start, echo

TEMPLATE = '"{request}" {status} {bytes} {sent} {received} {microseconds} {waited} {request_id}'


class Reports(logging.Handler):
    """What the server's log is told."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def reports() -> Iterator[list[str]]:
    handler = Reports()
    logger, before = access.logger, access.logger.level
    logger.addHandler(handler)
    logger.setLevel("INFO")
    yield handler.lines
    logger.removeHandler(handler)
    logger.setLevel(before)


class Log:
    """An access log in a file."""

    def __init__(self, path: Path, text: str = TEMPLATE) -> None:
        self.path = path
        self.text = text
        self.access = AccessLog(text, Server("web", 0, 1, 4711), append_to(path))

    def entries(self) -> list[dict[str, Any]]:
        lines = self.path.read_text("ascii").splitlines()
        return [read_json(line) if self.text == "json" else read_line(line, self.text) for line in lines]


def append_to(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "access.log")


# Requests.


@BOTH
def test_each_request_has_its_line_with_the_bytes_of_both_ways(threads: int, log: Log) -> None:
    asked = [request("/a"), request("/b?c", "Content-Length: 3", method="POST") + b"abc"]
    with Site(echo, threads=threads, access=log.access) as site, site.connect() as client:
        answers = []
        for one in asked:
            client.sendall(one)
            answers.append(read_answer(client))
    for entry, one, (head, body) in zip(log.entries(), asked, answers, strict=True):
        assert entry["request"] == one.split(b"\r\n")[0].decode()
        assert (entry["status"], entry["bytes"]) == ("200", str(len(body)))
        assert entry["sent"] == str(len(head) + 4 + len(body))
        assert entry["received"] == str(len(one))


@BOTH
def test_pipelined_requests_are_counted_apart(threads: int, log: Log) -> None:
    with Site(echo, threads=threads, access=log.access) as site:
        site.ask(b"".join(request(f"/{'x' * number}") for number in range(1, 20)))
    assert [entry["bytes"] for entry in log.entries()] == [
        str(len("GET / ") + number) for number in range(1, 20)
    ]


@BOTH
def test_chunks_are_counted_as_they_came(threads: int, log: Log) -> None:
    asked = request("/", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n0\r\n\r\n"
    with Site(echo, threads=threads, access=log.access) as site, site.connect() as client:
        for byte in asked:
            client.send(bytes([byte]))
        read_answer(client)
    (entry,) = log.entries()
    assert entry["received"] == str(len(asked))


@BOTH
@pytest.mark.parametrize("kind", ["stream", "write", "file", "list"])
def test_a_large_answer_is_logged_once_and_at_its_end(
    threads: int, kind: str, log: Log, tmp_path: Path
) -> None:
    content = bytes(9_000_000)
    (tmp_path / "content").write_bytes(content)

    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        write = start("200 OK", [("Content-Length", str(len(content)))])
        if kind == "file":
            file: Iterable[bytes] = environ["wsgi.file_wrapper"]((tmp_path / "content").open("rb"))
            return file
        if kind == "write":
            write(content)
            return []
        return (
            [content]
            if kind == "list"
            else (content[at : at + 10**5] for at in range(0, len(content), 10**5))
        )

    with Site(application, threads=threads, access=log.access) as site, site.connect(65536) as client:
        client.sendall(request("/large"))
        client.recv(1)
        assert log.entries() == []
        read_all_of = len(content)
        while read_all_of > 0:
            read_all_of -= len(client.recv(65536))
        client.shutdown(socket.SHUT_WR)
        read_all(client)
    (entry,) = log.entries()
    assert (entry["status"], entry["bytes"]) == ("200", str(len(content)))


@BOTH
def test_a_failing_application_is_logged_with_500(threads: int, log: Log) -> None:
    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        raise RuntimeError("on purpose")

    with Site(application, threads=threads, access=log.access) as site:
        answer = site.ask(request())
    (entry,) = log.entries()
    assert (entry["status"], entry["sent"]) == ("500", str(len(answer)))
    assert entry["bytes"] == str(len(answer.partition(b"\r\n\r\n")[2]))


@BOTH
def test_bodiless_answers_have_no_bytes(threads: int, log: Log) -> None:
    with Site(echo, threads=threads, access=log.access) as site:
        site.ask(request("/abc", method="HEAD"))
    (entry,) = log.entries()
    assert (entry["status"], entry["bytes"]) == ("200", "0")


# Requests that come to nothing.


@pytest.mark.parametrize(
    ("asked", "line", "status"),
    [
        (b"GET /a HTTP/1.1\r\nBad Header: x\r\n\r\n", "GET /a HTTP/1.1", "400"),
        (b"NONSENSE\r\n\r\n", "NONSENSE", "400"),
        (b'\x16\x03"\\\r\n\r\n', '\x16\x03"\\', "400"),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", None, "414"),
        (request("/a", "X: " + "x" * 9000), "GET /a HTTP/1.1", "431"),
        (request("/a", "Content-Length: 11", method="POST"), "POST /a HTTP/1.1", "413"),
        (request("/a", "Transfer-Encoding: chunked", method="POST") + b"b\r\n", "POST /a HTTP/1.1", "413"),
        (request("/a", "Transfer-Encoding: chunked", method="POST") + b"zz\r\n", "POST /a HTTP/1.1", "400"),
        (b"GET /a HTTP/2.0\r\nHost: a\r\n\r\n", "GET /a HTTP/2.0", "505"),
    ],
)
def test_a_refused_request_is_logged_with_what_is_known_of_it(
    asked: bytes, line: str | None, status: str, log: Log
) -> None:
    with Site(echo, http=Http(max_body=10), access=log.access) as site:
        answer = site.ask(request("/before") + asked)
    before, entry = log.entries()
    assert before["request"] == "GET /before HTTP/1.1"
    assert entry["status"] == status
    assert entry["request"] == line or line is None
    refusal = answer[answer.index(b"HTTP/1.1 ", 1) :]
    assert (entry["sent"], entry["bytes"]) == (str(len(refusal)), str(len(refusal.partition(b"\r\n\r\n")[2])))


@pytest.mark.parametrize("asked", [b"GET /a HT", request("/a", "Content-Length: 9", method="POST") + b"x"])
def test_a_slow_request_is_logged_with_408_and_its_time(asked: bytes, log: Log) -> None:
    with Site(echo, read_timeout=0.1, access=log.access) as site, site.connect() as client:
        client.sendall(asked)
        assert read_all(client).startswith(b"HTTP/1.1 408 ")
    (entry,) = log.entries()
    assert (entry["status"], entry["received"]) == ("408", str(len(asked)))
    assert int(entry["microseconds"]) >= 90_000


@pytest.mark.parametrize("asked", [b"GET /a HT", request("/a", "Content-Length: 9", method="POST") + b"x"])
def test_a_request_that_its_client_does_not_complete_is_logged_with_499(asked: bytes, log: Log) -> None:
    with Site(echo, access=log.access) as site:
        assert site.ask(asked) == b""
        assert site.ask(b"") == b""
        assert site.ask(b"\r\n") == b""
    (entry,) = log.entries()
    assert (entry["status"], entry["sent"]) == ("499", "0")


@BOTH
def test_a_client_that_leaves_is_logged_with_what_was_sent(threads: int, log: Log) -> None:
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

    with Site(application, threads=threads, access=log.access) as site:
        with site.connect() as client:
            client.sendall(request())
            client.recv(1000)
        assert closed.wait(LONG)
    (entry,) = log.entries()
    assert entry["status"] == "200"
    assert int(entry["bytes"]) >= 1000 - 200


def test_a_request_that_a_drain_has_no_time_for_is_logged(log: Log) -> None:
    go_on = threading.Event()
    began = threading.Event()

    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [("Content-Length", "20")])
        yield b"a piece of"
        began.set()
        go_on.wait(LONG)
        yield b" its answer"

    with Site(application, threads=2, access=log.access) as site, site.connect() as client:
        client.sendall(request())
        assert began.wait(LONG)
        site.orders.drain(grace=0.0)
        site.thread.join(LONG)
        (entry,) = log.entries()
        go_on.set()
    assert (entry["status"], entry["bytes"]) == ("200", "10")


# Times and ids.


def test_time_spent_waiting_for_a_thread_is_told(log: Log) -> None:
    go_on = threading.Event()

    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        assert go_on.wait(LONG)
        start("200 OK", [])
        return [b""]

    with Site(application, threads=2, access=log.access) as site:
        clients = [site.connect() for _ in range(4)]
        for client in clients:
            client.sendall(request())
        until = time.monotonic() + LONG
        while site.loop._running < 4:
            assert time.monotonic() < until
            time.sleep(0.001)
        time.sleep(0.1)  # for which two of them wait
        go_on.set()
        for client in clients:
            read_answer(client)
            client.close()
    waited = sorted(int(entry["waited"]) for entry in log.entries())
    assert waited[1] < waited[2]
    assert waited[2] >= 100_000
    assert all(int(entry["microseconds"]) >= int(entry["waited"]) for entry in log.entries())
    assert all(int(entry["microseconds"]) >= 100_000 for entry in log.entries())


@BOTH
def test_the_application_sees_the_id_that_is_logged(threads: int, log: Log) -> None:
    seen = []

    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        seen.append(environ["HTTP_X_REQUEST_ID"])
        start("200 OK", [])
        return [b""]

    with Site(application, threads=threads, access=log.access) as site:
        site.ask(request("/", "X-Request-ID: mine") + request("/", "X-Request-ID: a b") + request())
    assert [entry["request_id"] for entry in log.entries()] == seen
    assert seen[0] == "mine"
    assert len(set(seen)) == 3


def test_a_refused_request_gets_an_id_as_well_unless_it_brings_a_safe_one(log: Log) -> None:
    with Site(echo, http=Http(max_body=1), access=log.access) as site:
        for value in ("mine", 'x"y'):
            site.ask(
                request("/", f"X-Request-ID: {value}", "Transfer-Encoding: chunked", method="POST") + b"9\r\n"
            )
    first, second = log.entries()
    assert (first["status"], first["request_id"]) == ("413", "mine")
    assert second["request_id"] not in (None, 'x"y')


def test_json_tells_the_same(tmp_path: Path) -> None:
    log = Log(tmp_path / "access.json", "json")
    with Site(echo, access=log.access) as site:
        site.ask(request("/a", 'User-Agent: "\\'))
        site.ask(b"\xff\xfe\r\n\r\n")
    good, bad = log.entries()
    assert (good["target"], good["status"], good["agent"], good["client"]) == ("/a", 200, '"\\', "127.0.0.1")
    assert (bad["target"], bad["status"], bad["request_id"]) == (None, 400, None)


def test_a_client_of_a_unix_socket_has_no_address(tmp_path: Path) -> None:
    log = Log(tmp_path / "access.log", "common")
    with Site(echo, unix=str(tmp_path / "s"), access=log.access) as site:
        site.ask(request("/a"))
    assert log.entries()[0]["client"] is None


@BOTH
def test_the_client_is_who_a_trusted_proxy_says_for_each_request_anew(threads: int, tmp_path: Path) -> None:
    log = Log(tmp_path / "access.log", "{client} {client_port} {status}")
    with Site(echo, threads=threads, http=Http(trusted=("127.0.0.1",)), access=log.access) as site:
        told = request("/", "X-Forwarded-For: 203.0.113.7")
        site.ask(told + request() + told + b"BAD\r\n\r\n")
    clients = [(entry["client"], entry["status"]) for entry in log.entries()]
    assert clients == [
        ("203.0.113.7", "200"),
        ("127.0.0.1", "200"),
        ("203.0.113.7", "200"),
        ("127.0.0.1", "400"),
    ]


def test_the_client_is_who_a_proxy_header_names(tmp_path: Path) -> None:
    log = Log(tmp_path / "access.log", "{client} {client_port}")
    listen = (Listen(address=TcpAddress("127.0.0.1", 0), proxy_protocol=True),)
    with Site(echo, listen=listen, access=log.access) as site:
        site.ask(b"PROXY TCP4 192.0.2.1 192.0.2.2 99 8080\r\n" + request())
    assert log.entries() == [{"client": "192.0.2.1", "client_port": "99"}]


def test_requests_that_are_turned_down_are_logged_with_503(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evented, "QUEUE_TIME", 0.05)
    go_on = threading.Event()

    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        assert go_on.wait(LONG)
        start("200 OK", [])
        return [b"done"]

    count = 2 + 2 * evented.QUEUE_PER_THREAD
    with Site(application, threads=2, access=log.access) as site:
        clients = [site.connect() for _ in range(count + 3)]
        for client in clients:
            client.sendall(request("/x", "Connection: close"))
        for _ in range(3):
            (refused, *_), _, _ = select.select(clients, [], [], LONG)
            assert read_all(refused).startswith(b"HTTP/1.1 503 ")
            clients.remove(refused)
            refused.close()
        go_on.set()
        for client in clients:
            read_all(client)
            client.close()
    entries = log.entries()
    assert [entry["status"] for entry in entries].count("503") == 3
    assert len(entries) == count + 3
    assert {entry["request"] for entry in entries} == {"GET /x HTTP/1.1"}


# Writing.


def pipe(room: int = 4096) -> tuple[int, int]:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, room)
    os.set_blocking(write, False)
    return read, write


def test_nothing_waits_for_a_full_pipe_and_what_finds_room_later_is_not_lost(reports: list[str]) -> None:
    read, write = pipe()
    writer = Writer(write)
    line = b"x" * 999 + b"\n"
    for number in range(10):
        writer.write(line, 1, float(number))
    assert len(reports) == 1
    assert "the access log cannot be written: its reader does not read" in reports[0]
    assert 9.0 < writer.due < 9.0 + access.LAST_PAUSE + 1
    found = b""
    while len(found) < 10_000:
        found += os.read(read, 4096)
        writer.write(b"", 0, writer.due)
    assert found == line * 10
    assert reports[1:] == ["the access log is written again; none of its lines was lost"]
    assert writer.due == float("inf")


def test_lines_beyond_the_limit_are_lost_and_counted(reports: list[str]) -> None:
    read, write = pipe()
    writer = Writer(write)
    lines = 100
    for _ in range(30):
        writer.write((b"x" * 499 + b"\n") * lines, lines, 1.0)
    kept = found = 0
    while writer.due < float("inf"):
        found += os.read(read, 4096).count(b"\n")
        writer.write(b"", 0, writer.due)
    while select.select([read], [], [], 0)[0]:
        found += os.read(read, 4096).count(b"\n")
    kept = access.MAX_BACKLOG // 500 // lines * lines
    assert kept <= found < 30 * lines
    assert reports[1] == f"the access log is written again; {30 * lines - found} of its lines were lost"


def test_lines_of_many_writers_are_whole_in_a_pipe() -> None:
    read, write = pipe(65536)
    found = bytearray()

    def read_slowly() -> None:
        while data := os.read(read, 1000):
            found.extend(data)

    def write_all(sign: bytes) -> None:
        own = os.dup(write)
        writer = Writer(own)
        for number in range(300):
            writer.write((sign * (number % 97 + 1) + b"\n") * 100, 100, float(number) * 10)
        writer.finish()
        os.close(own)

    reader = threading.Thread(target=read_slowly)
    writers = [threading.Thread(target=write_all, args=(sign,)) for sign in (b"a", b"b", b"c")]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    os.close(write)
    reader.join()
    lines = bytes(found).splitlines()
    assert len(lines) > 1000
    assert all(len(set(line)) == 1 for line in lines), "a line has a piece of another one in it"


def test_a_full_disk_is_told_and_nothing_else(reports: list[str]) -> None:
    writer = Writer(os.open("/dev/full", os.O_WRONLY))
    for number in range(5):
        writer.write(b"line\n", 1, float(number))
    writer.finish()
    assert "No space left on device" in reports[0]
    assert reports[1:] == ["5 lines of the access log are lost: its destination is full or gone"]


def test_a_reader_that_is_gone_is_told(reports: list[str]) -> None:
    read, write = pipe()
    os.close(read)
    writer = Writer(write)
    writer.write(b"line\n", 1, 1.0)
    writer.finish()
    assert "Broken pipe" in reports[0]
    assert reports[1] == "1 lines of the access log are lost: its destination is full or gone"


def test_lines_that_wait_go_to_the_file_that_takes_its_place(tmp_path: Path, reports: list[str]) -> None:
    writer = Writer(os.open("/dev/full", os.O_WRONLY))
    writer.write(b"one\ntwo\n", 2, 1.0)
    writer.reopen(append_to(tmp_path / "new"))
    assert (tmp_path / "new").read_bytes() == b"one\ntwo\n"
    assert writer.due == float("inf")


def test_a_torn_line_is_not_continued_in_another_file(tmp_path: Path, reports: list[str]) -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    writer = Writer(os.dup(ours.fileno()))
    line = b"x" * 300_000 + b"\n"  # a stream socket takes a part of so long a line
    writer.write(line + b"next\n", 2, 1.0)
    assert writer.due < float("inf")
    writer.reopen(append_to(tmp_path / "new"))
    assert (tmp_path / "new").read_bytes() == b"next\n"
    assert "1 of its lines were lost" in reports[-1]
    theirs.close()
    ours.close()


def test_a_socket_is_not_waited_for(reports: list[str]) -> None:
    ours, theirs = socket.socketpair()
    writer = Writer(os.dup(ours.fileno()))
    for number in range(3000):
        writer.write(b"x" * 499 + b"\n", 1, float(number))
    assert "its reader does not read" in reports[0]
    assert theirs.recv(500) == b"x" * 499 + b"\n"
    theirs.close()
    ours.close()


def test_a_pipe_that_blocks_is_asked_first(reports: list[str]) -> None:
    read, write = pipe()
    os.set_blocking(write, True)
    writer = Writer(write)
    for number in range(10):
        writer.write(b"x" * 999 + b"\n", 1, float(number))
    assert "its reader does not read" in reports[0]
    os.close(read)


def test_an_answer_cut_within_its_head_has_no_body(log: Log) -> None:
    entry = Entry("192.0.2.1", "4242")
    entry.status, entry.head_size, entry.sent = 200, 100, 10
    log.access.end(entry, 1.0)
    log.access.close()
    [found] = log.entries()
    assert (found["status"], found["bytes"], found["sent"]) == ("200", "0", "10")


def test_a_line_for_a_pipe_is_no_longer_than_it_takes_at_once(tmp_path: Path) -> None:
    read, write = pipe(65536)
    log = AccessLog("combined", Server("web", 0, 1, 4711), write)
    with Site(echo, access=log) as site:
        site.ask(request("/" + "x" * 8000, "User-Agent: " + "y" * 8000))
    line = os.read(read, 65536)
    assert line.count(b"\n") == 1
    assert len(line) <= select.PIPE_BUF
    found = read_line(line.decode("ascii")[:-1], "combined")
    assert found["status"] == "200"
    assert found["agent"] is not None
    assert found["agent"].startswith("yyy")
    os.close(read)


def test_one_turn_makes_one_write(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    monkeypatch.setattr(Writer, "_send", lambda _self, data: sizes.append(len(data)) or len(data))
    with Site(echo, access=log.access) as site:
        site.ask(b"".join(request(f"/{number}") for number in range(evented.REQUESTS_PER_TURN)))
    assert len(sizes) == 1
