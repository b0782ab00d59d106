"""What an application's behaviour makes of an answer, without any connection."""

from __future__ import annotations

import gzip
import io
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest
from werkzeug.utils import send_file

from prefork.config.schema import Http
from prefork.handlers.wsgi import Body, Cut, FileSpan, FileWrapper, WsgiApp, WsgiHandler
from prefork.log import logger

OK = "200 OK"
Start = Callable[..., Callable[[bytes], object]]


@dataclass
class Answer:
    """All that came of one request."""

    head: str = ""
    body: bytes = b""
    fields: dict[str, str] = field(default_factory=dict)
    keep_alive: bool = False
    is_cut: bool = False
    file: FileSpan | None = None
    pieces: list[bytes] = field(default_factory=list)


def ask(
    application: WsgiApp,
    *fields: str,
    line: str = "GET /a/b?c=d HTTP/1.1",
    body: bytes | None = None,
    left: list[SystemExit] | None = None,
    draining: bool = False,
) -> Answer:
    handler = WsgiHandler(application, Http(), 1, (left if left is not None else []).append)
    handler.draining = draining
    head = handler.grammar.read_head("\r\n".join([line, "Host: h:1", *fields, "", ""]).encode("latin-1"))
    assert head is not None
    gathered = Body()
    if head.body is not None:
        assert body is not None
        gathered.add(head.body.feed(body)[0])
    exchange = handler.exchange(
        head, gathered.read_back(), handler.environ_of("here", "80"), "1.2.3.4", "567"
    )
    answer = Answer()
    try:
        answer.pieces += exchange.start(answer.pieces.extend)
        while not exchange.is_over:
            answer.pieces += exchange.pull()
    except Cut:
        answer.is_cut = True
    exchange.finish()
    answer.keep_alive = exchange.keep_alive
    answer.file = exchange.file
    read_back(answer)
    return answer


def read_back(answer: Answer) -> None:
    head, _, body = b"".join(answer.pieces).partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    answer.head = first
    answer.fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    answer.body = body


def reply(*pieces: bytes, status: str = OK, headers: Iterable[tuple[str, str]] = ()) -> WsgiApp:
    """Return an application that answers with a list."""

    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start(status, [("Content-Type", "text/plain"), *headers])
        return list(pieces)

    return application


def stream(*pieces: bytes, status: str = OK, headers: Iterable[tuple[str, str]] = ()) -> WsgiApp:
    """Return an application that answers with a generator."""

    def application(environ: dict[str, Any], start: Start) -> Iterator[bytes]:
        start(status, [("Content-Type", "text/plain"), *headers])
        yield from pieces

    return application


def environ_of(*fields: str, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        found.update(environ)
        found["read"] = environ["wsgi.input"].read()
        start(OK, [])
        return []

    ask(application, *fields, **options)
    return found


def test_the_environ_is_complete() -> None:
    environ = environ_of("Accept: x", "X-A: 1", "X-A: 2")
    expected = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a/b",
        "QUERY_STRING": "c=d",
        "REQUEST_URI": "/a/b?c=d",
        "RAW_URI": "/a/b?c=d",
        "SERVER_NAME": "here",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "1.2.3.4",
        "REMOTE_PORT": "567",
        "HTTP_HOST": "h:1",
        "HTTP_ACCEPT": "x",
        "HTTP_X_A": "1,2",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "wsgi.file_wrapper": FileWrapper,
        "read": b"",
    }
    assert {key: environ[key] for key in expected} == expected
    assert environ.keys() - expected.keys() == {"wsgi.input", "wsgi.errors"}


def test_a_chunked_body_arrives_decoded_with_its_length() -> None:
    environ = environ_of("Transfer-Encoding: chunked", line="POST / HTTP/1.1", body=b"3\r\nabc\r\n0\r\n\r\n")
    assert (environ["read"], environ["CONTENT_LENGTH"]) == (b"abc", "3")
    assert "HTTP_TRANSFER_ENCODING" not in environ


def test_a_counted_body_arrives() -> None:
    assert environ_of("Content-Length: 3", line="POST / HTTP/1.1", body=b"abc")["read"] == b"abc"


