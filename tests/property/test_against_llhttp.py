"""The same bytes given to llhttp: what is accepted here, llhttp accepts too, and both read the same fields.

llhttp knows its methods by name and no later minor version, so those are told apart before. Where it is laxer (line ends,
Host, codings) nothing is compared: the corpus and h11 stand for that.
"""

from __future__ import annotations

import re
from contextlib import suppress

import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefork.protocols.http1 import Chunked, Grammar, Head, Refusal
from tests.corpus import BAD_HEADS, GOOD, SMUGGLERS

Field = tuple[bytes, bytes]


class Heard:
    """What llhttp calls."""

    def __init__(self) -> None:
        self.target = b""
        self.fields: list[Field] = []

    def on_url(self, target: bytes) -> None:
        self.target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))


def theirs(data: bytes) -> Heard:
    heard = Heard()
    with suppress(httptools.HttpParserUpgrade):  # a server may ignore Upgrade (RFC 9110 7.8)
        httptools.HttpRequestParser(heard).feed_data(data)
    return heard


def ours(data: bytes) -> Head | None:
    """Read thrice, as a table might answer otherwise than the parser does."""
    grammar, found = Grammar(8190, 100, 8190, 2**30), []
    for _ in range(3):
        try:
            found.append(grammar.read_head(data))
        except Refusal:
            found.append(None)
    kinds = {head and (head.size, head.line.target, tuple(head.fields.items())) for head in found}
    assert len(kinds) == 1
    return found[0]


def cgi(fields: list[Field]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in fields:
        if b"_" in name or name.lower() == b"proxy":
            continue
        key = name.decode().upper().replace("-", "_")
        key = key if key in ("CONTENT_LENGTH", "CONTENT_TYPE") else f"HTTP_{key}"
        separator = "; " if key == "HTTP_COOKIE" else ","
        text = value.decode("latin-1")
        found[key] = f"{found[key]}{separator}{text}" if key in found else text
    return found


def compare(data: bytes) -> None:
    head = ours(data)
    if head is None:
        return
    start = len(data) - len(data.lstrip(b"\r\n"))
    first, _, rest = data[start : head.size].partition(b"\r\n")
    rest = re.sub(rb"[ \t]+\r\n", b"\r\n", rest)  # blanks behind a value: llhttp leaves them to its user
    # A method and a minor version that llhttp knows: both are judged by a rule of one line here.
    method = b"OPTIONS" if head.line.target == "*" else b"POST"
    heard = theirs(b"%b %b HTTP/1.%d\r\n%b" % (method, first.split(b" ")[1], head.line.is_1_1, rest))
    assert heard.target.decode() == head.line.target
    expected = cgi(heard.fields)
    if head.line.authority is not None:
        expected["HTTP_HOST"] = head.line.authority
    assert head.fields == expected
    assert ("HTTP_TRANSFER_ENCODING" in expected) is isinstance(head.body, Chunked)


names = st.sampled_from(
    [
        b"Host",
        b"Content-Length",
        b"Transfer-Encoding",
        b"Connection",
        b"Upgrade",
        b"Accept",
        b"Cookie",
        b"X-A",
        b"x_a",
    ]
) | st.binary(max_size=6)
colons = st.sampled_from([b":", b": ", b":  ", b":\t", b" :", b"", b": :", b":\xa0"])
values = (
    st.sampled_from(
        [b"", b"a", b"5", b"0", b"chunked", b"close", b"a b: c", b"websocket", b"upgrade", b"\xe4\x85"]
    )
    | st.binary(max_size=12)
    | st.text("ab:; \t\r\n", max_size=6).map(str.encode)
)
ends = st.sampled_from(
    [b"\r\n"] * 12 + [b" \r\n", b"\t\r\n", b"\n", b"\r", b"\r\r\n", b"\r\n ", b"", b"\0\r\n"]
)
methods = st.sampled_from([b"GET", b"POST", b"OPTIONS", b"LIST", b"get", b"PRI", b"G[T", b""])
targets = (
    st.sampled_from(
        [b"/", b"/a?b", b"*", b"http://a/b", b"http://[::1]:80", b"a:80", b"//", b"/a#b", b"http://a@b/"]
    )
    | st.binary(max_size=8).map(lambda end: b"/" + end)
    | st.binary(max_size=8).map(lambda end: b"http://" + end)
)
versions = st.sampled_from(
    [b" HTTP/1.1"] * 6 + [b" HTTP/1.0", b" HTTP/1.2", b" HTTP/2.0", b"", b" http/1.1", b"  HTTP/1.1"]
)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    first = draw(methods) + b" " + draw(targets) + draw(versions) + draw(ends)
    lines = [draw(names) + draw(colons) + draw(values) + draw(ends) for _ in range(draw(st.integers(0, 4)))]
    return b"".join([first, b"Host: a\r\n", *lines, b"\r\n"])


@given(heads())
@settings(max_examples=1000)
@example(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n")
def test_what_is_accepted_llhttp_accepts_too(data: bytes) -> None:
    compare(data)


@given(heads(), st.data())
@settings(max_examples=500)
def test_a_damaged_head_that_is_accepted_llhttp_accepts_too(data: bytes, more: st.DataObject) -> None:
    damaged = bytearray(data)
    for _ in range(more.draw(st.integers(1, 3))):
        at = more.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + more.draw(st.integers(0, 2))] = more.draw(st.binary(max_size=2))
    compare(bytes(damaged))


@pytest.mark.parametrize("data", [data for _, data, *_ in [*SMUGGLERS, *BAD_HEADS, *GOOD]])
def test_the_corpus_means_the_same(data: bytes) -> None:
    compare(data)


@pytest.mark.parametrize("byte", range(256))
def test_each_byte_is_judged_alike_wherever_it_stands(byte: int) -> None:
    found = bytes([byte])
    for form in (
        b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX%bY: z\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n%bX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX%b: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX:%by\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: y%bz\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: y%b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n%b\r\n\r\n",
        b"GET / HTTP/1.1%b\r\nHost: a\r\n\r\n",
    ):
        compare(form % found)
