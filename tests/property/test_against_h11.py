"""The same bytes given to h11: what both accept means the same, and what h11 finds wrong about framing is refused."""

from __future__ import annotations

from typing import NamedTuple

import h11
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.protocols.http1 import Grammar, Refusal
from tests.corpus import BAD_HEADS, GOOD, SMUGGLERS


class Message(NamedTuple):
    """One request: its method, target, fields in the form of CGI, and decoded body."""

    method: str
    target: str
    fields: dict[str, str]
    body: bytes


class Outcome(NamedTuple):
    """The whole requests in a stream, and whether the rest was refused."""

    messages: list[Message]
    is_refused: bool


def ours(data: bytes) -> Outcome:
    grammar = Grammar(8190, 100, 8190, 2**30)
    found: list[Message] = []
    try:
        # Blank lines before a request, which RFC 9112 2.2 wants to be ignored, are an error for h11.
        while data and data[:2] != b"\r\n" and (head := grammar.read_head(data)) is not None:
            data, content = data[head.size :], b""
            if head.body is not None:
                content, data = head.body.feed(data)
                if not head.body.is_done:
                    break
            found.append(Message(head.line.method, head.line.target, head.fields, content))
            if not head.keep_alive:
                break
    except Refusal:
        return Outcome(found, True)
    return Outcome(found, False)


def theirs(data: bytes) -> Outcome:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=2**20)
    connection.receive_data(data)
    found: list[Message] = []
    try:
        while (message := one_of_theirs(connection)) is not None:
            found.append(message)
            connection.send(h11.Response(status_code=404, headers=[("Content-Length", "0")]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is h11.MUST_CLOSE:
                break
            connection.start_next_cycle()
    except h11.RemoteProtocolError:
        return Outcome(found, True)
    return Outcome(found, False)


def one_of_theirs(connection: h11.Connection) -> Message | None:
    head, content = None, b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            content += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            return Message(head.method.decode(), head.target.decode(), cgi(head.headers), content)
        else:
            return None


def cgi(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for raw, value in headers:
        name = raw.decode().upper().replace("-", "_")
        if b"_" in raw or raw == b"proxy":
            continue
        key = name if name in ("CONTENT_LENGTH", "CONTENT_TYPE") else f"HTTP_{name}"
        separator = "; " if key == "HTTP_COOKIE" else ","
        text = value.decode("latin-1")
        fields[key] = fields[key] + separator + text if key in fields else text
    return fields


def compare(data: bytes) -> None:
    """What both accept means the same; where one of them has stopped, the other may have gone on."""
    mine, other = ours(data), theirs(data)
    for one, two in zip(mine.messages, other.messages, strict=False):
        assert (one.method, one.body) == (two.method, two.body)
        assert one.target == two.target
        # An absolute target overrules Host here; h11 leaves that to its user. It makes small letters of "chunked".
        left, right = ({**fields, "HTTP_HOST": ""} for fields in (one.fields, two.fields))
        for fields in (left, right):
            if "HTTP_TRANSFER_ENCODING" in fields:
                fields["HTTP_TRANSFER_ENCODING"] = fields["HTTP_TRANSFER_ENCODING"].lower()
        assert left == right
    if other.is_refused:
        assert len(mine.messages) <= len(other.messages)


names = st.sampled_from(
    [
        b"Content-Length",
        b"Transfer-Encoding",
        b"content-length",
        b"X",
        b"Host",
        b"Connection",
        b"Accept",
        b"Cookie",
    ]
)
values = st.sampled_from(
    [
        b"5",
        b"0",
        b"5, 5",
        b"+5",
        b"05",
        b"",
        b"chunked",
        b"Chunked",
        b"gzip",
        b"gzip, chunked",
        b"close",
        b"a",
        b"\xe4",
    ]
)
blanks = st.sampled_from([b"", b" ", b"\t", b" \t ", b"\x0b", b"\r\n "])
bodies = st.sampled_from(
    [
        b"",
        b"hello",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"0\r\n\r\n",
        b"00\r\n\r\n",
    ]
)
lines = st.sampled_from(
    [b"POST / HTTP/1.1", b"GET /a?b HTTP/1.1", b"PUT /%20 HTTP/1.0", b"GET http://a/ HTTP/1.1"]
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request whose framing may be anything."""
    fields = [
        draw(names)
        + draw(st.sampled_from([b":", b": ", b" :", b":\t"]))
        + draw(blanks)
        + draw(values)
        + draw(blanks)
        for _ in range(draw(st.integers(0, 3)))
    ]
    return b"\r\n".join([draw(lines), b"Host: a", *fields, b"", draw(bodies)])


@given(st.lists(requests(), min_size=1, max_size=3))
@settings(max_examples=300)
def test_framings_mean_the_same(stream: list[bytes]) -> None:
    compare(b"".join(stream))


@given(st.lists(requests(), min_size=1, max_size=2), st.data())
@settings(max_examples=200)
def test_damaged_requests_mean_the_same(stream: list[bytes], data: st.DataObject) -> None:
    damaged = bytearray(b"".join(stream))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        piece = data.draw(
            st.sampled_from([b"", b"\r", b"\n", b"\r\n", b"\0", b" ", b":", b"\t", b"0", b",", b"\xff"])
        )
        damaged[at : at + data.draw(st.integers(0, 2))] = piece
    compare(bytes(damaged))


def test_the_corpus_means_the_same() -> None:
    for _, data, *_ in [*SMUGGLERS, *BAD_HEADS, *GOOD]:
        compare(data)
