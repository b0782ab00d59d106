"""Whatever reads clients' bytes takes no more than about twice the time for twice as many of them.

An expression that tries the same bytes again and again (``[ ]*x?[ ]*;`` over blanks) takes four times as long. So four
times as many bytes may cost eight times as much and a moment, where that one would take sixteen times as long. The best
of several tries is taken, of the thread's own time: a busy machine does not matter.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.config.schema import CLIENT_FIELDS
from prefork.handlers import access
from prefork.handlers.access import Clock, Entry, Ids, RawHead, Server, compile_format
from prefork.protocols import forwarded, http1, proxy
from prefork.protocols.forwarded import Trust
from prefork.protocols.http1 import Chunked, Grammar, Refusal
from prefork.protocols.proxy import ProxyError, read_header

SIZE = 4000
TIMES = 4
MOMENT = 0.003
HUGE = 1 << 22

Reader = Callable[[bytes], object]


def head(form: bytes) -> Reader:
    def read(data: bytes) -> None:
        grammar = Grammar(HUGE, 10000, HUGE, HUGE)
        grammar.read_head(form % data)
        grammar.read_head(form.replace(b"\r\n\r\n", b"") % data)  # its end has not come yet

    return read


def field(name: bytes) -> Reader:
    return head(b"GET / HTTP/1.1\r\nHost: a\r\n" + name + b": %b\r\n\r\n")


def chunks(form: bytes) -> Reader:
    return lambda data: Chunked(HUGE, HUGE).feed(form % data)


def claims(name: str) -> Reader:
    trust = Trust(("0.0.0.0/1", "::/1", "10.0.0.0/8"), CLIENT_FIELDS)
    return lambda data: trust.read({name: data.decode("latin-1")})


def line(text: str) -> Reader:
    """Make a line of the access log, whole and cut."""
    server, clock = Server("web", 1, 1, 1), Clock(0.0, 0.0)
    formats = [compile_format(text, server, clock), compile_format(text, server, clock, 4096)]

    def read(data: bytes) -> None:
        grammar = Grammar(HUGE, 10000, HUGE, HUGE)
        entry = Entry("192.0.2.1", "80")
        value = data.replace(b"\r", b"?").replace(b"\n", b"?")
        entry.head = RawHead(data)
        for make in formats:
            make(entry)
        with suppress(Refusal):
            found = grammar.read_head(
                b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: %b\r\nReferer: %b\r\nAuthorization: Basic %b\r\n"
                b"X-Request-ID: %b\r\n\r\n" % (value, value, value, value)
            )
            assert found is not None
            Ids().identify(found)
            entry.head = found
            for make in formats:
                make(entry)

    return read


READERS: dict[str, Reader] = {
    "request line": head(b"%b / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "target": head(b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n"),
    "absolute target": head(b"GET http://%b HTTP/1.1\r\nHost: a\r\n\r\n"),
    "version": head(b"GET / HTTP/%b\r\nHost: a\r\n\r\n"),
    "blank lines": head(b"\r\n%bGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "fields": head(b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n"),
    "name": head(b"GET / HTTP/1.1\r\nHost: a\r\n%b: a\r\n\r\n"),
    **{
        name: field(name.encode())
        for name in ("Host", "Connection", "Content-Length", "Transfer-Encoding", "Expect", "Cookie")
    },
    "chunk": chunks(b"%b\r\n"),
    "extension": chunks(b"5;%b\r\n"),
    "quoted extension": chunks(b'5;a="%b\r\n'),
    "trailer": chunks(b"0\r\n%b\r\n\r\n"),
    **{
        name: claims("HTTP_" + name.upper().replace("-", "_"))
        for name in (
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-forwarded-host",
            "x-forwarded-prefix",
            "forwarded",
        )
    },
    "PROXY header": lambda data: read_header(b"PROXY " + data),
    "json": line("json"),
    "combined": line("combined"),
    "own format": line('{user} {request} "{header.x-request-id}" {path}?{query}'),
}
# What repeats, and what stands before and behind it.
pieces = st.sampled_from(
    [
        b" ",
        b"\t",
        b";",
        b",",
        b"=",
        b'"',
        b"\\",
        b"/",
        b"%20",
        b"%",
        b":",
        b".",
        b"a",
        b"1",
        b"a=b;",
        b"a=",
        b"a: b\r\n",
        b"1.2.3.4,",
        b"::1,",
        b"for=1.2.3.4,",
        b";a=b ",
        b" ;",
        b"[",
        b"\r\n",
        b"\r",
        b"\n",
        b"\xe4",
        b"\0",
        b"a,",
        b"0",
    ]
) | st.text(' \t;,="\\/%:a1[]', min_size=1, max_size=4).map(str.encode)
ends = st.sampled_from(
    [b"", b"@", b";", b"for=1;", b'"', b"/", b" x", b"a=", b"\0", b";a=b", b"http://", b"Basic ", b"["]
)


def cost(read: Reader, data: bytes) -> float:
    best = float("inf")
    for _ in range(3):
        began = time.thread_time()
        with suppress(Refusal, ProxyError):
            read(data)
        best = min(best, time.thread_time() - began)
    return best


def compare(name: str, start: bytes, piece: bytes, end: bytes) -> None:
    count = SIZE // len(piece)
    small = cost(READERS[name], start + piece * count + end)
    large = cost(READERS[name], start + piece * (count * TIMES) + end)
    assert large <= 2 * TIMES * small + MOMENT, f"{small:.6f} s, then {large:.6f} s"


def possessive(parsed: object) -> Iterator[object]:
    """Yield what an expression repeats without giving anything back."""
    if isinstance(parsed, tuple) and parsed[:1] == (re._constants.POSSESSIVE_REPEAT,):  # type: ignore[attr-defined]
        yield parsed[1][2]
    if isinstance(parsed, tuple | list | re._parser.SubPattern):  # type: ignore[attr-defined]
        for part in parsed:
            yield from possessive(part)


@pytest.mark.parametrize("module", [http1, forwarded, proxy, access])
def test_only_single_characters_are_repeated_possessively(module: ModuleType) -> None:
    """CPython before 3.11.5 matches too much with a group that is (gh-106052, gh-101955)."""
    for found in vars(module).values():
        if isinstance(found, re.Pattern):
            repeated = [str(item) for item in possessive(re._parser.parse(found.pattern))]  # type: ignore[attr-defined]
            assert not [item for item in repeated if "SUBPATTERN" in item or "BRANCH" in item]
            assert all(item.startswith(("[(IN, ", "[(LITERAL")) for item in repeated)


@pytest.mark.parametrize("name", READERS)
@given(ends, pieces, ends)
@settings(max_examples=40)
def test_twice_as_many_bytes_take_about_twice_as_long(
    name: str, start: bytes, piece: bytes, end: bytes
) -> None:
    compare(name, start, piece, end)


@pytest.mark.parametrize(
    ("name", "start", "piece", "end"),
    [
        ("forwarded", b"for=1;", b" ", b"@"),
        ("forwarded", b"for=1;", b"\t", b"@x"),
        ("forwarded", b"", b"a", b"@"),
        ("forwarded", b'for="', b"\\a", b""),
        ("extension", b"a", b" ", b"@"),
        ("extension", b"", b"a;", b"@"),
        ("Host", b"", b"%20", b"@"),
        ("x-forwarded-prefix", b"", b"/a", b"?"),
    ],
)
def test_what_took_long_once(name: str, start: bytes, piece: bytes, end: bytes) -> None:
    compare(name, start, piece, end)