@pytest.mark.parametrize(
    "line", ["GET /a?b HTTP/1.1", "GET / HTTP/1.0", "OPTIONS * HTTP/1.1", "POST /%C3%A4 HTTP/1.1"]
)
@pytest.mark.parametrize("make", [reply, stream])
def test_the_validator_of_the_standard_library_is_content(line: str, make: Callable[..., WsgiApp]) -> None:
    answer = ask(validator(make(b"a", b"b")), line=line)
    assert answer.head == "HTTP/1.1 200 OK"
    assert not answer.is_cut


def test_the_validator_is_content_with_a_body_and_reading_it() -> None:
    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        stream = environ["wsgi.input"]
        read = [stream.read(2), stream.readline(), *stream.readlines(), *stream]
        write = start(OK, [("Content-Type", "text/plain")])
        write(b"|".join(read))
        return [b"!"]

    answer = ask(
        validator(application),
        "Content-Length: 7",
        "Content-Type: a/b",
        line="POST / HTTP/1.1",
        body=b"abc\nd\ne",
    )
    assert answer.body == b"a\r\nab|c\n|d\n|e\r\n1\r\n!\r\n0\r\n\r\n"


def test_a_list_has_a_length() -> None:
    for pieces, length in [((b"abc",), "3"), ((b"ab", b"", b"c"), "3"), ((), "0"), ((b"",), "0")]:
        answer = ask(reply(*pieces))
        assert answer.fields["content-length"] == length
        assert answer.body == b"".join(pieces)
        assert answer.keep_alive
        assert "connection" not in answer.fields


def test_a_date_and_a_name_are_added_unless_given() -> None:
    added = ask(reply(b"")).fields
    assert added["server"] == "prefork"
    assert added["date"].endswith(" GMT")
    given = ask(reply(b"", headers=[("Server", "mine"), ("Date", "then")])).fields
    assert (given["server"], given["date"]) == ("mine", "then")


def test_a_large_body_is_not_copied() -> None:
    large = b"x" * 100_000
    assert any(piece is large for piece in ask(reply(large)).pieces)
    assert any(piece is large for piece in ask(stream(large)).pieces)


def test_a_stream_is_chunked_for_http_1_1() -> None:
    answer = ask(stream(b"", b"ab", b"", b"c"))
    assert answer.fields["transfer-encoding"] == "chunked"
    assert "content-length" not in answer.fields
    assert answer.body == b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    assert answer.keep_alive


def test_a_stream_ends_with_the_connection_for_http_1_0() -> None:
    answer = ask(stream(b"ab", b"c"), "Connection: keep-alive", line="GET / HTTP/1.0")
    assert (answer.body, answer.keep_alive, answer.fields["connection"]) == (b"abc", False, "close")
    assert "transfer-encoding" not in answer.fields


def test_a_stream_with_a_length_is_sent_as_it_is() -> None:
    answer = ask(stream(b"ab", b"c", headers=[("Content-Length", "3")]))
    assert (answer.body, answer.keep_alive) == (b"abc", True)
    assert "transfer-encoding" not in answer.fields


def test_an_empty_stream_has_length_0() -> None:
    answer = ask(stream())
    assert (answer.body, answer.fields["content-length"]) == (b"", "0")


def test_an_iterable_of_one_piece_has_its_length() -> None:
    class Single:
        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[bytes]:
            return iter([b"abc"])

    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start(OK, [])
        return Single()

    assert ask(application).fields["content-length"] == "3"


