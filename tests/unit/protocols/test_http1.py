"""What requests mean, and which are refused with what."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from contextlib import nullcontext

import pytest

from prefork.protocols.http1 import (
    BLOCKS_ROOM,
    LINES_ROOM,
    TABLE_SIZE,
    Chunked,
    Counted,
    Grammar,
    Head,
    Refusal,
)

MAX_BODY = 1000


@pytest.fixture
def grammar() -> Grammar:
    return Grammar(max_request_line=200, max_headers=10, max_header_size=150, max_body=MAX_BODY)


def read(grammar: Grammar, *fields: bytes, line: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: a") -> Head:
    data = b"\r\n".join([line, *([host] if host else []), *fields, b"", b""])
    head = grammar.read_head(data)
    assert head is not None
    assert head.size == len(data)
    # Kept, from the table, and by the fields of the request before.
    for last in (None, None, head.block):
        again = grammar.read_head(data, last)
        assert again is not None
        assert again.size == head.size
        assert again.fields == head.fields
        assert again.keep_alive == head.keep_alive
        assert type(again.body) is type(head.body)
    return head


def refused(
    grammar: Grammar, *fields: bytes, line: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: a"
) -> int:
    statuses = set()
    for _ in range(2):  # what is refused must not be remembered as good
        with pytest.raises(Refusal) as caught:
            read(grammar, *fields, line=line, host=host)
        statuses.add(caught.value.status)
    (status,) = statuses
    return status


def test_a_head_says_method_target_and_fields(grammar: Grammar) -> None:
    head = read(grammar, b"Accept: */*", b"X-Empty:", line=b"POST /a%20b/%E2?x=1?2 HTTP/1.1")
    assert head.line.method == "POST"
    assert head.line.path == "/a b/\xe2"
    assert head.line.query == "x=1?2"
    assert head.line.target == "/a%20b/%E2?x=1?2"
    assert head.line.protocol == "HTTP/1.1"
    assert head.line.what == b"POST /a%20b/%E2"
    assert head.fields == {"HTTP_HOST": "a", "HTTP_ACCEPT": "*/*", "HTTP_X_EMPTY": ""}
    assert head.body is None


def test_a_head_without_its_end_is_waited_for(grammar: Grammar) -> None:
    data = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    assert [grammar.read_head(data[:end]) for end in range(len(data))] == [None] * len(data)


def test_what_follows_the_head_is_not_touched(grammar: Grammar) -> None:
    data = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    head = grammar.read_head(data + b"GET /second")
    assert head is not None
    assert head.size == len(data)


@pytest.mark.parametrize("count", [1, 2, 500])
def test_blank_lines_before_a_request_are_skipped(grammar: Grammar, count: int) -> None:
    blank = b"\r\n" * count
    data = blank + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    head = grammar.read_head(data)
    assert head is not None
    assert head.size == len(data)
    assert grammar.read_head(blank[:10]) is None


def test_white_space_around_a_value_is_no_part_of_it(grammar: Grammar) -> None:
    assert read(grammar, b"X: \t a b \t").fields["HTTP_X"] == "a b"


@pytest.mark.parametrize(
    ("name", "joined"), [(b"Accept", "a,b"), (b"Cookie", "a; b"), (b"X-Forwarded-For", "a,b")]
)
def test_repeated_fields_are_joined(grammar: Grammar, name: bytes, joined: str) -> None:
    fields = read(grammar, name + b": a", name.lower() + b": b").fields
    assert fields["HTTP_" + name.decode().upper().replace("-", "_")] == joined


def test_the_same_line_twice_is_two_fields(grammar: Grammar) -> None:
    assert read(grammar, b"X: a", b"X: a").fields["HTTP_X"] == "a,a"


def test_length_and_type_have_no_prefix(grammar: Grammar) -> None:
    head = read(grammar, b"Content-Length: 3", b"Content-Type: text/plain", line=b"POST / HTTP/1.1")
    assert head.fields["CONTENT_LENGTH"] == "3"
    assert head.fields["CONTENT_TYPE"] == "text/plain"


@pytest.mark.parametrize(
    "field", [b"X_Forwarded_For: 1", b"Content_Length: 5", b"Proxy: http://evil", b"_: 1"]
)
def test_names_that_would_pass_for_another_are_dropped(grammar: Grammar, field: bytes) -> None:
    assert read(grammar, field, b"A: b").fields == {"HTTP_HOST": "a", "HTTP_A": "b"}


@pytest.mark.parametrize(
    ("line", "fields", "expected"),
    [
        (b"GET / HTTP/1.1", [], True),
        (b"GET / HTTP/1.1", [b"Connection: keep-alive"], True),
        (b"GET / HTTP/1.1", [b"Connection: close"], False),
        (b"GET / HTTP/1.1", [b"Connection: TE, Close"], False),
        (b"GET / HTTP/1.1", [b"Connection: upgrade"], True),
        (b"GET / HTTP/1.0", [], False),
        (b"GET / HTTP/1.0", [b"Connection: Keep-Alive"], True),
        (b"GET / HTTP/1.0", [b"Connection: keep-alive"], True),
        (b"GET / HTTP/1.0", [b"Connection: keep-alive, close"], False),
    ],
)
def test_persistence_follows_version_and_connection(
    grammar: Grammar, line: bytes, fields: list[bytes], expected: bool
) -> None:
    assert read(grammar, *fields, line=line).keep_alive is expected


def test_an_upgrade_is_ignored_and_the_message_is_an_ordinary_one(grammar: Grammar) -> None:
    head = read(
        grammar, b"Upgrade: h2c", b"Connection: Upgrade", b"Content-Length: 2", line=b"POST / HTTP/1.1"
    )
    assert isinstance(head.body, Counted)


@pytest.mark.parametrize(
    "host", [b"Host: a:80", b"Host: [::1]:80", b"Host: [::1]", b"Host:", b"host:127.0.0.1"]
)
def test_valid_hosts_are_accepted(grammar: Grammar, host: bytes) -> None:
    assert "HTTP_HOST" in read(grammar, host=host).fields


@pytest.mark.parametrize(
    "host", [b"", b"Host: a b", b"Host: a/b", b"Host: a@b", b"Host: a:b", b"Host: a, b", b"Host: [a"]
)
def test_a_missing_or_invalid_host_is_refused(grammar: Grammar, host: bytes) -> None:
    assert refused(grammar, host=host) == 400


def test_a_second_host_is_refused(grammar: Grammar) -> None:
    assert refused(grammar, b"Host: b") == 400
    assert refused(grammar, b"Host: a") == 400


def test_http_1_0_needs_no_host(grammar: Grammar) -> None:
    assert read(grammar, line=b"GET / HTTP/1.0", host=b"").fields == {}


def test_the_authority_of_an_absolute_target_overrules_host(grammar: Grammar) -> None:
    head = read(grammar, line=b"GET http://b:81/x?y HTTP/1.1")
    assert (head.line.path, head.line.query, head.fields["HTTP_HOST"]) == ("/x", "y", "b:81")
    assert read(grammar, line=b"GET http://b?y HTTP/1.1").line.path == "/"


def test_the_asterisk_is_for_options(grammar: Grammar) -> None:
    assert read(grammar, line=b"OPTIONS * HTTP/1.1").line.path == ""
    assert refused(grammar, line=b"GET * HTTP/1.1") == 400


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b" GET / HTTP/1.1", 400),
        (b"GET /a b HTTP/1.1", 400),
        (b"GET /\xc3\xa4 HTTP/1.1", 400),
        (b"GET /#a HTTP/1.1", 400),
        (b"GET /\x00 HTTP/1.1", 400),
        (b"GET a HTTP/1.1", 400),
        (b"GET http:///x HTTP/1.1", 400),
        (b"GET http://u@h/x HTTP/1.1", 400),
        (b"GET / HTTP/1.1\rX: y", 400),
        (b"GET / HTTP/1.1\nX: y", 400),
        (b"GET\t/ HTTP/1.1", 400),
        (b"\rGET / HTTP/1.1", 400),
        (b"G[T / HTTP/1.1", 400),
        (b"GET / http/1.1", 400),
        (b"GET / HTTP/11", 400),
        (b"GET / HTTP/2.0", 505),
        (b"GET / HTTP/0.9", 505),
        (b"GET / HTTP/1.", 400),
        (b"GET / HTTP/1.1.", 400),
        (b"PRI * HTTP/2.0", 505),
        (b"CONNECT a:443 HTTP/1.1", 501),
        (b"GET /" + b"a" * 200 + b" HTTP/1.1", 414),
    ],
)
def test_a_bad_request_line_is_refused(grammar: Grammar, line: bytes, status: int) -> None:
    assert refused(grammar, line=line) == status


@pytest.mark.parametrize(
    "field",
    [
        b"NoColon",
        b": empty",
        b"A : b",
        b" A: b",
        b"A\t: b",
        b"A: b\r\n folded",
        b"A: b\r\n\tfolded",
        b"A: b\nB: c",
        b"A: b\rB: c",
        b"A: b\n",
        b"A: \x00",
        b"A: \x7f",
        b"A[: b",
        b"A\xe4: b",
        b"A(: b",
        b"Transfer-Encoding: gzip",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked, gzip",
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding:",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Content-Length:",
        b"Content-Length: +5",
        b"Content-Length: -5",
        b"Content-Length: 0x5",
        b"Content-Length: 5, 5",
        b"Content-Length: 5 5",
        b"Content-Length: 5\r\nContent-Length: 5",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: 9223372036854775808",
        b"Content-Length: 99999999999999999999999999",
        b"Content-Type: a/b\r\nContent-Type: c/d",
    ],
)
def test_a_bad_field_is_refused(grammar: Grammar, field: bytes) -> None:
    assert refused(grammar, field) == 400


def test_known_lines_that_contradict_each_other_are_refused(grammar: Grammar) -> None:
    read(grammar, b"Content-Length: 5")
    read(grammar, b"Transfer-Encoding: chunked")
    assert refused(grammar, b"Content-Length: 5", b"Transfer-Encoding: chunked") == 400
    assert refused(grammar, b"Content-Length: 5", b"Content-Length: 5") == 400
    assert refused(grammar, b"Transfer-Encoding: chunked", line=b"GET / HTTP/1.0") == 400


def test_white_space_around_chunked_is_accepted(grammar: Grammar) -> None:
    assert isinstance(read(grammar, b"Transfer-Encoding:\tChunked\t").body, Chunked)


def test_limits_of_fields(grammar: Grammar) -> None:
    assert refused(grammar, *[b"A%d: b" % number for number in range(10)]) == 431
    assert refused(grammar, b"A: " + b"b" * 150) == 431
    read(grammar, *[b"A%d: b" % number for number in range(9)])
    read(grammar, b"A: " + b"b" * 147)


def test_limits_hold_before_the_end_has_come(grammar: Grammar) -> None:
    def status_of(data: bytes) -> int:
        with pytest.raises(Refusal) as caught:
            grammar.read_head(data)
        return caught.value.status

    assert status_of(b"GET /" + b"a" * 300) == 414
    assert status_of(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 1000) == 431
    assert status_of(b"GET / HTTP/1.1\r\nA: " + b"b" * 3000) == 431
    assert status_of(b"\r\n" * 1000 + b"\r") == 400
    assert status_of(b"\x16\x03\x01\x02") == 400
    assert status_of(b"GET / HTTP/1.1\nHost: a\n\n") == 400


def test_a_body_beyond_the_limit_is_refused_by_its_length(grammar: Grammar) -> None:
    assert isinstance(read(grammar, b"Content-Length: 1000").body, Counted)
    assert refused(grammar, b"Content-Length: 1001") == 413
    assert read(grammar, b"Content-Length: 0").body is None


def test_expectations(grammar: Grammar) -> None:
    expect = b"Expect: 100-Continue"
    assert read(grammar, expect, b"Content-Length: 5").expects
    assert not read(grammar, expect).expects
    assert not read(grammar, expect, b"Content-Length: 5", line=b"POST / HTTP/1.0").expects
    assert refused(grammar, b"Expect: 200-ok") == 417


@pytest.mark.parametrize("method", ["LIST", "BAN", "PURGE", "M-SEARCH", "PRI", "get", "!#$%&'*+-.^_`|~09az"])
def test_a_method_is_a_token_and_the_application_decides(grammar: Grammar, method: str) -> None:
    assert read(grammar, line=f"{method} / HTTP/1.1".encode()).line.method == method


@pytest.mark.parametrize("minor", [b"1", b"2", b"9"])
def test_a_later_minor_version_counts_as_1_1(grammar: Grammar, minor: bytes) -> None:
    head = read(grammar, b"Transfer-Encoding: chunked", line=b"POST / HTTP/1." + minor)
    assert head.line.protocol == "HTTP/1.1"
    assert head.keep_alive
    assert refused(grammar, host=b"", line=b"GET / HTTP/1." + minor) == 400


@pytest.mark.parametrize(
    ("field", "name", "value"),
    [
        (b"A:b", "HTTP_A", "b"),
        (b"A:", "HTTP_A", ""),
        (b"A: ", "HTTP_A", ""),
        (b"A:\t", "HTTP_A", ""),
        (b"A:\tb c", "HTTP_A", "b c"),
        (b"A:b: c", "HTTP_A", "b: c"),
        (b"A: b:c", "HTTP_A", "b:c"),
        (b"A:  b  ", "HTTP_A", "b"),
        (b"A: \xa0b\x85", "HTTP_A", "\xa0b\x85"),
    ],
)
def test_a_field_means_the_same_however_often_its_name_has_come(
    grammar: Grammar, field: bytes, name: str, value: str
) -> None:
    for form in (field, b"A: z", field):
        found = read(grammar, form, b"B: c").fields
        assert found == {"HTTP_HOST": "a", name: "z" if form is not field else value, "HTTP_B": "c"}
    assert read(grammar, field, b"Accept: d", field).fields[name] == f"{value},{value}"


@pytest.mark.parametrize(
    "field", [b"A", b"A b", b" A: b", b"A : b", b"A:b\r\nA", b"B: c: d\r\nA", b"A\r\nB: c: d"]
)
def test_a_known_name_without_its_colon_is_no_field(grammar: Grammar, field: bytes) -> None:
    read(grammar, b"A: b", b"B: c")
    assert refused(grammar, field) == 400
    assert refused(grammar, b"C: d", field) == 400


def test_what_never_comes_again_is_not_kept(grammar: Grammar) -> None:
    for number in range(3000):
        grammar.read_head(b"GET /%d HTTP/1.1\r\nHost: a%d\r\n\r\n" % (number, number))
    assert not grammar._lines
    assert not grammar._blocks


def test_the_tables_are_bounded_in_bytes() -> None:
    """Whoever wants them to be large sends everything twice, names and hosts included."""
    grammar = Grammar(8190, 100, 8190, MAX_BODY)

    def flood(form: Callable[[int], bytes]) -> int:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(2500):
            data = form(number)
            for _ in range(2):
                grammar.read_head(data)
        return tracemalloc.get_traced_memory()[0] - before

    fields = b"".join(b"x%d: %b\r\n" % (number, b"y" * 20) for number in range(95))
    forms: list[tuple[Callable[[int], bytes], int]] = [
        (lambda n: b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n, LINES_ROOM),
        (lambda n: b"GET /%0500d HTTP/1.1\r\nHost: a\r\n\r\n" % n, LINES_ROOM),
        (lambda n: b"GET /%%e4?%0500d HTTP/1.1\r\nHost: a\r\n\r\n" % n, LINES_ROOM),
        (lambda n: b"GET / HTTP/1.1\r\nHost: a%d\r\n\r\n" % n, BLOCKS_ROOM),
        (lambda n: b"GET / HTTP/1.1\r\nHost: a\r\nx: %d\r\n%b\r\n" % (n, fields), BLOCKS_ROOM),
        (lambda n: b"GET / HTTP/1.1\r\nHost: a\r\nx: %0500d\r\n\r\n" % n, BLOCKS_ROOM),
        (lambda n: b"GET / HTTP/1.1\r\nHost: a\r\nx: \xe4%07000d\r\n\r\n" % n, BLOCKS_ROOM),
        (lambda n: b"GET / HTTP/1.1\r\nHost: a\r\nx%060d: y\r\n\r\n" % n, BLOCKS_ROOM + 400 * TABLE_SIZE),
    ]
    tracemalloc.start()
    try:
        for form, room in forms:
            assert flood(form) <= 1.25 * room
        assert tracemalloc.get_traced_memory()[0] <= 1.25 * (LINES_ROOM + BLOCKS_ROOM + 400 * TABLE_SIZE)
    finally:
        tracemalloc.stop()
    assert len(grammar._names) <= TABLE_SIZE
    assert len(grammar._hosts) <= TABLE_SIZE


def test_a_counted_body_ends_where_it_should() -> None:
    body = Counted(5)
    assert body.feed(b"abc") == (b"abc", b"")
    assert not body.is_done
    assert body.feed(b"deGET") == (b"de", b"GET")
    assert body.is_done


def feed_whole(data: bytes, max_body: int = MAX_BODY) -> tuple[bytes, bytes, bool]:
    body = Chunked(max_body, 100)
    decoded, rest = body.feed(data)
    return decoded, rest, body.is_done


def test_a_chunked_body_is_decoded() -> None:
    assert feed_whole(b"5\r\nhello\r\n6;a=b\r\n world\r\n0\r\n\r\nGET") == (b"hello world", b"GET", True)
    assert feed_whole(b"A ; x\r\n0123456789\r\n000\r\nX-Trailer: y\r\n\r\n") == (b"0123456789", b"", True)
    assert feed_whole(b"5\r\nhel") == (b"hel", b"", False)


def test_a_chunked_body_may_come_byte_by_byte() -> None:
    body = Chunked(MAX_BODY, 100)
    data = b"5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nA: b\r\n\r\n"
    decoded = b"".join(body.feed(bytes([byte]))[0] for byte in data)
    assert decoded == b"hello world"
    assert body.is_done


@pytest.mark.parametrize("size", [99, 100, 101, 150])
@pytest.mark.parametrize("form", [b"1;e%b\r\na\r\n0\r\n\r\n", b"0\r\nA:%b\r\n\r\n"])
def test_what_a_chunked_body_says_beside_its_data_has_one_limit_however_it_comes(
    form: bytes, size: int
) -> None:
    data = form % (b"e" * (size - 2))
    for pieces in ([data], [data[: size + 4], data[size + 4 :]], [bytes([byte]) for byte in data]):
        body = Chunked(MAX_BODY, 100)
        with pytest.raises(Refusal) if size > 100 else nullcontext():
            for piece in pieces:
                body.feed(piece)
        assert body.is_done is (size <= 100)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"x\r\n", 400),
        (b"\r\n", 400),
        (b"-1\r\n", 400),
        (b"+1\r\n", 400),
        (b"0x1\r\n", 400),
        (b" 1\r\n", 400),
        (b"1 \r\n", 400),
        (b"1\n", 400),
        (b"1\r\nab", 400),
        (b"1\r\na\n", 400),
        (b"1\r\na\rb", 400),
        (b"FFFFFFFFFFFFFFFFF\r\n", 400),
        (b"1;\x00\r\n", 400),
        (b"1;\r\n", 400),
        (b"1; \r\n", 400),
        (b"1;a;\r\n", 400),
        (b"1;;a\r\n", 400),
        (b"1;a=\r\n", 400),
        (b"1;a b\r\n", 400),
        (b'1;a="b\r\n', 400),
        (b'1;a="\x7f"\r\n', 400),
        (b"1;a@\r\n", 400),
        (b"0\r\n: x\r\n\r\n", 400),
        (b"0\r\nA b: x\r\n\r\n", 400),
        (b"0\r\nA: \x00\r\n\r\n", 400),
        (b"0\r\nTrailer: x\r\n\r\n", 400),
        (b"1" + b"0" * 200, 431),
        (b"0\r\nNoColon\r\n", 400),
        (b"0\r\n folded: x\r\n", 400),
        (b"0\r\nA: " + b"b" * 200, 431),
        (b"0\r\n" + b"A: b\r\n" * 9000, 431),
        (b"3E9\r\n", 413),
        (b"3E8\r\n" + b"a" * 1000 + b"\r\n1\r\n", 413),
        (b"1;" + b"e" * 200, 431),
        (b"1;" + b"e" * 60 + b"\r\na\r\n1;" + b"e" * 60 + b"\r\n", 431),
        (b"1;" + b"e" * 60 + b"\r\na\r\n0\r\nA: " + b"b" * 60 + b"\r\n", 431),
        (b"0\r\n" + b"A: bbbbbb\r\n" * 12, 431),
    ],
)
def test_a_bad_chunked_body_is_refused(data: bytes, status: int) -> None:
    with pytest.raises(Refusal) as caught:
        feed_whole(data)
    assert caught.value.status == status
