"""Whatever bytes come, and however they are split, the meaning is the same and nothing but a refusal is raised."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from prefork.protocols.http1 import Grammar, Refusal

Event = tuple[object, ...]

tokens = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,8}", fullmatch=True).filter(
    lambda name: (
        name.lower()
        not in {
            "host",
            "connection",
            "expect",
            "content-length",
            "content-type",
            "transfer-encoding",
            "proxy",
            "te",
        }
    )
)
values = st.from_regex(r"[!-~]([ -~]{0,20}[!-~])?", fullmatch=True)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A valid request."""
    fields = [f"{name}: {value}" for name, value in draw(st.lists(st.tuples(tokens, values), max_size=5))]
    body = draw(st.none() | st.lists(st.binary(max_size=30), max_size=4))
    content = b""
    if body is not None and draw(st.booleans()):
        content = b"".join(body)
        fields.append(f"Content-Length: {len(content)}")
    elif body is not None:
        content = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in body if piece) + b"0\r\n\r\n"
        fields.append("Transfer-Encoding: chunked")
    path = draw(st.from_regex(r"/[a-z%]{0,5}", fullmatch=True))
    head = "\r\n".join([f"POST {path} HTTP/1.1", "Host: a", *fields, "", ""])
    return head.encode("ascii") + content


def events_of(pieces: list[bytes], grammar: Grammar, *, remembers: bool = True) -> list[Event]:
    """Read as a connection does, which remembers its last fields; return what came of it."""
    events: list[Event] = []
    pending, body, decoded, last = b"", None, b"", None
    try:
        for piece in pieces:
            pending += piece
            while pending:
                if body is None:
                    head = grammar.read_head(pending, last)
                    if head is None:
                        break
                    last = head.block if remembers else None
                    pending = pending[head.size :]
                    events.append(
                        (head.line.method, head.line.target, tuple(head.fields.items()), head.keep_alive)
                    )
                    body = head.body
                if body is not None:
                    more, pending = body.feed(pending)
                    decoded += more
                    if body.is_done:
                        events.append((decoded,))
                        body, decoded = None, b""
    except Refusal:
        events.append(("refused",))
    return events


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(places)]


def limits() -> Grammar:
    return Grammar(1000, 50, 1000, 10000)


@given(st.lists(requests(), min_size=1, max_size=4), st.lists(st.integers(0, 10000), max_size=20))
def test_any_split_of_valid_requests_gives_the_same_requests(stream: list[bytes], cuts: list[int]) -> None:
    data = b"".join(stream)
    whole = events_of([data], limits())
    assert sum(len(event) == 4 for event in whole) == len(stream)
    assert events_of(split(data, cuts), limits()) == whole


LINES = [
    b"GET / HTTP/1.1\r\n",
    b"POST /b HTTP/1.1\r\n",
    b"GET / HTTP/1.0\r\n",
    b"GET http://b/ HTTP/1.1\r\n",
    b"\r\n",
    b"GET\r\n",
    b"",
]
FIELDS = [
    b"Host: a\r\n",
    b"A: b\r\n",
    b"Content-Length: 3\r\n",
    b"Content-Length: 99999\r\n",
    b"Connection: close\r\n",
]


@given(
    st.lists(st.sampled_from(LINES), max_size=8),
    st.lists(st.sampled_from(FIELDS), max_size=3, unique=True),
    st.data(),
)
def test_fields_that_are_found_again_mean_the_same(
    lines: list[bytes], fields: list[bytes], data: st.DataObject
) -> None:
    block = b"".join(fields) + b"\r\n" + (b"abc" if FIELDS[2] in fields else b"")
    stream = b"".join(line + block for line in [LINES[0], *lines])
    pieces = split(stream, data.draw(st.lists(st.integers(0, 1000), max_size=5)))
    grammar = limits()
    assert events_of(pieces, grammar) == events_of(pieces, grammar, remembers=False)


@given(st.lists(requests(), min_size=1, max_size=3), st.data())
def test_any_split_of_damaged_requests_gives_the_same_requests(
    stream: list[bytes], data: st.DataObject
) -> None:
    """A refusal may come before the end of what it refuses, so the requests before it are compared."""
    damaged = bytearray(b"".join(stream))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.sampled_from(
                [b"", b"\r", b"\n", b"\r\n", b"\x00", b" ", b":", b"\t", b"0", b",", b"\xff", b";"]
            )
        )
    whole = events_of([bytes(damaged)], limits())
    pieces = split(bytes(damaged), data.draw(st.lists(st.integers(0, 10000), max_size=20)))
    assert events_of(pieces, limits()) == whole


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_whatever_comes_nothing_but_a_refusal_is_raised(pieces: list[bytes]) -> None:
    events_of(pieces, limits())


@given(requests(), st.binary(max_size=100))
def test_what_follows_a_request_cannot_change_it(request: bytes, rest: bytes) -> None:
    alone = events_of([request], limits())
    assert events_of([request + rest], limits())[: len(alone)] == alone


@given(st.lists(requests(), min_size=2, max_size=5))
def test_what_was_learnt_does_not_change_what_is_read(stream: list[bytes]) -> None:
    shared = limits()
    events_of(stream, shared)
    assert [events_of([request], shared) for request in stream] == [
        events_of([request], limits()) for request in stream
    ]
