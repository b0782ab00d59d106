"""Whatever bytes come over a real connection, the worker answers them one by one, and never fails."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefork.log import logger
from prefork.worker import evented
from tests.corpus import BAD_HEADS, GOOD, SMUGGLERS
from tests.unit.worker.serving import Site, read_all

CORPUS = [data for _, data, *_ in [*SMUGGLERS, *BAD_HEADS, *GOOD] if len(data) < 2000]
HEAD = re.compile(rb"HTTP/1\.1 ([0-9]{3}) [^\r\n]*\r\n((?:[A-Za-z-]+: [^\r\n]*\r\n)*)\r\n")
LENGTH = re.compile(rb"Content-Length: ([0-9]+)\r\n")


def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """Answer with what was read, whatever the method was."""
    body = environ["wsgi.input"].read()
    assert len(body) == int(environ.get("CONTENT_LENGTH") or 0)
    start("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % len(body)]


@pytest.fixture(scope="module")
def sites() -> Iterator[list[Site]]:
    old, evented.DRAIN_IDLE = evented.DRAIN_IDLE, 0.05
    with Site(application) as inline, Site(application, threads=2) as threaded:
        yield [inline, threaded]
    evented.DRAIN_IDLE = old


def statuses_of(answers: bytes) -> list[int]:
    """Return the statuses of whole answers; fails if anything else is between them."""
    found = []
    while answers:
        head = HEAD.match(answers)
        assert head is not None, answers
        length = LENGTH.search(head[2])
        found.append(int(head[1]))
        size = int(length[1]) if length is not None else 0
        rest = answers[head.end() :]
        # The answer to HEAD tells a length without a body: what follows says which it was.
        has_body = bool(rest) and not rest.startswith(b"HTTP/1.1 ")
        assert not has_body or len(rest) >= size
        answers = rest[size if has_body else 0 :]
    return found


def converse(site: Site, pieces: Iterable[bytes]) -> list[int]:
    with site.connect() as client:
        try:
            for piece in pieces:
                client.sendall(piece)
            client.shutdown(1)
        except OSError:
            pass  # refused already, and lingered for long enough
        return statuses_of(read_all(client))


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A few requests of the corpus, damaged here and there."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(CORPUS), min_size=1, max_size=4))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 5))] = draw(st.binary(max_size=5))
    return bytes(data)


def check(statuses: list[int]) -> None:
    assert all(status == 200 for status in statuses[:-1])
    assert not statuses or statuses[-1] in {200, 400, 413, 414, 417, 431, 501, 505}


@given(streams(), st.lists(st.integers(0, 5000), max_size=3))
@settings(max_examples=200, suppress_health_check=[*HealthCheck])
def test_whatever_comes_is_answered_or_refused(sites: list[Site], data: bytes, cuts: list[int]) -> None:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    pieces = [data[start:end] for start, end in pairwise(places)]
    logged: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = logged.append  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        found = [converse(site, [data]) for site in sites] + [converse(sites[0], pieces)]
    finally:
        logger.removeHandler(handler)
    assert found[0] == found[1]
    check(found[0])
    # What has not come whole may be refused for less than all that is wrong with it, but it is refused.
    assert [min(status, 400) for status in found[2]] == [min(status, 400) for status in found[0]]
    assert logged == []


@given(st.lists(st.binary(max_size=100), max_size=4))
@settings(max_examples=100, suppress_health_check=[*HealthCheck])
def test_noise_is_answered_or_refused(sites: list[Site], pieces: list[bytes]) -> None:
    for site in sites:
        check(converse(site, pieces))