def test_each_piece_goes_out_before_the_next_is_asked_for() -> None:
    log: list[str] = []

    def application(environ: dict[str, Any], start: Start) -> Iterator[bytes]:
        start(OK, [])
        for name in ("a", "b"):
            log.append(name)
            yield name.encode()

    handler = WsgiHandler(application, Http(), 1, print)
    head = handler.grammar.read_head(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert head is not None
    exchange = handler.exchange(head, io.BytesIO(), handler.environ_of("h", "1"), "", "")
    assert log == []
    assert exchange.start(log.append)[-1] == b"1\r\na\r\n"
    assert log == ["a"]
    assert exchange.pull() == [b"1\r\nb\r\n"]
    assert not exchange.is_over
    assert exchange.pull() == [b"0\r\n\r\n"]
    assert exchange.is_over


@pytest.mark.parametrize("make", [reply, stream])
def test_head_gets_no_body_but_its_length(make: Callable[..., WsgiApp]) -> None:
    answer = ask(make(b"abc"), line="HEAD / HTTP/1.1")
    assert (answer.body, answer.keep_alive) == (b"", True)
    assert "transfer-encoding" not in answer.fields
    assert (
        ask(make(b"", headers=[("Content-Length", "7")]), line="HEAD / HTTP/1.1").fields["content-length"]
        == "7"
    )
    assert "content-length" not in ask(make(b""), line="HEAD / HTTP/1.1").fields


@pytest.mark.parametrize("make", [reply, stream])
def test_204_and_304_have_no_body(make: Callable[..., WsgiApp]) -> None:
    no_content = ask(make(b"abc", status="204 No Content", headers=[("Content-Length", "3")]))
    assert (no_content.body, no_content.keep_alive) == (b"", True)
    assert no_content.fields.keys().isdisjoint({"content-length", "transfer-encoding"})
    not_modified = ask(make(b"abc", status="304 Not Modified", headers=[("Content-Length", "3")]))
    assert (not_modified.body, not_modified.fields["content-length"]) == (b"", "3")
    assert "content-length" not in ask(make(status="304 Not Modified")).fields


@pytest.mark.parametrize("make", [reply, stream])
def test_surplus_is_cut_off_and_the_connection_ends(
    make: Callable[..., WsgiApp], caplog: pytest.LogCaptureFixture
) -> None:
    answer = ask(make(b"abc", b"def", headers=[("Content-Length", "4")]))
    assert (answer.body, answer.keep_alive) == (b"abcd", False)
    assert "GET /a/b: the body is longer than its Content-Length" in caplog.text


@pytest.mark.parametrize("make", [reply, stream])
def test_a_body_too_short_ends_the_connection(
    make: Callable[..., WsgiApp], caplog: pytest.LogCaptureFixture
) -> None:
    answer = ask(make(b"abc", headers=[("Content-Length", "4")]))
    assert (answer.body, answer.keep_alive) == (b"abc", False)
    assert "GET /a/b: the body is shorter than its Content-Length" in caplog.text


def test_what_is_written_goes_out_before_the_application_returns() -> None:
    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        write = start(OK, [])
        write(b"")
        write(b"a")
        write(b"b")
        return [b"c"]

    assert ask(application).body == b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n"


def test_what_is_written_when_the_answer_is_over_does_not_go_into_the_next_one() -> None:
    kept: list[Callable[[bytes], object]] = []

    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        kept.append(start(OK, []))
        return [b"whole"]

    answer = ask(application)
    with pytest.raises(AssertionError, match="when its answer was over"):
        kept[0](b"late")
    assert answer.body == b"whole"


def test_close_is_honoured_both_ways() -> None:
    from_client = ask(reply(b""), "Connection: close")
    assert (from_client.keep_alive, from_client.fields["connection"]) == (False, "close")
    from_application = ask(reply(b"", headers=[("Connection", "close")]))
    assert (from_application.keep_alive, from_application.fields["connection"]) == (False, "close")
    while_draining = ask(reply(b""), draining=True)
    assert (while_draining.keep_alive, while_draining.fields["connection"]) == (False, "close")


def test_http_1_0_is_told_that_the_connection_lives_on() -> None:
    answer = ask(reply(b""), "Connection: keep-alive", line="GET / HTTP/1.0")
    assert (answer.keep_alive, answer.fields["connection"]) == (True, "keep-alive")
    assert not ask(reply(b""), line="GET / HTTP/1.0").keep_alive


def failing_in_call(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    raise RuntimeError("in the call")


def failing_at_first(environ: dict[str, Any], start: Start) -> Iterator[bytes]:
    start(OK, [])
    raise RuntimeError("at first")
    yield b""


def failing_header(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    start(OK, [("X", "a\r\nSet-Cookie: b")])
    return []


def failing_to_start(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    return [b"abc"]


def failing_type(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    start(OK, [])
    return ["text"]  # type: ignore[list-item]


def failing_type_of_stream(environ: dict[str, Any], start: Start) -> Iterator[bytes]:
    start(OK, [])
    yield "text"  # type: ignore[misc]


def failing_with_none(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    start(OK, [])
    return None  # type: ignore[return-value]


def failing_twice(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    start(OK, [])
    start(OK, [])
    return []


@pytest.mark.parametrize(
    "application",
    [
        failing_in_call,
        failing_at_first,
        failing_header,
        failing_to_start,
        failing_type,
        failing_type_of_stream,
        failing_with_none,
        failing_twice,
    ],
)
def test_an_application_that_fails_is_a_500_with_a_traceback_in_the_log(
    application: WsgiApp, caplog: pytest.LogCaptureFixture
) -> None:
    answer = ask(application)
    assert answer.head == "HTTP/1.1 500 Internal Server Error"
    assert answer.body == b"Internal Server Error\n"
    assert answer.keep_alive
    (record,) = caplog.records
    assert record.getMessage() == "GET /a/b: the application failed"
    assert record.exc_info


def test_a_stream_that_fails_later_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    def application(environ: dict[str, Any], start: Start) -> Iterator[bytes]:
        start(OK, [])
        yield b"abc"
        raise RuntimeError("later")

    answer = ask(application)
    assert answer.is_cut
    assert answer.body == b"3\r\nabc\r\n"
    assert "later" in caplog.text


def test_an_error_can_replace_what_has_not_begun() -> None:
    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start(OK, [])
        try:
            raise RuntimeError
        except RuntimeError as error:
            start("503 Busy", [], (type(error), error, error.__traceback__))
        return [b"x"]

    assert ask(application).head == "HTTP/1.1 503 Busy"


def test_an_error_cannot_replace_what_has_begun() -> None:
    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start(OK, [])(b"abc")
        try:
            raise RuntimeError
        except RuntimeError as error:
            start("503 Busy", [], (type(error), error, error.__traceback__))
        return [b"never"]

    answer = ask(application)
    assert answer.is_cut
    assert answer.body == b"3\r\nabc\r\n"


@pytest.mark.parametrize("at", ["call", "stream", "close"])
def test_an_application_that_exits_takes_its_process_with_it(at: str) -> None:
    class Result:
        def __iter__(self) -> Iterator[bytes]:
            yield b"a"
            if at == "stream":
                raise SystemExit(3)

        def close(self) -> None:
            if at == "close":
                raise SystemExit(3)

    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        if at == "call":
            raise SystemExit(3)
        start(OK, [])
        return Result()

    left: list[SystemExit] = []
    answer = ask(application, left=left)
    assert [error.code for error in left] == [3]
    assert not answer.keep_alive
    assert answer.head == ("HTTP/1.1 500 Internal Server Error" if at == "call" else "HTTP/1.1 200 OK")


def test_a_result_that_cannot_even_be_asked_for_its_close_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Result:
        def __iter__(self) -> Iterator[bytes]:
            yield b"a"

        def __getattr__(self, name: str) -> object:  # as a proxy does whose object is gone
            raise RuntimeError(f"no {name} outside of a request")

    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start(OK, [])
        return Result()

    assert ask(application).head == "HTTP/1.1 200 OK"
    assert "no close outside of a request" in caplog.text


@pytest.mark.parametrize("fails", [False, True])
def test_the_iterable_is_closed_once_in_any_case(fails: bool, caplog: pytest.LogCaptureFixture) -> None:
    closed: list[int] = []

    class Result:
        def __iter__(self) -> Iterator[bytes]:
            yield b"a"
            if fails:
                raise RuntimeError

        def close(self) -> None:
            closed.append(1)
            raise RuntimeError("in close")

    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start(OK, [])
        return Result()

    assert ask(application).is_cut is fails
    assert closed == [1]
    assert "in close" in caplog.text


def serve_file(file: Any, *headers: tuple[str, str], **options: Any) -> Answer:
    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start(OK, list(headers))
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](file, 4)
        return wrapped

    return ask(application, **options)


def test_a_regular_file_is_left_to_the_system(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        file.read(3)
        descriptor = file.fileno()
        answer = serve_file(file)
        assert answer.file == FileSpan(descriptor, 3, 7)
        assert answer.fields["content-length"] == "7"
        assert file.closed


def test_a_file_is_sent_up_to_its_content_length(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    longer = serve_file(path.open("rb"), ("Content-Length", "4"))
    assert longer.file is not None
    assert (longer.file.size, longer.keep_alive) == (4, True)
    shorter = serve_file(path.open("rb"), ("Content-Length", "20"))
    assert shorter.file is not None
    assert (shorter.file.size, shorter.keep_alive) == (10, False)


@pytest.mark.parametrize("length", [0, 2, 4, 6, 8])
def test_what_is_no_file_is_read_up_to_its_content_length(
    length: int, caplog: pytest.LogCaptureFixture
) -> None:
    answer = serve_file(io.BytesIO(b"0123456789"), ("Content-Length", str(length)))
    assert (answer.body, answer.keep_alive) == (b"0123456789"[:length], True)
    assert caplog.text == ""


def test_a_range_is_sought_and_not_read_up_to(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789" * 100)
    reads: list[int] = []

    class Counting(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            reads.append(self.tell())
            return super().read(size)

    for opened in (path, Counting(b"0123456789" * 100)):

        def application(environ: dict[str, Any], start: Start, opened: Any = opened) -> Iterable[bytes]:
            environ["HTTP_RANGE"] = "bytes=995-998"
            return send_file(opened, environ, "text/plain")(environ, start)

        answer = ask(application)
        assert (answer.head, answer.body) == ("HTTP/1.1 206 PARTIAL CONTENT", b"5678")
        assert answer.keep_alive
    assert reads == [995]
    assert not hasattr(FileWrapper(object()), "seekable")


def test_what_is_no_iterable_is_told_by_its_type(caplog: pytest.LogCaptureFixture) -> None:
    assert ask(lambda *_: 42).head == "HTTP/1.1 500 Internal Server Error"  # type: ignore[arg-type,return-value]
    assert ask(lambda *_: reply()).head == "HTTP/1.1 500 Internal Server Error"  # type: ignore[arg-type,return-value]
    assert "expected the application to return an iterable of bytes, found int\n" in caplog.text
    assert "found function; it can be called: is the application a factory?" in caplog.text


def test_head_sends_no_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    answer = serve_file(path.open("rb"), line="HEAD / HTTP/1.1")
    assert (answer.file, answer.fields["content-length"]) == (None, "10")


def test_what_is_no_plain_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(b"0123456789"))
    for file in [io.BytesIO(b"0123456789"), gzip.GzipFile(path), io.BufferedReader(gzip.GzipFile(path))]:  # type: ignore[arg-type]
        answer = serve_file(file)
        assert (answer.file, answer.body) == (None, b"4\r\n0123\r\n4\r\n4567\r\n2\r\n89\r\n0\r\n\r\n")
    with tempfile.NamedTemporaryFile() as named:
        named.write(b"0123456789")
        named.seek(0)
        assert serve_file(named, ("Content-Length", "10")).body == b"0123456789"


def test_an_empty_file_is_an_empty_answer(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    answer = serve_file(path.open("rb"))
    assert (answer.file, answer.fields["content-length"]) == (None, "0")


@pytest.mark.skipif(sys.platform != "linux", reason="where /proc is")
def test_a_file_that_is_only_said_to_be_empty_is_read() -> None:
    path = Path("/proc/self/status")
    answer = serve_file(path.open("rb"))
    assert answer.file is None
    assert answer.body.startswith(b"4\r\nName\r\n")


@pytest.fixture(autouse=True)
def _propagate_to_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logger, "propagate", True)


@pytest.mark.parametrize("make", [reply, stream])
def test_205_has_no_body_and_says_so(make: Callable[..., WsgiApp]) -> None:
    answer = ask(make(b"surplus", status="205 Reset Content"))
    assert (answer.body, answer.fields["content-length"], answer.keep_alive) == (b"", "0", True)
